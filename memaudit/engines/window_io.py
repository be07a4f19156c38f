"""What goes into an engine's models and what comes out of them: checked windows, split scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def limits_of(model: "PreTrainedModel", n_rows: int) -> ModelLimits:
    """Return the limits of a model whose head has `n_rows` rows."""
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
        if limit.n_positions is not None and n_tokens > limit.n_positions:
            raise ModelError(
                f"a window has {n_tokens} tokens, {limit.name} reads at most {limit.n_positions}",
                hint="choose a shorter prefix or suffix",
            )
        if lowest < 0 or highest >= limit.n_rows:
            raise ModelError(
                f"token ids run from {lowest} to {highest}, "
                f"{limit.name} has rows for 0 to {limit.n_rows - 1}",
                hint="use the tokenizer that belongs to the model",
            )


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
    if not np.isfinite(scores_CN).all():
        raise ModelError(
            "a score is not a finite number: weights are broken, or too large for the dtype",
            hint="load the model in float32, or get its files again",
        )
    ends = np.cumsum([len(window) - 1 for window in windows])
    return [_window_scores(part) for part in np.split(scores_CN, ends[:-1], axis=1)]


def _window_scores(scores_CS: NDArray[np.float32]) -> WindowScores:
    teacher = _token_scores(scores_CS[:4])
    if len(scores_CS) == 4:
        return WindowScores(teacher)
    return WindowScores(teacher, _token_scores(scores_CS[4:8]), scores_CS[8])


def _token_scores(scores_4S: NDArray[np.float32]) -> TokenScores:
    logprobs, is_argmax, entropy, margin = scores_4S
    return TokenScores(logprobs, is_argmax.astype(np.bool_), entropy, margin)
