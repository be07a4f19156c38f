"""Chunks: the parts of a run that are scored, committed and verified whole.

Chunk k holds the features of the distinct windows k * size to (k + 1) * size - 1, in the order in
which they first occur in the corpus. The manifest pins the corpus, the models and the settings;
so a chunk depends on nothing but the manifest and its number, and one that is scored twice, by
whomever, is the same file. No batch of an engine crosses a chunk: a run that was interrupted has
scored the same batches, hence the same floats, as one that was not.

Ranges of distinct windows rather than of rows: equal windows are scored once, and how often a
window occurs in the corpus is a feature, so every run reads and cuts the whole corpus first. That
costs little beside a model.

A chunk that was given up has a marker beside its place, with the reason and no text.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memaudit.errors import ModelError
from memaudit.features import ReferenceRole
from memaudit.objectives import Objective
from memaudit.prefilter import Prefilter
from memaudit.runs.files import committed_file, output_errors, read_content
from memaudit.runs.manifest import chunk_ranges
from memaudit.runs.sealed_parquet import DamagedFileError, open_sealed, sealed_writer
from memaudit.sensitivity import SENSITIVITY_COLUMNS
from memaudit.text import number_of
from memaudit.windows import WindowShape

_Windows = TypeVar("_Windows", int, NDArray[np.int64])

SUFFIX_TOKENS = "suffix_tokens"
"""Column of a chunk and of the risk table, where windows end with answers that differ in length."""

_ENDING = ".error.json"
"""Of the marker that stands for a chunk that could not be scored."""

_CHUNKS_AT_ONCE = 16
_MAX_MARKER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Where the chunks of a run go and what they hold: all that a worker has to know."""

    folder: Path
    fingerprint: str
    shape: WindowShape
    role: ReferenceRole | None
    objective: Objective
    features: tuple[str, ...]
    """Columns of a chunk."""

    n_windows: int
    """Distinct windows in all."""

    chunk_size: int
    """Windows in every chunk but the last."""

    prefilter: Prefilter | None = None
    """Says which windows no model looks at: they keep their place, with NaN for what models say."""

    epochs: float | None = None
    """Passes over the corpus in the student's training. None: exposure is no feature."""

    @property
    def is_sensitive(self) -> bool:
        """Whether windows are searched for personal data and secrets."""
        return set(SENSITIVITY_COLUMNS) <= set(self.features)

    @property
    def n_chunks(self) -> int:
        """Chunks in all."""
        return -(-self.n_windows // self.chunk_size)

    def windows_of(self, chunk: int) -> range:
        """Return the indices of the windows of a chunk."""
        start = chunk * self.chunk_size
        return range(start, min(start + self.chunk_size, self.n_windows))

    def chunk_of(self, window: _Windows) -> _Windows:
        """Return the number of the chunk that holds a window, or of each of several."""
        return window // self.chunk_size

    def path(self, chunk: int) -> Path:
        """Return where a chunk is, or will be."""
        # Padded, so that a listing shows them in order.
        return self.folder / f"{chunk:05}.parquet"

    def metadata(self, chunk: int) -> dict[str, str]:
        """Return what a chunk's file says of itself."""
        # A chunk that was copied from another run, or to another number, is found by it.
        return {
            "memaudit.run": self.fingerprint,
            "memaudit.chunk": str(chunk),
            "memaudit.windows": str(len(self.windows_of(chunk))),
        }


def write_chunk(plan: ChunkPlan, chunk: int, X: NDArray[np.float64]) -> None:
    """Commit the features of a chunk, (n_windows, n_features) as in `plan.features`.

    Raises:
        OutputError: it cannot be written.
    """
    write_columns(plan.path(chunk), plan.features, X, plan.metadata(chunk))


def write_columns(
    path: Path, names: Sequence[str], X: NDArray[np.float64], metadata: Mapping[str, str]
) -> None:
    """Commit the columns of a matrix in a sealed file.

    Raises:
        OutputError: it cannot be written.
    """
    schema = pa.schema([(name, pa.float64()) for name in names])
    with sealed_writer(path, schema, metadata) as writer:
        writer.write_table(pa.table(list(X.T), schema=schema))


def read_columns(table: pa.Table, names: Sequence[str]) -> NDArray[np.float64]:
    """Return columns of a table as those of a matrix."""
    return np.column_stack([numbers(table.column(name).combine_chunks()) for name in names])


def read_chunk(plan: ChunkPlan, chunk: int) -> NDArray[np.float64]:
    """Return the features of a chunk: (n_windows, n_features).

    Raises:
        DamagedFileError: it is not what was written, or belongs to another run.
        FileNotFoundError: it has not been scored.
        OutputError: it cannot be read.
    """
    return read_columns(_read_table(plan, chunk), plan.features)


def sort_chunks(plan: ChunkPlan, chunks: Iterable[int]) -> tuple[list[int], list[int]]:
    """Verify chunks.

    Returns:
        the numbers of those that are not there, and of those that are damaged.
    """
    missing, damaged = [], []
    for chunk in chunks:
        try:
            read_chunk(plan, chunk)
        # An `OutputError` is passed on: a disk that fails for a moment must not cost its chunks.
        except FileNotFoundError:
            missing.append(chunk)
        except DamagedFileError:
            damaged.append(chunk)
    return missing, damaged


def read_matrix(plan: ChunkPlan, without: Collection[int] = ()) -> NDArray[np.float64]:
    """Return the features of all chunks: (n_windows, n_features); zeros for those left out.

    Raises:
        DamagedFileError, FileNotFoundError, OutputError: as for `read_chunk`.
    """
    chunks = [chunk for chunk in range(plan.n_chunks) if chunk not in without]
    # Zeros for what is left out: NaN says that a prefilter spared a window, and no classifier
    # takes it. `read_run` gives the rows of such windows the outcome `error`.
    X = np.zeros((plan.n_windows, len(plan.features)))
    # Column by column over many chunks: their small arrays, one by one, would take far longer.
    # Not over all: a chunk as a table takes several times the memory of its features.
    for start in range(0, len(chunks), _CHUNKS_AT_ONCE):
        group = chunks[start : start + _CHUNKS_AT_ONCE]
        table = pa.concat_tables([_read_table(plan, chunk) for chunk in group])
        places = np.concatenate([np.array(plan.windows_of(chunk), np.int64) for chunk in group])
        if len(table) != len(places):
            raise DamagedFileError("another number of windows")
        for column, name in enumerate(plan.features):
            X[places, column] = numbers(table.column(name).combine_chunks())
    return X


def numbers(array: pa.Array) -> NDArray[Any]:
    """Return the numbers in an array. Its own `to_numpy` would import pandas: half a second."""
    return np.from_dlpack(array)


def positions(places: NDArray[np.int64]) -> pa.Array:
    """Return places as `take` wants them. `pa.array` would import pandas, too."""
    return pa.Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(places.tobytes())])


def _read_table(plan: ChunkPlan, chunk: int) -> pa.Table:
    path = plan.path(chunk)
    # A chunk that was not scored yet is no fault of the disk.
    if not path.exists():
        raise FileNotFoundError(path)
    with output_errors(path, "read"), open_sealed(path, plan.metadata(chunk)) as file:
        # Chunks are small: handing them out to threads takes longer than reading them.
        return file.read(use_threads=False)


def write_failure(plan: ChunkPlan, chunk: int, reason: str) -> None:
    """Commit the marker of a chunk that cannot be scored.

    Raises:
        OutputError: it cannot be written.
    """
    with committed_file(_marker(plan, chunk), clear=False) as stream:
        stream.write(_marked(plan, chunk, reason))


def read_failures(plan: ChunkPlan, chunks: Collection[int]) -> dict[int, str]:
    """Return why chunks could not be scored, for those that are not there and have a marker.

    A marker that is damaged or of another run is none: its chunk is missing, like any other.

    Raises:
        OutputError: a marker cannot be read.
    """
    failures = {}
    for chunk in chunks:
        path = _marker(plan, chunk)
        # A marker beside a chunk that is there is of an earlier attempt, which another
        # one made good.
        if path.exists() and not plan.path(chunk).exists():
            with output_errors(path, "read"):
                content = read_content(path, _MAX_MARKER_BYTES)
            # Whoever can write here may nest brackets without end.
            with suppress(ValueError, TypeError, LookupError, RecursionError):
                reason = str(msgspec.json.decode(content)["failure"]["reason"])
                if content == _marked(plan, chunk, reason):
                    failures[chunk] = reason
    return failures


def what_is_gone(
    missing: Collection[int], damaged: Collection[int], failed: Collection[int] = ()
) -> str:
    """Return what is wrong with chunks that cannot be used: `are not there (missing: 0-3)`."""
    states = [("missing", missing), ("failed", failed), ("damaged", damaged)]
    found = "; ".join(f"{state}: {chunk_ranges(sorted(gone))}" for state, gone in states if gone)
    verb = "are not there" if not damaged else "are damaged"
    if damaged and (missing or failed):
        verb = "are not there or damaged"
    return f"{verb} ({found})"


def remove_failures(folder: Path) -> None:
    """Remove all markers from the folder of chunks, so that their chunks count as missing."""
    for path in folder.glob(f"*{_ENDING}"):
        if path.name.removesuffix(_ENDING).isdigit():
            path.unlink()


def failure_error(failures: Mapping[int, str], n_rows: int | None = None) -> ModelError:
    """Return what to tell about chunks that could not be scored, and about their rows."""
    first = min(failures)
    rows = "" if n_rows is None else f"{number_of(n_rows, 'row')} in "
    return ModelError(
        f"{rows}{'chunk' if len(failures) == 1 else 'chunks'} {chunk_ranges(sorted(failures))} "
        f"could not be scored; chunk {first}: {failures[first]}",
        hint="give the same command again to try once more; if memory ran out, let fewer "
        "processes score at a time, with the same --threads",
    )


def _marker(plan: ChunkPlan, chunk: int) -> Path:
    return plan.path(chunk).with_suffix(_ENDING)


def _marked(plan: ChunkPlan, chunk: int, reason: str) -> bytes:
    # Bound to its run and number: a marker that was copied would turn rows into errors.
    failure = {"run": plan.fingerprint, "chunk": chunk, "reason": reason}
    digest = hashlib.sha256(msgspec.json.encode(failure)).hexdigest()
    return msgspec.json.encode({"digest": digest, "failure": failure}) + b"\n"
