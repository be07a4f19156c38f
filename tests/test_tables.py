"""Tables come from elsewhere: what is in them is read exactly, or refused by line."""

import numpy as np
import pytest
from support.verified_tables import SIGNAL, make_rows, write_table

from memaudit.errors import CorpusError, UsageError
from memaudit.tables import find_table, read_table

SCORES, LABELS = make_rows(n=5)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_every_format_gives_the_same_columns(tmp_path, ending):
    """The format is the user's choice, the numbers are not."""
    scores = [*SCORES[:4], SCORES[4] | {SIGNAL: None, "outcome": "too_short", "unknown": "x"}]
    scores = [{"unknown": "y"} | row for row in scores]

    table = read_table(write_table(tmp_path / f"risk.{ending}", scores))

    expected = [row[SIGNAL] for row in SCORES[:4]]
    assert table.n_rows == 5
    assert table.numbers[SIGNAL].tolist()[:4] == expected
    assert np.isnan(table.numbers[SIGNAL][4])
    assert table.numbers["row"].tolist() == [0, 1, 2, 3, 4]
    assert table.texts["outcome"] == ["scored"] * 4 + ["too_short"]
    assert set(table.texts) == {"id", "address", "outcome"}
    assert "unknown" not in table.numbers


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_labels_are_numbers_and_missing_ones_are_nan(tmp_path, ending):
    """A row that was not verified has no label; it is not a negative."""
    found = (True, False, None, True, True)
    labels = [row | {"extracted_by_student": x} for row, x in zip(LABELS, found, strict=True)]

    table = read_table(write_table(tmp_path / f"verification.{ending}", labels))

    found = table.numbers["extracted_by_student"]
    assert found[:2].tolist() == [1.0, 0.0]
    assert np.isnan(found[2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", "", "empty, there are no rows"),
        ("t.csv", "id,row\n", "empty, there are no rows"),
        ("t.jsonl", '{"row": 0}\n{"row": "seven"}\n', r"t.jsonl:2: row: expected a number"),
        ("t.jsonl", '{"row": 0}\n{"row": [1]}\n', r"t.jsonl:2: row: expected a number"),
        ("t.jsonl", '{"row": 0}\n{"id": "a"}\n', r"t.jsonl:2: no column row, which the first"),
        ("t.jsonl", '{"row": 0, "row": 1}\n', r"t.jsonl:1: a key repeats"),
        ("t.jsonl", '{"row": 0}\nnonsense\n', r"t.jsonl:2: not valid JSON"),
        ("t.csv", "row\nseven\n", r"t.csv:2: row: expected a number"),
        ("t.parquet", "not parquet", "damaged"),
    ],
)
def test_a_broken_table_is_refused_by_its_line(tmp_path, name, content, message):
    """A fit on half a table would look like any other."""
    (tmp_path / name).write_text(content)

    with pytest.raises(CorpusError, match=message):
        read_table(tmp_path / name)


def test_the_nan_that_pandas_writes_is_an_empty_cell(tmp_path):
    """A label that is unknown is often written so; it must not count as false."""
    (tmp_path / "t.jsonl").write_text('{"row": 0, "extracted_by_student": NaN}\n')

    assert np.isnan(read_table(tmp_path / "t.jsonl").numbers["extracted_by_student"][0])


def test_text_in_the_place_of_a_table_is_refused(tmp_path):
    """A corpus is easily mistaken for its scores."""
    (tmp_path / "corpus.txt").write_text("some text\n")

    with pytest.raises(UsageError, match=r"expected a table, got .txt"):
        read_table(tmp_path / "corpus.txt")


def test_a_folder_stands_for_its_one_table(tmp_path):
    """Commands name folders; two formats in one may be from different runs."""
    with pytest.raises(UsageError, match=r"expected one of risk.parquet, .* got none"):
        find_table(tmp_path, "risk")
    table = write_table(tmp_path / "risk.csv", SCORES)
    assert find_table(tmp_path, "risk") == table
    assert find_table(table, "risk") == table
    write_table(tmp_path / "risk.jsonl", SCORES)
    with pytest.raises(UsageError, match=r"got risk.jsonl and risk.csv"):
        find_table(tmp_path, "risk")
    with pytest.raises(UsageError, match="no such file or folder"):
        find_table(tmp_path / "missing", "risk")
