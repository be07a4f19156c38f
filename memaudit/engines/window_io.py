"""What goes into an engine's models and comes out of them, and engines on what others tell of a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import ModelError
from memaudit.scores import TokenScores, WindowScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Which windows a model can read."""

    name: str
    n_positions: int | None
    """Tokens of the longest sequence. None: not known."""

    n_rows: int
    """One more than the largest token id."""

    def check(self, what: str, n_tokens: int, lowest: int, highest: int) -> None:
        """Raise a `ModelError` for what is too long, or holds ids that the model does not have."""
        # Predictions beyond its positions are worthless, and nothing else would say so.
        if self.n_positions is not None and n_tokens > self.n_positions:
            raise ModelError(
                f"{what} {n_tokens} tokens, {self.name} reads at most {self.n_positions}",
                hint="choose a shorter prefix or suffix",
            )
        # Such an id would end the process on a GPU; a negative one would read another row.
        if lowest < 0 or highest >= self.n_rows:
            raise ModelError(
                f"token ids run from {lowest} to {highest}, "
                f"{self.name} has rows for 0 to {self.n_rows - 1}",
                hint="use the tokenizer that belongs to the model",
            )


def limits_of(model: "PreTrainedModel", n_rows: int) -> ModelLimits:
    """Return the limits of a model whose head has `n_rows` rows."""
    # A model that reads pictures, too, keeps the limits of its text in a config of their own.
    n_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return ModelLimits(type(model).__name__, n_positions, n_rows)


def check_windows(
    windows: Sequence[NDArray[np.int32]], bos: list[int], limits: Sequence[ModelLimits]
) -> None:
    """Refuse windows that a model cannot read.

    Raises:
        ValueError: a window has fewer than 2 tokens.
        ModelError: a window is too long for a model, or holds ids it does not have.
    """
    if not windows:
        return
    if min(map(len, windows)) < 2:
        raise ValueError("a window must have at least 2 tokens")
    n_tokens = max(map(len, windows)) + len(bos)
    lowest = min([*bos, *(window.min() for window in windows)])
    highest = max([*bos, *(window.max() for window in windows)])
    for limit in limits:
        limit.check("a window has", n_tokens, lowest, highest)


def split_scores(
    scores_CN: NDArray[np.float32], windows: Sequence[NDArray[np.int32]]
) -> list[WindowScores]:
    """Return the scores of each window.

    Args:
        scores_CN: (4 or 9, N) as the head returns them, one window's predictions after the other's.
        windows: token ids, each (T,), of T - 1 predictions.

    Raises:
        ModelError: a score is not finite.
    """
    # No comparison with NaN holds: a broken model would pass for one that recites nothing.
    if not np.isfinite(scores_CN).all():
        raise ModelError(
            "a score is not a finite number: weights are broken, or too large for the dtype",
            hint="load the model in float32, or get its files again",
        )
    ends = np.cumsum([len(window) - 1 for window in windows])
    parts = np.split(scores_CN, ends[:-1], axis=1)
    if len(scores_CN) == 4:
        return [WindowScores(_token_scores(part)) for part in parts]
    # The reference's four rows, and the divergence of the two.
    return [WindowScores(_token_scores(p[:4]), _token_scores(p[4:8]), p[8]) for p in parts]


def _token_scores(scores_4S: NDArray[np.float32]) -> TokenScores:
    logprobs, is_argmax, entropy, margin = scores_4S
    return TokenScores(logprobs, is_argmax.astype(np.bool_), entropy, margin)


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
            name: for reports, such as `vllm-0.32.0-float32`: another release may round differently.
            bos_token_id: put in front of every window as context, never scored.
        """
        self._models = models
        self.name = name
        self._bos_token_id = bos_token_id
        self._bos = [] if bos_token_id is None else [bos_token_id]

    @property
    def reference_alone(self) -> Self:
        """The same on the reference, where it is asked before the teacher."""
        return type(self)(self._models[1:], name=self.name, bos_token_id=self._bos_token_id)


class LogprobEngine(OutsideEngine[tuple[PromptLogprobs, ModelLimits]]):
    """An `Engine` on one or two models that something else runs with their heads.

    It names the log-probability of the prompt's own token and of the two most probable ones:
    enough for log-probability, argmax and margin, and for neither an entropy nor a divergence over
    the whole vocabulary. Those are absent, not approximated. The scores of a window do not depend
    on the windows beside it, but for rounding.
    """

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Return the scores of each window, see `Engine`, without what needs all logits."""
        check_windows(windows, self._bos, [limits for _, limits in self._models])
        prompts = [[*self._bos, *window.tolist()] for window in windows]
        of_models = []
        for run, _ in self._models:
            scores = []
            for own_and_rival, window in zip(run(prompts), windows, strict=True):
                # With a BOS in front, the first prediction is of the window's first token: no score.
                own, rival = own_and_rival[:, len(self._bos) :]
                n_finite = int(np.isfinite(own).sum())
                if not len(own) == n_finite == len(window) - 1:
                    raise ModelError(
                        f"{self.name} gives {n_finite} finite log-probabilities for a window of "
                        f"{len(window)} tokens, expected {len(window) - 1}",
                        hint="use the model itself with --engine hf",
                    )
                # Not by rank: vLLM's counts ties, and would miss a token that is as probable.
                scores.append(TokenScores(own, own >= rival, entropy=None, margin=own - rival))
            of_models.append(scores)
        return [WindowScores(*scores) for scores in zip(*of_models, strict=True)]
