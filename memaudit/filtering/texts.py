"""What is looked for in the texts while the corpus is read again: near-duplicates, and what to cut."""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Example
from memaudit.corpus.base import Cuts, RowError, Span
from memaudit.corpus.cuts import cut_string, cut_values, place_cuts
from memaudit.errors import MissingDependency, UsageError
from memaudit.filtering.selection import Selection
from memaudit.runs.reading import Tokenizer, encode_examples, risky_spans, windows_of
from memaudit.runs.run import Run
from memaudit.windows import WindowChoice, window_key

_N_HASHES, _N_BANDS, _SEED = 128, 32, 1
_WORDS_A_SHINGLE = 3
_WORD = re.compile(r"\w+")


class NearDuplicates:
    """Groups of texts that are alike, each around a risky one.

    Two texts are alike if their sets of three words in a row overlap by the similarity asked for,
    as estimated from 128 hashes (a standard error of at most .045).
    """

    def __init__(self, run: Run, selection: Selection, similarity: float) -> None:
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
        n_rows = len(self._leader)
        return np.fromiter(map(self._first, range(n_rows)), np.int64, n_rows)

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


class TeacherTokenizer(Tokenizer, Protocol):
    """What is needed of the teacher's tokenizer, where it is given."""

    def token_spans(self, text: str, /) -> list[Span]:
        """Return where each token of a text stands in it, in characters."""
        ...


class RiskyWindows:
    """Where risky windows stand in the strings of the rows that are to be cut.

    Windows are numbered as `predict` numbered them: in the order in which they first occur.
    """

    def __init__(self, run: Run, selection: Selection, tokenizer: TeacherTokenizer | None) -> None:
        """Prepare for a pass over the corpus.

        Raises:
            UsageError: there is no tokenizer.
        """
        if tokenizer is None:
            raise UsageError(
                "--strategy excise needs to know where the tokens of a text are",
                hint="name the model that predict was given with --teacher",
            )
        inputs, read = run.manifest.inputs, run.manifest.inputs.answers
        self._tokenizer, self._choice = tokenizer, WindowChoice(inputs.shape, inputs.windows)
        if read is not None:
            self._choice = WindowChoice(
                inputs.shape, inputs.windows, read.turns, read.min_suffix_tokens
            )
        self._selection, self._risky = selection, set(selection.risky_windows.tolist())
        self._numbers: dict[bytes, int] = {}
        self._emptied: list[int] = []
        self.cuts: dict[int, Cuts] = {}

    @property
    def selection(self) -> Selection:
        """The rows that are cut; one of which nothing is left goes, as it is no row in some formats."""
        is_cut, is_removed = np.zeros((2, len(self._selection.is_cut)), dtype=np.bool_)
        is_cut[list(self.cuts)] = True
        is_removed[self._emptied] = True
        return replace(self._selection, is_removed=is_removed, is_cut=is_cut)

    def learn(self, row: Example) -> str | None:
        """Look at a row; rows come in order.

        Returns:
            what is left of a text that is cut; None: it stays as it is, or goes.

        Raises:
            UsageError: the row holds token ids instead of text.
        """
        if row.token_ids is not None:
            raise UsageError(
                "--strategy excise cuts text, and the corpus holds token ids",
                hint="choose --strategy drop or deduplicate",
            )
        ((token_ids, answers),) = encode_examples([row], self._tokenizer)
        risky = []
        for window, span in zip(
            windows_of(token_ids, answers, self._choice),
            risky_spans(token_ids, answers, self._choice),
            strict=True,
        ):
            if self._numbers.setdefault(window_key(window), len(self._numbers)) in self._risky:
                risky.append(span)
        if not self._selection.is_cut[row.row] or not risky:
            return None
        places = self._tokenizer.token_spans(row.text)
        spans = _merged([(places[a][0], places[b - 1][1]) for a, b in risky])
        cuts, inside = place_cuts(row.values, row.text, spans)
        left = cut_string(row.text, inside)
        if not left.strip():
            self._emptied.append(row.row)
        elif cuts and _is_clean(row, cuts, left):
            self.cuts[row.row] = cuts
            return left
        return None


def _merged(spans: list[Span]) -> list[Span]:
    """Return spans without overlaps: one character may be of two tokens."""
    starts = [spans[0][0], *(max(b[0], a[1]) for a, b in pairwise(spans))]
    return [(start, max(start, end)) for start, (_, end) in zip(starts, spans, strict=True)]


def _is_clean(row: Example, cuts: Cuts, left: str) -> bool:
    """Whether the row that is written gives the text that is meant, blanks at its edges aside."""
    assert row.render is not None
    try:
        found = row.render(cut_values(row.values, cuts)).text
    except RowError:
        return False
    return "".join(found.split()) == "".join(left.split())
