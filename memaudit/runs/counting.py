"""The counting pass: all rows once more, past the grams of the windows that are to be scored.

Only where a classifier looks at exposure. The rows' tokens wait for it in a file without a name:
the grams of all windows are known only when the last row was read, and a pipe can be read once.

Every shard counts its own windows in the whole corpus, as it cuts the whole corpus, unless shards
share the reading: then one counts them all. Counts of
parts would add up, but then no shard could score a window before all others had read theirs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memaudit.exposure import BETWEEN, GramCounts, grams_of_suffixes, suffix_grams, summarise
from memaudit.progress import ReportProgress, begin_stage
from memaudit.runs.chunks import ChunkPlan, numbers
from memaudit.runs.files import output_errors
from memaudit.runs.folder import EXPOSURE, RunFolder, unscored_chunks
from memaudit.runs.reading import DistinctWindows, NamelessFile
from memaudit.runs.sealed_parquet import is_whole, open_sealed, sealed_writer
from memaudit.windows import NO_TOKEN, without_padding

_COLUMNS = ("median", "share")
_GRAMS_AT_ONCE = 1 << 23
"""About 0.5 GB of memory. More are counted in several passes over the rows."""

_TOKENS_AT_ONCE = 1 << 20
_TOKEN = np.dtype("<i4")


class RowTokens(NamelessFile):
    """The tokens of all rows of a corpus."""

    def append(self, token_ids: Sequence[int]) -> None:
        """Add the row after the others."""
        self._append(np.array([*token_ids, BETWEEN], dtype=_TOKEN).tobytes())

    def parts(self) -> Iterator[NDArray[np.int32]]:
        """Yield some rows at a time, `BETWEEN` after each. Nothing may be kept meanwhile."""
        self._seek(0)
        rest: list[NDArray[np.int32]] = []
        while block := self._file.read(_TOKENS_AT_ONCE * _TOKEN.itemsize):
            tokens = np.frombuffer(block, dtype=_TOKEN)
            ends = np.flatnonzero(tokens == BETWEEN)
            if len(ends) == 0:  # a row is longer than a block
                rest.append(tokens)
                continue
            yield np.concatenate([*rest, tokens[: ends[-1] + 1]])
            rest = [tokens[ends[-1] + 1 :]]


def count_missing(
    run: RunFolder,
    windows: DistinctWindows,
    rows: RowTokens,
    progress: ReportProgress | None,
) -> None:
    """Give the windows of a run their exposure, counted now or in an earlier session.

    Raises:
        OutputError: it cannot be read or written.
    """
    plan = run.plan
    if plan.epochs is None or not unscored_chunks(run):
        return

    path = run.folder / EXPOSURE
    metadata = {"memaudit.run": plan.fingerprint, "memaudit.shard": str(run.manifest.shard)}
    if not is_whole(path, metadata):
        count_exposure(plan, run.own_chunks, windows, rows, progress)
        assert windows.exposure is not None
        schema = pa.schema([(name, pa.float64()) for name in _COLUMNS])
        with sealed_writer(path, schema, metadata) as writer:
            writer.write_table(pa.table(list(windows.exposure.T), schema=schema))
    else:
        with output_errors(path, "read"), open_sealed(path, metadata) as file:
            table = file.read()
            columns = [numbers(table.column(name).combine_chunks()) for name in _COLUMNS]
        windows.exposure = np.column_stack(columns)


def count_exposure(
    plan: ChunkPlan,
    chunks: Sequence[int],
    windows: DistinctWindows,
    rows: RowTokens,
    progress: ReportProgress | None = None,
) -> None:
    """Count how many rows have the grams of the windows of some chunks, and note it in `windows`."""
    windows.exposure = np.full((len(windows), len(_COLUMNS)), np.nan)
    n_windows = sum(len(plan.windows_of(chunk)) for chunk in chunks)
    report, done = begin_stage("count", "windows", progress), 0
    for indices, grams in _in_passes(plan, chunks, windows):
        counts = GramCounts(np.concatenate(grams))
        for part in rows.parts():
            counts.add(part)
            report(done, n_windows)
        found = summarise(counts.counts, np.array([len(each) for each in grams], np.int64))
        windows.exposure[indices] = np.column_stack([found.median, found.share])
        done += len(indices)
        report(done, n_windows)


def _in_passes(
    plan: ChunkPlan, chunks: Sequence[int], windows: DistinctWindows
) -> Iterator[tuple[list[int], list[NDArray[np.uint64]]]]:
    """Yield windows and their grams, as many at a time as are counted in one pass."""
    indices, grams, n_grams = list[int](), list[NDArray[np.uint64]](), 0
    for chunk in chunks:
        part = plan.windows_of(chunk)
        token_ids = windows.read(part.start, len(part))
        is_full = (token_ids != NO_TOKEN).all(axis=1)
        of_full = iter(grams_of_suffixes(token_ids[is_full], plan.shape.suffix_len))
        found = [
            next(of_full)
            if full
            else suffix_grams(
                without_padding(window), len(without_padding(window[plan.shape.prefix_len :]))
            )
            for full, window in zip(is_full, token_ids, strict=True)
        ]
        indices += part
        grams += found
        n_grams += sum(map(len, found))
        if n_grams >= _GRAMS_AT_ONCE:
            yield indices, grams
            indices, grams, n_grams = [], [], 0
    if indices:
        yield indices, grams
