"""Which rows go or are cut, and what a classifier expects of the rest."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import UsageError
from memaudit.features import EXPOSURE_FEATURES
from memaudit.metrics import ExpectedCount
from memaudit.runs.risks import Risks
from memaudit.runs.run import Run

Strategy = Literal["drop", "deduplicate", "downsample", "excise"]
"""What happens to a risky row: it goes; of equal texts one stays; of rows with equal windows a few
stay; or the risky window is cut out of it."""


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """Which rows are too risky, and what happens to them. Without a limit: the flagged ones."""

    max_probability: float | None = None
    """Rows above it are too risky, in [0, 1]."""

    top: int | None = None
    """So many of the riskiest rows are too risky."""

    expected_at_most: float | None = None
    """As few rows as possible are too risky: the upper end of the 95 % interval of the number
    memorized comes down to this."""

    strategy: Strategy = "drop"
    max_copies: int = 1
    """Rows with the same risky window that `downsample` keeps, at least 1."""

    near_duplicates: float | None = None
    """For `deduplicate`: of texts at least this similar to a risky one, one is kept, in (0, 1]."""

    def __post_init__(self) -> None:
        limits = [self.max_probability, self.top, self.expected_at_most]
        if sum(limit is not None for limit in limits) > 1:
            raise UsageError(
                "more than one limit, expected at most one",
                hint="give --max-probability, --top or --expected-at-most",
            )
        if any(limit is not None and not (math.isfinite(limit) and limit >= 0) for limit in limits):
            raise UsageError("a limit is not a number of at least 0")
        if self.max_probability is not None and self.max_probability > 1:
            raise UsageError(f"expected a probability, got {self.max_probability:g}")
        if self.strategy not in get_args(Strategy) or self.max_copies < 1:
            raise ValueError(f"expected a strategy of {get_args(Strategy)} and max_copies >= 1")
        if self.max_copies > 1 and self.strategy != "downsample":
            raise UsageError(
                f"--max-copies goes with --strategy downsample, got {self.strategy}",
                hint="leave out one of the two",
            )
        if self.near_duplicates is not None and self.strategy != "deduplicate":
            raise UsageError(
                f"--near-duplicates goes with --strategy deduplicate, got {self.strategy}",
                hint="leave out one of the two",
            )
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise UsageError(f"expected a similarity in (0, 1], got {self.near_duplicates:g}")

    @property
    def in_words(self) -> str:
        """Why a row is too risky."""
        if self.max_probability is not None:
            return f"probability above {self.max_probability:g}"
        if self.top is not None:
            return f"among the {self.top} riskiest"
        if self.expected_at_most is not None:
            return f"for at most {self.expected_at_most:g} expected"
        return "flagged"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows go, and which are cut."""

    is_removed: NDArray[np.bool_]
    """(n_rows,)"""

    kept: NDArray[np.int64]
    """(n_rows,) the row that stays in the place of a removed one; -1 where none does."""

    is_copy: NDArray[np.bool_]
    """(n_rows,) whether a removed row has the same text as the row that stays in its place."""

    risky_windows: NDArray[np.int64]
    """Distinct windows that are too risky, ascending."""

    is_cut: NDArray[np.bool_]
    """(n_rows,) whether the risky windows are cut out of a row, which stays."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of some rows."""

    expected: ExpectedCount
    """Memorized rows; equal ones share their fate."""

    flagged: int
    """Rows at or above the threshold."""

    is_estimate: bool
    """Whether probabilities were changed for how often a window is left."""


def select_rows(run: Run, options: FilterOptions, texts: NDArray[np.int64]) -> Selection:
    """Return which rows go or are cut, near-duplicates aside.

    Args:
        run: predictions.
        options: which rows are too risky, and what happens to them.
        texts: (n_rows,) equal numbers for equal texts.

    Raises:
        UsageError: no choice of copies brings the expected number down far enough.
    """
    if options.expected_at_most is not None:
        return _select_for(run, options, texts, options.expected_at_most)
    return _applied(run, options, texts, _risky_rows(run, options))


def _risky_rows(run: Run, options: FilterOptions) -> NDArray[np.bool_]:
    """Return (n_rows,) which rows are too risky by a limit on each."""
    if options.max_probability is not None:
        return run.is_scored & (run.probabilities > options.max_probability)
    if options.top is not None:
        risky = np.zeros(run.n_rows, dtype=np.bool_)
        risky[_riskiest_first(run)[: options.top]] = True
        return risky
    return run.is_flagged


def _riskiest_first(run: Run) -> NDArray[np.int64]:
    """Return the scored rows, copies side by side, of equally risky ones the first first."""
    rows = np.flatnonzero(run.is_scored)
    windows, first, inverse = np.unique(
        run.worst_windows[rows], return_index=True, return_inverse=True
    )
    del windows
    return rows[np.lexsort((rows, first[inverse], -run.probabilities[rows]))]


def _applied(
    run: Run, options: FilterOptions, texts: NDArray[np.int64], risky: NDArray[np.bool_]
) -> Selection:
    """Return what the strategy does about risky rows."""
    windows, nothing = np.unique(run.worst_windows[risky]), np.zeros(run.n_rows, dtype=np.bool_)
    no_row = np.full(run.n_rows, -1, dtype=np.int64)
    if options.strategy == "drop":
        return Selection(risky, no_row, nothing, windows, nothing)
    if options.strategy == "excise":
        return Selection(nothing, no_row, nothing, windows, risky)
    groups = texts if options.strategy == "deduplicate" else run.worst_windows
    rows = np.flatnonzero(np.isin(run.worst_windows, windows) & run.is_scored)
    rows = rows[np.argsort(groups[rows], kind="stable")]
    _, starts, counts = np.unique(groups[rows], return_index=True, return_counts=True)
    goes = np.arange(len(rows)) - np.repeat(starts, counts) >= options.max_copies
    removed, kept = nothing.copy(), no_row.copy()
    removed[rows[goes]] = True
    kept[rows[goes]] = np.repeat(rows[starts], counts)[goes]
    is_copy = removed & (texts == texts[np.maximum(kept, 0)])
    return Selection(removed, kept, is_copy, windows, nothing)


def _select_for(
    run: Run, options: FilterOptions, texts: NDArray[np.int64], limit: float
) -> Selection:
    """Remove as little as brings the upper bound down to the limit, the riskiest first."""
    order = _riskiest_first(run)

    def removing(n: int) -> Selection:
        risky = np.zeros(run.n_rows, dtype=np.bool_)
        risky[order[:n]] = True
        return _applied(run, options, texts, risky)

    def is_enough(n: int) -> bool:
        return outlook(run, removing(n), options).expected.high <= limit

    if not is_enough(len(order)):
        best = outlook(run, removing(len(order)), options).expected
        raise UsageError(
            f"with --strategy {options.strategy} still {best.mean:,.1f} "
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


def outlook(run: Run, selection: Selection | None, options: FilterOptions) -> Outlook:
    """Return what is expected of the rows that stay as they were; without a selection, of all.

    What is left of a row that is cut has not been scored, so nothing is expected of it.

    Rows that stay have their probability, but for windows of which copies went: where the
    classifier looks at how often a window occurs, it is asked again. The teacher's scores are
    still those of a teacher that saw every copy.
    """
    is_gone = np.zeros(run.n_rows, dtype=np.bool_)
    if selection is not None:
        is_gone = selection.is_removed | selection.is_cut
    stays = run.is_scored & ~is_gone
    windows, copies = np.unique(run.worst_windows[stays], return_counts=True)
    probabilities, is_estimate = run.risks.window_probabilities[windows], False
    if options.strategy != "drop" and is_gone.any():
        gone, n_gone = np.unique(run.worst_windows[run.is_scored & is_gone], return_counts=True)
        probabilities, is_estimate = with_fewer_copies(run.risks, windows, gone, n_gone)
    classifier = run.manifest.classifier
    return Outlook(
        classifier.expected_count(probabilities, copies),
        int(copies[probabilities >= classifier.threshold].sum()),
        is_estimate,
    )


def with_fewer_copies(
    risks: Risks,
    windows: NDArray[np.int64],
    gone: NDArray[np.int64],
    n_gone: NDArray[np.int64],
) -> tuple[NDArray[np.float64], bool]:
    """Return the probabilities of windows with fewer copies, and whether the classifier counts them.

    Args:
        risks: of the run.
        windows: (n_windows,) distinct ones.
        gone: (n_gone,) distinct windows of which copies go.
        n_gone: (n_gone,) how many of each; one is left at least.

    Returns:
        (n_windows,)
    """
    probabilities = risks.window_probabilities[windows]
    used = set(risks.classifier.features)
    if not {"occurrences", "log_occurrences", *EXPOSURE_FEATURES} & used:
        return probabilities, False
    lost = np.zeros(len(risks.X), dtype=np.int64)
    lost[gone] = n_gone
    again = risks.probabilities_without(windows, lost[windows])
    return np.where(lost[windows] > 0, again, probabilities), True
