"""Workers: several processes make the files that one would have made."""

import os
import signal
from functools import partial

import pytest
from fakes import ByteTokenizer
from runs.fake_run import ByteWiseEngine, contents, fake_audit, load_fakes, make_fake_models

from memaudit.errors import MemauditError, ModelError
from memaudit.runs.workers import score_in_workers


class FailingEngine(ByteWiseEngine):
    """Meets trouble at the window that begins with these bytes."""

    def __init__(self, trouble, marker):
        super().__init__()
        self._trouble, self._marker = trouble, marker

    def score(self, windows):
        if self._trouble == "is killed once" and not os.path.exists(self._marker):  # noqa: PTH110
            with open(self._marker, "x"):  # noqa: PTH123
                os.kill(os.getpid(), signal.SIGKILL)
        if self._trouble == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._trouble == "refuses":
            raise ModelError("broken weights", hint="get them again")
        if self._trouble == "crashes":
            raise ZeroDivisionError("a bug")
        return super().score(windows)


def load_failing(trouble, marker, worker):
    """The models of a worker that meets trouble."""
    return FailingEngine(trouble, marker), ByteTokenizer()


def audit_with_workers(out, load, n_workers=2):
    """Audit the fake rows with workers."""
    from dataclasses import replace

    from fakes import make_classifier
    from runs.fake_run import fake_options, fake_rows

    from memaudit.audit import audit_rows

    models = replace(make_fake_models(), score=partial(score_in_workers, load, n_workers))
    return audit_rows(fake_rows(88), models, make_classifier(), out=out, options=fake_options())


def test_two_workers_write_what_one_process_writes(tmp_path):
    """Whoever scores a chunk, and in whatever order, it is the same chunk."""
    fake_audit(tmp_path / "one")

    audit_with_workers(tmp_path / "two", partial(load_fakes, 0.0))

    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 3, 14])
def test_any_number_of_workers_will_do(tmp_path, n_workers):
    """More than there are chunks, too."""
    fake_audit(tmp_path / "one")

    audit_with_workers(tmp_path / "many", partial(load_fakes, 0.0), n_workers)

    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    """The system kills who takes too much memory; its chunk must not be lost."""
    fake_audit(tmp_path / "one")
    load = partial(load_failing, "is killed once", str(tmp_path / "marker"))

    audit_with_workers(tmp_path / "two", load)

    assert (tmp_path / "marker").exists()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_chunk_that_kills_every_worker_ends_the_run(tmp_path):
    """Not after an endless night of restarts."""
    load = partial(load_failing, "is killed", "")

    with pytest.raises(ModelError, match=r"3 workers died at chunk 0, .* exit code -9") as caught:
        audit_with_workers(tmp_path / "run", load, n_workers=1)

    assert "--chunk-size" in caught.value.hint


def test_what_a_worker_refuses_is_told_as_if_it_happened_here(tmp_path):
    """Message and hint survive the way through a pipe."""
    with pytest.raises(MemauditError, match="broken weights") as caught:
        audit_with_workers(tmp_path / "run", partial(load_failing, "refuses", ""), n_workers=1)

    assert caught.value.hint == "get them again"
    assert not (tmp_path / "run").exists()


def test_a_worker_that_crashes_shows_where(tmp_path):
    """A bug in a worker must not look like a broken pipe."""
    with pytest.raises(RuntimeError, match=r"(?s)worker 0 crashed:.*ZeroDivisionError: a bug"):
        audit_with_workers(tmp_path / "run", partial(load_failing, "crashes", ""), n_workers=1)
