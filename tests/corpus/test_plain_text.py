import pytest

from memaudit.corpus import BadRow, Example
from memaudit.errors import CorpusError

FILES = {
    "a row a line": (b"one\ntwo\n", ["one", "two"]),
    "no newline at the end": (b"one\ntwo", ["one", "two"]),
    "crlf": (b"one\r\ntwo\r\n", ["one", "two"]),
    "byte order mark": (b"\xef\xbb\xbfone\n", ["one"]),
    "blank lines are no rows": (b" \n = Heading = \n \n one \n\n", [" = Heading = ", " one "]),
    "NUL": (b"a\x00b\n", ["a\0b"]),
    "line separator": (b"a\xe2\x80\xa8b\n", ["a\u2028b"]),
    "form feed": (b"a\x0cb\n", ["a\x0cb"]),
    "carriage return inside": (b"a\rb\n", ["a\rb"]),
    "invalid UTF-8": (b"one\n\xff\ntwo\n", ["one", None, "two"]),
    "too long": (b"one\n" + b"x" * 2000 + b"\ntwo\n", ["one", None, "two"]),
    "just short enough": (b"x" * 1000 + b"\r\n", ["x" * 1000]),
}


@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=FILES.keys())
def test_each_line_that_is_not_blank_is_a_row(texts, content, expected):
    """Wikitext's raw files are of this form."""
    assert texts("a.txt", content, max_row_bytes=1000) == expected


def test_addresses_count_lines_and_ids_count_rows(read):
    """A person looks for the line; the id stays when blank lines are added."""
    first, second = read("wiki.txt", b"\n\none\n\n\xff\n")

    assert isinstance(first, Example)
    assert isinstance(second, BadRow)
    assert (first.example_id, first.address.rsplit(":")[-1]) == ("wiki.txt:1", "3")
    assert (second.example_id, second.address.rsplit(":")[-1]) == ("wiki.txt:2", "5")
    assert second.reason == "line 5: invalid UTF-8 at byte 1 of the line"


def test_plain_text_has_one_column(read):
    """Asking for another is a mistake worth a word."""
    with pytest.raises(CorpusError, match="no column 'content'"):
        read("a.txt", b"one\n", text_column="content")
