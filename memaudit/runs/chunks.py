"""Chunks: the parts of a run that are scored, committed and verified whole.

Chunk k holds the features of the distinct windows k * size to (k + 1) * size - 1, in the order in
which they first occur in the corpus. The manifest pins the corpus, the models and the settings;
so a chunk depends on nothing but the manifest and its number, and one that is scored twice, by
whomever, is the same file. No batch of an engine crosses a chunk: a run that was interrupted has
scored the same batches, hence the same floats, as one that was not.

Ranges of distinct windows rather than of rows: equal windows are scored once, and how often a
window occurs in the corpus is a feature, so every run reads and cuts the whole corpus first. That
costs little beside a model.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memaudit.features import ReferenceRole
from memaudit.objectives import Objective
from memaudit.prefilter import Prefilter
from memaudit.runs.files import output_errors
from memaudit.runs.sealed_parquet import DamagedFileError, open_sealed, sealed_writer
from memaudit.sensitivity import SENSITIVITY_COLUMNS
from memaudit.windows import WindowShape

SUFFIX_TOKENS = "suffix_tokens"
"""Column of a chunk and of the risk table, where windows end with answers that differ in length."""

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Where the chunks of a run go and what they hold: all that a worker has to know."""

    folder: Path
    """Of the chunks; exists."""

    fingerprint: str
    """Of the run's manifest."""

    shape: WindowShape
    """Of the windows."""

    role: ReferenceRole | None
    """What the reference is."""

    objective: Objective
    """What the student will learn from."""

    features: tuple[str, ...]
    """Columns of a chunk."""

    n_windows: int
    """Distinct windows in all."""

    chunk_size: int
    """Windows in every chunk but the last."""

    prefilter: Prefilter | None = None
    """Says which windows no model looks at: they keep their place, with NaN for what models say."""

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

    def path(self, chunk: int) -> Path:
        """Return where a chunk is, or will be."""
        return self.folder / f"{chunk:05}.parquet"

    def metadata(self, chunk: int) -> dict[str, str]:
        """Return what a chunk's file says of itself."""
        return {
            "memaudit.run": self.fingerprint,
            "memaudit.chunk": str(chunk),
            "memaudit.windows": str(len(self.windows_of(chunk))),
        }


def feature_set_name(role: ReferenceRole | None) -> str:
    """Return the key of `FEATURE_SETS` for a teacher and, if it has a role, a reference."""
    return "teacher" if role is None else f"teacher+{role}"


def write_chunk(plan: ChunkPlan, chunk: int, X: NDArray[np.float64]) -> None:
    """Commit the features of a chunk under its name.

    Args:
        plan: of the run.
        chunk: its number.
        X: (n_windows, n_features) in the order of `plan.features`.

    Raises:
        OutputError: it cannot be written.
    """
    import pyarrow as pa

    schema = pa.schema([(name, pa.float64()) for name in plan.features])
    with sealed_writer(plan.path(chunk), schema, plan.metadata(chunk)) as writer:
        writer.write_table(pa.table(list(X.T), schema=schema))


def read_chunk(plan: ChunkPlan, chunk: int) -> NDArray[np.float64]:
    """Return the features of a chunk: (n_windows, n_features).

    Raises:
        DamagedFileError: it is not what was written, or belongs to another run.
        FileNotFoundError: it has not been scored.
        OutputError: it cannot be read.
    """
    table = _read_table(plan, chunk)
    return np.column_stack([numbers(table.column(name).combine_chunks()) for name in plan.features])


def sort_chunks(plan: ChunkPlan, chunks: Iterable[int]) -> tuple[list[int], list[int]]:
    """Verify chunks.

    Returns:
        the numbers of those that are not there, and of those that are damaged.
    """
    missing, damaged = [], []
    for chunk in chunks:
        try:
            read_chunk(plan, chunk)
        except FileNotFoundError:
            missing.append(chunk)
        except DamagedFileError:
            damaged.append(chunk)
    return missing, damaged


def read_matrix(plan: ChunkPlan, without: Collection[int] = ()) -> NDArray[np.float64]:
    """Return the features of all chunks: (n_windows, n_features).

    Args:
        plan: of the run.
        without: chunks that are left out; zeros stand for their features.

    Raises:
        DamagedFileError, FileNotFoundError, OutputError: as for `read_chunk`.
    """
    import pyarrow as pa

    chunks = [chunk for chunk in range(plan.n_chunks) if chunk not in without]
    # Column by column over all chunks: a thousand chunks of twenty columns are many small arrays.
    tables = [_read_table(plan, chunk) for chunk in chunks]
    windows = [np.array(plan.windows_of(chunk), dtype=np.int64) for chunk in chunks]
    X = np.zeros((plan.n_windows, len(plan.features)))
    if tables:
        table, places = pa.concat_tables(tables), np.concatenate(windows)
        if len(table) != len(places):
            raise DamagedFileError("another number of windows")
        for column, name in enumerate(plan.features):
            X[places, column] = numbers(table.column(name).combine_chunks())
    return X


def numbers(array: "pa.Array") -> NDArray[Any]:
    """Return the numbers in an array. Its own `to_numpy` would import pandas: half a second."""
    return np.from_dlpack(array)


def _read_table(plan: ChunkPlan, chunk: int) -> "pa.Table":
    path = plan.path(chunk)
    if not path.exists():
        raise FileNotFoundError(path)
    with output_errors(path, "read"), open_sealed(path, plan.metadata(chunk)) as file:
        # Chunks are small: handing them out to threads takes longer than reading them.
        return file.read(use_threads=False)
