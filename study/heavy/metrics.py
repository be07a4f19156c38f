"""Metrics that only the study of heavy cells looks at."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memaudit.metrics import roc_auc


@dataclass(frozen=True, slots=True)
class ThresholdCounts:
    """What flagging at a threshold catches, and what it costs."""

    n_examples: int
    n_extracted: int
    n_flagged: int
    """Examples at or above the threshold."""

    n_caught: int
    """Flagged examples that were extracted."""

    @property
    def precision(self) -> float | None:
        """Share of the flagged that were extracted; None if nothing is flagged."""
        return self.n_caught / self.n_flagged if self.n_flagged else None

    @property
    def recall(self) -> float | None:
        """Share of the extracted that are flagged; None if nothing was extracted."""
        return self.n_caught / self.n_extracted if self.n_extracted else None


def stratified_auc(
    extracted: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    strata: NDArray[np.generic],
) -> float | None:
    """Return how often a random positive outranks a random negative of the same stratum.

    With the number of occurrences as strata it says what is predicted beyond "often repeated".

    Args:
        extracted: (n,)
        probabilities: (n,)
        strata: (n,) examples with the same value form a stratum.

    Returns:
        in [0, 1], every pair weighing the same; None if no stratum holds a pair.
    """
    n_outranked, n_pairs = 0.0, 0
    for stratum in np.unique(strata):
        here = strata == stratum
        auc = roc_auc(extracted[here], probabilities[here])
        if auc is not None:
            n_positives = int(extracted[here].sum())
            n_here = n_positives * (int(here.sum()) - n_positives)
            n_outranked += auc * n_here
            n_pairs += n_here
    return n_outranked / n_pairs if n_pairs else None


def precision_recall_at(
    extracted: NDArray[np.bool_], probabilities: NDArray[np.float64], threshold: float
) -> ThresholdCounts:
    """Return what is caught when every probability at or above the threshold is flagged."""
    flagged = probabilities >= threshold
    return ThresholdCounts(
        n_examples=len(extracted),
        n_extracted=int(extracted.sum()),
        n_flagged=int(flagged.sum()),
        n_caught=int((flagged & extracted).sum()),
    )
