"""Which rows go, and what a classifier expects of those that stay."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import UsageError
from memaudit.filtering.options import FilterOptions
from memaudit.metrics import ExpectedCount
from memaudit.runs.finished import FinishedRun
from memaudit.runs.judging import Judgement


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows go."""

    is_removed: NDArray[np.bool_]
    """(n_rows,)"""

    copy_of: NDArray[np.int64]
    """(n_rows,) the row that is kept in its place; -1 where none is."""

    risky_windows: NDArray[np.int64]
    """Distinct windows that are too risky, ascending."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of some rows."""

    expected: ExpectedCount
    """Memorized rows; equal ones share their fate."""

    flagged: int
    """Rows at or above the threshold."""

    is_estimate: bool
    """Whether probabilities were changed for how often a window is left."""


def select_rows(run: FinishedRun, options: FilterOptions) -> Selection:
    """Return which rows go, near-duplicates aside.

    Raises:
        UsageError: no choice of copies brings the expected number down far enough.
    """
    if options.expected_at_most is not None:
        return _select_for(run, options, options.expected_at_most)
    return _applied(run, options, _risky_rows(run, options))


def _risky_rows(run: FinishedRun, options: FilterOptions) -> NDArray[np.bool_]:
    """Return (n_rows,) which rows are too risky by a limit on each."""
    if options.max_probability is not None:
        return run.is_scored & (run.probabilities > options.max_probability)
    if options.top is not None:
        risky = np.zeros(run.n_rows, dtype=np.bool_)
        risky[_riskiest_first(run)[: options.top]] = True
        return risky
    return run.is_flagged


def _riskiest_first(run: FinishedRun) -> NDArray[np.int64]:
    """Return the scored rows, copies side by side, of equally risky ones the first first."""
    rows = np.flatnonzero(run.is_scored)
    windows, first, inverse = np.unique(
        run.worst_windows[rows], return_index=True, return_inverse=True
    )
    del windows
    return rows[np.lexsort((rows, first[inverse], -run.probabilities[rows]))]


def _applied(run: FinishedRun, options: FilterOptions, risky: NDArray[np.bool_]) -> Selection:
    """Return what the strategy does about risky rows."""
    windows = np.unique(run.worst_windows[risky])
    copy_of = np.full(run.n_rows, -1, dtype=np.int64)
    if options.strategy == "drop":
        return Selection(risky, copy_of, windows)
    removed = np.zeros(run.n_rows, dtype=np.bool_)
    rows = np.flatnonzero(np.isin(run.worst_windows, windows) & run.is_scored)
    rows = rows[np.argsort(run.worst_windows[rows], kind="stable")]
    _, starts, counts = np.unique(run.worst_windows[rows], return_index=True, return_counts=True)
    number = np.arange(len(rows)) - np.repeat(starts, counts)
    goes = number >= options.max_copies
    removed[rows[goes]] = True
    copy_of[rows[goes]] = np.repeat(rows[starts], counts)[goes]
    return Selection(removed, copy_of, windows)


def _select_for(run: FinishedRun, options: FilterOptions, limit: float) -> Selection:
    """Remove as little as brings the upper bound down to the limit, the riskiest first."""
    order = _riskiest_first(run)

    def removing(n: int) -> Selection:
        risky = np.zeros(run.n_rows, dtype=np.bool_)
        risky[order[:n]] = True
        return _applied(run, options, risky)

    def is_enough(n: int) -> bool:
        return outlook(run, removing(n).is_removed, options).expected.high <= limit

    if not is_enough(len(order)):
        best = outlook(run, removing(len(order)).is_removed, options).expected
        raise UsageError(
            f"with at most {options.max_copies} copies of each example still {best.mean:,.1f} "
            f"({best.low:,} to {best.high:,}) are expected to be memorized, "
            f"at most {limit:g} allowed by the upper bound",
            hint="choose --strategy drop, or a higher --expected-at-most",
        )
    return removing(_least(is_enough, len(order)))


def _least(is_enough: Callable[[int], bool], highest: int) -> int:
    """Return the least number that is enough, if more is never worse."""
    low, high = 0, highest
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low


def outlook(run: FinishedRun, is_removed: NDArray[np.bool_], options: FilterOptions) -> Outlook:
    """Return what is expected of the rows that stay.

    Rows that stay have their probability, but for windows of which copies went: where the
    classifier looks at how often a window occurs, it is asked again. The teacher's scores are
    still those of a teacher that saw every copy.
    """
    stays = run.is_scored & ~is_removed
    windows, copies = np.unique(run.worst_windows[stays], return_counts=True)
    probabilities, is_estimate = run.judgement.window_probabilities[windows], False
    if options.strategy != "drop" and is_removed.any():
        gone, n_gone = np.unique(run.worst_windows[run.is_scored & is_removed], return_counts=True)
        probabilities, is_estimate = _asked_again(run.judgement, windows, gone, n_gone)
    classifier = run.manifest.classifier
    return Outlook(
        classifier.expected_count(probabilities, copies),
        int(copies[probabilities >= classifier.threshold].sum()),
        is_estimate,
    )


def _asked_again(
    judgement: Judgement,
    windows: NDArray[np.int64],
    gone: NDArray[np.int64],
    n_gone: NDArray[np.int64],
) -> tuple[NDArray[np.float64], bool]:
    """Return (n_windows,) probabilities with the copies that are left, and if that changed any."""
    probabilities = judgement.window_probabilities[windows]
    names, used = judgement.feature_names, judgement.classifier.features
    if not {"occurrences", "log_occurrences"} & set(used):
        return probabilities, False
    lost = np.zeros(len(judgement.X), dtype=np.int64)
    lost[gone] = n_gone
    X = judgement.X[windows]
    occurrences = np.maximum(1.0, X[:, names.index("occurrences")] - lost[windows])
    X[:, names.index("occurrences")] = occurrences
    X[:, names.index("log_occurrences")] = np.log(occurrences)
    again = judgement.classifier.predict_proba(X[:, [names.index(name) for name in used]])
    return np.where(lost[windows] > 0, again, probabilities), True
