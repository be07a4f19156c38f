"""Runs that are killed, starved and interrupted, by the programs beside this file."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.fake_run import contents, fake_audit

SUPPORT = Path(__file__).parents[1] / "support"

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def harness(*arguments, program="kill_run.py"):
    """Run one of the programs; return what it found, without the counts that are zero."""
    command = [sys.executable, SUPPORT / program, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return {name: count for name, count in json.loads(ended.stdout).items() if count}


NO_FAULTS = {
    *("calls", "points", "continued", "killed at a call", "killed at a moment"),
    *("killed while continued", "injected", "of calls", "exit code 2"),
    *("continued with --restart", "stopped", "slowest end, seconds", "done before its signal"),
}
"""What a program may report of runs that are right; all else is a fault."""


def faults(found):
    """Return the counts of what must not happen."""
    return {name: count for name, count in found.items() if name not in NO_FAULTS}


@pytest.mark.slow
@pytest.mark.ci
def test_runs_killed_at_random_moments_end_like_one_that_was_not():
    """A few kills without strace: nothing lost, nothing doubled, no file left behind."""
    found = harness("kill", "--points", 0, "--random", 6)

    assert found["killed at a moment"] == 6
    assert faults(found) == {}


@needs_strace
@pytest.mark.slow
def test_runs_killed_at_every_system_call_end_like_one_that_was_not():
    """Every write, fsync, rename, open and close of a run, and 100 random moments."""
    found = harness("kill", "--points", 9999, "--random", 100)

    assert found["killed at a call"] == found["points"] >= 120
    assert found["killed at a moment"] == 100
    assert faults(found) == {}


@needs_strace
@pytest.mark.slow
@pytest.mark.ci
def test_runs_killed_at_some_system_calls_end_like_one_that_was_not():
    """A sample of the full set, chosen from its seed."""
    found = harness("kill", "--points", 6, "--seed", 7)

    assert found["killed at a call"] == 6
    assert faults(found) == {}


@needs_strace
@pytest.mark.slow
def test_failing_system_calls_are_errors_that_spoil_nothing():
    """100 times a full disk, a broken one, or no descriptor left."""
    found = harness("fail", "--points", 100)

    assert found["injected"] == found["exit code 2"] + found.pop("met a harmless call", 0) == 100
    assert faults(found) == {}


@needs_strace
@pytest.mark.slow
@pytest.mark.ci
def test_a_few_failing_system_calls_are_errors_that_spoil_nothing():
    """A sample of them."""
    found = harness("fail", "--points", 6, "--seed", 7)

    assert found["injected"] == found["exit code 2"] + found.pop("met a harmless call", 0) == 6
    assert faults(found) == {}


@needs_strace
def test_every_file_is_synced_before_its_name_and_its_name_before_the_next(tmp_path):
    """What survives a power cut is what the disk has: content, then name, then the folder."""
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-qq", "-o", trace, "-e", "trace=write,fsync,rename"]
    program = [sys.executable, SUPPORT / "fake_run.py", tmp_path / "run", "--windows", "16"]
    subprocess.run([*command, *program], check=True, capture_output=True)

    commits = commits_in(trace.read_text(errors="replace"), str(tmp_path / "run"))

    names = {"manifest.json", "rows.parquet", "00000.parquet", "00001.parquet"}
    assert set(commits) == names | {"risk.parquet", "summary.json"}
    for name, calls in commits.items():
        assert calls[-4:] == ["write", "fsync", "rename", "fsync folder"], name
        assert set(calls[:-3]) == {"write"}, name


def commits_in(trace, folder):
    """Return the calls about each file that takes its name by a rename, by that name."""
    calls, folder_of = {}, {}
    for line in trace.splitlines():
        if found := re.search(rf"(write|fsync)\(\d+<{folder}[^>]*/\.([^/>]+)\.\w{{8}}\.tmp>", line):
            calls.setdefault(found[2], []).append(found[1])
        elif found := re.search(rf'rename\("[^"]+\.tmp", "({folder}[^"]*)"\) += 0', line):
            path = Path(found[1])
            calls[path.name].append("rename")
            folder_of[path.name] = str(path.parent)
        elif found := re.search(rf"fsync\(\d+<({folder}[^>]*)>\) += 0", line):
            for name, place in folder_of.items():
                if place == found[1] and calls[name][-1] == "rename":
                    calls[name].append("fsync folder")
    return calls


@pytest.mark.slow
def test_a_signal_ends_a_run_soon_and_with_its_code():
    """50 times SIGINT or SIGTERM at any moment."""
    found = harness("signal", "--points", 50)

    assert found["stopped"] == 50
    # One that comes before the work begins, or after its end, finds nothing to go on with.
    assert found.pop("not told how to go on", 0) <= 5
    assert faults(found) == {}


def start(out, *arguments):
    """Start a run as a program of its own; return once it is at work."""
    command = [sys.executable, SUPPORT / "fake_run.py", out, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("chunks/*.parquet")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    return process


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path, number, code, said):
    """Ctrl-C and a scheduler's goodbye: the right exit code, no traceback, all kept."""
    out = tmp_path / "run"
    fake_audit(tmp_path / "reference")
    process = start(out, "--slow", "0.1")

    process.send_signal(number)
    _, err = process.communicate()

    assert process.returncode == code
    assert f"error: {said}" in err
    assert "give the same command again to go on: " in err
    # One chunk is kept, several are: which it is depends on how fast the machine is.
    assert re.search(rf"\d of 11 chunks (is|are) kept in {re.escape(str(out))}\n", err)
    assert "Traceback" not in err
    fake_audit(out)
    assert contents(out) == contents(tmp_path / "reference")


def test_a_second_signal_ends_a_run_at_once(tmp_path):
    """Who presses Ctrl-C twice means it."""
    out = tmp_path / "run"
    fake_audit(tmp_path / "reference")
    process = start(out, "--slow", "0.3")

    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)

    process.communicate()
    assert process.returncode in (130, 143)
    fake_audit(out)
    assert contents(out) == contents(tmp_path / "reference")


def race(folder, n_writers):
    """Start runs in one folder at the same time; return their exit codes and what they said."""
    command = [sys.executable, SUPPORT / "fake_run.py", folder, "--slow", "0.02"]
    writers = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(n_writers)
    ]
    said = [writer.communicate()[1] for writer in writers]
    return [writer.returncode for writer in writers], said


def check_race(folder, reference):
    """Let two race; whoever is refused is told by whom, and the files are right."""
    codes, said = race(folder, 2)

    assert min(codes) == 0
    assert set(codes) <= {0, 2}, said
    for code, words in zip(codes, said, strict=True):
        assert code == 0 or "in use by process" in words
    assert contents(folder) == reference


def test_of_two_writers_one_waits_or_goes(tmp_path):
    """The same command started twice by mistake."""
    fake_audit(tmp_path / "reference")

    check_race(tmp_path / "run", contents(tmp_path / "reference"))


@pytest.mark.slow
def test_50_races_of_two_writers_spoil_nothing(tmp_path):
    """At whatever moment the second one comes."""
    fake_audit(tmp_path / "reference")

    for number in range(50):
        check_race(tmp_path / f"run-{number}", contents(tmp_path / "reference"))


@pytest.mark.slow
def test_real_models_killed_at_random_moments_end_like_ones_that_were_not():
    """The same with floats from torch, which must come out the same after a resume."""
    program = SUPPORT / "kill_real_run.py"
    if not (SUPPORT.parents[1] / "models" / "demo-teacher").exists() or not os.access(
        program, os.R_OK
    ):
        pytest.skip("needs the demo models")
    found = harness("--points", 20, program=program.name)

    assert not {name for name in found if "different" in name or "not continued" in name}, found
