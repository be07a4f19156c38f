import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memaudit.corpus import BadRow, Example
from memaudit.corpus.base import Record, RowError, Unreadable
from memaudit.corpus.json_lines import parse_object, read_json_lines
from memaudit.errors import CorpusError

GOOD = b'{"text": "good"}'
DEEP = 199  # with the row's own object: 200

GOOD_LINES = {
    "a newline at the end": (GOOD + b"\n", ["good"]),
    "no newline at the end": (GOOD, ["good"]),
    "crlf": (GOOD + b"\r\n" + GOOD + b"\r\n", ["good", "good"]),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, ["good"]),
    "empty lines are no rows": (b"\n\n" + GOOD + b"\n \t\r\n\n", ["good"]),
    "spaces around": (b"  " + GOOD + b" \t", ["good"]),
    "raw line separator": (b'{"text": "a\xe2\x80\xa8b"}', ["a\u2028b"]),
    "raw next line": (b'{"text": "a\xc2\x85b"}', ["a\x85b"]),
    "escaped newline": (rb'{"text": "a\nb"}', ["a\nb"]),
    "escaped NUL": (rb'{"text": "a\u0000b"}', ["a\0b"]),
    "surrogate pair": (rb'{"text": "\ud83d\ude00"}', ["\U0001f600"]),
    "noncharacter": (b'{"text": "\xef\xbf\xbf"}', ["\uffff"]),
    "empty text": (b'{"text": ""}', [""]),
    "date stays a string": (b'{"text": "2024-01-01"}', ["2024-01-01"]),
    "markup stays": (b'{"text": "[red]<b>\\u001b[0m"}', ["[red]<b>\x1b[0m"]),
    "duplicate key elsewhere": (b'{"a": 1, "a": 2, "text": "x"}', ["x"]),
    "200 deep": (b'{"text": "x", "a": ' + b"[" * DEEP + b"]" * DEEP + b"}", ["x"]),
    "brackets in a string": (b'{"text": "' + b"[" * 999 + b'"}', ["[" * 999]),
    "4300 digits": (b'{"text": "x", "n": ' + b"9" * 4300 + b"}", ["x"]),
    "minus 4300 digits": (b'{"text": "x", "n": -' + b"9" * 4300 + b"}", ["x"]),
}

BAD_LINES = {
    "invalid byte": (b'{"text": "\xff"}', "invalid UTF-8 at byte 11 of the line"),
    "overlong NUL": (b'{"text": "\xc0\x80"}', "invalid UTF-8 at byte 11 of the line"),
    "raw surrogate": (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8 at byte 11 of the line"),
    "cut character": (b'{"text": "\xe2\x82"}', "invalid UTF-8 at byte 11 of the line"),
    "invalid byte elsewhere": (b'{"a": "\xff", "text": "x"}', "invalid UTF-8 at byte 8"),
    "utf-16": ('{"text": "x"}'.encode("utf-16"), "invalid UTF-8 at byte 1"),
    "escaped lone surrogate": (rb'{"text": "\ud800"}', "a lone surrogate"),
    "escaped low surrogate": (rb'{"text": "\udc00x"}', "a lone surrogate"),
    "raw NUL": (b'{"text": "a\x00"}', "not valid JSON at character 12"),
    "raw tab": (b'{"text": "a\tb"}', "not valid JSON at character 12"),
    "byte order mark on a later line": (b"\xef\xbb\xbf" + GOOD, "not valid JSON at character 1"),
    "cut off": (b'{"text": "go', "not valid JSON at character"),
    "not JSON": (b"hello", "not valid JSON at character 1"),
    "single quotes": (b"{'text': 'x'}", "not valid JSON at character 2"),
    "two objects": (GOOD + b" " + GOOD, "not valid JSON at character 18"),
    "trailing comma": (b'{"text": "x",}', "not valid JSON"),
    "a list": (b'["text"]', "expected a JSON object, got a list"),
    "a string": (b'"text"', "expected a JSON object, got a string"),
    "a number": (b"17", "expected a JSON object, got a number"),
    "null": (b"null", "expected a JSON object, got null"),
    "true": (b"true", "expected a JSON object, got a boolean"),
    "no key": (b'{"other": "x"}', "no key 'text'"),
    "empty object": (b"{}", "no key 'text'"),
    "null text": (b'{"text": null}', "'text' is null, expected text"),
    "number text": (b'{"text": 5}', "'text' is a number, expected text"),
    "boolean text": (b'{"text": true}', "'text' is a boolean, expected text"),
    "object text": (b'{"text": {}}', "'text' is an object, expected text"),
    "list text": (b'{"text": ["a"]}', "expected a string in 'text', got a list"),
    "duplicate key": (b'{"text": "a", "text": "b"}', "the key 'text' is there twice"),
    "duplicate escaped key": (rb'{"text": "a", "\u0074ext": "b"}', "the key 'text' is there twice"),
    "duplicate id": (b'{"id": 1, "id": 2, "text": "b"}', "the key 'id' is there twice"),
    "NaN": (b'{"text": NaN}', "'text' is a number, expected text"),
    "Infinity": (b'{"text": Infinity}', "'text' is a number, expected text"),
    "4301 digits": (b'{"text": "x", "n": ' + b"9" * 4301 + b"}", "more than 4,300 digits"),
    "201 deep": (b'{"text": "x", "a": ' + b"[" * 200 + b"]" * 200 + b"}", "deeper than 200"),
    "a million deep": (b"[" * 1_000_000, "deeper than 200"),
    "a million deep in a row": (b'{"a":' * 200_000, "deeper than 200"),
    "unclosed string of quotes": (b'{"' + b'\\"' * 500_000 + b"[" * 300, "not valid JSON"),
    "too long": (b'{"text": "' + b"x" * 2_000_000 + b'"}', "bytes long, more than 1,500,000"),
}


@pytest.mark.parametrize(("content", "expected"), GOOD_LINES.values(), ids=GOOD_LINES.keys())
def test_a_good_line_gives_its_text(texts, content, expected):
    """What is legal JSON Lines is read exactly."""
    assert texts("a.jsonl", content) == expected


def test_numbers_that_are_not_finite_count_only_where_they_are_used(texts):
    """Pandas writes NaN for a missing value in a column that nobody asks for."""
    content = b'{"text": "x", "n": NaN}\n{"text": "y", "n": [-Infinity, 1e999]}\n'

    assert texts("a.jsonl", content) == ["x", "y"]
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
        with pytest.raises(RowError, match=r"is not JSON|too large to be finite"):
            parse_object(b'{"n": ' + number + b"}")


@pytest.mark.parametrize(("content", "reason"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_a_bad_row_and_the_next_is_read(read, content, reason):
    """One broken line must not cost the corpus, nor go by unseen."""
    lines = GOOD + b"\n" + content + b"\n" + GOOD + b"\n"

    before, bad, after = read("a.jsonl", lines, max_row_bytes=1_500_000)

    assert isinstance(before, Example)
    assert isinstance(bad, BadRow)
    assert bad.reason.startswith("line 2: ")
    assert reason in bad.reason
    assert isinstance(after, Example)
    assert (before.row, bad.row, after.row) == (0, 1, 2)


@pytest.mark.parametrize(
    "element",
    [
        content
        for name, (content, _) in BAD_LINES.items()
        # these change where an array ends, so the array itself is broken
        if name not in ("cut off", "a million deep", "a million deep in a row")
        and "unclosed" not in name
    ],
)
def test_a_bad_element_of_an_array_is_a_bad_row(read, element):
    """An array of objects has the same rules as lines."""
    content = b"[" + GOOD + b", " + element + b",\n" + GOOD + b"]\n"

    rows = read("a.json", content, max_row_bytes=1_500_000)

    kinds = [type(row) for row in rows]
    assert kinds == [Example, BadRow, Example]


def test_reasons_hold_no_text_of_the_corpus(read):
    """Bad rows go to logs and reports, which must not leak what is audited."""
    canary = b"CANARY"
    lines = [GOOD] + [content.replace(b"x", canary) for content, _ in BAD_LINES.values()]

    rows = read("a.jsonl", b"\n".join(lines), max_row_bytes=1_500_000)

    reasons = [row.reason for row in rows if isinstance(row, BadRow)]
    assert len(reasons) == len(BAD_LINES)
    assert not [reason for reason in reasons if "CANARY" in reason]


def test_a_json_file_may_hold_lines(texts):
    """Many files called .json are JSON Lines."""
    assert texts("a.json", b"\n" + GOOD + b"\n" + GOOD) == ["good", "good"]


def test_an_array_may_be_spread_over_lines(texts):
    """Pretty-printed arrays are common."""
    array = json.dumps([{"text": "a,[b]"}, {"text": 'c"}'}], indent=2).encode()

    assert texts("a.json", b"\xef\xbb\xbf " + array) == ["a,[b]", 'c"}']


@pytest.mark.parametrize("array", [b"[" + GOOD, b"[" + GOOD + b',{"text": "x', b'["'])
def test_an_array_that_does_not_end_is_refused(read, array):
    """A download that was cut off must not pass as a small corpus."""
    with pytest.raises(CorpusError, match=r"a\.json: the JSON array does not end"):
        read("a.json", array)


def test_text_after_an_array_is_refused(read):
    """Two arrays in a file would otherwise lose the second."""
    with pytest.raises(CorpusError, match=r"more after the JSON array, at byte 20"):
        read("a.json", b"[" + GOOD + b"] []")


def test_an_array_too_large_for_memory_is_refused(read, monkeypatch):
    """Arrays are held whole, so their size has a bound."""
    monkeypatch.setattr("memaudit.corpus.json_lines.MAX_ARRAY_BYTES", 100)

    with pytest.raises(CorpusError, match="more than 100 bytes"):
        read("a.json", b"[" + b",".join([GOOD] * 10) + b"]")


def test_a_line_of_any_length_takes_little_memory():
    """A line of gigabytes is passed over block by block, and the next row is read."""
    long_line = (b"x" * 1_000_000 for _ in range(300))
    blocks = iter([*[b'{"text": "'], *long_line, b'"}\n' + GOOD])

    first, second = read_json_lines(blocks, max_row_bytes=1000)

    assert isinstance(first, Unreadable)
    assert first.reason == "300,000,012 bytes long, more than 1,000"
    assert isinstance(second, Record)


def test_rows_come_before_the_end_is_seen():
    """Reading is streaming: an endless source gives its first rows."""
    endless = iter(lambda: GOOD + b"\n", b"")

    rows = list(islice(read_json_lines(endless, max_row_bytes=1000), 5))

    assert [row.place for row in rows] == [1, 2, 3, 4, 5]


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ \ttextNaN0129eE-+.', max_size=40))
def test_any_bytes_give_an_object_or_a_row_error(data):
    """Nothing in a corpus may end the program."""
    content = data if isinstance(data, bytes) else data.encode()
    try:
        value = parse_object(content)
    except RowError:
        return
    assert value == json.loads(content)
