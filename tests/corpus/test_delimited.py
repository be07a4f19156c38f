import csv
import io
from types import SimpleNamespace

import pytest

from memaudit.corpus import BadRow, CorpusOptions, Example
from memaudit.corpus.byte_streams import OpenFile
from memaudit.corpus.delimited import Delimited
from memaudit.errors import CorpusError

GOOD_FILES = {
    "plain": (b"text,id\nhello,1\n", ["hello"]),
    "no newline at the end": (b"text\nhello", ["hello"]),
    "crlf": (b"text\r\nhello\r\n", ["hello"]),
    "byte order mark": (b"\xef\xbb\xbftext\nhello\n", ["hello"]),
    "byte order mark and quotes": (b'\xef\xbb\xbf"text"\nhello\n', ["hello"]),
    "quoted comma": (b'text\n"a,b"\n', ["a,b"]),
    "doubled quotes": (b'text\n"a ""b"" c"\n', ['a "b" c']),
    "a text over lines": (b'text,id\n"a\nb",1\nc,2\n', ["a\nb", "c"]),
    "crlf in a text": (b'text\n"a\r\nb"\n', ["a\r\nb"]),
    "empty lines are no rows": (b"text\n\nhello\n\n", ["hello"]),
    "empty text": (b'text,id\n,1\n"",2\n', ["", ""]),
    "NUL": (b"text\na\x00b\n", ["a\0b"]),
    "line separator": (b"text\na\xe2\x80\xa8b\n", ["a\u2028b"]),
    "formula": (b"text\n=1+1\n", ["=1+1"]),
    "quote inside a field": (b'text\n5" disk\n', ['5" disk']),
    "a long field": (b"text\n" + b"x" * 200_000 + b"\n", ["x" * 200_000]),
}

BAD_RECORDS = {
    "too many fields": (b"a,1,2", "3 fields, expected 2"),
    "too few fields": (b"a", "1 fields, expected 2"),
    "invalid UTF-8": (b"\xff,1", "invalid UTF-8"),
    "invalid UTF-8 elsewhere": (b"a,\xff", "invalid UTF-8"),
    "text after a closing quote": (b'"a"b,1', "fields are not quoted"),
    "too long": (b"x" * 2000 + b",1", "more than 1,000 bytes long"),
}


@pytest.mark.parametrize(("content", "expected"), GOOD_FILES.values(), ids=GOOD_FILES.keys())
def test_a_good_csv_gives_its_texts(texts, content, expected):
    """What is legal csv is read exactly."""
    assert texts("a.csv", content) == expected


@pytest.mark.parametrize(("record", "reason"), BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_a_bad_record_is_a_bad_row_and_reading_goes_on(read, record, reason):
    """One broken record must not cost the corpus, nor go by unseen."""
    rows = read("a.csv", b"text,id\ngood,1\n" + record + b"\ngood,2\n", max_row_bytes=1000)

    assert isinstance(rows[0], Example)
    assert isinstance(rows[1], BadRow)
    assert rows[1].reason == f"line 3: {rows[1].reason.removeprefix('line 3: ')}"
    assert reason in rows[1].reason
    assert isinstance(rows[-1], Example)
    assert [row.row for row in rows] == list(range(len(rows)))


def test_a_quote_that_is_never_closed_is_a_bad_row(read):
    """Where the text would end cannot be known."""
    good, bad = read("a.csv", b'text\ngood\n"never closed\nmore\n')

    assert isinstance(good, Example)
    assert isinstance(bad, BadRow)
    assert bad.address.endswith("a.csv:3")


def test_a_quote_that_is_never_closed_costs_no_more_than_the_row_limit(read):
    """The rest of a large file is still read, and the memory bounded."""
    content = b'text,id\n"open,0\n' + b"text,1\n" * 400

    rows = read("a.csv", content, max_row_bytes=1000)

    assert isinstance(rows[0], BadRow)
    assert rows[0].reason == "line 2: more than 1,000 bytes long"
    assert sum(isinstance(row, Example) for row in rows) > 200


def test_the_address_is_the_line_where_the_record_starts(read):
    """A person looks for it there."""
    rows = read("a.csv", b'text,id\n"a\nb",x\nc,y\n')

    assert [(row.example_id, row.address.rsplit(":")[-1]) for row in rows] == [
        ("x", "2"),
        ("y", "4"),
    ]


@pytest.mark.parametrize("stays", [True, False])
def test_a_line_that_is_too_long_is_copied_without_being_held(monkeypatch, stays):
    """One line may be larger than the memory; as a row it cannot be used, and goes or stays whole."""
    monkeypatch.setattr("memaudit.corpus.byte_streams.BLOCK_BYTES", 8)
    records = [b"id,text\r\n", b"\n1,a\n", b'2,"b\n' + b"x" * 500 + b"\n", b'3,"c\nc"\n', b"\n"]
    decisions, asked, written = [True, stays, True], [], []

    def keep_next():
        asked.append(len(asked))
        return decisions[asked[-1]]

    out = SimpleNamespace(write=written.append)
    file = OpenFile(io.BytesIO(b"".join(records)), "a", None, CorpusOptions("a", max_row_bytes=40))
    Delimited(",").copy(file, keep_next, out)

    assert b"".join(written) == b"".join(records[:2] + records[2:3] * stays + records[3:])
    assert asked == [0, 1, 2]
    assert max(map(len, written)) <= 40 + 2 + 8


def test_tsv_is_cut_at_tabs(texts):
    """Commas are text there."""
    assert texts("a.tsv", b"id\ttext\n1\ta,b\n") == ["a,b"]


@pytest.mark.parametrize("header", [b"\xff,text", b'"a"b,text'])
def test_a_header_that_cannot_be_read_is_an_error(read, header):
    """Without it no row can be read."""
    with pytest.raises(CorpusError, match=r"a\.csv:1: the header cannot be read"):
        read("a.csv", header + b"\n1,a\n")


def test_a_column_that_is_there_twice_is_an_error(read):
    """Which one was trained on cannot be known."""
    with pytest.raises(CorpusError, match="the column 'text' is there twice"):
        read("a.csv", b"text,text\na,b\n")


def test_the_process_wide_field_limit_is_left_as_it_was(texts):
    """Other users of csv in the process keep their limit."""
    limit = csv.field_size_limit()

    assert texts("a.csv", b"text\n" + b"x" * (limit + 1)) == ["x" * (limit + 1)]
    assert csv.field_size_limit() == limit


def test_what_csv_writes_is_read_back(texts):
    """Quoting follows the standard library."""
    written = ["plain", "a,b", 'say "x"', "two\nlines", "tab\t", " spaces ", "é\u2028\U0001f600"]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["text", "n"], *[[text, 1] for text in written]])

    assert texts("a.csv", file.getvalue().encode()) == written
