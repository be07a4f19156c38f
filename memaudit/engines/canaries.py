"""Canaries: windows whose scores are known, scored again and again to catch an engine that lies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from memaudit.engines import Engine
from memaudit.errors import ModelError
from memaudit.scores import WindowScores

_N_CANARIES = 4
_PASSAGE = (
    "In the beginning there was a harbour, and beside it a street of low houses with blue doors. "
    "Every morning the boats went out before the sun had risen, and every evening they came back "
    "with the wind behind them; the children counted their sails from the wall. "
)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two engines may be apart on a canary, in nats, in any score of any token."""

    mean: float
    largest: float
    """Of one, beside `relative`."""

    relative: float
    """Of the score: an improbable token's log-probability is far from 0, and so is its rounding."""


TOLERANCES = {"float32": Tolerance(1e-3, 1e-3, 1e-4), "bfloat16": Tolerance(0.15, 8.0, 0.1)}
"""By number format. Float32 leaves room for rounding and nothing else. In bfloat16 two right
engines are .03 to .08 nats apart on average, with a model of 135 million parameters, and 4 nats at
one token in four hundred, where either is as far from float32: what is caught there is an engine
that is plainly wrong."""


@dataclass(frozen=True, slots=True)
class Canaries:
    """Windows, and what a trusted engine says about them."""

    windows: tuple[NDArray[np.int32], ...]
    """Token ids, at least one."""

    scores: tuple[WindowScores, ...]
    tolerance: Tolerance
    """How far an engine under watch may be from them."""

    trusted: str = "transformers"
    """What calculated the scores, in words."""


def canary_windows(
    encode: Callable[[list[str]], list[list[int]]], n_ids: int, length: int
) -> tuple[NDArray[np.int32], ...]:
    """Return windows both likely and unlikely: plain prose that repeats itself, and random tokens.

    Args:
        encode: of the tokenizer.
        n_ids: one more than the largest token id.
        length: tokens of each, at least 2.
    """
    # The same in every process, for their scores are compared.
    rng = np.random.default_rng(0)
    # A tokenizer may know none of these words.
    passage = np.asarray(encode([_PASSAGE])[0] or [0], dtype=np.int32)
    prose = np.resize(passage, length)
    noise = rng.integers(0, n_ids, (_N_CANARIES - 1, length), dtype=np.int32)
    return (prose, *noise)


class WatchedEngine:
    """An `Engine` that is held against canaries: all at the start, and one in every call.

    The one that rides along is in the engine's batch with the windows that are asked for, and is
    compared before their scores are handed out: no score of a call that went wrong is used. Which
    one it is depends on the windows alone, so that a chunk done twice is scored alike.
    """

    def __init__(self, engine: Engine, canaries: Canaries) -> None:
        """Score every canary.

        Raises:
            ModelError: the engine disagrees about one.
        """
        self._engine, self.name = engine, engine.name
        self._canaries = canaries
        found = engine.score(canaries.windows)
        for index, scores in enumerate(found):
            self._check(index, scores)
        # Who has no entropies has no divergences either.
        self.logprobs_only = found[0].teacher.entropy is None

    # Made once: to make it scores all canaries.
    @cached_property
    def reference_alone(self) -> "WatchedEngine":
        """An engine on the reference, watched by the same canaries.

        Raises:
            ModelError: it disagrees about one.
        """
        scores = []
        for of_both in self._canaries.scores:
            assert of_both.reference is not None
            scores.append(WindowScores(of_both.reference))
        canaries = replace(self._canaries, scores=tuple(scores))
        return WatchedEngine(self._engine.reference_alone, canaries)

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Return the scores of each window, in the order given.

        Raises:
            ModelError: what the engine raises, or it disagrees about the canary.
        """
        if not windows:
            return []
        index = sum(int(window.sum()) for window in windows) % len(self._canaries.windows)
        *scores, of_canary = self._engine.score([*windows, self._canaries.windows[index]])
        self._check(index, of_canary)
        return scores

    def _check(self, index: int, found: WindowScores) -> None:
        expected = self._canaries.scores[index]
        # Of each model's scores and of the divergence: what an engine cannot tell is not compared.
        gaps: NDArray[np.float32] = np.abs(_rows(found, found) - _rows(expected, found))
        tolerance = self._canaries.tolerance
        allowed = tolerance.largest + tolerance.relative * np.abs(_rows(expected, found))
        # NaN is not within any tolerance.
        # One token may be far off in bfloat16, so what they are off on average is bounded, too.
        if not ((gaps <= allowed).all() and gaps.mean() <= tolerance.mean):
            raise ModelError(
                f"{self.name} disagrees with {self._canaries.trusted} about canary {index}: by "
                f"{gaps.mean():.2g} nats a token on average and {gaps.max():.2g} at most; about "
                f"{tolerance.mean:g} and {tolerance.largest:g} are allowed",
                hint="its scores cannot be trusted here: use the model itself with --engine hf",
            )


def _rows(scores: WindowScores, told: WindowScores) -> NDArray[np.float32]:
    """Return (k, S) those scores that the other ones have as well."""
    pairs = zip(_all_rows(scores), _all_rows(told), strict=True)
    return np.stack([row for row, other in pairs if row is not None and other is not None])


def _all_rows(scores: WindowScores) -> list[NDArray[np.float32] | None]:
    models = [scores.teacher] if scores.reference is None else [scores.teacher, scores.reference]
    rows = [row for model in models for row in (model.logprobs, model.entropy)]
    return [*rows, scores.kl_divergence]
