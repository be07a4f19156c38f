"""The risk table, one row per example in the order of the corpus, and `summary.json` beside it.

Neither holds text of the corpus, unless the summary was asked for it.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from memaudit.files import TableFormat
from memaudit.runs.reading import RowOutcome

COLUMNS = ("id", "row", "address", "outcome", "probability", "flagged", "reason")
"""Columns before the features."""

_ROWS_A_GROUP = 2048
_FORMULAS = tuple("=+-@\t\r\n\0＝＋－＠")
"""Starts that make a spreadsheet read a cell as a formula, full-width forms included."""


@dataclass(frozen=True, slots=True)
class RiskRow:
    """A row of the risk table."""

    source: RowOutcome
    """Where it is in the corpus, and what became of it."""

    probability: float | None = None
    """That the student memorizes it: its worst window's, or by the first stage if it was screened.

    None if neither stage looked at it.
    """

    flagged: bool = False
    """Whether the probability reaches the classifier's threshold."""

    reason: str = ""
    """Why it stands out, or why it was not scored."""

    features: Sequence[float] | None = None
    """Of its worst window. None if it was not scored."""


def write_risk_table(
    stream: BinaryIO,
    table_format: TableFormat,
    rows: Iterable[RiskRow],
    *,
    features: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Write rows as they come; the same rows give the same bytes.

    Args:
        stream: where to.
        table_format: parquet has page checksums; csv has a `'` before what a spreadsheet would
            take for a formula.
        rows: in the order of the corpus.
        features: names of the feature columns.
        metadata: goes into the schema of parquet; the other formats have no place for it.
    """
    records = (_record(row, features) for row in rows)
    if table_format == "parquet":
        schema = _schema(features, metadata)
        kept = {"compression": "zstd", "write_page_checksum": True}
        with pq.ParquetWriter(stream, schema, **kept) as tables:
            while group := list(islice(records, _ROWS_A_GROUP)):
                tables.write_table(pa.Table.from_pylist(group, schema=schema))
    elif table_format == "jsonl":
        for record in records:
            # ASCII only: what an id could do to a terminal or a line reader stays escaped.
            line = json.dumps(record, sort_keys=True, allow_nan=False)
            stream.write(line.encode() + b"\n")
    else:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow([*COLUMNS, *features])
        for record in records:
            # Numbers stay: a minus in front of one is no formula.
            writer.writerow(
                f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value
                for value in record.values()
            )
        # Else the stream would be closed with its wrapper, before it is synced and gets its name.
        text.detach()


def for_spreadsheets(table: pa.Table) -> pa.Table:
    """Return a table with a `'` before each text that csv has one before."""
    starts = f"^([{re.escape(''.join(_FORMULAS))}])"
    columns = [
        pc.replace_substring_regex(column, starts, r"'\1")
        if pa.types.is_string(column.type)
        else column
        for column in table.columns
    ]
    return pa.table(columns, schema=table.schema)


def read_risk_table(rows: Iterable[RiskRow], features: Sequence[str]) -> pa.Table:
    """Return rows as the table that `write_risk_table` writes, in memory."""
    records = (_record(row, features) for row in rows)
    schema = _schema(features)
    groups = iter(lambda: list(islice(records, _ROWS_A_GROUP)), [])
    return pa.Table.from_batches(
        (pa.RecordBatch.from_pylist(group, schema=schema) for group in groups), schema
    )


def _schema(features: Sequence[str], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    text, number = pa.string(), pa.float64()
    types = (text, pa.int64(), text, text, number, pa.bool_(), text)
    fields = [*zip(COLUMNS, types, strict=True), *((name, number) for name in features)]
    return pa.schema(fields, metadata=None if metadata is None else dict(metadata))


def _record(row: RiskRow, features: Sequence[str]) -> dict[str, object]:
    source = row.source
    place = (source.example_id, source.row, source.address, source.outcome)
    values = row.features if row.features is not None else [None] * len(features)
    fixed = (*place, row.probability, row.flagged, row.reason)
    return dict(zip((*COLUMNS, *features), (*fixed, *values), strict=True))
