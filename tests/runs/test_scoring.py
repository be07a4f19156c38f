"""Scoring: what memory does not suffice for in one go is done in two."""

import time
from functools import partial
from threading import Event

import numpy as np
import pytest
from support.fake_run import (
    ByteWiseEngine,
    audit_rows,
    audit_with,
    contents,
    fake_audit,
    fake_options,
    fake_rows,
)
from support.fakes import ByteTokenizer, make_classifier, make_models, make_rows

from memaudit.errors import ModelError
from memaudit.runs.models import AuditModels
from memaudit.runs.options import AuditOptions
from memaudit.runs.scoring import score_here


class ForgetfulEngine(ByteWiseEngine):
    """Runs out of memory in its own words."""

    def __init__(self, error, above):
        super().__init__()
        self.error, self.above = error, above
        self.tried = []

    def score(self, windows):
        self.tried.append(len(windows))
        if len(windows) > self.above:
            raise self.error
        return super().score(windows)


OUT_OF_MEMORY = [
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_a_batch_too_large_for_memory_is_halved(tmp_path, error):
    """A run of days must not end because one chunk met a busy GPU."""
    fake_audit(tmp_path / "reference")
    engine = ForgetfulEngine(error, above=3)

    audit_with(engine, tmp_path / "run")

    assert engine.tried[:7] == [8, 4, 2, 2, 4, 2, 2]
    assert contents(tmp_path / "run") == contents(tmp_path / "reference")


def test_halves_of_an_odd_batch_lose_no_window(tmp_path):
    """Seven are three and four."""
    fake_audit(tmp_path / "reference", chunk_size=7)
    engine = ForgetfulEngine(MemoryError(), above=2)

    audit_with(engine, tmp_path / "run", chunk_size=7)

    assert contents(tmp_path / "run") == contents(tmp_path / "reference")


def test_one_window_that_is_too_much_is_an_error(tmp_path):
    """There is nothing left to halve; what to do is in the hint."""
    with pytest.raises(ModelError, match="not enough memory for one window of 8 tokens") as caught:
        audit_with(ForgetfulEngine(MemoryError(), above=0), tmp_path / "run")

    assert "--device" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("out of memory")]
)
def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path, error):
    """To try again would hide a bug."""
    engine = ForgetfulEngine(error, above=0)

    with pytest.raises(type(error), match=str(error)):
        audit_with(engine, tmp_path / "run")

    assert engine.tried == [8]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_not_committed(tmp_path, value):
    """A resume would take the chunk for good."""

    class BrokenEngine(ByteWiseEngine):
        def score(self, windows):
            scores = super().score(windows)
            scores[0].teacher.logprobs[-1] = value
            return scores

    with pytest.raises(ModelError, match="is not a finite number in 1 window"):
        audit_with(BrokenEngine(), tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_a_chunk_is_measured_and_committed_while_the_models_run_on_another(tmp_path):
    """A GPU must not wait: here the models wait for both, and would wait forever."""
    folder, waited = tmp_path / "run", []

    class WaitingEngine(ByteWiseEngine):
        def score(self, windows):
            number = len(waited)
            if number in (1, 2):
                waited.append(
                    measured.wait(30) and _appears(folder / "chunks" / f"{number - 1:05}.parquet")
                )
            else:
                waited.append(True)
            measured.clear()
            return super().score(windows)

    class TellingTokenizer(ByteTokenizer):
        def decode(self, token_ids):
            measured.set()
            return super().decode(token_ids)

    measured = Event()
    tokenizer = TellingTokenizer()
    score = partial(score_here, WaitingEngine(), tokenizer)
    models = AuditModels(tokenizer=tokenizer, score=score, engine="byte-wise", teacher="fake")

    audit_rows(fake_rows(40), models, make_classifier(), out=folder, options=fake_options())

    assert waited == [True] * 5


def _appears(path, seconds=30):
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return path.exists()


@pytest.mark.parametrize(("device", "size"), [("cpu", 128), ("NVIDIA H200", 4096)])
def test_a_gpu_takes_more_windows_at_a_time(device, size):
    """Unless a size was asked for."""
    assert AuditOptions().chunk_size_on(device) == size
    assert AuditOptions(chunk_size=7).chunk_size_on(device) == 7


def test_a_failure_after_some_chunks_keeps_them(tmp_path):
    """They are the work of hours."""
    models = make_models(broken=[tuple(b"breaking")])
    rows = make_rows(*(f"{i:08}" for i in range(16)), "breaking")

    with pytest.raises(ModelError):
        audit_rows(rows, models, make_classifier(), out=tmp_path / "run", options=fake_options())

    assert len(list((tmp_path / "run" / "chunks").iterdir())) == 2
    assert not (tmp_path / "run" / "risk.parquet").exists()
