"""Runs of the real engine on a CPU, killed at random moments and continued.

    python kill_real_run.py --points 20

The models are loaded once; each run is a fork of this process. Prints one JSON document.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import kill_run
from forks import exit_of, fork

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "sample_data" / "demo.jsonl"
CHUNK_SIZE = 16


def load():
    """Load the demo models as `memaudit predict` does."""
    from memaudit.engines.models import ModelOptions
    from memaudit.runs.models import ModelSources, load_models
    from memaudit.runs.options import AuditOptions

    options = AuditOptions(model=ModelOptions(device="cpu", offline=True), threads=1)
    return load_models(ModelSources(str(ROOT / "models" / "demo-teacher"), None, None, options))


def audit(models, out):
    """Audit the demo corpus."""
    from fake_run import audit_rows

    from memaudit.classifier import load_classifier
    from memaudit.corpus import CorpusOptions, read_corpus
    from memaudit.runs.options import AuditOptions

    classifier = load_classifier(ROOT / "models" / "teacher")
    rows = read_corpus(CorpusOptions(str(CORPUS)))
    audit_rows(rows, models, classifier, out=out, options=AuditOptions(chunk_size=CHUNK_SIZE))


def main():
    """Kill runs, one in three once more while it is continued, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    kill_run.preload()
    models = load()
    found = Counter()
    with tempfile.TemporaryDirectory() as name:
        reference, out = Path(name) / "reference", Path(name) / "killed"
        started = time.monotonic()
        assert exit_of(fork(partial(audit, models, reference))) == 0
        seconds = time.monotonic() - started
        expected = kill_run.contents(reference)
        for _ in range(given.points):
            for again in range(1 + (rng.random() < 1 / 3)):
                pid = fork(partial(audit, models, out))
                time.sleep(rng.uniform(0, seconds))
                os.kill(pid, signal.SIGKILL)
                found["killed again" if again else "killed"] += exit_of(pid) == -signal.SIGKILL
            found["not continued"] += exit_of(fork(partial(audit, models, out))) != 0
            found["different files"] += kill_run.contents(out) != expected
            shutil.rmtree(out)
    sys.stdout.write(json.dumps({"seconds of a run": round(seconds, 2), **found}) + "\n")


if __name__ == "__main__":
    main()
