"""Runs that are killed, starved and disturbed, and then continued: what tests and people start.

    python kill_run.py kill --points 200 --random 100     kill -9 at system calls and moments
    python kill_run.py fail --points 100                  failing system calls
    python kill_run.py signal --points 50                 SIGINT and SIGTERM

Everything is imported once; each run is a fork of this process, to which strace is attached.
Prints one JSON document.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import fake_run
from fake_run import contents

CALLS = ("write", "fsync", "rename", "openat", "close", "pwrite64", "mkdir", "flock", "unlink")
"""System calls of a run that change something, or are needed to."""

ERRORS = {
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "pwrite64": ("ENOSPC", "EIO"),
    "openat": ("EMFILE", "ENOSPC", "EIO"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("ENOSPC", "EIO"),
    "mkdir": ("ENOSPC",),
}


HARMLESS = re.compile(r"\.log>|O_TMPFILE|O_NONBLOCK.*O_DIRECTORY")
"""Calls that may fail: Python finds another way to a file without a name, and what a killed run
left is looked for once more the next time."""

SLOWLY = ("--slow", "0.02")
"""Makes a run long enough for a kill at a random moment to find it at work."""


class Child:
    """A run in a fork of this process, which waits until it is told to start."""

    def __init__(self, out, *arguments):
        self.out = out
        self.log = out.with_name(f"{out.name}.log")
        read_end, self._start = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._start)
            self._live(read_end, [str(out), *arguments])
        os.close(read_end)

    def _live(self, start, arguments):
        code = 70
        try:
            fake_run.answer_signals()
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.read(start, 1)
            code = fake_run.main(arguments)
            fake_run.leave_at_signals()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def attach(self, *strace, threads=True):
        """Let strace watch it before it starts."""
        follow = ["-f"] if threads else []
        self._tracer = subprocess.Popen(
            ["strace", "-qq", *follow, "-p", str(self.pid), "-o", f"{self.log}.strace", *strace],
            stderr=subprocess.DEVNULL,
        )
        while "TracerPid:\t0" in Path(f"/proc/{self.pid}/status").read_text():
            if self._tracer.poll() is not None:
                raise RuntimeError("strace cannot be attached")
            time.sleep(0.001)
        return self

    def start(self):
        """Let it run."""
        os.write(self._start, b"x")
        os.close(self._start)
        return self

    def wait(self):
        """Return its exit code; minus the signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        if hasattr(self, "_tracer"):
            self._tracer.wait()
        return os.waitstatus_to_exitcode(status)


def finish(out, *arguments):
    """Run to the end; return the exit code."""
    return Child(out, *arguments).start().wait()


def count_calls(folder, *arguments):
    """Return how often an undisturbed run makes each of the calls."""
    return Counter(call for call, _, _ in _traced(folder / "counted", arguments))


def calls_on_files(out, *arguments):
    """Return (call, ordinal) for every call that is about a file of the run.

    Left out is what fails anyway, such as making a folder that is there.
    """
    traced = _traced(out, arguments)
    return [
        (call, n)
        for call, n, line in traced
        if str(out) in line and "= -1" not in line and not HARMLESS.search(line)
    ]


def _traced(out, arguments):
    """Return (call, ordinal, line of strace) for every call of the main thread."""
    child = Child(out, *arguments)
    child.attach("-y", "-s", "4096", "-e", f"trace={','.join(CALLS)}").start()
    assert child.wait() == 0, child.log.read_text()
    counts, traced = Counter(), []
    for line in Path(f"{child.log}.strace").read_text(errors="replace").splitlines():
        if found := re.match(rf"{child.pid}\s+(\w+)\(", line):
            counts[found[1]] += 1
            traced.append((found[1], counts[found[1]], line))
    return traced


def all_points(counts, calls):
    """Return (call, ordinal) for every call."""
    return [(call, n) for call in calls for n in range(1, counts[call] + 1)]


def choose(points, n, rng):
    """Return n of the points, or all, kinds mixed."""
    return points if n >= len(points) else rng.sample(points, n)


def kill_at(out, point, *arguments):
    """Kill a run at a system call; return whether it got there."""
    call, ordinal = point
    child = Child(out, *arguments)
    child.attach("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={ordinal}").start()
    return child.wait() == -signal.SIGKILL


def kill_after(out, seconds, *arguments):
    """Kill a run at a moment; return whether it was still alive."""
    child = Child(out, *arguments).start()
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    return child.wait() == -signal.SIGKILL


def judge_killed(out, reference, found):
    """Continue a killed run and compare it with one that went through."""
    found["continued"] += 1
    if finish(out) != 0:
        found["not continued"] += 1
        return
    after = contents(out)
    found["temporary files left"] += any(name.endswith(".tmp") for name in after)
    found["different table"] += after.get("risk.parquet") != reference["risk.parquet"]
    found["different files"] += after != reference
    shutil.rmtree(out)


def kills(folder, n_points, n_random, rng):
    """Kill runs, one in three of them once more while it is continued."""
    found = Counter()
    assert finish(folder / "reference") == 0
    reference = contents(folder / "reference")
    counts = count_calls(folder) if n_points else {}
    points = all_points(counts, CALLS) if n_points else []
    for point in choose(points, n_points, rng):
        out = folder / "killed"
        found["killed at a call"] += kill_at(out, point)
        if rng.random() < 1 / 3:
            found["killed while continued"] += kill_at(out, rng.choice(points))
        judge_killed(out, reference, found)
    started = time.monotonic()
    assert finish(folder / "timed", *SLOWLY) == 0
    seconds = time.monotonic() - started
    # A run that was done before its kill shows nothing, and does not count.
    for _ in range(10 * n_random):
        if found["killed at a moment"] == n_random:
            break
        out = folder / "killed"
        found["killed at a moment"] += kill_after(out, rng.uniform(0, seconds), *SLOWLY)
        if rng.random() < 1 / 3:
            found["killed while continued"] += kill_after(out, rng.uniform(0, seconds / 2))
        judge_killed(out, reference, found)
    return {"calls": dict(counts), "points": len(points), **found}


def failures(folder, n_points, rng):
    """Let system calls fail, with the results of an earlier run in place, and without."""
    found = Counter()
    out = folder / "failing"
    assert finish(folder / "reference") == 0
    reference = contents(folder / "reference")
    # A run that starts over makes other calls than a first one.
    finish(folder / "restarted", "--windows", "16")
    traced = {
        False: calls_on_files(folder / "first"),
        True: calls_on_files(folder / "restarted", "--restart"),
    }
    points = [(earlier, *at) for earlier in traced for at in traced[earlier] if at[0] in ERRORS]
    for earlier, call, ordinal in choose(points, n_points, rng):
        if earlier:
            finish(out, "--windows", "16")
            before = contents(out)
        error = rng.choice(ERRORS[call])
        child = Child(out, *(["--restart"] if earlier else []))
        inject = f"inject={call}:error={error}:when={ordinal}"
        # Calls are counted in each thread: another one would meet the error as well.
        child.attach("-e", f"trace={call}", "-e", inject, threads=False)
        code, said = child.start().wait(), child.log.read_text()
        # With threads the same call is not always the same one.
        met = re.search(".*INJECTED", Path(f"{child.log}.strace").read_text(errors="replace"))
        is_harmless = code == 0 and (met is None or HARMLESS.search(met[0]))
        found["met a harmless call" if is_harmless else f"exit code {code}"] += 1
        found["tracebacks"] += "Traceback" in said
        found["exit code 2 without a message"] += code == 2 and "error: " not in said
        is_full = error in ("ENOSPC", "EDQUOT") and code != 0
        found["full, and the bytes needed not told"] += is_full and not re.search(
            r"free ([\d,]+ bytes|1 kB for)", said
        )
        after = contents(out) if out.exists() else {}
        found["table there though it failed"] += code != 0 and after.get("risk.parquet") not in (
            None,
            before["risk.parquet"] if earlier else None,
            reference["risk.parquet"],
        )
        found["earlier table gone"] += earlier and "risk.parquet" not in after
        if code == 0:
            found["success with other bytes"] += after != reference
        judge_killed_or_refused(out, reference, found)
    return {"injected": n_points, "of calls": len(points), **found}


def judge_killed_or_refused(out, reference, found):
    """Run again without disturbance: a run that was never replaced is started over."""
    if finish(out) == 2:
        found["continued with --restart"] += 1
        found["not continued"] += finish(out, "--restart") != 0
    found["different table"] += contents(out).get("risk.parquet") != reference["risk.parquet"]
    shutil.rmtree(out)


def signals(folder, n_points, rng):
    """Send SIGINT and SIGTERM at random moments."""
    found = Counter()
    started = time.monotonic()
    assert finish(folder / "reference", *SLOWLY) == 0
    seconds = time.monotonic() - started
    reference = contents(folder / "reference")
    slowest = 0.0
    # A run that was done before its signal shows nothing, and does not count.
    for _ in range(10 * n_points):
        if found["stopped"] == n_points:
            break
        out = folder / "stopped"
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        child = Child(out, *SLOWLY).start()
        while not out.exists():  # before the work begins there is nothing to go on with
            time.sleep(0.001)
        time.sleep(rng.uniform(0, seconds))
        sent = time.monotonic()
        os.kill(child.pid, number)
        code = child.wait()
        named = {128 + number: "stopped", 0: "done before its signal"}
        found[named.get(code, f"exit code {code}")] += 1
        if code == 128 + number:
            slowest = max(slowest, time.monotonic() - sent)
        said = child.log.read_text()
        found["tracebacks"] += "Traceback" in said
        found["not told how to go on"] += code >= 128 and "give the same command again" not in said
        found["temporary files left"] += out.exists() and any(
            name.endswith(".tmp") for name in contents(out)
        )
        judge_killed(out, reference, found)
    return {"slowest end, seconds": round(slowest, 2), **found}


def main():
    """Run one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("kill", "fail", "signal"))
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    preload()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.what == "kill":
            found = kills(folder, given.points, given.random, rng)
        elif given.what == "fail":
            found = failures(folder, given.points, rng)
        else:
            found = signals(folder, given.points, rng)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def preload():
    """Import what a run imports, so that its system calls are those of its work."""
    import fakes  # noqa: F401
    import numpy.random  # noqa: F401
    import pyarrow.parquet

    import memaudit.audit
    import memaudit.cli.main
    from memaudit.runs.manifest import software_versions

    software_versions()
    pyarrow.array([1])  # looks for pandas
    import memaudit.reports.predict
    import memaudit.reports.terminal  # noqa: F401


if __name__ == "__main__":
    main()
