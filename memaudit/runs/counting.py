"""The counting pass: all rows once more, past the grams of the windows that are to be scored.

Only where a classifier looks at exposure. The rows' texts wait for it in a file without a name:
the grams of all windows are known only when the last row was read, and a pipe can be read once.

Every shard counts its own windows in the whole corpus, as it cuts the whole corpus. Counts of
parts would add up, but then no shard could score a window before all others had read theirs.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Example
from memaudit.exposure import BETWEEN, GramCounts, normalised, suffix_grams, summarise
from memaudit.progress import ReportProgress, begin_stage
from memaudit.runs.chunks import ChunkPlan, numbers
from memaudit.runs.files import output_errors
from memaudit.runs.folder import RunFolder, unscored_chunks
from memaudit.runs.reading import DistinctWindows, NamelessFile, Tokenizer
from memaudit.runs.sealed_parquet import is_whole, open_sealed, sealed_writer
from memaudit.windows import without_padding

EXPOSURE = "exposure.parquet"
"""Name in the folder of a run."""

_COLUMNS = ("median", "minimum", "share")
_GRAMS_AT_ONCE = 1 << 23
"""About 0.5 GB of memory. More are counted in several passes over the rows."""

_BYTES_AT_ONCE = 1 << 22


class RowTexts(NamelessFile):
    """The texts of a corpus, normalised."""

    def keep(
        self, rows: Iterable[Example | BadRow], tokenizer: Tokenizer
    ) -> Iterator[Example | BadRow]:
        """Yield rows as they come, and keep the text of each; of token ids what they stand for."""
        for row in rows:
            if isinstance(row, Example):
                ids = row.token_ids
                text = row.text if ids is None else tokenizer.decode([list(ids)])[0]
                self._append(normalised(text) + BETWEEN)
            yield row

    def parts(self) -> Iterator[bytes]:
        """Yield some rows at a time, `BETWEEN` after each. Nothing may be kept meanwhile."""
        self._seek(0)
        rest = b""
        while block := self._file.read(_BYTES_AT_ONCE):
            rows, end, rest = (rest + block).rpartition(BETWEEN)
            yield rows + end  # empty while a row is longer than a block


def count_missing(
    run: RunFolder,
    windows: DistinctWindows,
    texts: RowTexts,
    tokenizer: Tokenizer,
    progress: ReportProgress | None,
) -> None:
    """Give the windows of a run their exposure, counted now or in an earlier session.

    Raises:
        OutputError: it cannot be read or written.
    """
    plan = run.plan
    if plan.epochs is None or not unscored_chunks(run):
        return
    import pyarrow as pa

    path = run.folder / EXPOSURE
    metadata = {"memaudit.run": plan.fingerprint, "memaudit.shard": str(run.manifest.shard)}
    if not is_whole(path, metadata):
        count_exposure(plan, run.own_chunks, windows, texts, tokenizer, progress)
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
    texts: RowTexts,
    tokenizer: Tokenizer,
    progress: ReportProgress | None = None,
) -> None:
    """Count how many rows have the grams of the windows of some chunks, and note it in `windows`.

    Args:
        plan: says which windows those are.
        chunks: their numbers.
        windows: of the corpus.
        texts: of all rows.
        tokenizer: gives the text of a window.
        progress: is told how many windows are done.
    """
    windows.exposure = np.full((len(windows), len(_COLUMNS)), np.nan)
    n_windows = sum(len(plan.windows_of(chunk)) for chunk in chunks)
    report, done = begin_stage("count", "windows", progress), 0
    for indices, grams in _in_passes(plan, chunks, windows, tokenizer):
        counts = GramCounts(np.concatenate(grams))
        for part in texts.parts():
            counts.add(part)
            report(done, n_windows)
        found = summarise(counts.counts, np.array([len(each) for each in grams], np.int64))
        windows.exposure[indices] = np.column_stack([found.median, found.minimum, found.share])
        done += len(indices)
        report(done, n_windows)


def _in_passes(
    plan: ChunkPlan, chunks: Sequence[int], windows: DistinctWindows, tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[NDArray[np.uint64]]]]:
    """Yield windows and their grams, as many at a time as are counted in one pass."""
    indices, grams, n_grams = list[int](), list[NDArray[np.uint64]](), 0
    for chunk in chunks:
        part = plan.windows_of(chunk)
        token_ids = windows.read(part.start, len(part))
        suffixes = token_ids[:, plan.shape.prefix_len :]
        texts = tokenizer.decode([without_padding(each).tolist() for each in token_ids])
        suffix_texts = tokenizer.decode([without_padding(each).tolist() for each in suffixes])
        found = list(map(suffix_grams, texts, suffix_texts))
        indices += part
        grams += found
        n_grams += sum(map(len, found))
        if n_grams >= _GRAMS_AT_ONCE:
            yield indices, grams
            indices, grams, n_grams = [], [], 0
    if indices:
        yield indices, grams
