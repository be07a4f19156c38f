"""The windows of a corpus, kept for the shards of a run: then only one of them reads it.

They lie in the folder of a run that has no chunks, beside its manifest and rows. Whoever comes first
reads the corpus and commits them, the others wait for that and open the file. It is bound to the
manifest and to names, sizes and times of the files; whatever does not match is made anew, and then
the manifest refuses what was read if it is another corpus.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from memaudit.errors import OutputError, UsageError
from memaudit.runs.chunks import ChunkPlan, numbers
from memaudit.runs.files import output_errors
from memaudit.runs.folder import WINDOWS, RunFolder
from memaudit.runs.reading import DistinctWindows
from memaudit.runs.scoring import chunks_to_score
from memaudit.runs.sealed_parquet import DamagedFileError, open_sealed, sealed_writer
from memaudit.text import shown_path
from memaudit.windows import NO_TOKEN

_TOKEN = np.dtype("<i4")


@dataclass(frozen=True, slots=True)
class KeptWindows:
    """The distinct windows of a corpus, in a file that is open; as `DistinctWindows`, to be read."""

    plan: ChunkPlan
    """Of the run they belong to. Each chunk is a row group."""

    file: pq.ParquetFile
    occurrences: NDArray[np.int64]
    exposure: NDArray[np.float64] | None
    captured: None = None

    def read(self, start: int, count: int) -> NDArray[np.int32]:
        """Return the windows of a chunk: (count, window_len) token ids.

        Raises:
            OutputError: they are not what was written.
        """
        length = self.plan.shape.length
        try:
            group = self.file.read_row_group(start // self.plan.chunk_size, ["tokens"])
            column = group.column(0).combine_chunks()
            if len(column) != count or column.null_count:
                raise DamagedFileError("another number of windows")
            windows = np.frombuffer(
                column.buffers()[1], _TOKEN, count * length, column.offset * length * 4
            )
            if windows.min() < NO_TOKEN:
                raise DamagedFileError("no tokens")
        except (DamagedFileError, IndexError, OSError, ValueError, pa.ArrowException) as error:
            raise OutputError(
                f"{shown_path(self.plan.folder.with_name(WINDOWS))}: damaged",
                hint="remove it, and give the same command again",
            ) from error
        return windows.reshape(count, length)


@contextmanager
def prepared_meant() -> Iterator[None]:
    """Let the hints of errors speak of the folder that shards share, where they speak of a run's."""
    try:
        yield
    except (OutputError, UsageError) as error:
        told = (error.hint or "").replace("start over with --restart", "remove that folder")
        error.hint = told.replace("--out", "--prepared") or None
        raise


def keep_windows(run: RunFolder, windows: DistinctWindows, stamp: str) -> None:
    """Commit the windows of a run, their exposure counted if its classifier asks for it.

    Raises:
        OutputError: they cannot be written.
    """
    plan = run.plan
    schema = _schema(plan)
    with sealed_writer(run.folder / WINDOWS, schema, _metadata(run, stamp)) as writer:
        for work in chunks_to_score(plan, windows, range(plan.n_chunks)):
            content = pa.py_buffer(work.windows.astype(_TOKEN).tobytes())
            tokens = pa.Array.from_buffers(schema.types[0], len(work.windows), [None, content])
            exposure = [] if work.exposure is None else list(work.exposure.T)
            writer.write_table(pa.table([tokens, work.occurrences, *exposure], schema=schema))


@contextmanager
def open_windows(run: RunFolder, stamp: str) -> Iterator[KeptWindows]:
    """Open the windows of a run, once every bit of them is found as it was written.

    Raises:
        FileNotFoundError: they are not there.
        DamagedFileError: they are damaged, of another run, or of files as they were before.
        OutputError: they cannot be read.
    """
    path, plan = run.folder / WINDOWS, run.plan
    if not path.exists():
        raise FileNotFoundError(path)
    with ExitStack() as stack:
        with output_errors(path, "read"):
            file = stack.enter_context(open_sealed(path, _metadata(run, stamp)))
            if (
                not file.schema_arrow.equals(_schema(plan))
                or file.metadata.num_rows != plan.n_windows
            ):
                raise DamagedFileError("other columns, or another number of windows")
            try:
                counts = file.read(_schema(plan).names[1:])
            except pa.ArrowException as error:
                raise DamagedFileError("cannot be read") from error
        occurrences, *exposure = (numbers(column.combine_chunks()) for column in counts.columns)
        yield KeptWindows(plan, file, occurrences, np.column_stack(exposure) if exposure else None)


def _schema(plan: ChunkPlan) -> pa.Schema:
    fields = [("tokens", pa.binary(plan.shape.length * 4)), ("occurrences", pa.int64())]
    exposure = () if plan.epochs is None else ("median", "share")
    return pa.schema(fields + [(name, pa.float64()) for name in exposure])


def _metadata(run: RunFolder, stamp: str) -> dict[str, str]:
    return {"memaudit.run": run.plan.fingerprint, "memaudit.corpus": stamp}
