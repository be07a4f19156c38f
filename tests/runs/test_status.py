"""The status of a run, told from its files while it works, when it is left and at its end."""

import os

import pytest
from support.fake_run import Interrupted, InterruptedEngine, audit_with, contents, fake_audit

from memaudit.errors import UsageError
from memaudit.runs.folder import open_folder
from memaudit.runs.manifest import Shard
from memaudit.runs.status import run_status


def test_a_run_that_was_left_tells_what_is_missing(left):
    """The first question of whoever comes back to it."""
    status = run_status(left)

    assert status.state == "stopped"
    assert (status.chunks, status.missing, status.damaged) == (11, tuple(range(4, 11)), ())
    assert (status.rows, status.windows, status.windows_done) == (95, 88, 32)
    assert (status.process, status.eta_seconds) == (None, None)
    assert not status.has_results


def test_a_finished_run_has_nothing_left(tmp_path):
    """Table, summary and all chunks are there."""
    fake_audit(tmp_path / "run")
    status = run_status(tmp_path / "run")

    assert status.state == "finished"
    assert status.is_scored
    assert status.windows_done == status.windows == 88


def test_a_run_without_its_summary_is_scored_and_not_finished(tmp_path):
    """It died between the last chunk and the table."""
    fake_audit(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()

    assert run_status(tmp_path / "run").state == "scored"


def test_the_summary_of_another_run_is_no_result(tmp_path):
    """As after --restart with other settings, until the new results are there."""
    fake_audit(tmp_path / "run")
    fake_audit(tmp_path / "other", chunk_size=16)
    summary = (tmp_path / "other" / "summary.json").read_bytes()
    (tmp_path / "run" / "summary.json").write_bytes(summary)

    assert run_status(tmp_path / "run").state == "scored"


def test_damaged_chunks_are_told(left):
    """They count as not done: they will be scored again."""
    chunk = left / "chunks" / "00002.parquet"
    chunk.write_bytes(chunk.read_bytes()[:-1])

    status = run_status(left)

    assert status.damaged == (2,)
    assert status.windows_done == 24


def test_a_run_at_work_tells_its_process_rate_and_end(left):
    """From outside, without disturbing it."""
    for number in range(4):
        os.utime(left / "chunks" / f"{number:05}.parquet", (0, 1_000_000 + 2 * number))

    with open_folder(left):
        status = run_status(left)

    assert status.state == "running"
    assert status.process == os.getpid()
    assert status.rate == pytest.approx(24 / 6)
    assert status.eta_seconds == pytest.approx(56 / 4)


def test_a_rate_needs_two_chunks(tmp_path):
    """One moment tells no speed."""
    with pytest.raises(Interrupted):
        audit_with(InterruptedEngine(1), tmp_path / "run")

    assert run_status(tmp_path / "run").rate is None


def test_a_shard_counts_its_own_chunks_alone(tmp_path):
    """What others have to score is not missing here."""
    fake_audit(tmp_path / "run", shard=Shard(1, 3))
    status = run_status(tmp_path / "run")

    assert (status.shard, status.state, status.chunks) == ("1/3", "scored", 4)
    assert status.windows == status.windows_done == 32


def test_to_look_changes_nothing(left):
    """Status is for reading: of a run that works, of a folder that is read-only."""
    before = contents(left)
    times = {path: path.stat().st_mtime_ns for path in left.rglob("*")}
    run_status(left)

    assert contents(left) == before
    assert {path: path.stat().st_mtime_ns for path in left.rglob("*")} == times


def test_the_document_says_what_the_status_says(left):
    """For scripts that wait for a run."""
    document = run_status(left).document()

    assert document["schema_version"] == 1
    assert document["state"] == "stopped"
    assert document["missing_ranges"] == "4-10"
    assert document["folder"] == str(left)


def test_a_folder_without_a_run_is_told(tmp_path):
    """A typo, or a run that has not read its corpus yet."""
    with pytest.raises(UsageError, match="not the folder of a run"):
        run_status(tmp_path)
