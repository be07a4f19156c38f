"""`memaudit status`, on the folders of runs that were left, split or finished."""

import json
import re

from support.fake_run import fake_audit

from memaudit.cli.main import run
from memaudit.runs.manifest import Shard


def status(folder, *arguments):
    """Run the command."""
    return run(["status", str(folder), "--color", "never", *arguments])


def test_a_person_is_told_how_far_a_run_is(left, capsys):
    """State first, then numbers, then what to do."""
    assert status(left) == 0

    out = capsys.readouterr().out
    assert out.startswith("stopped: 36.4% of the windows are scored\n")
    for name, value in (("chunks", "4 of 11"), ("missing", "4-10"), ("windows", "32 of 88")):
        assert re.search(rf"^{name} +{value} *$", out, re.MULTILINE), out
    assert "Run the same command again to score what is missing." in out


def test_a_program_is_told_in_one_document(left, capsys):
    """Standard output holds that and no more."""
    assert status(left, "--json") == 0

    document = json.loads(capsys.readouterr().out)
    assert document["state"] == "stopped"
    assert document["missing"] == [4, 5, 6, 7, 8, 9, 10]


def test_a_finished_run_needs_nothing(tmp_path, capsys):
    """So whoever waits for it can go home."""
    fake_audit(tmp_path / "run")
    assert status(tmp_path / "run") == 0

    out = capsys.readouterr().out
    assert out.startswith("finished: 100.0% of the windows are scored\n")
    assert "The run is complete." in out


def test_a_shard_that_is_scored_is_to_be_merged(tmp_path, capsys):
    """Its own work is done; the next command is named."""
    fake_audit(tmp_path / "run", shard=Shard(1, 3))
    assert status(tmp_path / "run") == 0

    out = capsys.readouterr().out
    assert out.startswith("scored: 100.0% of the windows of shard 1/3 are scored\n")
    assert "memaudit merge" in out


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    """With the code of errors, and a hint."""
    assert status(tmp_path) == 2

    err = capsys.readouterr().err
    assert "not the folder of a run" in err
    assert "hint: give the folder that --out" in err
