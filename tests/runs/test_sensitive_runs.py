"""A run that looks for what is sensitive: columns, counts, resume, shards, cascade, and none of it."""

import json
from functools import partial

import msgspec
import pyarrow.parquet as pq
import pytest
from support.fake_run import audit_with, contents, make_fake_models, score_part
from support.fakes import ByteTokenizer, make_classifier, make_rows
from support.sensitive_rows import PLAIN, SAFE, SHAPE, TEXTS, TILED, leaky_engine, rows, window_of

from memaudit import audit
from memaudit.cli.main import run as run_command
from memaudit.errors import UsageError
from memaudit.features import FEATURE_SETS
from memaudit.runs.folder import MANIFEST
from memaudit.runs.manifest import Shard, read_manifest
from memaudit.runs.options import AuditOptions
from memaudit.runs.run import read_run
from memaudit.runs.scoring import score_here
from memaudit.runs.shards import merge_runs
from memaudit.sensitivity import SENSITIVITY_COLUMNS

OPTIONS = {"shape": SHAPE, "chunk_size": 2, "on_bad_row": "skip", "sensitive": True}


@pytest.fixture
def detectors():
    """Skip where the detectors are not installed."""
    pytest.importorskip("presidio_analyzer")
    pytest.importorskip("detect_secrets")


def finish(out, **changes):
    """Audit the rows, or others, with the leaky engine."""
    return audit_with(leaky_engine(), out, **({"rows": rows()} | OPTIONS | changes))


def shard_of(out, shard):
    """Score one shard of the rows."""
    models = make_fake_models()
    scored_here = partial(score_here, leaky_engine(), ByteTokenizer())
    models = type(models)(**{**_fields(models), "score": scored_here})
    inputs = audit.AuditInputs(rows(), models, make_classifier(), AuditOptions(**OPTIONS))
    score_part(out, inputs, shard)


def _fields(value):
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_the_table_tells_what_is_sensitive_and_what_of_it_is_at_risk(tmp_path, detectors):
    """A reader has to tell a leaked secret from a licence text, row by row."""
    finish(tmp_path)

    table = pq.read_table(tmp_path / "risk.parquet").to_pylist()
    told = [
        (row["flagged"], row["personal_data"], row["secrets"], row["secret_at_risk"])
        for row in table
        if row["outcome"] == "scored"
    ]
    assert told == [
        (True, 0, 0, 0),
        (False, 0, 1, 1),
        (False, 0, 1, 1),
        (False, 0, 1, 1),
        (False, 0, 1, 0),
        (False, 1, 0, 0),
        (True, 1, 0, 0),
        (False, 0, 0, 0),
    ]
    assert table[1]["secret_argmax_rate"] == 1.0
    assert (table[1]["access_key"], table[5]["email"]) == (1, 1)
    assert "holds a secret that is at risk" in table[1]["reason"]
    assert "holds a secret" in table[4]["reason"]
    assert "at risk" not in table[4]["reason"]
    assert table[5]["reason"].startswith("holds personal data")


def test_the_summary_tells_common_text_from_secrets_in_one_line(tmp_path, detectors):
    """Of two flagged rows one is a licence, and three rows that are not flagged leak a token."""
    result = finish(tmp_path)

    assert result.sensitivity.in_words(result.flagged) == (
        "Of the 2 at risk, 0 hold a secret, 1 personal data, and 1 neither: common text. "
        "3 more hold a secret that the teacher recites or that is repeated."
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["sensitivity"]["unflagged_secrets_at_risk"] == 3
    assert [row["id"] for row in summary["worst"][:2]] == ["id-2", "id-1"]


def test_no_file_holds_what_was_found(tmp_path, detectors):
    """Counts and kinds, never the match: a report must not become the leak."""
    finish(tmp_path)

    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    written += json.dumps(pq.read_table(tmp_path / "risk.parquet").to_pylist()).encode()
    assert b"ghp_" not in written
    assert b"quillfeather" not in written


def test_a_run_that_is_resumed_or_merged_has_the_same_bytes(tmp_path, detectors):
    """The columns are part of the chunks, so all that holds for those holds for them."""
    finish(tmp_path / "once")
    finish(tmp_path / "again")
    (tmp_path / "again/chunks/00001.parquet").unlink()
    finish(tmp_path / "again")
    shards = [tmp_path / "a", tmp_path / "b"]
    for index, folder in enumerate(shards):
        shard_of(folder, Shard(index, 2))
    merge_runs(shards, tmp_path / "merged")

    assert contents(tmp_path / "again") == contents(tmp_path / "once")
    assert contents(tmp_path / "merged") == contents(tmp_path / "once")


def test_other_detectors_do_not_continue_a_run(tmp_path, detectors, monkeypatch):
    """Half a table by one detector and half by another would be neither's."""
    finish(tmp_path)
    (tmp_path / "chunks/00000.parquet").unlink()
    monkeypatch.setattr(
        "memaudit.runs.manifest.detector_versions", lambda: {"detect-secrets": "9.9.9"}
    )

    with pytest.raises(UsageError, match="detect-secrets was"):
        finish(tmp_path)
    with pytest.raises(UsageError, match="secrets was there"):
        finish(tmp_path, sensitive=False)


def test_a_finished_run_has_it_by_row(tmp_path, detectors):
    """What gate, filter and report go by."""
    finish(tmp_path)

    run = read_run(tmp_path)

    assert run.sensitivity.values.shape == (len(TEXTS), len(SENSITIVITY_COLUMNS))
    assert run.sensitivity.has_secret.tolist() == [False, *[True] * 4, *[False] * 5]
    assert run.sensitivity.secrets_at_risk(run.is_flagged).tolist() == [
        False,
        *[True] * 3,
        *[False] * 6,
    ]
    assert run.sensitivity.sensitive_at_risk(run.is_flagged).sum() == 4


def test_of_a_row_with_several_windows_all_count(tmp_path, detectors):
    """The riskiest window may be plain while another one of the row holds the secret."""
    rows = make_rows(TILED)
    engine = type(leaky_engine())(window_of(TILED))

    audit_with(engine, tmp_path, rows=rows, windows="tile", **OPTIONS)

    (row,) = pq.read_table(tmp_path / "risk.parquet").to_pylist()
    assert row["flagged"]
    assert (row["secrets"], row["access_key"]) == (1, 1)
    assert "holds a secret" in row["reason"]


def test_a_cascade_never_leaves_a_secret_out(tmp_path, detectors):
    """What it rests on, repetition and compression, says nothing of secrets."""
    classifier = msgspec.structs.replace(
        make_classifier(), coefficients=(4.0, 2.0), intercept=-7.0, means=(0.0, -3.0)
    )

    audit_with(
        leaky_engine(), tmp_path, rows=make_rows(SAFE, PLAIN), classifier=classifier,
        **OPTIONS, survival=1.0,
    )  # fmt: skip

    table = pq.read_table(tmp_path / "risk.parquet").to_pylist()
    assert [row["outcome"] for row in table] == ["scored", "screened"]


def test_a_run_that_does_not_look_costs_nothing(tmp_path, monkeypatch):
    """Off by default: no column, no version, no detector loaded."""

    def refuse():
        raise AssertionError("a detector was loaded")

    monkeypatch.setattr("memaudit.runs.scoring.load_detector", refuse)
    monkeypatch.setattr("memaudit.runs.manifest.detector_versions", refuse)

    result = finish(tmp_path, sensitive=False)

    inputs = read_manifest(tmp_path / MANIFEST).inputs
    assert inputs.features == FEATURE_SETS["teacher"]
    assert "detect-secrets" not in inputs.versions
    assert result.sensitivity is None
    assert result.document()["sensitivity"] is None
    assert read_run(tmp_path).sensitivity is None


@pytest.mark.parametrize(
    ("limits", "code", "said"),
    [
        (["--max-sensitive", "4"], 0, "4 examples at risk hold personal data or a secret"),
        (["--max-sensitive", "3"], 1, "at most 3 allowed"),
        (["--max-secrets", "3"], 0, "3 examples hold a secret that is at risk"),
        (["--max-secrets", "2"], 1, "at most 2 allowed"),
    ],
)
def test_the_gate_counts_what_is_sensitive_and_at_risk(
    tmp_path, detectors, capsys, limits, code, said
):
    """A licence that is memorized may pass; a leaked token must not."""
    finish(tmp_path)

    command = ["gate", "--run", str(tmp_path), "--allow-custom-classifier", "--max-bad-rows", "1"]
    found = run_command([*command, *limits, "--key-file", str(tmp_path / "key")])

    assert found == code
    assert said in " ".join(capsys.readouterr().out.split())


def test_the_gate_lists_what_is_flagged_and_secrets_that_are_not(tmp_path, detectors, capsys):
    """A token that two rows hold is at risk though no classifier flags it."""
    finish(tmp_path)
    run = read_run(tmp_path)
    asked = run.is_flagged | run.sensitivity.secrets_at_risk(run.is_flagged)
    assert asked.sum() > run.is_flagged.sum()

    command = ["gate", "--run", str(tmp_path), "--allow-custom-classifier", "--max-bad-rows", "1"]
    run_command([*command, "--max-rate", "1", "--max-secrets", "0", "--json"])

    findings = json.loads(capsys.readouterr().out)["findings"]
    assert sum(finding["rows"] for finding in findings) == asked.sum()


def test_a_gate_that_asks_what_was_not_looked_for_does_not_pass(tmp_path, capsys):
    """A run without the columns is no evidence that there is nothing."""
    finish(tmp_path, sensitive=False)

    command = ["gate", "--run", str(tmp_path), "--allow-custom-classifier", "--max-bad-rows", "1"]
    found = run_command([*command, "--max-secrets", "0", "--key-file", str(tmp_path / "key")])

    assert found == 2
    assert "was not searched" in " ".join(capsys.readouterr().out.split())
