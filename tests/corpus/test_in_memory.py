"""Rows that a program holds are read as the file of the same rows is."""

import json

import pyarrow as pa
import pytest
from support.fakes import ByteTokenizer

from memaudit.corpus import BadRow, CorpusOptions, corpus_of, read_corpus
from memaudit.errors import CorpusError, UsageError

ROWS = {
    "text": [{"id": f"a{i}", "text": f"text {i}", "n": i} for i in range(3)],
    "prompt-completion": [{"prompt": f"{i}?", "completion": f" {i}!"} for i in range(3)],
    "messages": [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{i}"}]}
        for i in range(3)
    ],
    "tokens": [{"input_ids": [1, 2, i], "labels": [-100, 2, i]} for i in range(3)],
}


def arrow(rows):
    """A table of pyarrow."""
    return pa.Table.from_pylist(rows)


def batches(rows):
    """A reader, which can be read once."""
    return arrow(rows).to_reader()


def frame(rows):
    """A frame of pandas."""
    return pytest.importorskip("pandas").DataFrame(rows)


def from_parquet(rows):
    """Lists of a frame that came from a file are arrays of numpy."""
    return pytest.importorskip("pandas").DataFrame(
        {name: arrow(rows)[name].to_pandas() for name in rows[0]}
    )


def data_set(rows):
    """A data set in memory."""
    return pytest.importorskip("datasets").Dataset.from_list(rows)


def shuffled_twice(rows):
    """An index lies over the table: its rows come in another order than the table's."""
    return data_set(rows[::-1]).select(range(len(rows) - 1, -1, -1))


def with_a_format(rows):
    """It gives arrays in place of lists and numbers."""
    return data_set(rows).with_format("numpy")


def streamed(rows):
    """A data set that is read once it is asked for."""
    return data_set(rows).to_iterable_dataset()


def generator(rows):
    """It can be read once."""
    return (row for row in rows)


HOLDERS = [
    list, tuple, generator, arrow, batches, frame, from_parquet,
    data_set, shuffled_twice, with_a_format, streamed,
]  # fmt: skip


def read(options):
    """Return all rows."""
    return list(read_corpus(options, render_messages=ByteTokenizer().render_messages))


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("layout", ROWS)
def test_rows_in_memory_read_as_their_file(layout, holder, tmp_path):
    """The same texts, answers and ids, whatever library holds them."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[layout]))
    expected = read(CorpusOptions(str(path)))

    found = read(corpus_of(holder(ROWS[layout])))

    assert [(row.row, row.text, row.answers, row.token_ids) for row in found] == [
        (row.row, row.text, row.answers, row.token_ids) for row in expected
    ]
    assert [row.address for row in found] == ["rows:1", "rows:2", "rows:3"]
    if layout == "text":
        assert [row.example_id for row in found] == ["a0", "a1", "a2"]


@pytest.mark.parametrize("holder", [arrow, frame, data_set, list])
def test_columns_of_other_names_are_named_by_options(holder):
    """Options say more of rows in memory too."""
    rows = [{"body": "some text", "key": 7}]

    (row,) = read(CorpusOptions("mine", rows=holder(rows), text_column="body", id_column="key"))

    assert (row.text, row.example_id, row.address) == ("some text", "7", "mine:1")


@pytest.mark.parametrize("holder", [arrow, frame, data_set, list])
def test_a_missing_text_is_a_bad_row(holder):
    """A frame writes NaN for it: that is no number that somebody wrote."""
    rows = [{"text": "there", "n": 1}, {"text": None, "n": 2}]

    _, bad = read(corpus_of(holder(rows)))

    assert isinstance(bad, BadRow)
    assert bad.reason == "row 2: 'text' is null, expected text"


def test_what_is_no_row_is_said_without_its_text():
    """A list of strings is the likeliest mistake."""
    (_, bad) = read(corpus_of([{"text": "one"}, "a secret"]))

    assert bad.reason == "row 2: expected a dict, got a string"


@pytest.mark.parametrize("holder", [arrow, frame, data_set, list])
def test_rows_without_text_are_refused_with_their_columns(holder):
    """As for files: the error helps to name the column."""
    with pytest.raises(CorpusError, match="rows: found no text") as refused:
        read(corpus_of(holder([{"body": "some text"}])))

    assert "--text-column body" in refused.value.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": [], "test": []}, "expected rows, got a mapping of train, test"),
        (7, "expected a path, a data set, a frame, a table or dicts, got int"),
        (b"bytes", "got bytes"),
        (None, "no corpus is given"),
        ("", "no corpus is given"),
    ],
)
def test_what_has_no_rows_is_a_usage_error(data, message):
    """A `DatasetDict` holds several data sets, and one must be chosen."""
    with pytest.raises(UsageError, match=message):
        read(corpus_of(data))


def test_no_rows_are_an_empty_corpus():
    """An empty result would look like a safe one."""
    with pytest.raises(CorpusError, match="rows: empty"):
        read(corpus_of([]))
