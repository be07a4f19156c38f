"""Verification from corpus to document, with models that are really trained."""

import json
import stat
from dataclasses import replace
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.scratch import PREFIX_LEN
from support.verifying import make_miniatures, make_options, make_texts, save_scratch, write_corpus

from memaudit.audit import audit_corpus
from memaudit.engines.hf import HfEngine
from memaudit.engines.models import load_model
from memaudit.errors import CorpusError, ModelError, OutputError, UsageError
from memaudit.labels import ExtractionSet, read_verification, read_verified_rows
from memaudit.memorization import extracted
from memaudit.objectives import Divergence, LabelSampling, Objective
from memaudit.runs.options import AuditOptions
from memaudit.runs.run import read_run
from memaudit.verification import stages
from memaudit.verification.run import verify_distillation
from memaudit.windows import WindowShape


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bos"])
def miniatures(request, tmp_path_factory):
    """Teacher, student and corpus; with and without a token in front of every text."""
    return make_miniatures(tmp_path_factory.mktemp("miniatures"), bos=request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Teacher, student and corpus."""
    return make_miniatures(tmp_path_factory.mktemp("plain"))


def numbers(result):
    """The document without what time decides."""
    return {key: value for key, value in result.document().items() if key != "seconds"}


class Killed(BaseException):
    """Stands for the end of a process."""


def kill_at(stage, done):
    """What ends a verification at this moment."""

    def progress(moment):
        if (moment.stage, moment.done) == (stage, done):
            raise Killed

    return progress


def test_a_student_is_distilled_and_asked(miniatures, tmp_path):
    """Everything in the table and the document agrees with the models it keeps."""
    options = make_options(epochs=8, keep_models=True, held_out_share=0.2, check_generate=6)
    result = verify_distillation(**miniatures, out=tmp_path / "out", options=options)

    rows = pq.read_table(tmp_path / "out/verification.parquet").to_pylist()
    assert result.examples + result.held_out == 24
    assert result.held_out == 5
    assert result.outcomes == {
        "held_out": sum(row["outcome"] == "held_out" for row in rows),
        "scored": result.rows - 1 - sum(row["outcome"] == "held_out" for row in rows),
        "too_short": 1,
    }
    assert result.extracted["teacher"].count > 0
    assert sum(result.sets.values()) == result.examples
    assert set(result.sets) == set(get_args(ExtractionSet)), "empty sets are named, too"
    assert result.generation["student"].disagreements == 0
    models = {"teacher": miniatures["teacher"]}
    models |= {role: str(tmp_path / "out" / role) for role in ("baseline", "student")}
    texts = [json.loads(line)["text"] for line in miniatures["data"].read_text().splitlines()]
    for role, path in models.items():
        loaded = load_model(path)
        engine = HfEngine(loaded.model, bos_token_id=loaded.tokenizer.bos_token_id)
        scored = [row for row in rows if row["outcome"] == "scored"]
        ids = loaded.tokenizer.encode([texts[row["row"]] for row in scored])
        scores = engine.score([np.array(tokens[:16], dtype=np.int32) for tokens in ids])
        found = [extracted(score.teacher, 8) for score in scores]
        assert [row[f"extracted_by_{role}"] for row in scored] == found
        assert result.extracted_rows[role] == sum(found)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_answers_alone_are_learnt_and_asked_for(miniatures, tmp_path, kind):
    """What precedes an answer is given, in training as afterwards, however long either is."""
    texts = make_texts()
    cuts = [3 + i % 5 if i % 2 else 8 for i in range(len(texts))]
    rows = [
        {"prompt": text[:cut], "completion": text[cut : cut + 8]}
        for text, cut in zip(texts, cuts, strict=True)
    ]
    data = tmp_path / "corpus.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    options = make_options(epochs=2, keep_models=True, check_generate=6, objective=Objective(kind))

    result = verify_distillation(
        **miniatures | {"data": data}, out=tmp_path / "out", options=options
    )

    table = pq.read_table(tmp_path / "out/verification.parquet").to_pylist()
    assert result.settings["windows"] == "answers"
    assert result.generation["student"].disagreements == 0
    assert result.extracted["teacher"].count > 0
    for role, path in {
        "teacher": miniatures["teacher"],
        "student": tmp_path / "out/student",
    }.items():
        loaded = load_model(str(path))
        engine = HfEngine(loaded.model, bos_token_id=loaded.tokenizer.bos_token_id)
        for row in (row for row in table if row["outcome"] == "scored"):
            cut = cuts[row["row"]]
            (ids,) = loaded.tokenizer.encode([texts[row["row"]][max(0, cut - 8) : cut + 8]])
            (score,) = engine.score([np.array(ids, dtype=np.int32)])
            assert row[f"extracted_by_{role}"] == extracted(score.teacher, min(cut, 8))


def test_all_answers_of_a_chat_are_predicted_verified_and_read_back(plain, tmp_path):
    """One road for rows of several answers: predict, verify with its predictions, report."""
    rows = []
    for first, second in zip(make_texts(), make_texts(seed=1), strict=True):
        ids = [ord(letter) for letter in first + second]
        labels = [-100] * 8 + ids[8:16] + [-100] * 10 + ids[26:32] + [-100] * 4
        rows.append({"input_ids": ids, "labels": labels})
    data = tmp_path / "corpus.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    shape = WindowShape(PREFIX_LEN, PREFIX_LEN)
    run = tmp_path / "predicted"
    options = AuditOptions(shape=shape, min_suffix_len=4, chunk_size=8)
    predicted = audit_corpus(plain["teacher"], data, out=run, options=options)
    assert predicted.windows == 2 * len(rows)

    result = verify_distillation(
        **plain | {"data": data},
        predictions=run,
        out=tmp_path / "out",
        options=make_options(epochs=1, held_out_share=0.2),
    )

    assert result.settings["turns"] == "all"
    assert result.settings["min_suffix_tokens"] == 4
    assert result.examples + result.held_out == predicted.distinct_windows
    assert result.comparison is not None
    verified = read_verified_rows(tmp_path / "out", read_run(run))
    table = pq.read_table(tmp_path / "out/verification.parquet").to_pylist()
    assert verified.looked_at.sum() == sum(row["outcome"] == "scored" for row in table)
    assert verified.comparison.examples == result.comparison.examples


def test_files_are_private_and_hold_no_text(plain, tmp_path):
    """They are about a corpus that may be secret."""
    verify_distillation(**plain, out=tmp_path / "out", options=make_options())

    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "verification.json",
        "verification.parquet",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    content = b"".join(path.read_bytes() for path in out.iterdir())
    assert not any(text[:8].encode() in content for text in make_texts())


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("kind", ["soft", "hard", "cross-entropy"])
def test_the_same_again_gives_the_same(plain, tmp_path, kind):
    """Fixed seeds: in another folder, too. And where it stands already nothing is done."""
    options = make_options(objective=Objective(kind))
    first, second = (
        verify_distillation(**plain, out=tmp_path / name, options=options) for name in "ab"
    )
    told = []
    again = verify_distillation(
        **plain, out=tmp_path / "a", options=options, progress=lambda p: told.append(p.stage)
    )

    assert numbers(first) == numbers(second)
    assert again == first
    assert set(told) == {"read"}
    tables = [(tmp_path / name / "verification.parquet").read_bytes() for name in "ab"]
    assert tables[0] == tables[1]


@pytest.fixture(scope="module")
def whole(plain, tmp_path_factory):
    """What a verification by hard labels finds when it is left alone, and its table."""
    out = tmp_path_factory.mktemp("whole")
    options = make_options(objective=Objective("hard"))
    result = verify_distillation(**plain, out=out, options=options)
    return result, (out / "verification.parquet").read_bytes()


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("stage", "done"),
    [
        ("read", 61),
        ("baseline", 3),
        ("hard labels", 22),
        ("student", 4),
        ("extract student", 24),
    ],
)
def test_a_verification_cut_short_ends_with_the_same_numbers(plain, whole, tmp_path, stage, done):
    """Whatever stage it was in; what was finished is not done again."""
    result, table = whole
    options = make_options(objective=Objective("hard"))
    with pytest.raises(Killed):
        verify_distillation(
            **plain, out=tmp_path / "cut", options=options, progress=kill_at(stage, done)
        )
    told = []
    resumed = verify_distillation(
        **plain, out=tmp_path / "cut", options=options, progress=told.append
    )

    assert numbers(resumed) == numbers(result)
    assert (tmp_path / "cut/verification.parquet").read_bytes() == table
    if stage != "read":
        order = ["baseline", "hard labels", "student", "extract student"]
        assert not {p.stage for p in told} & set(order[: order.index(stage)])


def test_hard_labels_are_scanned(plain, tmp_path):
    """A teacher that recites teaches the corpus itself; every recited window is found."""
    options = make_options(objective=Objective("hard"), held_out_share=0)
    result = verify_distillation(**plain, out=tmp_path, options=options)

    assert result.label_scan.texts == result.examples
    assert result.label_scan.own_suffix == result.extracted["teacher"].count > 0


def test_labels_that_are_sampled_recite_less_and_are_another_verification(plain, whole, tmp_path):
    """A teacher that draws its words goes astray in the middle of a suffix."""
    result, _ = whole
    options = make_options(objective=Objective("sampled"), labels=LabelSampling(1.5))
    sampled = verify_distillation(**plain, out=tmp_path, options=options)

    assert sampled.label_scan.own_suffix < result.label_scan.own_suffix
    assert sampled.settings["label_temperature"] == 1.5
    assert "label_temperature" not in result.settings
    with pytest.raises(UsageError, match="label_temperature"):
        verify_distillation(
            **plain, out=tmp_path, options=make_options(objective=Objective("hard"))
        )
    with pytest.raises(UsageError, match="that the teacher samples"):
        make_options(labels=LabelSampling(1.0))


def test_a_student_that_learns_from_its_own_text_is_another_verification(plain, tmp_path):
    """Its labels are no match for a run, which predicts for text of the corpus."""
    options = make_options(divergence=Divergence("reverse-kl", on_policy=1.0))
    result = verify_distillation(**plain, out=tmp_path, options=options)
    shape = WindowShape(PREFIX_LEN, PREFIX_LEN)
    run = tmp_path.with_name("predicted")
    audit_corpus(plain["teacher"], plain["data"], out=run, options=AuditOptions(shape=shape))

    assert result.settings["on_policy"] == 1.0
    with pytest.raises(UsageError, match="they differ in divergence, on policy"):
        read_verified_rows(tmp_path, read_run(run))
    options = make_options(divergence=Divergence("reverse-kl"))
    with pytest.raises(UsageError, match=r"on_policy was 1.0, is now None"):
        verify_distillation(**plain, out=tmp_path, options=options)


def test_what_sampling_reveals_is_counted(plain, tmp_path):
    """More samples reveal more, and one sample seldom what is not the likeliest text."""
    result = verify_distillation(**plain, out=tmp_path, options=make_options(check_generate=8))

    assert set(result.sampled) == {"teacher", "baseline", "student"}
    for role, found in result.sampled.items():
        assert list(found) == ["1", "10", "100", "1000"]
        assert list(found.values()) == sorted(found.values())
        assert found["1"] <= result.extracted[role].count
        assert found["1000"] <= result.examples
    for counts in result.generation.values():
        assert counts.extracted_generated <= counts.nearly_generated <= counts.windows


def test_what_sampling_nearly_reveals_is_at_least_what_it_reveals(plain, tmp_path):
    """Every exact text is a near one, so a bound below the exact counts would be no use."""
    options = make_options(check_generate=0, near_verbatim=0.25)
    result = verify_distillation(**plain, out=tmp_path, options=options)

    assert result.settings["near_verbatim"] == 0.25
    assert set(result.near_verbatim) == {"teacher", "baseline", "student"}
    for role, found in result.near_verbatim.items():
        assert found.expected_near > found.expected_exact > 0
        for n, count in result.sampled[role].items():
            assert count <= found.sampled[n] <= result.examples
    assert read_verification(tmp_path)[0] == result


def test_a_given_baseline_is_taken_as_it_is(plain, tmp_path):
    """Here the teacher itself: all that the student takes over from it is easy."""
    told = []
    result = verify_distillation(
        **plain,
        baseline=plain["teacher"],
        out=tmp_path,
        options=make_options(),
        progress=lambda p: told.append(p.stage),
    )

    assert "baseline" not in told
    assert result.extracted["baseline"] == result.extracted["teacher"]
    assert result.inherited.of == 0
    assert result.models["baseline"] == plain["teacher"]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": Objective("soft", 3.0)}, "temperature was 2.0, is now 3.0"),
        ({"sample": 30}, "corpus_digest was"),
    ],
)
def test_a_folder_answers_one_question(plain, tmp_path, changes, message):
    """Finished or not: numbers of two settings must not mix."""
    with pytest.raises(Killed):
        verify_distillation(
            **plain, out=tmp_path, options=make_options(), progress=kill_at("student", 1)
        )
    other = make_options(**changes)
    with pytest.raises(UsageError, match=message):
        verify_distillation(**plain, out=tmp_path, options=other)

    verify_distillation(**plain, out=tmp_path, options=make_options())
    before = (tmp_path / "verification.json").read_bytes()
    with pytest.raises(UsageError, match=message):
        verify_distillation(**plain, out=tmp_path, options=other)
    assert (tmp_path / "verification.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.ci
def test_other_models_are_refused(plain, tmp_path):
    """By what is in their files, not by their name."""
    verify_distillation(**plain, out=tmp_path / "out", options=make_options())
    student = save_scratch(tmp_path / "student", 32, 1, bos=False, seed=7)

    with pytest.raises(UsageError, match="student_digest was"):
        verify_distillation(
            **{**plain, "student": str(student)}, out=tmp_path / "out", options=make_options()
        )


@pytest.mark.slow
@pytest.mark.ci
def test_a_damaged_result_is_not_believed(plain, tmp_path):
    """Table and document belong together."""
    verify_distillation(**plain, out=tmp_path, options=make_options())
    table = pq.read_table(tmp_path / "verification.parquet")
    pq.write_table(table.slice(1), tmp_path / "verification.parquet")

    with pytest.raises(OutputError, match="do not belong together"):
        verify_distillation(**plain, out=tmp_path, options=make_options())


@pytest.mark.slow
@pytest.mark.ci
def test_models_that_are_gone_cannot_be_kept(plain, tmp_path):
    """Training again in silence would be a surprise."""
    verify_distillation(**plain, out=tmp_path, options=make_options())

    with pytest.raises(UsageError, match="the baseline of this verification was not kept"):
        verify_distillation(**plain, out=tmp_path, options=make_options(keep_models=True))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"teacher": "nowhere/to/be/found"}, ModelError),
        ({"data": "nowhere.jsonl"}, CorpusError),
    ],
)
def test_an_error_before_training_leaves_nothing(plain, tmp_path, changes, error):
    """A typo must not leave folders behind."""
    with pytest.raises(error):
        verify_distillation(**{**plain, **changes}, out=tmp_path / "out", options=make_options())

    assert not (tmp_path / "out").exists()


def test_a_window_too_long_for_a_model_is_told_before_training(plain, tmp_path, monkeypatch):
    """Not after it, hours later."""
    monkeypatch.setattr(stages, "trained_model", None)
    corpus = write_corpus(tmp_path / "long.jsonl", ["abc" * 300, "bcd" * 300])
    options = make_options(shape=WindowShape(400, 200))

    with pytest.raises(ModelError, match="a window has 600 tokens"):
        verify_distillation(**{**plain, "data": corpus}, out=tmp_path / "out", options=options)


def test_predictions_for_another_corpus_are_told_before_training(plain, tmp_path, monkeypatch):
    """Not after it, hours later."""
    monkeypatch.setattr(stages, "trained_model", None)
    run = predicted(plain, tmp_path / "run")
    corpus = write_corpus(tmp_path / "other.jsonl", make_texts(seed=3))

    with pytest.raises(
        UsageError,
        match=r"address differs between the corpus and .* in 61 of 61 rows, first at id id-0",
    ):
        verify_distillation(
            **{**plain, "data": corpus},
            predictions=run,
            out=tmp_path / "out",
            options=make_options(),
        )


def predicted(miniatures, folder):
    """A folder that predict wrote for the corpus."""
    from support.fakes import make_classifier

    from memaudit.audit import audit_corpus
    from memaudit.classifier import save_classifier
    from memaudit.runs.options import AuditOptions

    save_classifier(make_classifier(), folder.with_name("classifier"))
    options = AuditOptions(classifier=str(folder.with_name("classifier")), shape=WindowShape(8, 8))
    audit_corpus(miniatures["teacher"], miniatures["data"], out=folder, options=options)
    return folder


@pytest.mark.slow
@pytest.mark.ci
def test_predictions_can_come_later(plain, tmp_path):
    """Nothing is trained again; the labels stay, the comparison is added."""
    options = make_options(epochs=6)
    before = verify_distillation(**plain, out=tmp_path / "out", options=options)
    run = predicted(plain, tmp_path / "run")

    after = verify_distillation(**plain, predictions=run, out=tmp_path / "out", options=options)

    assert before.comparison is None
    assert replace(after, comparison=None) == before
    assert after.comparison.examples == before.examples
    assert after.comparison.found == before.extracted["student"].count
    rows = pq.read_table(tmp_path / "out/verification.parquet").to_pylist()
    assert all((row["probability"] is None) == (row["outcome"] == "too_short") for row in rows)
    stored = json.loads((tmp_path / "out/verification.json").read_text())
    assert stored["comparison"]["found"] == after.comparison.found


def test_a_kill_while_results_are_written_is_mended(plain, whole, tmp_path):
    """The table may have its name before the document does."""
    result, table = whole
    options = make_options(objective=Objective("hard"))
    with pytest.raises(Killed):
        verify_distillation(
            **plain, out=tmp_path, options=options, progress=kill_at("extract student", 24)
        )
    (tmp_path / "verification.parquet").write_bytes(table)

    assert numbers(verify_distillation(**plain, out=tmp_path, options=options)) == numbers(result)
