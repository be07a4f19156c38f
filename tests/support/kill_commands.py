"""Commands that are killed at random moments, or whose disk is full, then given again.

    python -m tests.support.kill_commands --kills 100 --disks 20          fit, filter, workers, verify
    python -m tests.support.kill_commands --only filter --kills 20
    python -m tests.support.kill_commands --minutes 10           of each, as far as that goes
    python -m tests.support.kill_commands --only worker --kills 100   one of two workers is killed

Each command is a fork of this process, which has imported everything; a moment is CPU time, so that
a busy machine changes nothing. Afterwards an output is whole or as it was before, and the same
command given again ends with the bytes of one that was left alone. Prints one JSON document.
"""

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.kill_harness import finish  # noqa: E402


class Subject:
    """A command: how it is prepared, what it writes, and what must not depend on how it went."""

    def __init__(self, name, prepare, run, outputs):
        self.name, self.prepare, self.run, self.outputs = name, prepare, run, outputs

    def start(self, folder, full_at=None, count_to=None):
        """Run it in a fork, which ends with its code; return the process."""
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.chdir(folder)
                log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.dup2(log, 1)
                os.dup2(log, 2)
                calls = limit_disk(full_at)
                code = self.run()
                if count_to is not None:
                    Path(count_to).write_text(str(calls[0]))
            except BaseException as error:
                os.write(2, f"Traceback of the test: {error!r}\n".encode())
            finally:
                os._exit(code)
        return pid

    def state(self, folder):
        """Return the bytes of its outputs, None for one that is not there."""
        paths = [folder / name for name in self.outputs]
        return [path.read_bytes() if path.is_file() else None for path in paths]


def limit_disk(full_at):
    """Let the disk be full from some call on that needs room; return the counter of such calls."""
    calls, real_open, real_sync = [0], os.open, os.fsync

    def is_full():
        calls[0] += 1
        if full_at is not None and calls[0] >= full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opening(path, flags, *rest, **settings):
        if flags & os.O_CREAT:
            is_full()
        return real_open(path, flags, *rest, **settings)

    def syncing(descriptor):
        is_full()
        return real_sync(descriptor)

    os.open, os.fsync = opening, syncing
    return calls


def _command(*arguments):
    def run():
        from memaudit.cli.main import run as run_command

        return run_command(list(arguments))

    return run


def _prepare_filter(folder):
    from support.gated import make_run

    make_run(folder, [f"{i:05} is nothing special at all" for i in range(600)])


def _prepare_fit(folder):
    from support.verified_tables import write_runs

    write_runs(folder, 1)


def _prepare_nothing(folder):
    pass


def _run_workers():
    import fake_run

    return fake_run.main(["run", "--workers", "2", "--slow", "0.01", "--windows", "40"])


def _prepare_verify(folder):
    shutil.copytree(_miniatures(), folder, dirs_exist_ok=True)


def _miniatures():
    """Make the models of a verification once."""
    folder = Path(tempfile.gettempdir()) / f"miniatures-{os.getpid()}"
    if not folder.exists():
        from support.verifying import make_miniatures

        folder.mkdir()
        make_miniatures(folder)
    return folder


def _run_verify():
    from support.verifying import make_options

    from memaudit.errors import MemauditError
    from memaudit.verification.run import verify_distillation

    try:
        verify_distillation(
            teacher="teacher", student="student", data=Path("corpus.jsonl"), out=Path("out"),
            options=make_options(epochs=1),
        )  # fmt: skip
    except MemauditError as error:
        os.write(2, f"error: {error.message}\n".encode())
        return 2
    return 0


def subjects():
    """Return all of them."""
    from support.verified_tables import COUNT, SIGNAL

    tables = sorted_pairs()
    fit = ["fit", *tables, "--out", "mine", "--features", f"{SIGNAL}, {COUNT}"]
    clean = [
        "filter",
        "--run",
        "run",
        "--data",
        "run.jsonl",
        "--out",
        "out.jsonl",
        "--top",
        "9",
        "--force",
    ]
    return [
        Subject(
            "filter", _prepare_filter, _command(*clean), ["out.jsonl", "out.jsonl.removed.parquet"]
        ),
        Subject("fit", _prepare_fit, _command(*fit), ["mine/classifier.json", "mine/card.json"]),
        Subject("workers", _prepare_nothing, _run_workers, ["run/risk.parquet"]),
        Subject("worker", _prepare_nothing, _run_workers, ["run/risk.parquet"]),
        Subject("verify", _prepare_verify, _run_verify, ["out/verification.parquet"]),
    ]


def sorted_pairs():
    """Return the options that name the tables of `_prepare_fit`, relative to its folder."""
    from support.verified_tables import write_runs

    with tempfile.TemporaryDirectory() as name:
        (labels, scores), *_ = write_runs(Path(name), 1)
        return [
            "--labels",
            str(labels.relative_to(name)),
            "--scores",
            str(scores.relative_to(name)),
        ]


def disturb(subject, folder, kills, disks, rng, minutes):
    """Kill a command that many times, fill its disk as often, and count what came of it."""
    until = time.monotonic() + 60 * minutes
    found, made, here = Counter(), folder / "made", folder / "here"
    # Prepared once, and always at work in a folder of one name: paths are part of what is written.
    here.mkdir()
    subject.prepare(here)
    shutil.copytree(here, made)
    seconds, code = finish(subject.start(here, count_to="calls"))
    assert code == 0, (here / "log").read_text()
    expected, n_calls = subject.state(here), int((here / "calls").read_text())
    # A command that was done before its moment came shows nothing: there are more moments than kills.
    moments = [("killed", rng.uniform(0, seconds)) for _ in range(5 * kills)]
    places = sorted(rng.sample(range(1, n_calls + 1), min(disks, n_calls)))
    full = [("disk full", place) for place in places]
    # Each kind has its turn, however early the time is up.
    turns = [one for pair in zip(moments, full, strict=False) for one in pair]
    for kind, at in [*turns, *full[len(moments) :], *moments[len(full) :]]:
        if (found["killed"] == kills and kind == "killed") or time.monotonic() > until:
            break
        shutil.rmtree(here)
        shutil.copytree(made, here)
        if kind == "killed":
            _, code = finish(subject.start(here), at)
        else:
            _, code = finish(subject.start(here, full_at=at))
        if kind == "killed" and code == 0:
            continue
        log = (here / "log").read_text() if (here / "log").exists() else ""
        found[kind if code in (-signal.SIGKILL, 2) else f"{kind}, and ended with {code}"] += 1
        found["tracebacks"] += "Traceback" in log
        found["full without a message"] += (
            kind == "disk full" and code == 2 and "error: " not in log
        )
        found["half an output"] += any(
            left not in (None, right)
            for left, right in zip(subject.state(here), expected, strict=True)
        )
        _, again = finish(subject.start(here))
        found["not done when given again"] += again != 0
        found["other bytes"] += subject.state(here) != expected
        left = [path for path in here.rglob("*.tmp") if path.is_file()]
        found["temporary files left for good"] += bool(left)
    return {"calls": n_calls, "cpu_seconds": round(seconds, 2), **found}


def kill_workers(subject, folder, kills, rng, minutes):
    """Kill one of two workers that often: the run goes on with another one."""
    until = time.monotonic() + 60 * minutes
    found = Counter()
    seconds, expected = [], None
    while found["killed"] < kills and time.monotonic() < until:
        here = folder / "here"
        here.mkdir()
        started = time.monotonic()
        pid = subject.start(here)
        if expected is not None and kill_a_worker(pid, rng, 1.2 * seconds[0]):
            found["killed"] += 1
        elif expected is not None:
            found["done before its kill"] += 1
        _, status = os.waitpid(pid, 0)
        expected = expected or subject.state(here)
        seconds = [*seconds, time.monotonic() - started][:1]
        found["not done"] += status != 0
        found["other bytes"] += subject.state(here) != expected
        found["temporary files left"] += bool([*here.rglob("*.tmp")])
        found["tracebacks"] += "Traceback" in (here / "log").read_text()
        shutil.rmtree(here)
    return dict(found)


def kill_a_worker(pid, rng, seconds):
    """Kill one of the workers of a process at a moment; return whether one was there."""
    end = time.monotonic() + rng.uniform(0, seconds)
    while time.monotonic() < end:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.01)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in rng.sample(children, len(children)):
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)
                return True
    return False


def main():
    """Disturb all, or some."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import sklearn.linear_model  # noqa: F401  imported once, for all

    import memaudit.distillation.methods
    import memaudit.engines.generation
    import memaudit.training.fit  # noqa: F401

    document = {}
    for subject in subjects():
        if given.only and subject.name not in given.only:
            continue
        with tempfile.TemporaryDirectory() as name:
            rng = random.Random(0)
            if subject.name == "worker":
                found = kill_workers(subject, Path(name), given.kills, rng, given.minutes)
            else:
                found = disturb(subject, Path(name), given.kills, given.disks, rng, given.minutes)
        document[subject.name] = found
        sys.stderr.write(f"{subject.name}: {found}\n")
    shutil.rmtree(Path(tempfile.gettempdir()) / f"miniatures-{os.getpid()}", ignore_errors=True)
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
