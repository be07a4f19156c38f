"""Kill verifications at random moments and let them go on; run as a program.

`PYTHONPATH=.:tests python tests/support/kill_harness.py FOLDER N` prints a JSON document with
one entry a kill. Every verification is a process of its own, forked from this one, which has
imported everything and trained nothing.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from support.forks import fork
from support.verifying import make_miniatures, make_options

import memaudit.distillation.methods  # imported once, for all
import memaudit.engines.generation  # noqa: F401
from memaudit.objectives import Divergence, Objective
from memaudit.verification.run import verify_distillation

KINDS = {
    "soft": {},
    "hard": {"objective": Objective("hard")},
    "on-policy": {"divergence": Divergence("reverse-kl", on_policy=0.7), "near_verbatim": 0.2},
}
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """CPU time of a process so far: unlike the clock, it does not depend on its neighbours."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def finish(pid, kill_after=None):
    """Wait for a process, kill it after so much CPU time; return that time and whether it died."""
    while True:
        used = cpu_seconds(pid)
        if kill_after is not None and used >= kill_after:
            os.kill(pid, signal.SIGKILL)
        done, status, _ = os.wait4(
            pid, 0 if kill_after is not None and used >= kill_after else os.WNOHANG
        )
        if done:
            return used, os.waitstatus_to_exitcode(status)
        time.sleep(0.002)


def outcome(out):
    """Return what must be equal: the document but for its seconds, and the table."""
    document = json.loads((out / "verification.json").read_text())
    del document["seconds"]
    return document, (out / "verification.parquet").read_bytes()


def stages_left(out):
    """Return which stages had finished, and whether the result was there, when it was killed."""
    names = [p.name for p in (out / "work").glob("*")] if (out / "work").exists() else []
    return sorted(name for name in names if name not in ("manifest.json", "lock"))


def main(folder, n):
    """Kill n verifications and compare each, once it has gone on, with one left alone."""
    finish(fork(lambda: make_miniatures(folder)))
    paths = {
        "teacher": str(folder / "teacher"),
        "student": str(folder / "student"),
        "data": folder / "corpus.jsonl",
    }
    rng = random.Random(0)
    expected, kills = {}, []

    def verify(kind, out):
        options = make_options(epochs=2, check_generate=4, **KINDS[kind])
        verify_distillation(**paths, out=out, options=options)

    whole_seconds = {}
    for kind in KINDS:
        out = folder / f"whole-{kind}"
        whole_seconds[kind], code = finish(fork(lambda: verify(kind, out)))  # noqa: B023
        assert code == 0
        expected[kind] = outcome(out)
    attempt = 0
    while len(kills) < n:
        attempt += 1
        kind, out = list(KINDS)[len(kills) % len(KINDS)], folder / f"killed-{attempt}"
        moment = rng.uniform(0, whole_seconds[kind])
        _, code = finish(fork(lambda: verify(kind, out)), moment)  # noqa: B023
        if code == 0:  # done before its moment came
            continue
        left = stages_left(out)
        _, resumed = finish(fork(lambda: verify(kind, out)))  # noqa: B023
        same = resumed == 0 and outcome(out) == expected[kind]
        clean = sorted(p.name for p in out.iterdir()) == [
            "verification.json",
            "verification.parquet",
        ]
        kills.append(
            {
                "kind": kind,
                "moment": round(moment / whole_seconds[kind], 3),
                "killed": code == -signal.SIGKILL,
                "left": left,
                "same": same,
                "clean": clean,
            }
        )
        sys.stderr.write(json.dumps(kills[-1]) + "\n")
    sys.stdout.write(json.dumps(kills) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
