"""The risk table says the same in each format, and harms no spreadsheet."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memaudit.runs.risk_table import COLUMNS, write_risk_table

FEATURES = ("zlib_entropy", "occurrences")
ROWS = [
    ("a", 0, "c:1", "scored", 0.1 + 0.2, True, "occurs 2 times", 80.5, 2.0),
    ("b", 1, "c:2", "too_short", None, False, "5 tokens, a window needs 8", None, None),
    ("c", 2, "c:3", "bad", None, False, "line 3: invalid JSON", None, None),
]


def bad_row(example_id, reason=""):
    """A row that was not scored."""
    return (example_id, 0, "c:1", "bad", None, False, reason, None, None)


def written(table_format, rows=ROWS):
    """The bytes of a table."""
    stream = io.BytesIO()
    write_risk_table(
        stream, table_format, rows, features=FEATURES, metadata={"memaudit.schema": "1"}
    )
    return stream.getvalue()


def read_jsonl(content):
    """Rows of a jsonl table."""
    return [json.loads(line) for line in content.decode().splitlines()]


def read_parquet(content):
    """Rows of a parquet table."""
    return pq.read_table(io.BytesIO(content)).to_pylist()


def read_csv(content):
    """Cells as the other formats have them."""
    parse = {"row": int, "flagged": {"True": True, "False": False}.__getitem__}
    parse |= dict.fromkeys(("probability", *FEATURES), lambda cell: float(cell) if cell else None)
    return [
        {name: parse.get(name, str)(cell) for name, cell in row.items()}
        for row in csv.DictReader(io.StringIO(content.decode(), newline=""))
    ]


def test_the_formats_hold_the_same_rows():
    """Which format one likes is no question of content; floats are exact in each."""
    rows = read_jsonl(written("jsonl"))

    assert read_parquet(written("parquet")) == rows
    assert read_csv(written("csv")) == rows
    assert rows[0]["probability"] == 0.1 + 0.2
    assert set(rows[0]) == {*COLUMNS, *FEATURES}


@pytest.mark.parametrize("table_format", ["parquet", "jsonl", "csv"])
def test_the_same_rows_give_the_same_bytes(table_format):
    """Tables can be compared and cached by their digest."""
    assert written(table_format) == written(table_format)


def test_parquet_says_what_it_is():
    """Types and schema version stand in the file, whatever the values."""
    schema = pq.read_schema(io.BytesIO(written("parquet", [])))

    assert schema.metadata[b"memaudit.schema"] == b"1"
    assert [str(schema.field(name).type) for name in COLUMNS] == [
        *("string", "int64", "string", "string", "double", "bool", "string"),
    ]


def test_a_long_table_is_written_in_groups():
    """Memory does not grow with the table."""
    row = ROWS[0]
    content = written("parquet", (row for _ in range(20_000)))

    found = pq.ParquetFile(io.BytesIO(content)).metadata
    assert (found.num_rows, found.num_row_groups) == (20_000, 10)


@given(
    start=st.sampled_from([*"=+-@\t\r\n\0＝＋－＠"]),
    rest=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_no_cell_of_csv_is_a_formula(start, rest):
    """Ids come from strangers; a spreadsheet would run them."""
    row = bad_row(start + rest, reason=start + rest)
    content = written("csv", [row])

    (cells,) = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert cells["id"] == cells["reason"] == f"'{start}{rest}"


@given(example_id=st.text(st.characters(exclude_categories=["Cs"])))
def test_jsonl_is_one_line_of_ascii_a_row(example_id):
    """No id can start a new line or steer a terminal that shows the table."""
    content = written("jsonl", [bad_row(example_id)])

    assert content.count(b"\n") == 1
    assert content.isascii()
    assert min(content.removesuffix(b"\n")) >= 0x20
    assert read_jsonl(content)[0]["id"] == example_id
