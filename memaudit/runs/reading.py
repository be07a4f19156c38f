"""The reading pass: rows in, windows out, equal windows kept once.

What it leaves for the scoring pass lies in files without a name, which vanish with the process:
a distinct window takes about 200 bytes of memory, whatever its length, and a row 16.
"""

import hashlib
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Conversation, Example, Rendered
from memaudit.errors import CorpusError
from memaudit.runs.files import output_errors
from memaudit.windows import WindowPolicy, WindowShape, cut_windows, window_key


class Tokenizer(Protocol):
    """Turns texts into token ids and back, many at a time."""

    def encode(self, texts: list[str], /) -> list[list[int]]:
        """Return the token ids of each text."""
        ...

    def decode(self, token_ids: list[list[int]], /) -> list[str]:
        """Return the text of each sequence of token ids."""
        ...

    def render_messages(self, conversation: Conversation, /) -> Rendered:
        """Return the text that the chat template makes of messages, and where its answers are."""
        ...


Outcome = Literal["scored", "screened", "too_short", "bad", "error"]
"""What became of a row. Every row has exactly one.

`screened`: a cascade left all of its windows out; `error`: its windows could not be scored.
"""


class RowOutcome(msgspec.Struct, frozen=True, array_like=True):
    """A row of the corpus and what became of it."""

    example_id: str
    """As in `Example`."""

    row: int
    """As in `Example`."""

    address: str
    """As in `Example`."""

    outcome: Outcome
    """What became of it."""

    reason: str = ""
    """Why it was not scored."""


class _NamelessFile:
    """A file only this process can reach: it has no name, so a crash leaves nothing behind."""

    def __init__(self, folder: Path | None) -> None:
        """Open it in a folder, or where the system keeps temporary files."""
        self._place = folder or Path(tempfile.gettempdir())
        with output_errors(self._place):
            self._file = tempfile.TemporaryFile(dir=self._place)  # noqa: SIM115  closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _append(self, content: bytes) -> None:
        with output_errors(self._place):
            self._file.write(content)

    def _seek(self, place: int) -> None:
        # Writes what is still in the buffer: the disk may turn out to be full only now.
        with output_errors(self._place):
            self._file.seek(place)


class RowLog(_NamelessFile):
    """The rows of a corpus in order, without their text."""

    def append(self, row: RowOutcome) -> None:
        """Add a row after the others."""
        self._append(msgspec.json.encode(row) + b"\n")

    def __iter__(self) -> Iterator[RowOutcome]:
        """Yield the rows again. Nothing may be appended meanwhile."""
        decoder = msgspec.json.Decoder(RowOutcome)
        self._seek(0)
        for line in self._file:
            yield decoder.decode(line)


class DistinctWindows(_NamelessFile):
    """The distinct windows of a corpus, and how often each occurs.

    About 200 bytes of memory a distinct window; its tokens are in the file.
    """

    def __init__(self, window_len: int, folder: Path | None = None) -> None:
        """Open an empty file for windows of this many tokens."""
        super().__init__(folder)
        self._window_len = window_len
        self._index: dict[bytes, int] = {}
        self._occurrences = array("q")

    def __len__(self) -> int:
        """Distinct windows."""
        return len(self._occurrences)

    @property
    def occurrences(self) -> NDArray[np.int64]:
        """(n,) how many times each window was added, at least 1."""
        return np.array(self._occurrences, dtype=np.int64)

    def add(self, window: NDArray[np.int32]) -> int:
        """Count a window and return its index, the same for equal windows."""
        key = window_key(window)
        index = self._index.setdefault(key, len(self._index))
        if index == len(self._occurrences):
            self._append(window.tobytes())
            self._occurrences.append(0)
        self._occurrences[index] += 1
        return index

    def chunks(self, size: int) -> Iterator[NDArray[np.int32]]:
        """Yield the distinct windows in the order they came.

        Yields:
            (at most `size`, window_len) token ids.
        """
        for start in range(0, len(self), size):
            yield self.read(start, min(size, len(self) - start))

    def window(self, index: int) -> NDArray[np.int32]:
        """Return one window: (window_len,) token ids."""
        (window,) = self.read(index, 1)
        return np.asarray(window, dtype=np.int32)

    def read(self, start: int, count: int) -> NDArray[np.int32]:
        """Return some of the distinct windows: (count, window_len) token ids."""
        self._seek(start * self._window_len * 4)
        content = self._file.read(count * self._window_len * 4)
        shape = (count, self._window_len)
        windows: NDArray[np.int32] = np.frombuffer(content, dtype=np.int32).reshape(shape)
        return windows


_ROWS_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True)
class RowWindows:
    """Which windows the rows were cut into."""

    windows: "array[int]" = field(default_factory=lambda: array("q"))
    """Indices of distinct windows, scored row after scored row."""

    n_windows: "array[int]" = field(default_factory=lambda: array("q"))
    """Windows of each scored row, at least 1."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """Rows by outcome."""

    rows_hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    """SHA-256 of the rows' ids, addresses and outcomes."""

    texts_hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    """SHA-256 of their texts."""


def cut_rows(
    rows: Iterable[Example | BadRow],
    tokenizer: Tokenizer,
    kept: tuple[RowLog, DistinctWindows],
    *,
    shape: WindowShape,
    policy: WindowPolicy,
    on_batch: Callable[[int], None],
) -> RowWindows:
    """Give every row its outcome and keep its windows.

    Args:
        rows: of the corpus, in order.
        tokenizer: the teacher's.
        kept: where rows and windows go, both empty.
        shape: of the windows.
        policy: which windows of a row are cut.
        on_batch: told how many rows are done, after each batch.

    Raises:
        CorpusError: no row can be scored.
    """
    row_log, distinct = kept
    cuts = RowWindows()
    for batch in _batches(rows):
        texts = [row.text for row in batch if isinstance(row, Example)]
        cuts.texts_hash.update(b"".join(msgspec.json.encode(text) for text in texts))
        encoded = iter(tokenizer.encode(texts))
        for row in batch:
            if isinstance(row, BadRow):
                outcome = _outcome(row, "bad", row.reason)
            else:
                token_ids = next(encoded)
                indices = [distinct.add(w) for w in cut_windows(token_ids, shape, policy)]
                outcome = _example_outcome(row, len(token_ids), len(indices), shape)
                cuts.windows.extend(indices)
                cuts.n_windows.extend([len(indices)] if indices else [])
            cuts.outcomes[outcome.outcome] += 1
            cuts.rows_hash.update(msgspec.json.encode(outcome))
            row_log.append(outcome)
        on_batch(cuts.outcomes.total())
    _require_scored(cuts, shape)
    return cuts


def _example_outcome(
    example: Example, n_tokens: int, n_windows: int, shape: WindowShape
) -> RowOutcome:
    if n_windows > 0:
        return _outcome(example, "scored", "")
    return _outcome(example, "too_short", f"{n_tokens} tokens, a window needs {shape.length}")


def _outcome(row: Example | BadRow, outcome: Outcome, reason: str) -> RowOutcome:
    return RowOutcome(row.example_id, row.row, row.address, outcome, reason)


def _require_scored(cuts: RowWindows, shape: WindowShape) -> None:
    if cuts.n_windows:
        return
    n_short, n_bad = cuts.outcomes["too_short"], cuts.outcomes["bad"]
    raise CorpusError(
        f"no row can be scored: {n_short} are shorter than a window of {shape.length} tokens, "
        f"{n_bad} are bad",
        hint="choose a shorter window with --prefix-tokens and --suffix-tokens"
        if n_short
        else "see what is wrong with the first one: leave out --on-bad-row skip",
    )


def _batches(rows: Iterable[Example | BadRow]) -> Iterator[list[Example | BadRow]]:
    """Yield runs of rows, small enough that their texts fit into memory whatever their size."""
    batch: list[Example | BadRow] = []
    n_characters = 0
    for row in rows:
        batch.append(row)
        n_characters += len(row.text) if isinstance(row, Example) else 0
        if len(batch) == _ROWS_AT_ONCE or n_characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch
