"""What a report counts in a finished run: risks, budgets, reasons and the worst examples."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memaudit.features import OBJECTIVE_FEATURES
from memaudit.metrics import ExpectedCount

if TYPE_CHECKING:
    from memaudit.runs.finished import FinishedRun

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


@dataclass(frozen=True, slots=True)
class WorstRow:
    """One of the riskiest examples; of equal ones, the first."""

    example_id: str
    """As in the corpus: untrusted."""

    address: str
    """As in the corpus: untrusted."""

    row: int
    """Ordinal in the corpus, from 0."""

    probability: float
    """That the student memorizes it."""

    flagged: bool
    """Whether that reaches the threshold."""

    occurrences: int
    """Of its worst window in the corpus."""

    reason: str
    """In words."""

    features: tuple[float, ...]
    """Of its worst window, by the names of the report."""

    holds: tuple[str, ...] = ()
    """What is sensitive in it, in words; nothing if it was not looked for."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The distinct worst windows of a run, the riskiest first; of equally risky ones, the first."""

    windows: NDArray[np.int64]
    """(n_texts,) indices of windows."""

    probabilities: NDArray[np.float64]
    """(n_texts,)"""

    copies: NDArray[np.int64]
    """(n_texts,) rows that have it as their worst window."""

    first_rows: NDArray[np.int64]
    """(n_texts,) the first of those rows."""


def distinct_texts(run: "FinishedRun") -> Texts:
    """Return the distinct worst windows of a run, in the order of their risk."""
    scored_rows = np.flatnonzero(run.is_scored)
    windows, first, copies = np.unique(
        run.judgement.worst_windows, return_index=True, return_counts=True
    )
    probabilities = run.judgement.window_probabilities[windows]
    # By -probability, then by place: lexsort looks at its last key first.
    order = np.lexsort((first, -probabilities))
    return Texts(windows[order], probabilities[order], copies[order], scored_rows[first[order]])


def histogram(run: "FinishedRun") -> tuple[Bin, ...]:
    """Return the scored rows by probability, in about twenty bins from 0 to 1."""
    threshold = run.judgement.classifier.threshold
    n_below = min(max(1, round(_N_BINS * threshold)), _N_BINS - 1)
    below = np.linspace(0, threshold, n_below + 1)
    edges = np.concatenate([below[:-1], np.linspace(threshold, 1, _N_BINS - n_below + 1)])
    counts, _ = np.histogram(run.judgement.row_probabilities, edges)
    return tuple(
        Bin(float(low), float(high), int(rows), flagged=i >= n_below)
        for i, (low, high, rows) in enumerate(
            zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
        )
    )


def budgets(run: "FinishedRun", texts: Texts) -> tuple[Budget, ...]:
    """Return what is left for about sixty numbers of dropped texts, from none to nearly all risk.

    One of them drops all at risk. The interval is the classifier's, for the texts that are left.
    """
    risks = texts.copies * texts.probabilities
    left = risks.sum() - np.cumsum(risks)
    last = min(int(np.searchsorted(-left, -_REST_SHARE * risks.sum())) + 1, len(risks))
    flagged = int((texts.probabilities >= run.judgement.classifier.threshold).sum())
    even = np.linspace(0, last, _N_BUDGETS // 2)
    steep = np.geomspace(1, max(1, last), _N_BUDGETS // 2)
    n_dropped = np.unique(np.concatenate([even, steep, [flagged]]).round().astype(np.int64))
    n_dropped = n_dropped[n_dropped <= len(risks)]
    rows = np.concatenate([[0], np.cumsum(texts.copies)])
    expected_count = run.judgement.classifier.expected_count
    return tuple(
        Budget(int(rows[n]), n, expected_count(texts.probabilities[n:], texts.copies[n:]))
        for n in n_dropped.tolist()
    )


def reason_counts(run: "FinishedRun", texts: Texts) -> tuple[ReasonCount, ...]:
    """Return how often each reason is given among the texts at risk, the most frequent first."""
    n_flagged = int((texts.probabilities >= run.judgement.classifier.threshold).sum())
    n_texts: Counter[str] = Counter()
    n_rows: Counter[str] = Counter()
    for window, copies in zip(
        texts.windows[: min(n_flagged, REASONS_OF)].tolist(), texts.copies.tolist(), strict=False
    ):
        for reason in _COUNTED.sub("occurs more than once", run.judgement.reason(window)).split(
            ", "
        ):
            n_texts[reason] += 1
            n_rows[reason] += copies
    return tuple(ReasonCount(reason, n, n_rows[reason]) for reason, n in n_texts.most_common())


def main_features(run: "FinishedRun") -> tuple[str, ...]:
    """Return the classifier's features that differ from window to window, the weightiest first."""
    classifier = run.judgement.classifier
    weights = dict(zip(classifier.features, classifier.coefficients, strict=True))
    shown = [
        name
        for name in weights
        if name not in (*OBJECTIVE_FEATURES, "occurrences", "log_occurrences")
    ]
    return tuple(sorted(shown, key=lambda name: -abs(weights[name]))[:_FEATURES_SHOWN])


def worst_rows(run: "FinishedRun", texts: Texts, n: int) -> tuple[WorstRow, ...]:
    """Return the riskiest rows, the riskiest first; of rows with equal worst windows, the first.

    Those with a secret that its rule puts forward come before all others.

    Args:
        run: finished.
        texts: of it.
        n: how many at most, up to `MAX_WORST`.
    """
    chosen = np.arange(len(texts.windows))
    if run.sensitivity is not None:
        at_risk = run.sensitivity.is_secret_at_risk[texts.first_rows]
        chosen = np.argsort(~at_risk, kind="stable")
    chosen = chosen[: min(n, MAX_WORST)]
    judgement = run.judgement
    columns = [judgement.feature_names.index(name) for name in main_features(run)]
    occurrences = judgement.feature_names.index("occurrences")
    found = []
    for window, row in zip(
        texts.windows[chosen].tolist(), texts.first_rows[chosen].tolist(), strict=True
    ):
        source = run.row(row)
        probability = float(judgement.window_probabilities[window])
        found.append(
            WorstRow(
                example_id=source.example_id,
                address=source.address,
                row=source.row,
                probability=probability,
                flagged=probability >= judgement.classifier.threshold,
                occurrences=int(judgement.X[window, occurrences]),
                reason=judgement.reason(window),
                features=tuple(judgement.X[window, columns].tolist()),
                holds=() if run.sensitivity is None else run.sensitivity.in_words(row),
            )
        )
    return tuple(found)


def n_recited(run: "FinishedRun", texts: Texts) -> int:
    """Return the rows whose worst window the teacher recites, token for token."""
    column = run.judgement.feature_names.index("teacher_suffix_argmax_rate")
    recited = run.judgement.X[texts.windows, column] == 1.0
    return int(texts.copies[recited].sum())
