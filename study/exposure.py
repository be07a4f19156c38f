"""Exposure of windows in rows that are all in memory, as the cells of the study are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memaudit.exposure import BETWEEN, Exposure, GramCounts, grams_of_suffixes, summarise


def exposure_of(
    rows: Sequence[NDArray[np.int32]],
    windows: Sequence[NDArray[np.int32]],
    prefix_len: int,
    weights: NDArray[np.int64] | None = None,
    least: int = 1,
) -> Exposure:
    """Return the exposure of some windows in some rows, all in memory.

    Args:
        rows: the token ids of each.
        windows: the token ids of each.
        prefix_len: tokens of a window before its suffix.
        weights: (len(rows),) how often each row stands in the corpus. None: once.
        least: see `summarise`.
    """
    grams = [grams_of_suffixes(each[None], len(each) - prefix_len)[0] for each in windows]
    counts = GramCounts(np.concatenate([np.empty(0, np.uint64), *grams]))
    ends = np.full(1, BETWEEN, dtype=np.int32)
    if len(rows):
        counts.add(np.concatenate([part for row in rows for part in (row, ends)]), weights)
    n_grams = np.array([len(each) for each in grams], dtype=np.int64)
    return summarise(counts.counts, n_grams, least)
