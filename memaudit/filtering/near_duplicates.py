"""Texts that are nearly those of risky examples, found by MinHash."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Example
from memaudit.errors import MissingDependency
from memaudit.filtering.selection import Selection
from memaudit.runs.finished import FinishedRun

_N_HASHES, _N_BANDS, _SEED = 128, 32, 1
_WORDS_A_SHINGLE = 3
_WORD = re.compile(r"\w+")


class NearDuplicates:
    """Groups of texts that are alike, each around a risky one.

    Two texts are alike if their sets of three words in a row overlap by the similarity asked for,
    as estimated from 128 hashes (a standard error of at most .045).
    """

    def __init__(self, run: FinishedRun, selection: Selection, similarity: float) -> None:
        """Prepare for the risky rows that stay.

        Raises:
            MissingDependency: rensa is not installed.
        """
        try:
            import rensa
        except ImportError as error:
            raise MissingDependency(
                "rensa", needed_for="--near-duplicates", extra="dedup"
            ) from error
        self._rensa: Any = rensa
        is_risky = np.isin(run.worst_windows, selection.risky_windows)
        self._stays = run.is_scored & ~selection.is_removed
        self._is_risky = is_risky & self._stays
        self._similarity = similarity
        self._index = rensa.RMinHashLSH(similarity, _N_HASHES, _N_BANDS)
        self._hashes: dict[int, Any] = {}
        self._leader = np.arange(run.n_rows)

    def learn(self, row: Example | BadRow) -> None:
        """Look at a row once: risky texts are kept in mind as hashes."""
        if isinstance(row, Example) and self._is_risky[row.row]:
            self._hashes[row.row] = self._hash(row.text)
            self._index.insert(row.row, self._hashes[row.row])

    def find(self, rows: Iterable[Example | BadRow]) -> NDArray[np.int64]:
        """Look at all rows again, once every risky one is known.

        Returns:
            (n_rows,) the first row of each row's group: itself where it is alone.
        """
        for row in rows:
            if not isinstance(row, Example) or not self._stays[row.row]:
                continue
            own = self._hashes.get(row.row) or self._hash(row.text)
            for other in self._index.query(own):
                if other != row.row and own.jaccard(self._hashes[other]) >= self._similarity:
                    self._join(row.row, other)
        return np.array([self._first(row) for row in range(len(self._leader))])

    def _hash(self, text: str) -> Any:
        words = _WORD.findall(text.casefold())
        last = max(1, len(words) - _WORDS_A_SHINGLE + 1)
        minhash = self._rensa.RMinHash(_N_HASHES, _SEED)
        minhash.update([" ".join(words[i : i + _WORDS_A_SHINGLE]) for i in range(last)])
        return minhash

    def _join(self, row: int, other: int) -> None:
        first, second = sorted((self._first(row), self._first(other)))
        self._leader[second] = first

    def _first(self, row: int) -> int:
        while self._leader[row] != row:
            self._leader[row] = self._leader[self._leader[row]]
            row = int(self._leader[row])
        return row
