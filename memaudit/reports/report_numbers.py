"""What a report counts in a finished run: risks, budgets, reasons and the worst examples."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memaudit.features import OBJECTIVE_FEATURES
from memaudit.metrics import ExpectedCount

if TYPE_CHECKING:
    from memaudit.runs.risks import DistinctTexts
    from memaudit.runs.run import Run

MAX_WORST = 500
"""Examples that a report lists at most: it stays a page, whatever the size of the corpus."""

REASONS_OF = 10_000
"""Distinct texts whose reasons are counted at most, the riskiest first."""

_N_BINS = 20
_N_BUDGETS = 64
_REST_SHARE = 0.02
_FEATURES_SHOWN = 5
_COUNTED = re.compile(r"occurs \d+ times")


@dataclass(frozen=True, slots=True)
class Bin:
    """Examples whose probability lies between two values."""

    low: float
    """Included."""

    high: float
    """Excluded, but for 1."""

    rows: int
    """How many."""

    flagged: bool
    """Whether they are at risk; the threshold is the end of a bin."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left when the riskiest examples are dropped."""

    rows: int
    """Dropped, all copies of a text together."""

    texts: int
    """Distinct ones among them."""

    left: ExpectedCount
    """Rows expected to be memorized among the others."""


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """How often a reason is given."""

    reason: str
    """In words."""

    texts: int
    """Distinct texts it is given for."""

    rows: int
    """Their copies, too."""


def histogram(run: "Run") -> tuple[Bin, ...]:
    """Return the scored rows by probability, in about twenty bins from 0 to 1."""
    threshold = run.risks.classifier.threshold
    n_below = min(max(1, round(_N_BINS * threshold)), _N_BINS - 1)
    below = np.linspace(0, threshold, n_below + 1)
    edges = np.concatenate([below[:-1], np.linspace(threshold, 1, _N_BINS - n_below + 1)])
    counts, _ = np.histogram(run.risks.row_probabilities, edges)
    return tuple(
        Bin(float(low), float(high), int(rows), flagged=i >= n_below)
        for i, (low, high, rows) in enumerate(
            zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
        )
    )


def budgets(run: "Run", texts: "DistinctTexts") -> tuple[Budget, ...]:
    """Return what is left for about sixty numbers of dropped texts, from none to nearly all risk.

    One of them drops all at risk. The interval is the classifier's, for the texts that are left.
    """
    risks = texts.copies * texts.probabilities
    left = risks.sum() - np.cumsum(risks)
    last = min(int(np.searchsorted(-left, -_REST_SHARE * risks.sum())) + 1, len(risks))
    flagged = run.risks.n_flagged_texts
    even = np.linspace(0, last, _N_BUDGETS // 2)
    steep = np.geomspace(1, max(1, last), _N_BUDGETS // 2)
    n_dropped = np.unique(np.concatenate([even, steep, [flagged]]).round().astype(np.int64))
    n_dropped = n_dropped[n_dropped <= len(risks)]
    rows = np.concatenate([[0], np.cumsum(texts.copies)])
    expected_count = run.risks.classifier.expected_count
    return tuple(
        # With none dropped, to the last digit what the headline says.
        Budget(
            int(rows[n]),
            n,
            expected_count(texts.probabilities[n:], texts.copies[n:]) if n else run.risks.expected,
        )
        for n in n_dropped.tolist()
    )


def reason_counts(run: "Run", texts: "DistinctTexts") -> tuple[ReasonCount, ...]:
    """Return how often each reason is given among the texts at risk, the most frequent first."""
    n_flagged = run.risks.n_flagged_texts
    n_texts: Counter[str] = Counter()
    n_rows: Counter[str] = Counter()
    for window, copies in zip(
        texts.windows[: min(n_flagged, REASONS_OF)].tolist(), texts.copies.tolist(), strict=False
    ):
        for reason in _COUNTED.sub("occurs more than once", run.risks.reason(window)).split(", "):
            n_texts[reason] += 1
            n_rows[reason] += copies
    return tuple(ReasonCount(reason, n, n_rows[reason]) for reason, n in n_texts.most_common())


def main_features(run: "Run") -> tuple[str, ...]:
    """Return the classifier's features that differ from window to window, the weightiest first."""
    classifier = run.risks.classifier
    weights = dict(zip(classifier.features, classifier.coefficients, strict=True))
    shown = [
        name
        for name in weights
        if name not in (*OBJECTIVE_FEATURES, "occurrences", "log_occurrences")
    ]
    return tuple(sorted(shown, key=lambda name: -abs(weights[name]))[:_FEATURES_SHOWN])


def n_recited(run: "Run", texts: "DistinctTexts") -> int:
    """Return the rows whose worst window the teacher recites, token for token."""
    column = run.risks.feature_names.index("teacher_suffix_argmax_rate")
    recited = run.risks.X[texts.windows, column] == 1.0
    return int(texts.copies[recited].sum())
