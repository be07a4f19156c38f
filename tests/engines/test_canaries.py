"""Canaries: an engine that says something else about them is stopped."""

from dataclasses import replace

import numpy as np
import pytest
from support.fakes import ByteTokenizer

from memaudit.engines.canaries import TOLERANCES, Canaries, WatchedEngine, canary_windows
from memaudit.errors import ModelError
from memaudit.scores import TokenScores, WindowScores

WINDOWS = [np.arange(20, dtype=np.int32) + start for start in range(5)]
CANARIES = canary_windows(ByteTokenizer().encode, 256, 20)


class HonestEngine:
    """Says what depends on the window alone; `error(call)` is added to its entropies."""

    name = "honest"

    def __init__(self, error=lambda call: 0.0):
        self._error = error
        self.calls = []

    def score(self, windows):
        self.calls.append([window.tolist() for window in windows])
        return [self._score(window) for window in windows]

    def _score(self, window):
        numbers = np.sin(window[1:].astype(np.float32))
        scores = TokenScores(numbers - 2, numbers > 0, numbers + 2, numbers)
        wrong = replace(scores, entropy=scores.entropy + np.float32(self._error(len(self.calls))))
        return WindowScores(wrong, scores, numbers + 1)


def watch(engine, dtype="float32"):
    """Hold an engine against what the honest one says."""
    scores = tuple(HonestEngine().score(CANARIES))
    return WatchedEngine(engine, Canaries(CANARIES, scores, TOLERANCES[dtype]))


def test_an_honest_engine_gives_its_own_scores():
    """Watching must change nothing."""
    engine = HonestEngine()

    found = watch(engine).score(WINDOWS)

    expected = HonestEngine().score(WINDOWS)
    assert [a.teacher.entropy.tolist() for a in found] == [
        b.teacher.entropy.tolist() for b in expected
    ]
    assert watch(engine).score([]) == []
    assert watch(engine).name == "honest"


@pytest.mark.parametrize("error", [0.01, -0.01, float("nan")])
def test_an_engine_that_is_wrong_from_the_start_is_refused(error):
    """Before a window of the corpus is scored."""
    with pytest.raises(ModelError, match="disagrees with transformers about canary 0") as caught:
        watch(HonestEngine(lambda call: error))

    assert "--engine hf" in caught.value.hint


def test_an_engine_that_goes_wrong_later_gives_no_scores():
    """A chunk that was scored badly must not be committed, were it the last one."""
    engine = watch(HonestEngine(lambda call: 0.01 if call == 4 else 0.0))

    engine.score(WINDOWS)
    engine.score(WINDOWS)
    with pytest.raises(ModelError, match="disagrees"):
        engine.score(WINDOWS)


def test_rounding_is_allowed_and_more_of_it_in_bfloat16():
    """Two right engines need not agree to the bit."""
    for dtype, error in (("float32", 5e-4), ("bfloat16", 0.1)):
        watch(HonestEngine(lambda call, error=error: error), dtype).score(WINDOWS)


def test_the_same_windows_ride_with_the_same_canary():
    """A chunk done twice must be the same file, and a batch decides how an engine rounds."""
    engine = HonestEngine()
    watched = watch(engine)

    watched.score(WINDOWS)
    watched.score(WINDOWS)
    watched.score(WINDOWS[1:])

    assert engine.calls[1] == engine.calls[2]
    assert engine.calls[3][-1] in [window.tolist() for window in CANARIES]


def test_canaries_are_of_the_length_asked_for_and_of_both_kinds():
    """Likely and unlikely tokens go wrong in different ways."""
    assert {len(window) for window in canary_windows(ByteTokenizer().encode, 256, 400)} == {400}
    assert bytes(CANARIES[0].tolist()).decode().startswith("In the beginning")
    assert all(window.max() < 256 and window.min() >= 0 for window in CANARIES)


class PairEngine(HonestEngine):
    """Has a reference that can be asked alone, and may go wrong there."""

    wrong = 0.0

    @property
    def reference_alone(self):
        alone = HonestEngine()
        alone._score = lambda window: WindowScores(
            replace(
                HonestEngine()._score(window).reference,
                entropy=HonestEngine()._score(window).reference.entropy + np.float32(self.wrong),
            )
        )
        return alone


def test_the_reference_alone_is_watched_too():
    """It decides what the teacher never reads."""
    engine = PairEngine()
    found = watch(engine).reference_alone.score(WINDOWS)

    expected = [scores.reference for scores in HonestEngine().score(WINDOWS)]
    assert [a.teacher.logprobs.tolist() for a in found] == [b.logprobs.tolist() for b in expected]
    engine.wrong = 0.1
    with pytest.raises(ModelError, match="disagrees with transformers"):
        watch(engine).reference_alone  # noqa: B018  # asking for it is what checks it
