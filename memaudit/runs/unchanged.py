"""Whether what lies beside a run still is what it speaks of: its corpus, and its risk tables.

The corpus is read again, and refused if it is not the one that was scored. The tables are only
compared: nothing reads them as truth.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv, json

from memaudit.corpus import BadRow, CorpusOptions, Example, RenderMessages, read_corpus
from memaudit.corpus.base import CAPTURED_WRONG, TOO_LARGE, RawDigest, Rendered, refused
from memaudit.errors import UsageError
from memaudit.files import TABLE_FORMATS, TableFormat, open_regular
from memaudit.runs.chunks import numbers
from memaudit.runs.risk_table import for_spreadsheets
from memaudit.runs.run import Run
from memaudit.text import number_of, shown_path


def corpus_options(run: Run, source: str) -> CorpusOptions:
    """Return how the corpus of a run is read, from where it is now."""
    declared = run.manifest.inputs.corpus
    try:
        return CorpusOptions(**(declared | {"source": source}))
    except (TypeError, ValueError) as error:
        raise UsageError(
            "the run was made by another version of memaudit, how its corpus is read is not known",
            hint="run 'memaudit predict' anew",
        ) from error


def reread_corpus(
    run: Run, source: str | CorpusOptions, render_messages: RenderMessages | None = None
) -> Iterator[Example | BadRow]:
    """Yield the rows of a run's corpus again, in their order.

    Where the corpus lies may have changed; ids, places in their files and texts may not. Whether
    all texts are the same is known at the end, and said then.

    Raises:
        UsageError: it is another corpus, or has changed since it was scored.
        CorpusError: it cannot be read.
    """
    texts = hashlib.sha256()
    for row in _same_rows(run, source, render_messages):
        if isinstance(row, Example):
            # As `cut_rows` made the digest of the run.
            texts.update(msgspec.json.encode(row.text))
        yield row
    if texts.hexdigest() != run.manifest.inputs.texts_digest:
        _refuse(source, "a text was changed")


def require_same_corpus(run: Run, source: str | CorpusOptions) -> None:
    """Read a corpus through and refuse it if it is not the one that was scored; needs no model.

    It is at another place now, or read by the same options.

    Rows with messages are compared as they are before a chat template makes texts of them.

    Raises:
        UsageError, CorpusError: as for `reread_corpus`.
    """
    if run.manifest.raw_digest is None:
        for _ in reread_corpus(run, source):
            pass
        return
    raw = RawDigest()
    for row in _same_rows(run, source, lambda _: Rendered(""), is_rendered=False):
        raw.add(row)
    if raw.value != run.manifest.raw_digest:
        _refuse(source, "a message was changed")


def _same_rows(
    run: Run,
    source: str | CorpusOptions,
    render_messages: RenderMessages | None,
    *,
    is_rendered: bool = True,
) -> Iterator[Example | BadRow]:
    """Yield the rows of a corpus, refused if their ids, places or number are not the run's."""
    options = corpus_options(run, source) if isinstance(source, str) else source
    scored, n_rows = run.each_row(), 0
    for row in read_corpus(options, render_messages=render_messages):
        was = next(scored, None)
        found = (TOO_LARGE, CAPTURED_WRONG)  # by the teacher's side, which is not asked again
        if was is not None and was.reason.startswith(found) and isinstance(row, Example):
            row = refused(row, was.reason)
        # A template may have refused messages that can be read: without it nobody knows.
        is_known = is_rendered or row.raw_digest is None
        if (
            was is None
            or row.example_id != was.example_id
            or _place(row.address) != _place(was.address)
            or (is_known and isinstance(row, BadRow) != (was.outcome == "bad"))
        ):
            _refuse(source, f"row {n_rows + 1:,} is another one")
        n_rows += 1
        yield row
    if n_rows != run.n_rows:
        _refuse(source, f"it has {number_of(n_rows, 'row')}, the run {run.n_rows:,}")


def _place(address: str) -> str:
    # The line or row alone, for files may lie elsewhere now.
    return address.rpartition(":")[2]


def _refuse(source: str | CorpusOptions, difference: str) -> None:
    shown = shown_path(source if isinstance(source, str) else source.source)
    raise UsageError(
        f"{shown}: not the corpus that the run scored: {difference}",
        hint="run 'memaudit predict' on the corpus as it is now",
    )


_TYPES = {"id": pa.string(), "row": pa.int64(), "address": pa.string(), "outcome": pa.string()}
_CHECKED = pa.schema(_TYPES | {"probability": pa.float64(), "flagged": pa.bool_()})
_BLOCK = 1 << 20
"""Bytes at once, which a row must not exceed: one that somebody put there may not end."""

_ROUNDING = 1e-9
"""What another processor may change in a probability."""


def changed_tables(run: Run) -> list[str]:
    """Return the names of the risk tables in the folder of a run that do not match it."""
    return [
        path.name
        for kind in TABLE_FORMATS
        if (path := run.folder / f"risk.{kind}").exists() and not _matches(path, kind, run)
    ]


def _matches(path: Path, kind: TableFormat, run: Run) -> bool:
    """Compare by columns: rows one by one would take most of the time of a gate."""
    start = 0
    try:
        with open_regular(path) as stream:
            for batch in _batches(stream, kind):
                stop = start + batch.num_rows
                *places, probability, flagged = batch.select(_CHECKED.names).columns
                expected = run.rows.slice(start, batch.num_rows).select([*_TYPES])
                found = np.full(batch.num_rows, np.nan)
                found[_bits(probability.is_valid())] = numbers(probability.drop_null())
                # The probability of a screened row is the first stage's, which a run does not keep.
                found[np.array(expected.column("outcome").to_pylist()) == "screened"] = np.nan
                if kind == "csv":
                    expected = for_spreadsheets(expected)
                if not (
                    pa.table(places, names=[*_TYPES]).cast(expected.schema).equals(expected)
                    and np.array_equal(_bits(flagged), run.is_flagged[start:stop])
                    and np.allclose(
                        found, run.probabilities[start:stop], _ROUNDING, _ROUNDING, equal_nan=True
                    )
                ):
                    return False
                start = stop
    except (OSError, ValueError, LookupError, MemoryError, pa.ArrowException):
        return False
    return start == run.n_rows


def _batches(stream: BinaryIO, kind: TableFormat) -> Iterator[pa.RecordBatch]:
    """Yield the columns that are compared, some rows at a time."""
    if kind == "parquet":
        yield from pq.ParquetFile(stream).iter_batches(columns=_CHECKED.names)
    elif kind == "jsonl":
        yield from json.open_json(
            stream,
            json.ReadOptions(use_threads=False, block_size=_BLOCK),
            json.ParseOptions(explicit_schema=_CHECKED, unexpected_field_behavior="ignore"),
        )
    else:
        yield from csv.open_csv(
            stream,
            csv.ReadOptions(use_threads=False, block_size=_BLOCK),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(
                column_types=_CHECKED,
                include_columns=_CHECKED.names,
                null_values=[""],
                true_values=["True"],
                false_values=["False"],
            ),
        )


def _bits(booleans: pa.Array) -> NDArray[np.bool_]:
    # numpy can share numbers with pyarrow, but no bits.
    return numbers(booleans.cast(pa.int8())).astype(np.bool_)
