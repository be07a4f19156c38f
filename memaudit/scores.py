"""Scores: what a model says about a window, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Entry = TypeVar("_Entry", bound=np.generic)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One model's scores of one window.

    A window of T tokens has S = T - 1 predictions: entry s is about token s + 1, given the
    tokens 0 to s. The first token has no prediction.
    """

    logprobs: NDArray[np.float32]
    """(S,) natural log-probability of the window's own next token, nats."""

    is_argmax: NDArray[np.bool_]
    """(S,) whether no token is more probable than the window's own; a tie counts."""

    entropy: NDArray[np.float32] | None
    """(S,) Shannon entropy of the prediction, nats. None: the engine cannot tell it exactly."""

    # Of logits: log-probabilities differ by as much, and are rounded once more.
    margin: NDArray[np.float32]
    """(S,) logit of the window's own next token minus that of its best rival, nats. Below 0 where
    another token is more probable; 0 is a tie."""


@dataclass(frozen=True, slots=True)
class WindowScores:
    """The teacher's scores of one window, with a reference's beside them if there is one."""

    teacher: TokenScores
    reference: TokenScores | None = None
    """The baseline's or the untrained student's."""

    kl_divergence: NDArray[np.float32] | None = None
    """(S,) KL(teacher ‖ reference) over the whole vocabulary at T = 1, nats. None: there is no
    reference, or the engine cannot tell it exactly."""


def suffix(per_token: NDArray[_Entry], prefix_len: int) -> NDArray[_Entry]:
    """Return the entries about the suffix: entry s is about token s + 1.

    Args:
        per_token: (T - 1,) one entry for each predicted token; or (n, T - 1), of n windows.
        prefix_len: tokens of the window before its suffix.

    Returns:
        (T - prefix_len,) or (n, T - prefix_len)
    """
    return per_token[..., prefix_len - 1 :]


def stack_scores(scores: Sequence[WindowScores]) -> WindowScores:
    """Return the scores of windows of one length as one: each array is (n, S) instead of (S,)."""
    references = [each.reference for each in scores if each.reference is not None]
    divergences = [each.kl_divergence for each in scores if each.kl_divergence is not None]
    return WindowScores(
        _stack_tokens([each.teacher for each in scores]),
        _stack_tokens(references) if references else None,
        np.stack(divergences) if divergences else None,
    )


def _stack_tokens(scores: Sequence[TokenScores]) -> TokenScores:
    entropies = [each.entropy for each in scores if each.entropy is not None]
    return TokenScores(
        logprobs=np.stack([each.logprobs for each in scores]),
        is_argmax=np.stack([each.is_argmax for each in scores]),
        entropy=np.stack(entropies) if entropies else None,
        margin=np.stack([each.margin for each in scores]),
    )
