"""The cascade in a run: which windows the models look at, and what becomes of the rest.

A window that is left out keeps its place in its chunk: the features of the corpus are there, those
of the reference if it was asked first, and the teacher's are NaN. So chunks, their numbers and all that is built on them stay as they are, and what
was left out can be told from a chunk alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memaudit.runs.chunks import ChunkPlan
from memaudit.runs.files import scratch_folder
from memaudit.runs.reading import DistinctWindows, RowLog, RowOutcome, RowWindows, Tokenizer
from memaudit.runs.scoring import ChunkWork, could_be_flagged

_REASONS = (
    "not scored: nothing a model could say would flag it",
    "not scored: the first stage finds it unlikely to be flagged",
)


@dataclass(frozen=True, slots=True)
class Screened:
    """What a cascade left out."""

    cuts: RowWindows
    """The rows of which a window was scored, and those of their windows that were."""

    is_screened: NDArray[np.bool_]
    """(n,) of the rows that were cut into windows, whether none was scored."""

    probabilities: NDArray[np.float64]
    """(n_screened,) the first stage's, of the worst window of each of those rows."""

    reasons: tuple[str, ...]
    """(n_screened,) why they were left out."""

    n_windows: int
    """Distinct windows that no model looked at."""


def windows_to_score(
    plan: ChunkPlan, windows: DistinctWindows, tokenizer: Tokenizer
) -> NDArray[np.int64]:
    """Return the indices of the distinct windows that a model has to look at, ascending.

    With a cascade that asks the reference first, the teacher is spared more of them.
    """
    if plan.cascade is None:
        return np.arange(len(windows))
    occurrences = windows.occurrences
    kept = []
    for chunk in range(plan.n_chunks):
        places = plan.windows_of(chunk)
        token_ids = windows.read(places.start, len(places))
        work = ChunkWork(chunk, token_ids, occurrences[places.start : places.stop])
        kept += [places[i] for i in could_be_flagged(plan, tokenizer, work)]
    return np.array(kept, dtype=np.int64)


def screen_cuts(plan: ChunkPlan, X: NDArray[np.float64], cuts: RowWindows) -> Screened:
    """Tell what a cascade left out from the chunks of a run.

    Of a row with several windows those that were left out are dropped: the others decide.

    Args:
        plan: of the run.
        X: (n_windows, n_features) by distinct window; what is NaN in it is set to 0.
        cuts: which windows the rows have.
    """
    n_windows = np.array(cuts.n_windows, dtype=np.int64)
    if plan.cascade is None:
        return Screened(cuts, np.zeros(len(n_windows), np.bool_), np.empty(0), (), 0)
    left_out: NDArray[np.bool_] = np.logical_or.reduce(np.isnan(X), axis=1)
    names = plan.cascade.known_features
    known = {name: X[:, i] for i, name in enumerate(plan.features) if name in names}
    first_stage = plan.cascade.probabilities(known)
    is_unlikely = plan.cascade.could_be_flagged(known)
    X[left_out] = np.nan_to_num(X[left_out])

    windows = np.array(cuts.windows, dtype=np.int64)
    row_of_window = np.repeat(np.arange(len(n_windows)), n_windows)
    is_scored = ~left_out[windows]
    n_scored = np.bincount(row_of_window[is_scored], minlength=len(n_windows))
    left = RowWindows(outcomes=cuts.outcomes.copy())
    left.windows.frombytes(windows[is_scored].tobytes())
    left.n_windows.frombytes(n_scored[n_scored > 0].astype(np.int64).tobytes())
    left.outcomes["scored"] = len(left.n_windows)
    left.outcomes["screened"] = len(n_windows) - len(left.n_windows)
    starts = np.cumsum(n_windows) - n_windows
    rows = np.flatnonzero(n_scored == 0)
    highest: NDArray[np.float64] = np.maximum.reduceat(first_stage[windows], starts)
    unlikely: NDArray[np.bool_] = np.maximum.reduceat(is_unlikely[windows], starts)
    return Screened(
        cuts=left,
        is_screened=n_scored == 0,
        probabilities=highest[rows],
        reasons=tuple(_REASONS[int(each)] for each in unlikely[rows]),
        n_windows=int(left_out.sum()),
    )


@contextmanager
def rows_screened(plan: ChunkPlan, rows: RowLog, screened: Screened) -> Iterator[RowLog]:
    """Give the rows with the outcome `screened` for those none of whose windows was scored.

    Args:
        plan: of the run.
        rows: of the corpus, in order.
        screened: told from its chunks.
    """
    if plan.cascade is None:
        yield rows
        return
    is_screened, reasons = iter(screened.is_screened), iter(screened.reasons)
    with RowLog(scratch_folder(plan.folder)) as seen:
        for row in rows:
            if row.outcome == "scored" and next(is_screened):
                row = RowOutcome(row.example_id, row.row, row.address, "screened", next(reasons))
            seen.append(row)
        yield seen
