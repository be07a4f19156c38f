"""Chunks that nobody can score: their rows become errors, the others are judged."""

import json
from dataclasses import replace
from functools import partial

import pyarrow.parquet as pq
import pytest
from support.fake_run import (
    ByteWiseEngine,
    audit_rows,
    contents,
    fake_audit,
    fake_options,
    fake_rows,
    make_fake_models,
    score_part,
)
from support.fakes import ByteTokenizer, make_classifier, make_rows

from memaudit import audit
from memaudit.errors import ModelError, OutputError, UsageError
from memaudit.runs.chunks import read_failures, write_failure
from memaudit.runs.manifest import Shard
from memaudit.runs.run import read_run
from memaudit.runs.scoring import score_chunk
from memaudit.runs.shards import merge_runs
from memaudit.runs.status import run_status
from memaudit.runs.workers import Attempts

REASON = "3 processes died at it, the last with exit code -9"


def score_but(failing, plan, works):
    """Score all chunks but some, at which whoever works on them dies."""
    attempts = Attempts(plan)
    for work in works:
        if work.number in failing:
            while attempts.lost(work.number, "with exit code -9"):
                pass
        else:
            score_chunk(plan, ByteWiseEngine(), ByteTokenizer(), work)
            attempts.scored()
        yield work.number


def audit_but(failing, out, rows=None, **options):
    """Audit with chunks that cannot be scored."""
    models = replace(make_fake_models(), score=partial(score_but, failing))
    rows = fake_rows(88) if rows is None else rows
    return audit_rows(rows, models, make_classifier(), out=out, options=fake_options(**options))


@pytest.fixture
def failed(tmp_path):
    """The folder of a run without its chunk 3."""
    audit_but({3}, tmp_path / "run")
    return tmp_path / "run"


def test_rows_of_a_failed_chunk_are_errors_and_all_others_as_ever(tmp_path):
    """One bad chunk must neither end a run of days nor change a number elsewhere."""
    fake_audit(tmp_path / "whole")
    whole = pq.read_table(tmp_path / "whole" / "risk.parquet").to_pylist()

    result = audit_but({3}, tmp_path / "run")

    table = pq.read_table(tmp_path / "run" / "risk.parquet").to_pylist()
    assert [row for row in table if row["outcome"] != "error"] == [
        row for i, row in enumerate(whole) if not 24 <= i < 32
    ]
    gone = [row for row in table if row["outcome"] == "error"]
    assert [row["row"] for row in gone] == list(range(24, 32))
    assert {row["reason"] for row in gone} == {f"chunk 3: {REASON}"}
    assert {row["probability"] for row in gone} == {None}
    assert result.outcomes == {"scored": 85, "too_short": 1, "bad": 1, "error": 8}
    assert (result.rows, result.errors, result.failures) == (95, 8, {3: REASON})


def test_a_row_with_one_failed_window_of_several_is_an_error(tmp_path):
    """The window that is unknown could be its worst."""
    rows = make_rows(
        "0123456789abcdef", "a row of its own", "0123456789abcdef and more", "other 890"
    )
    options = {"windows": "tile", "chunk_size": 1}

    audit_but({1}, tmp_path / "run", rows, **options)

    table = pq.read_table(tmp_path / "run" / "risk.parquet").to_pylist()
    assert [row["outcome"] for row in table] == ["error", "scored", "error", "scored"]


def test_the_summary_counts_them(failed):
    """Every row has exactly one outcome, and the sum is the corpus."""
    summary = json.loads((failed / "summary.json").read_text())

    assert (summary["errors"], summary["failed_chunks"]) == (8, [3])
    assert sum(summary[name] for name in ("scored", "too_short", "bad", "errors")) == 95


def test_the_marker_says_why_and_holds_no_text(failed):
    """It lies beside the chunk it stands for."""
    marker = json.loads((failed / "chunks" / "00003.error.json").read_text())

    assert marker["failure"]["reason"] == REASON
    assert set(marker) == {"digest", "failure"}
    assert set(marker["failure"]) == {"run", "chunk", "reason"}


def test_the_same_command_tries_again_and_ends_like_a_run_that_never_failed(failed, tmp_path):
    """Markers are for one session."""
    fake_audit(tmp_path / "whole")

    assert fake_audit(failed).errors == 0

    assert contents(failed) == contents(tmp_path / "whole")


def test_a_run_that_is_interrupted_again_has_no_marker_left(failed):
    """What was removed at the start counts as missing until it is scored or given up anew."""

    def score_none(plan, works):
        yield from ()

    models = replace(make_fake_models(), score=score_none)
    with pytest.raises(OutputError, match="removed or changed"):
        audit_rows(fake_rows(88), models, make_classifier(), out=failed, options=fake_options())

    assert run_status(failed).missing == (3,)


def test_status_shows_what_failed(failed):
    """And does not call it missing, nor the run finished."""
    status = run_status(failed)

    assert (status.state, status.missing, status.failures) == ("stopped", (), {3: REASON})
    assert status.windows_done == 80
    assert status.document()["failed_ranges"] == "3"


def test_such_a_run_is_not_finished(failed):
    """A gate must not pass over rows that nobody looked at."""
    with pytest.raises(UsageError, match=r"1 of 11 chunks are not there \(missing: 3\)"):
        read_run(failed)


def test_a_shard_with_a_failed_chunk_is_not_merged(tmp_path):
    """It is not done."""
    folders = [tmp_path / str(index) for index in range(2)]
    fake_audit(folders[0], shard=Shard(0, 2))
    models = replace(make_fake_models(), score=partial(score_but, {3}))
    inputs = audit.AuditInputs(fake_rows(88), models, make_classifier(), fake_options())
    score_part(folders[1], inputs, Shard(1, 2))

    with pytest.raises(UsageError, match=r"chunks are not there \(failed: 3\)"):
        merge_runs(folders, tmp_path / "merged")


@pytest.mark.parametrize("damage", ["changed", "of another chunk", "emptied", "nested"])
def test_a_marker_that_is_not_as_it_was_written_is_none(failed, damage):
    """Its chunk is simply missing."""
    marker = failed / "chunks" / "00003.error.json"
    content = {
        "changed": marker.read_bytes().replace(b"died", b"slept"),
        "of another chunk": marker.read_bytes(),
        "emptied": b"",
        "nested": b'{"more":' + b"[" * 500_000,
    }[damage]
    if damage == "of another chunk":
        (failed / "chunks" / "00004.parquet").unlink()
        (failed / "chunks" / "00004.error.json").write_bytes(content)
        assert run_status(failed).missing == (4,)
    else:
        marker.write_bytes(content)
        assert run_status(failed).missing == (3,)


def test_three_failed_chunks_in_a_row_end_the_run(tmp_path):
    """Then it is not the chunk: not after an endless night of restarts."""
    with pytest.raises(
        ModelError, match=r"3 chunks in a row .* chunk 6: 3 processes died"
    ) as caught:
        audit_but({4, 5, 6}, tmp_path / "run")

    assert "memory" in caught.value.hint
    assert len(list((tmp_path / "run" / "chunks").glob("*.parquet"))) == 4


def test_failed_chunks_far_apart_do_not_end_the_run(tmp_path):
    """However many they are."""
    assert audit_but({1, 3, 5, 7}, tmp_path / "run").errors == 32


def test_a_run_without_a_scored_row_is_an_error(tmp_path):
    """There is nothing to say about the corpus."""
    with pytest.raises(ModelError, match="8 rows in chunk 0 could not be scored"):
        audit_but({0}, tmp_path / "run", fake_rows(8)[:8])

    assert not (tmp_path / "run").exists()


def test_a_chunk_that_is_there_has_not_failed(failed, tmp_path):
    """A marker left beside it does not make its rows errors."""
    fake_audit(tmp_path / "whole")
    plan = _plan(failed)
    write_failure(plan, 5, "left over")

    assert read_failures(plan, range(11)) == {3: REASON}


def _plan(folder):
    from memaudit.runs.folder import RunFolder
    from memaudit.runs.manifest import read_manifest

    return RunFolder(folder, read_manifest(folder / "manifest.json")).plan
