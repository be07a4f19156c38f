"""Whether what lies beside a run still is what it speaks of: its corpus, and its risk tables.

The corpus is read again, and refused if it is not the one that was scored. The tables are only
compared: nothing reads them as truth.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from memaudit.corpus import BadRow, CorpusOptions, Example, RenderMessages, read_corpus
from memaudit.corpus.base import CAPTURED_WRONG, TOO_LARGE, RawDigest, Rendered, refused
from memaudit.errors import UsageError
from memaudit.files import open_regular
from memaudit.runs.chunks import numbers
from memaudit.runs.risk_table import COLUMNS
from memaudit.runs.run import Run
from memaudit.text import shown_path


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
        _refuse(source, f"it has {n_rows:,} rows, the run {run.n_rows:,}")


def _place(address: str) -> str:
    # The line or row alone, for files may lie elsewhere now.
    return address.rpartition(":")[2]


def _refuse(source: str | CorpusOptions, difference: str) -> None:
    shown = shown_path(source if isinstance(source, str) else source.source)
    raise UsageError(
        f"{shown}: not the corpus that the run scored: {difference}",
        hint="run 'memaudit predict' on the corpus as it is now",
    )


_CHECKED = [name for name in COLUMNS if name != "reason"]
_MAX_LINE = 1 << 20
_ROUNDING = 1e-9
"""What another processor may change in a probability."""

_TableRow = tuple[object, ...]
_Reader = Callable[[Path], Iterator[_TableRow]]


def changed_tables(run: Run) -> list[str]:
    """Return the names of the risk tables in the folder of a run that do not match it."""
    readers = {"parquet": None, "jsonl": _jsonl, "csv": _csv}
    return [
        f"risk.{kind}"
        for kind, read in readers.items()
        if (path := run.folder / f"risk.{kind}").exists() and not _matches(path, read, run)
    ]


def _matches(path: Path, read: _Reader | None, run: Run) -> bool:
    try:
        if read is None:
            return _parquet_matches(path, run)
        return all(
            expected is not None and found is not None and _is_same(found, expected)
            # A row too many or too few meets None.
            for found, expected in zip_longest(read(path), _expected(run))
        )
    except (
        *(OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError),
        *(csv.Error, pa.ArrowException),
    ):
        return False


def _parquet_matches(path: Path, run: Run) -> bool:
    """Compare by columns: rows one by one would take most of the time of a gate."""
    start, names = 0, _CHECKED[:-2]
    with open_regular(path) as stream, pq.ParquetFile(stream) as file:
        for batch in file.iter_batches(columns=_CHECKED):
            stop = start + batch.num_rows
            *places, probability, flagged = batch.columns
            expected = run.rows.slice(start, batch.num_rows).select(names)
            found = np.full(batch.num_rows, np.nan)
            found[_bits(probability.is_valid())] = numbers(probability.drop_null())
            # The probability of a screened row is the first stage's, which a run does not keep.
            found[np.array(expected.column("outcome").to_pylist()) == "screened"] = np.nan
            if not (
                pa.table(places, names=names).cast(expected.schema).equals(expected)
                and np.array_equal(_bits(flagged), run.is_flagged[start:stop])
                and np.allclose(
                    found, run.probabilities[start:stop], _ROUNDING, _ROUNDING, equal_nan=True
                )
            ):
                return False
            start = stop
    return start == run.n_rows


def _bits(booleans: pa.Array) -> NDArray[np.bool_]:
    # numpy can share numbers with pyarrow, but no bits.
    return numbers(booleans.cast(pa.int8())).astype(np.bool_)


def _is_same(found: _TableRow, expected: _TableRow) -> bool:
    if found == expected:  # nearly always, and the rest takes a hundred times as long
        return True
    (*place, probability, flagged), (*true_place, true, truly_flagged) = found, expected
    # In csv a `'` stands before what a spreadsheet would take for a formula.
    is_there = all(
        one in (true_one, f"'{true_one}") for one, true_one in zip(place, true_place, strict=True)
    )
    if not is_there or flagged != truly_flagged:
        return False
    if isinstance(probability, float) and isinstance(true, float):
        return math.isclose(probability, true, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    return probability == true


def _expected(run: Run) -> Iterator[_TableRow]:
    """Yield id, row, address, outcome, probability and flagged of every row."""
    names = ("id", "row", "address", "outcome")
    rows = zip(*(run.rows.column(name).to_pylist() for name in names), strict=True)
    numbers = zip(run.probabilities.tolist(), run.is_flagged.tolist(), strict=True)
    for (*row, outcome), (probability, flagged) in zip(rows, numbers, strict=True):
        scored = outcome == "scored"
        yield (*row, outcome, probability if scored else None, flagged if scored else False)


def _table_row(values: dict[str, object]) -> _TableRow:
    # The probability of a screened row is the first stage's, which a run does not keep.
    is_screened = values["outcome"] == "screened"
    return tuple(
        None if name == "probability" and is_screened else values[name] for name in _CHECKED
    )


def _jsonl(path: Path) -> Iterator[_TableRow]:
    with open_regular(path) as stream:
        # Bounded: a line that somebody put there may not end.
        while line := stream.readline(_MAX_LINE):
            yield _table_row(json.loads(line))


def _csv(path: Path) -> Iterator[_TableRow]:
    with open_regular(path) as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
        for values in csv.DictReader(text):
            shown: dict[str, object] = dict(values)
            shown["row"] = int(values["row"])
            shown["probability"] = float(values["probability"]) if values["probability"] else None
            shown["flagged"] = {"True": True, "False": False}[values["flagged"]]
            yield _table_row(shown)
