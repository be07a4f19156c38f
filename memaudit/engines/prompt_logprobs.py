"""Engines on what others tell of the tokens of a prompt: their log-probabilities, and no more."""

from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from memaudit.engines.window_io import ModelLimits, check_windows
from memaudit.errors import ModelError
from memaudit.scores import TokenScores, WindowScores

_Model = TypeVar("_Model")

PromptLogprobs = Callable[[list[list[int]]], list[NDArray[np.float32]]]
"""Gives (2, T - 1) for each sequence of T token ids: the log-probability of its own next token, and
that of the most probable other one, nats."""


class OutsideEngine(Generic[_Model]):
    """One model that something else runs, or teacher and reference: vLLM here, or a server."""

    def __init__(
        self, models: Sequence[_Model], *, name: str, bos_token_id: int | None = None
    ) -> None:
        """Take them over.

        Args:
            models: one or two.
            name: for reports.
            bos_token_id: put in front of every window as context, never scored.
        """
        self._models = models
        self._name = name
        self._bos_token_id = bos_token_id
        self._bos = [] if bos_token_id is None else [bos_token_id]

    @property
    def name(self) -> str:
        """`vllm-0.32.0-float32`: another release may round differently."""
        return self._name

    @property
    def reference_alone(self) -> Self:
        """The same on the reference, where it is asked before the teacher."""
        return type(self)(self._models[1:], name=self._name, bos_token_id=self._bos_token_id)


class LogprobEngine(OutsideEngine[tuple[PromptLogprobs, ModelLimits]]):
    """An `Engine` on one or two models that something else runs with their heads.

    It names the log-probability of the prompt's own token and of the two most probable ones:
    enough for log-probability, argmax and margin, and for neither an entropy nor a divergence over
    the whole vocabulary. Those are absent, not approximated. The scores of a window do not depend
    on the windows beside it, but for rounding.
    """

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Return the scores of each window, in the order given, without what needs all logits.

        Args:
            windows: token ids, each (T,) with T >= 2; lengths may differ.

        Raises:
            ModelError: a window is too long for a model or holds ids it does not have, a score is
                not finite, or what runs the model fails.
        """
        check_windows(windows, self._bos, [limits for _, limits in self._models])
        prompts = [[*self._bos, *window.tolist()] for window in windows]
        found = [self._token_scores(run(prompts), windows) for run, _ in self._models]
        return [WindowScores(*scores) for scores in zip(*found, strict=True)]

    def _token_scores(
        self, logprobs: list[NDArray[np.float32]], windows: Sequence[NDArray[np.int32]]
    ) -> list[TokenScores]:
        scores = []
        for own_and_rival, window in zip(logprobs, windows, strict=True):
            # With a BOS in front, the first prediction is of the window's first token: no score.
            own, rival = own_and_rival[:, len(self._bos) :]
            if len(own) != len(window) - 1 or not np.isfinite(own).all():
                raise ModelError(
                    f"{self.name} gives {int(np.isfinite(own).sum())} finite log-probabilities for a "
                    f"window of {len(window)} tokens, expected {len(window) - 1}",
                    hint="use the model itself with --engine hf",
                )
            # Not by rank: vLLM's counts ties, and would miss a token that is as probable.
            scores.append(TokenScores(own, own >= rival, entropy=None, margin=own - rival))
        return scores
