"""A run without torch, as a program: for tests that kill it, starve it or start it twice.

    python fake_run.py DIR [--windows 88] [--chunk-size 8] [--shard I/N] [--workers N] [--slow S]

It goes by the same command line edge as `memaudit predict`, so signals and exit codes are real.
"""

import argparse
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from memaudit.cli.signals import answer_signals, leave_at_signals  # noqa: E402


class ByteWiseEngine:
    """Knows no language: every token's log-probability follows from its id alone."""

    name = "byte-wise"

    def __init__(self, seconds=0.0, runs_out_above=None):
        self._seconds = seconds
        self._runs_out_above = runs_out_above

    def score(self, windows):
        import numpy as np

        from memaudit.scores import TokenScores, WindowScores

        if self._runs_out_above is not None and len(windows) > self._runs_out_above:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        time.sleep(self._seconds)
        scores = []
        for window in windows:
            entropy = (window[1:] / 64).astype(np.float32)
            is_argmax = (window[1:] % 3 == 0).astype(np.bool_)
            scores.append(
                WindowScores(TokenScores(-entropy, is_argmax, entropy, is_argmax - entropy))
            )
        return scores


def load_fakes(seconds, worker):
    """The models of a worker."""
    from support.fakes import ByteTokenizer

    return ByteWiseEngine(seconds), ByteTokenizer()


class FailingEngine(ByteWiseEngine):
    """Meets trouble at the window that begins with these bytes."""

    def __init__(self, trouble, marker):
        super().__init__()
        self._trouble, self._marker = trouble, marker

    def score(self, windows):
        if self._trouble == "is killed by row 24" and bytes(windows[0].tolist()) == b"090053 i":
            os.kill(os.getpid(), signal.SIGKILL)
        meet(self._trouble, self._marker)
        return super().score(windows)


def load_failing(trouble, marker, worker):
    """The models of a worker that meets trouble."""
    from support.fakes import ByteTokenizer

    return FailingEngine(trouble, marker), ByteTokenizer()


def make_failing_tokenizer(trouble, marker=""):
    """One token a byte; trouble at the row that says `row 24`."""
    from support.fakes import ByteTokenizer

    class FailingTokenizer(ByteTokenizer):
        def encode(self, texts):
            for text in texts:
                if "row 24" in text:
                    meet(trouble, marker, text)
            return super().encode(texts)

    return FailingTokenizer()


def meet(trouble, marker, text=""):
    """Refuse, crash or die; `is killed once` dies only where there is no marker yet."""
    if trouble == "is killed" or (trouble == "is killed once" and not Path(marker).exists()):
        if marker:
            Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "refuses":
        from memaudit.errors import ModelError

        raise ModelError("broken weights", hint="get them again")
    if trouble == "crashes":
        raise ZeroDivisionError(f"a bug at {text}")


def make_fake_models(seconds=0.0, workers=1, **changes):
    """Models for `audit_rows`."""
    from support.fakes import ByteTokenizer

    from memaudit.runs.models import AuditModels
    from memaudit.runs.scoring import score_here
    from memaudit.runs.workers import score_in_workers

    if workers > 1:
        score = partial(score_in_workers, partial(load_fakes, seconds), workers)
    else:
        score = partial(score_here, ByteWiseEngine(seconds), ByteTokenizer())
    given = {"teacher": "fake", "engine": "byte-wise", "teacher_digest": "0" * 64}
    return AuditModels(tokenizer=ByteTokenizer(), score=score, **(given | changes))


def fake_rows(n_windows):
    """Rows with that many distinct windows; some repeat, one is too short, one is bad."""
    from support.fakes import make_rows

    texts = [f"{i * 7919 % 100_003:06} is row {i}" for i in range(n_windows)]
    return make_rows(*texts, *texts[:5], "short", None)


def fake_options(**changes):
    """Options for those rows."""
    from memaudit.runs.options import AuditOptions
    from memaudit.windows import WindowShape

    return AuditOptions(**({"shape": WindowShape(4, 4), "chunk_size": 8} | changes))


def fake_audit(out, *, n_windows=88, shard=None, **settings):
    """Audit them, or score a shard of them."""
    from support.fakes import make_classifier

    from memaudit import audit
    from memaudit.runs.folder import open_folder

    options = {key: settings.pop(key) for key in ("chunk_size", "restart") if key in settings}
    rows, models = fake_rows(n_windows), make_fake_models(**settings)
    inputs = audit.AuditInputs(rows, models, make_classifier(), fake_options(**options))
    if shard is not None:
        return score_part(out, inputs, shard)
    with open_folder(out) as folder:
        return audit._audit(folder, inputs, None, writes=True)


def audit_rows(rows, models, classifier, *, out=None, options=None, progress=None):
    """Audit rows in order, with models that are there already."""
    from memaudit import audit
    from memaudit.runs.folder import open_folder
    from memaudit.runs.opening import chosen_prefilter
    from memaudit.runs.options import AuditOptions

    options = options or AuditOptions()
    with open_folder(out) as folder:
        prefilter = chosen_prefilter(classifier, options)
        inputs = audit.AuditInputs(rows, models, classifier, options, prefilter)
        return audit._audit(folder, inputs, progress, writes=out is not None)


def score_part(out, inputs, shard):
    """Score a shard of what is given."""
    from memaudit import audit
    from memaudit.runs.folder import open_folder
    from memaudit.runs.reading import DistinctWindows

    with open_folder(out) as folder, DistinctWindows(inputs.options.shape.length) as windows:
        audit._score(folder, inputs, windows, None, shard)


def score_prepared(out, inputs, shard, prepared, stamp="as it is"):
    """Likewise, by what lies in a folder that all shards share."""
    from memaudit.runs import shards
    from memaudit.runs.folder import open_folder

    with open_folder(out) as folder:
        shards.score_prepared(folder, inputs, shard, (prepared, stamp), None)


class Interrupted(BaseException):
    """What a signal or a kill would be, without the signal."""


class InterruptedEngine(ByteWiseEngine):
    """Counts the windows it is given, and gives up when it has scored some batches."""

    def __init__(self, n_batches=None):
        super().__init__()
        self.n_windows = 0
        self._left = n_batches

    def score(self, windows):
        if self._left == 0:
            raise Interrupted
        self._left = None if self._left is None else self._left - 1
        self.n_windows += len(windows)
        return super().score(windows)


def audit_with(engine, out, *, rows=None, classifier=None, models=None, **options):
    """Audit the fake rows, or others, with an engine."""
    from dataclasses import replace

    from support.fakes import ByteTokenizer, make_classifier

    from memaudit.runs.scoring import score_here

    scored_here = partial(score_here, engine, ByteTokenizer())
    models = replace(make_fake_models(**(models or {})), score=scored_here)
    rows = fake_rows(88) if rows is None else rows
    classifier = classifier or make_classifier()
    return audit_rows(rows, models, classifier, out=out, options=fake_options(**options))


def contents(out):
    """Bytes of every file that must not depend on how the run went, by name."""
    paths = [path for path in out.rglob("*") if path.is_file()]
    vary = {"lock", "summary.json"}
    return {str(p.relative_to(out)): p.read_bytes() for p in paths if p.name not in vary}


def main(arguments):
    """Run it as a command."""
    from memaudit.runs.files import open_path

    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=open_path)
    parser.add_argument("--windows", type=int, default=88)
    parser.add_argument("--chunk-size", type=int, default=8)
    parser.add_argument("--shard")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--restart", action="store_true")
    given = parser.parse_args(arguments)

    import click

    from memaudit.cli import main as edge
    from memaudit.cli.predict_options import stop_explained
    from memaudit.runs.manifest import parse_shard

    @click.command()
    def fake():
        """Run."""
        with stop_explained(given.out):
            fake_audit(
                given.out,
                n_windows=given.windows,
                chunk_size=given.chunk_size,
                shard=None if given.shard is None else parse_shard(given.shard),
                workers=given.workers,
                seconds=given.slow,
                restart=given.restart,
            )

    edge.cli.add_command(fake)
    return edge.run(["fake"])


if __name__ == "__main__":
    answer_signals()
    code = main(sys.argv[1:])
    leave_at_signals()
    sys.exit(code)
