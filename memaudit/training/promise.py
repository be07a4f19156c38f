"""Promises: which recall calibration can vouch for, given how few examples are memorized."""

from memaudit.metrics import clopper_pearson

PROMISED_RECALL = 0.9
"""What is asked of a classifier unless something else is said."""

_CONFIDENCE = 0.95


def recall_promise(n_positives: int, n_missed: int = 0) -> float:
    """Return the recall that is exceeded at 95 % confidence, one-sided, if so many are missed.

    It holds for a threshold chosen on other examples, and for corpora and distillations like
    those of the positives. Source: Clopper & Pearson 1934 (doi:10.1093/biomet/26.4.404).

    Args:
        n_positives: extracted examples that were looked at.
        n_missed: of these, not flagged.

    Returns:
        in [0, 1); 0 without a positive.
    """
    # Two-sided at 90 % leaves 5 % on the side that matters.
    return clopper_pearson(n_positives - n_missed, n_positives, 2 * _CONFIDENCE - 1).low


def misses_allowed(n_positives: int, recall: float = PROMISED_RECALL) -> int | None:
    """Return how many of the positives may be missed for this recall; None if not even none."""
    if recall_promise(n_positives) < recall:
        return None
    low, high = 0, n_positives
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if recall_promise(n_positives, middle) >= recall else (low, middle)
        )
    return low


def positives_needed(recall: float = PROMISED_RECALL) -> int:
    """Return the least number of positives that allow this recall, in (0, 1), if none is missed."""
    n_positives = 1
    while recall_promise(n_positives) < recall:
        n_positives += 1
    return n_positives
