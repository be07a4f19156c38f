"""What a window holds, and whether a secret in it is at risk: counts and a plain rule.

A classifier of memorization takes a random key for text that is hard to learn: it hardly
compresses, the models' perplexity is high, and windows of the kind are rare in what it was fitted
on. So a secret gets a rule of its own, on evidence that needs no classifier:

- The teacher recites it: of the secret's own tokens, each predicted from all that stands before
  it, at least half are the teacher's first choice. By chance that is all but impossible, for
  nothing that stands before a random token says which one it will be.
- Or its window stands in the corpus more than once: repetition is what makes models learn text by
  heart.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from memaudit.sensitivity.detector import Detector
from memaudit.sensitivity.kinds import KINDS, PERSONAL_KINDS, SECRET_KINDS

SENSITIVITY_COUNTS = ("personal_data", "secrets", *KINDS)
"""Of a window: what is sensitive in it, by sort and by kind."""

SENSITIVITY_COLUMNS = (*SENSITIVITY_COUNTS, "secret_argmax_rate", "secret_at_risk")
"""Numbers of a window: counts, what the teacher knows of its secrets, and the rule's verdict."""

RECITED_SHARE = 0.5
"""Of a secret's tokens, how many have to be the teacher's first choice."""

Decode = Callable[[list[list[int]]], list[str]]
"""From sequences of token ids to their texts."""


def sensitivity_counts(detector: Detector, text: str) -> dict[str, float]:
    """Return `SENSITIVITY_COUNTS` of a window's text, by name."""
    counts = Counter(span.kind for span in detector.find(text))
    return {
        "personal_data": float(sum(counts[kind] for kind in PERSONAL_KINDS)),
        "secrets": float(sum(counts[kind] for kind in SECRET_KINDS)),
        **{kind: float(counts[kind]) for kind in KINDS},
    }


def secret_argmax_rate(
    detector: Detector, decode: Decode, token_ids: NDArray[np.int32], is_argmax: NDArray[np.bool_]
) -> float:
    """Return which share of a secret's tokens the teacher gets right; of several, the largest.

    Args:
        detector: finds the secrets.
        decode: the tokenizer's.
        token_ids: (T,) of a window.
        is_argmax: (T - 1,) whether the teacher's first choice is the window's next token.

    Returns:
        in [0, 1]; 0 if there is no secret.
    """
    ids = token_ids.tolist()
    # Where each token begins: at the length of what is decoded before it. That holds too where
    # a character takes several tokens, or the tokenizer drops a space at the start.
    *before, text = decode([ids[:n] for n in range(1, len(ids) + 1)])
    starts = np.array([0, *map(len, before)])
    ends = np.append(starts[1:], len(text))
    rates = [0.0]
    for span in detector.find(text):
        if span.kind in SECRET_KINDS:
            # Entry s is about token s + 1: the first token has no prediction.
            is_within = (starts < span.end) & (ends > span.start)
            known = is_argmax[is_within[1:]]
            rates.append(float(known.mean(dtype=np.float64)) if len(known) else 0.0)
    return max(rates)


def is_secret_at_risk(features: Mapping[str, float]) -> bool:
    """Whether a window's secret is put forward, whatever a classifier says.

    Args:
        features: of the window: `secrets`, `secret_argmax_rate` and `occurrences`.
    """
    return features["secrets"] > 0 and (
        features["secret_argmax_rate"] >= RECITED_SHARE or features["occurrences"] > 1
    )
