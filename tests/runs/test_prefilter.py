"""A run with a cascade leaves windows out, says so, and is resumed and merged to the same bytes."""

import dataclasses
import json
from functools import partial

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.fake_run import audit_rows
from support.fakes import ByteTokenizer, RecitingEngine, make_classifier, make_models, make_rows

from memaudit.errors import UsageError
from memaudit.features import CORPUS_FEATURES
from memaudit.prefilter import Prefilter
from memaudit.runs.chunks import read_matrix
from memaudit.runs.folder import MANIFEST, RunFolder
from memaudit.runs.manifest import read_manifest
from memaudit.runs.options import AuditOptions
from memaudit.runs.run import read_run
from memaudit.runs.scoring import score_here
from memaudit.windows import WindowShape

OPTIONS = AuditOptions(shape=WindowShape(4, 4), survival=1.0, chunk_size=2, on_bad_row="skip")
TWICE, ONCE, UNKNOWN = "recited!", "read it.", "unknown!"


def classifier():
    """One that flags what is recited and occurs twice, and nothing that occurs once."""
    return msgspec.structs.replace(
        make_classifier(), coefficients=(4.0, 2.0), intercept=-7.0, means=(0.0, -3.0)
    )


def audit(*texts, out=None, **options):
    """Audit texts of which the teacher knows two by heart."""
    return audit_rows(
        make_rows(*texts),
        make_models(TWICE, ONCE),
        classifier(),
        out=out,
        options=dataclasses.replace(OPTIONS, **options),
    )


CORPUS = (TWICE, ONCE, UNKNOWN, UNKNOWN, "short", TWICE, None)


def test_every_row_has_one_outcome_and_they_add_up(tmp_path):
    """Nothing is lost between the stages."""
    result = audit(*CORPUS, out=tmp_path)

    rows = pq.read_table(tmp_path / "risk.parquet").to_pylist()
    assert [row["outcome"] for row in rows] == [
        "scored", "screened", "scored", "scored", "too_short", "scored", "bad",
    ]  # fmt: skip
    assert result.rows == len(CORPUS)
    assert (result.scored, result.screened, result.screened_windows) == (4, 1, 1)
    assert result.tokens_saved == 8
    assert result.tokens == 16


def test_a_screened_row_has_the_first_stages_probability_and_no_flag(tmp_path):
    """Its place in the order of risk is told as well as it is known."""
    audit(*CORPUS, out=tmp_path)

    row = pq.read_table(tmp_path / "risk.parquet").to_pylist()[1]
    assert row["probability"] == pytest.approx(1 / (1 + np.exp(1.0)), abs=1e-3)
    assert row["probability"] < classifier().threshold
    assert row["flagged"] is False
    assert row["reason"] == "not scored: nothing a model could say would flag it"
    assert row["teacher_suffix_mean_logprob"] is None


def test_what_is_scored_is_scored_as_without_a_cascade(tmp_path):
    """The second stage knows nothing of the first."""
    audit(*CORPUS, out=tmp_path / "with")
    audit(*CORPUS, out=tmp_path / "without", survival=None)

    tables = [
        pq.read_table(tmp_path / name / "risk.parquet").to_pylist() for name in ("with", "without")
    ]
    for row, whole in zip(*tables, strict=True):
        assert row["flagged"] == whole["flagged"]
        assert row["outcome"] == "screened" or row == whole


def test_the_engine_never_sees_what_is_left_out():
    """That is where the savings are."""
    seen = []

    class Watched(RecitingEngine):
        def score(self, windows):
            seen.extend(bytes(window.tolist()).decode() for window in windows)
            return super().score(windows)

    models = make_models()
    engine = Watched(*[tuple(text.encode()) for text in (TWICE, ONCE)])
    models = dataclasses.replace(models, score=partial(score_here, engine, ByteTokenizer()))
    audit_rows(make_rows(*CORPUS), models, classifier(), options=OPTIONS)

    assert sorted(seen) == [TWICE, UNKNOWN]


def test_a_chunk_tells_what_was_left_out(tmp_path):
    """So that merging and reading back need neither corpus nor model."""
    audit(*CORPUS, out=tmp_path)

    run = RunFolder(tmp_path, read_manifest(tmp_path / MANIFEST))
    X = read_matrix(run.plan)
    of_models = [name not in CORPUS_FEATURES for name in run.plan.features]
    assert np.isnan(X[1]).tolist() == of_models
    assert np.isfinite(X[[0, 2]]).all()


def test_a_row_with_a_window_that_was_scored_is_scored(tmp_path):
    """Its other windows could not have been the worst."""
    audit(TWICE + ONCE, TWICE, out=tmp_path, windows="tile")

    first, second = pq.read_table(tmp_path / "risk.parquet").to_pylist()
    assert (first["outcome"], first["occurrences"]) == ("scored", 2.0)
    assert first["probability"] == second["probability"]


def test_a_corpus_of_which_nothing_can_be_flagged_needs_no_teacher(tmp_path):
    """As with a corpus without a repeat: the summary still has all its numbers."""
    result = audit(ONCE, UNKNOWN, out=tmp_path)

    assert (result.scored, result.screened, result.flagged) == (0, 2, 0)
    assert (result.expected.mean, result.expected.low, result.expected.high) == (0, 0, 0)
    assert result.worst == ()
    assert json.loads((tmp_path / "summary.json").read_text())["tokens_saved"] == 16


def test_a_resumed_run_has_the_same_bytes(tmp_path):
    """Screening depends on the corpus alone."""
    audit(*CORPUS, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    (tmp_path / "chunks" / "00000.parquet").unlink()

    audit(*CORPUS, out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before


def test_another_survival_is_another_run(tmp_path):
    """Chunks of two cascades must not be mixed."""
    audit(*CORPUS, out=tmp_path)

    with pytest.raises(UsageError, match=r"survival was 1\.0, is now None"):
        audit(*CORPUS, out=tmp_path, survival=None)


def test_a_finished_run_is_read_back_with_its_screened_rows(tmp_path):
    """What acts on a run must not take them for scored, nor lose them."""
    audit(*CORPUS, out=tmp_path)

    run = read_run(tmp_path)
    assert run.outcomes == {"scored": 4, "screened": 1, "too_short": 1, "bad": 1}
    assert run.row(1).outcome == "screened"
    assert not run.is_scored[1]
    assert np.isnan(run.probabilities[1])
    assert run.is_flagged.tolist() == [True, False, False, False, False, True, False]


@pytest.fixture
def asks_student(monkeypatch):
    """Return an audit whose cascade asks the student first; what it leaves out cannot be flagged.

    A text that the student recites is left out, and what the engines were asked is kept.
    """
    judge = msgspec.structs.replace(
        make_classifier("teacher+student", ("log_occurrences", "teacher_suffix_mean_logprob")),
        coefficients=(4.0, 2.0),
        intercept=-7.0,
    )
    estimator = msgspec.structs.replace(
        make_classifier("teacher+student", ("log_occurrences", "student_suffix_mean_logprob")),
        coefficients=(0.0, -2.0),
    )
    cascade = Prefilter(classifier=judge, survival=0.9, estimator=estimator, cutoff=0.5)
    monkeypatch.setattr("memaudit.runs.opening.chosen_prefilter", lambda *_: cascade)

    def run_audit(out, *texts, known_to_student=(), **options):
        engine = RecitingEngine(
            *[tuple(text.encode()) for text in (TWICE, ONCE)],
            has_reference=True,
            known_to_reference=[tuple(text.encode()) for text in known_to_student],
        )
        models = dataclasses.replace(
            make_models(role="student"), score=partial(score_here, engine, ByteTokenizer())
        )
        options = dataclasses.replace(OPTIONS, **options)
        result = audit_rows(make_rows(*texts), models, judge, out=out, options=options)
        asked = [
            sorted({bytes(window).decode() for window in each.scored})
            for each in (engine, engine.reference_alone)
        ]
        return result, asked

    return run_audit


def test_the_student_reads_first_and_the_teacher_what_is_left(asks_student, tmp_path):
    """It costs a fraction of the teacher; what the corpus rules out costs neither."""
    known = "by both!"
    corpus = (TWICE, TWICE, ONCE, known, known, UNKNOWN)

    result, (teacher, student) = asks_student(tmp_path, *corpus, known_to_student=[known])

    assert student == sorted([TWICE, known])
    assert teacher == [TWICE]
    rows = pq.read_table(tmp_path / "risk.parquet").to_pylist()
    outcomes = ["scored", "scored", "screened", "screened", "screened", "screened"]
    assert [row["outcome"] for row in rows] == outcomes
    assert result.screened_windows == 3
    assert rows[3]["reason"] == "not scored: the first stage finds it unlikely to be flagged"
    assert rows[5]["reason"] == "not scored: nothing a model could say would flag it"
    assert rows[3]["probability"] < 0.01


def test_what_the_student_said_is_kept_with_what_was_left_out(asks_student, tmp_path):
    """A finished run is read back without a model, and has to come to the same probabilities."""
    result, _ = asks_student(
        tmp_path, TWICE, TWICE, "by both!", "by both!", known_to_student=["by both!"]
    )

    run = RunFolder(tmp_path, read_manifest(tmp_path / MANIFEST))
    X = read_matrix(run.plan)
    names = run.plan.features
    assert np.isfinite(X[0]).all()
    assert np.isnan(X[1]).tolist() == [
        name.startswith("teacher_") or "kl_divergence" in name or "log_ratio" in name
        for name in names
    ]
    assert read_run(tmp_path).outcomes == {"scored": 2, "screened": 2}
    assert result.screened == 2
