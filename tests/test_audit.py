"""The audit: every row one outcome, every distinct window scored once, no text left behind."""

import json
from collections import Counter
from dataclasses import replace
from datetime import datetime

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_run import audit_rows
from support.fakes import RecitingEngine, make_classifier, make_models, make_rows

import memaudit
from memaudit.audit import audit_corpus
from memaudit.corpus import Example
from memaudit.errors import CorpusError, ModelError, UsageError
from memaudit.features import FEATURE_SETS
from memaudit.progress import tell
from memaudit.reports.predict import notes
from memaudit.runs.options import AuditOptions
from memaudit.windows import WindowShape

SHAPE = WindowShape(4, 4)
OPTIONS = AuditOptions(shape=SHAPE, table_format="jsonl")


def audit(*texts, known=(), out=None, progress=None, role=None, **changes):
    """Audit texts with an engine that knows some by heart; return the result and the engine."""
    models = make_models(*known, role=role)
    options = AuditOptions(**({"shape": SHAPE, "table_format": "jsonl"} | changes))
    result = audit_rows(
        make_rows(*texts), models, make_classifier(), out=out, options=options, progress=progress
    )
    return result, models.score.args[0]


def read_table(folder):
    """The rows of a jsonl risk table."""
    return [json.loads(line) for line in (folder / "risk.jsonl").read_text().splitlines()]


def test_a_recited_example_is_flagged_and_another_is_not(tmp_path):
    """The whole point: what the teacher knows by heart stands out, with its reason."""
    result, _ = audit("recited!", "unknown!", known=["recited!"], out=tmp_path)

    recited, unknown = read_table(tmp_path)
    assert (recited["flagged"], unknown["flagged"]) == (True, False)
    assert recited["probability"] > 0.99
    assert unknown["probability"] < 0.01
    assert "teacher recites it" in recited["reason"]
    assert result.flagged == 1
    assert [example.row for example in result.worst] == [0, 1]


def test_equal_windows_are_scored_once_and_counted(tmp_path):
    """Duplicates are the commonest cause of memorization, and need no second pass."""
    result, engine = audit("same text", "same text", "other one", "same text", out=tmp_path)

    assert sorted(engine.scored) == sorted([tuple(b"same tex"), tuple(b"other on")])
    assert [row["occurrences"] for row in read_table(tmp_path)] == [3, 3, 1, 3]
    assert (result.windows, result.distinct_windows) == (4, 2)


def test_the_worst_list_names_equal_windows_once():
    """Sixteen copies of one text would hide the second-worst."""
    result, _ = audit("recited!", "recited!", "unknown!", known=["recited!"])

    assert [(example.row, example.occurrences) for example in result.worst] == [(0, 2), (2, 1)]


def test_a_tiled_example_is_as_risky_as_its_worst_window(tmp_path):
    """One window that leaks is a leak, wherever it stands; ties go to the first."""
    result, _ = audit("unknown!recited!", known=["recited!"], out=tmp_path, windows="tile")

    (row,) = read_table(tmp_path)
    assert row["flagged"]
    assert row["teacher_suffix_argmax_rate"] == 1.0
    assert (result.windows, result.rows) == (2, 1)


def test_only_the_first_window_counts_by_default():
    """The paper's definition looks at the start of an example."""
    result, engine = audit("unknown!recited!", known=["recited!"])

    assert result.flagged == 0
    assert engine.scored == [tuple(b"unknown!")]


def answered(*pairs):
    """Rows of a question and an answer, each."""
    return [
        Example(i, f"id{i}", f"c:{i + 1}", q + a, ((len(q), len(q + a)),))
        for i, (q, a) in enumerate(pairs)
    ]


def audit_answers(rows, folder, *known, **changes):
    """Audit rows with answers; return the result, the engine and the table."""
    models = make_models(*known)
    options = AuditOptions(shape=SHAPE, table_format="jsonl", min_suffix_len=2, **changes)
    result = audit_rows(rows, models, make_classifier(), out=folder, options=options)
    return result, models.score.args[0], read_table(folder)


def test_a_row_is_judged_by_its_answer(tmp_path):
    """A system prompt that the teacher recites says nothing about what the student learns."""
    rows = answered(("recited! question? ", "unknown answer"), ("recited! other one? ", "secret"))

    result, engine, (first, second) = audit_answers(rows, tmp_path, "ne? secr")

    assert engine.scored == [tuple(b"on? unkn"), tuple(b"ne? secr")]
    assert (first["flagged"], second["flagged"]) == (False, True)
    assert [row["suffix_tokens"] for row in (first, second)] == [4.0, 4.0]
    assert result.policy == "answers"
    found = result.document()["answers"]
    assert (found["windows"], found["all_windows"], found["unseen_rows"]) == (2, 2, 0)


def test_short_answers_are_scored_as_they_are(tmp_path):
    """Most answers are shorter than fifty tokens, and no less someone's."""
    rows = answered(("question? ", "yes"), ("q", "no!"), ("question? ", "a"))

    result, engine, table = audit_answers(rows, tmp_path)

    assert engine.scored == [tuple(b"on? yes"), tuple(b"qno!")]
    assert [row["suffix_tokens"] for row in table] == [3.0, 3.0, None]
    assert (table[2]["outcome"], table[2]["reason"]) == (
        "too_short",
        "1 tokens in the longest answer, a window needs 2",
    )
    assert result.answers.unseen_rows == 1


def test_of_several_answers_all_or_the_last_are_scored(tmp_path):
    """Some trainers learn the last turn alone."""
    row = Example(0, "id", "c:1", "ask1ans1ask2ans2", ((4, 8), (12, 16)))

    for turns, expected in (("all", [b"ask1ans1", b"ask2ans2"]), ("last", [b"ask2ans2"])):
        _, engine, _ = audit_answers([row], tmp_path / turns, turns=turns)
        assert engine.scored == [tuple(each) for each in expected]


def test_tiles_of_a_row_with_answers_lie_in_the_answers(tmp_path):
    """What is not trained on cannot be memorized from this training."""
    rows = answered(("a very long question? ", "an answer!"))

    _, engine, _ = audit_answers(rows, tmp_path, windows="tile")

    assert engine.scored == [tuple(b"on? an a"), tuple(b"an answe"), tuple(b"nswer!")]


def test_windows_at_the_start_tell_how_many_answers_they_miss(tmp_path):
    """Whoever asks for the start of rows must see that no answer was read."""
    rows = answered(("a very long question? ", "an answer!"), ("short", "answer"))

    result, _, table = audit_answers(rows, tmp_path, windows="first")

    assert (result.answers.windows, result.answers.unseen_rows) == (1, 1)
    assert [row["suffix_tokens"] for row in table] == [4.0, 4.0]


def test_tokens_that_are_given_are_not_cut_anew(tmp_path):
    """A corpus that is tokenised is trained on as it is."""
    row = Example(0, "id", "c:1", "7 8 9 1 2", ((2, 5),), (7, 8, 9, 1, 2))

    _, engine, _ = audit_answers([row], tmp_path)

    assert engine.scored == [(7, 8, 9, 1, 2)]


def test_short_and_bad_rows_are_kept_with_a_reason(tmp_path):
    """Nothing may fall out of the table silently."""
    result, _ = audit("short", None, "long enough", out=tmp_path)

    short, bad, scored = read_table(tmp_path)
    assert (short["outcome"], short["reason"]) == ("too_short", "5 tokens, a window needs 8")
    assert (bad["outcome"], bad["reason"]) == ("bad", "line 2: invalid JSON")
    assert scored["outcome"] == "scored"
    for row in (short, bad):
        assert row["probability"] is None
        assert row["flagged"] is False
        assert row["zlib_entropy"] is None
    assert (result.rows, result.scored, result.too_short, result.bad) == (3, 1, 1, 1)


texts = st.one_of(st.none(), st.text("ab", max_size=20), st.just("recited!"))


@settings(max_examples=40)
@given(rows=st.lists(texts, max_size=30), policy=st.sampled_from(["first", "tile"]))
def test_outcomes_add_up_whatever_the_corpus(rows, policy):
    """Every row has exactly one outcome, and occurrences add up to the windows."""
    rows.append("at least one row that can be scored")
    result, engine = audit(*rows, known=["recited!"], windows=policy)

    expected = Counter(
        "bad" if text is None else "scored" if len(text) >= SHAPE.length else "too_short"
        for text in rows
    )
    assert result.outcomes == expected
    assert result.rows == len(rows)
    assert len(engine.scored) == len(set(engine.scored)) == result.distinct_windows
    assert 0 <= result.flagged <= result.scored
    assert result.expected.low <= result.expected.mean <= result.expected.high <= result.scored


@given(chunk_size=st.integers(1, 12))
def test_the_size_of_a_chunk_changes_nothing(chunk_size):
    """Chunks are about memory alone."""
    rows = ["recited!", "one more text", "recited!", "another text", "a third text"]
    result, _ = audit(*rows, known=["recited!"], windows="tile", chunk_size=chunk_size)
    reference, _ = audit(*rows, known=["recited!"], windows="tile")

    assert result.worst == reference.worst
    assert result.expected == reference.expected


def test_the_expected_number_is_the_sum_over_rows():
    """Equal examples are memorized together, so each of them counts."""
    result, _ = audit("recited!", "recited!", "unknown!", known=["recited!"])

    recited, unknown = (example.probability for example in result.worst)
    assert result.expected.mean == pytest.approx(2 * recited + unknown)
    assert result.expected_distinct.mean == pytest.approx(recited + unknown)


@pytest.mark.parametrize("role", ["student", "baseline"])
def test_a_reference_adds_its_features(tmp_path, role):
    """A second model is worth its cost only if its numbers reach the table."""
    result, _ = audit("recited!", known=["recited!"], out=tmp_path, role=role)

    (row,) = read_table(tmp_path)
    assert set(FEATURE_SETS[f"teacher+{role}"]) <= set(row)
    assert result.names.feature_set == f"teacher+{role}"


def test_windows_that_no_teacher_could_flag_are_counted_and_told():
    """A user can leave them out at no loss, and must know that."""
    classifier = msgspec.structs.replace(make_classifier(), intercept=-6.5)
    models = make_models("over and")
    rows = make_rows(*["over and over"] * 200, "once only", "another one")

    result = audit_rows(rows, models, classifier, options=OPTIONS)

    assert result.finished.risks.n_out_of_reach == 2
    assert result.flagged == 200
    told = " ".join(notes(result))
    assert "2 distinct windows (66.7%) could not have been flagged" in told
    screened = audit_rows(rows, models, classifier, options=replace(OPTIONS, survival=1.0))
    assert (screened.flagged, screened.screened_windows) == (200, 2)


def test_features_beyond_the_training_range_are_reported():
    """A classifier that extrapolates must say so."""
    result, _ = audit(*["over and over"] * 30, "once only")

    assert result.out_of_range == {
        "log_occurrences": pytest.approx(30 / 31),
        "teacher_suffix_mean_logprob": 0,
    }
    assert list(result.unfamiliar) == ["log_occurrences"]


def test_a_corpus_that_cannot_be_scored_is_an_error():
    """No row scored is no reason to report that nothing is at risk."""
    with pytest.raises(CorpusError, match="1 is shorter than a window of 8 tokens, 1 is bad"):
        audit("short", None)


def test_a_corpus_without_answers_is_told_that_it_has_none(tmp_path):
    """No shorter window helps conversations in which nobody answers."""
    with pytest.raises(CorpusError, match="1 has no answer of 2 tokens, 0 are bad") as caught:
        audit_answers([Example(0, "id", "c:1", "a question of somebody", ())], tmp_path)
    assert "--windows first" in caught.value.hint


def test_a_score_that_is_not_a_number_is_an_error(tmp_path):
    """A broken model must not look like a safe corpus."""
    models = make_models(broken=[tuple(b"breaking")])

    with pytest.raises(ModelError, match="feature teacher_perplexity is not a finite number in 1"):
        audit_rows(make_rows("breaking"), models, make_classifier(), out=tmp_path, options=OPTIONS)

    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_last_table_as_it_was(tmp_path):
    """Another corpus in the same folder is refused, and touches nothing there."""
    audit("recited!", known=["recited!"], out=tmp_path)
    before = _contents(tmp_path)

    with pytest.raises(UsageError, match="holds another run"):
        audit_rows(
            make_rows("breaking"), make_models(), make_classifier(), out=tmp_path, options=OPTIONS
        )

    assert _contents(tmp_path) == before


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_text_comes_out_only_when_asked_for(tmp_path):
    """The text is what we audit: it must not leak through our own files."""
    result, _ = audit("a secret text", out=tmp_path)
    assert result.worst[0].text is None
    for path, content in _contents(tmp_path).items():
        assert b"secret" not in content
        assert path.stat().st_mode & 0o777 == 0o600

    result, _ = audit("a secret text", out=tmp_path, show_text=5)
    assert result.worst[0].text == "a sec"
    assert "a sec" in (tmp_path / "summary.json").read_text()


def test_the_summary_on_disk_is_the_document(tmp_path):
    """`--json` and summary.json must never tell two stories."""
    result, _ = audit("recited!", "short", None, known=["recited!"], out=tmp_path)

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert datetime.fromisoformat(summary.pop("date")).tzinfo is not None
    assert summary == result.document()
    assert result.document()["schema_version"] == 1
    assert result.document()["table"] == str(tmp_path / "risk.jsonl")


def test_progress_reaches_the_end_of_both_stages():
    """Whoever watches sees rows counted and windows finished."""
    seen = []
    audit(*(f"text number {i:03}" for i in range(600)), windows="tile", progress=seen.append)

    read, scored = [[p for p in seen if p.stage == stage] for stage in ("read", "score")]
    assert read[-1].done == 600
    assert scored[-1].done == scored[-1].total
    assert [p.done for p in scored] == sorted(p.done for p in scored)


def test_progress_moves_within_a_chunk(monkeypatch):
    """A small corpus is one chunk: a bar that stays at nothing until the end looks like a hang."""
    seen, score = [], RecitingEngine.score

    def score_in_batches(engine, windows):
        for _ in range(2 * len(windows)):  # as if two models looked at each window
            tell("score", 1)
        return score(engine, windows)

    monkeypatch.setattr(RecitingEngine, "score", score_in_batches)
    audit("recited!", "unknown!", "another!", progress=seen.append)

    scored = [p.done for p in seen if p.stage == "score"]
    assert scored == [0, 1, 2, 2, 2, 2, 2, 3]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    """From Python, an audit is a function."""
    monkeypatch.chdir(tmp_path)
    result, _ = audit("recited!")

    assert result.table_path is None
    assert list(tmp_path.iterdir()) == []


def test_a_student_and_a_baseline_together_are_refused():
    """There is one reference."""
    with pytest.raises(UsageError, match="both a student and a baseline"):
        audit_corpus("teacher", "corpus.jsonl", student="a", baseline="b")


@pytest.mark.parametrize("field", ["chunk_size", "n_worst", "show_text"])
def test_negative_options_are_refused(field):
    """They would fail late and obscurely."""
    with pytest.raises(ValueError, match="must be at least"):
        AuditOptions(**{field: -1})


def test_the_public_names_are_all_there():
    """What `import memaudit` promises, it has; nothing else."""
    assert sorted(memaudit.__all__) == memaudit.__all__
    assert all(getattr(memaudit, name) for name in memaudit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'audit_corpsu'"):
        memaudit.audit_corpsu  # noqa: B018


def test_the_engine_of_the_tests_answers_as_on_paper():
    """A window known by heart has log-probability 0; any other ln(1/256) a token."""
    known, other = RecitingEngine((1, 2, 3)).score(
        [np.array([1, 2, 3], np.int32), np.array([1, 2, 4], np.int32)]
    )

    assert known.teacher.logprobs.tolist() == [0, 0]
    assert other.teacher.logprobs == pytest.approx([-np.log(256)] * 2)
