"""The risk table, one row per example in the order of the corpus, and `summary.json` beside it.

Neither holds text of the corpus, unless the summary was asked for it.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from memaudit.files import TableFormat

COLUMNS = ("id", "row", "address", "outcome", "probability", "flagged", "reason")
"""Columns before the features. The probability is the worst window's, or by the first stage if a row was
screened; None if neither stage looked at it, like the features of a row that was not scored. The
reason says why it stands out, or why it was not scored."""

_ROWS_A_GROUP = 2048
_FORMULAS = tuple("=+-@\t\r\n\0＝＋－＠")
"""Starts that make a spreadsheet read a cell as a formula, full-width forms included."""


def write_risk_table(
    stream: BinaryIO,
    table_format: TableFormat,
    rows: Iterable[Sequence[object]],
    *,
    features: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Write rows as they come; the same rows give the same bytes.

    Args:
        stream: where to.
        table_format: parquet has page checksums; csv has a `'` before what a spreadsheet would
            take for a formula.
        rows: in the order of the corpus, of each the values of `COLUMNS` and of the features.
        features: names of the feature columns.
        metadata: goes into the schema of parquet; the other formats have no place for it.
    """
    names = (*COLUMNS, *features)
    if table_format == "parquet":
        schema = _schema(features, metadata)
        with pq.ParquetWriter(
            stream, schema, compression="zstd", write_page_checksum=True
        ) as writer:
            for table in _tables(rows, schema):
                writer.write_table(table)
    elif table_format == "jsonl":
        for row in rows:
            record = dict(zip(names, row, strict=True))
            # ASCII only: what an id could do to a terminal or a line reader stays escaped.
            line = json.dumps(record, sort_keys=True, allow_nan=False)
            stream.write(line.encode() + b"\n")
    else:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        lines = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        lines.writerow(names)
        for row in rows:
            # Numbers stay: a minus in front of one is no formula.
            lines.writerow(
                f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value
                for value in row
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


def read_risk_table(rows: Iterable[Sequence[object]], features: Sequence[str]) -> pa.Table:
    """Return rows as the table that `write_risk_table` writes, in memory."""
    schema = _schema(features)
    return pa.concat_tables([schema.empty_table(), *_tables(rows, schema)])


def _tables(rows: Iterable[Sequence[object]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield some rows at a time."""
    each = iter(rows)
    while group := list(islice(each, _ROWS_A_GROUP)):
        columns = zip(zip(*group, strict=True), schema.types, strict=True)
        yield pa.table([pa.array(values, kind) for values, kind in columns], schema=schema)


def _schema(features: Sequence[str], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    text, number = pa.string(), pa.float64()
    types = (text, pa.int64(), text, text, number, pa.bool_(), text)
    fields = [*zip(COLUMNS, types, strict=True), *((name, number) for name in features)]
    return pa.schema(fields, metadata=None if metadata is None else dict(metadata))
