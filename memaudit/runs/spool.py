"""Spools: what one pass leaves for the next, in files without a name that vanish by themselves."""

import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.runs.commit import output_errors
from memaudit.windows import window_key

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


class _Spool:
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


class RowSpool(_Spool):
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


class WindowSpool(_Spool):
    """The distinct windows of a corpus, and how often each occurs.

    About 200 bytes of memory a distinct window; its tokens are in the file.
    """

    def __init__(self, window_len: int, folder: Path | None = None) -> None:
        """Open an empty spool for windows of this many tokens."""
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
