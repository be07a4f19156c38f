"""Cutting parts out of strings: what is not cut keeps every byte, and the row stays a row."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memaudit.corpus.cuts import cut_json, cut_record, cut_string, cut_values, place_cuts

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
CLEAN = {0: "0", 13: "r"}
"""NUL is no csv, and a bare carriage return none that this writer quotes."""
SPELLINGS = st.sampled_from([{"ensure_ascii": True}, {"ensure_ascii": False}])


@st.composite
def cut_texts(draw):
    """A text and a span of it."""
    text = draw(TEXT)
    first = draw(st.integers(0, len(text)))
    return text, (first, draw(st.integers(first, len(text))))


@given(cut_texts(), TEXT, SPELLINGS, st.sampled_from([(",", ":"), (" , ", " : ")]))
def test_a_string_in_json_is_cut_and_the_rest_keeps_its_bytes(cut, other, spelling, separators):
    """Escapes, pairs of surrogates and spaces are written in many ways; none may be normalised."""
    text, span = cut
    row = {"a": [other, {"b": text, "text": other}], other + "k": other, "n": 1.50}
    raw = json.dumps(row, **spelling, separators=separators).encode()

    found = cut_json(raw, {("a", 1, "b"): (span,)})

    row["a"][1]["b"] = text[: span[0]] + text[span[1] :]
    assert found == json.dumps(row, **spelling, separators=separators).encode()


def test_a_key_that_holds_quotes_and_brackets_misleads_nobody():
    """A reader that counts brackets by eye would take the wrong string."""
    raw = b'\xef\xbb\xbf {"\\"}{": ["]", "x\\u00e9\\ud83d\\ude42yz"] , "t":"\\\\"}'

    assert cut_json(raw, {('"}{', 1): ((1, 3),)}) == raw.replace(b"\\u00e9\\ud83d\\ude42", b"")


@given(cut_texts(), TEXT, st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
def test_a_field_is_cut_and_the_other_fields_keep_their_bytes(cut, other, quoting):
    """Doubled quotes and line breaks in a field count as what they stand for."""
    text, span = cut
    text, other = text.translate(CLEAN), other.translate(CLEAN)

    def record(*fields):
        stream = io.StringIO(newline="")
        csv.writer(stream, quoting=quoting, lineterminator="\n").writerow(fields)
        return stream.getvalue()

    raw = record(other, text, "x")
    found = cut_record(raw.encode(), ",", ["other", "text", "x"], {("text",): (span,)}).decode()

    (fields,) = csv.reader(io.StringIO(found, newline=""), strict=True)
    assert fields == [other, text[: span[0]] + text[span[1] :], "x"]


def test_values_are_cut_where_the_path_says():
    """What is no string, or on no path, is the same as before."""
    row = {"messages": [{"role": "user", "content": "abcdef"}], "n": 3}

    found = cut_values(row, {("messages", 0, "content"): ((1, 2), (4, 6))})

    assert found == {"messages": [{"role": "user", "content": "acd"}], "n": 3}


@pytest.mark.parametrize(
    ("values", "text", "expected"),
    [
        ({"text": "one two"}, "one two", {("text",): ((2, 5),)}),
        ({"prompt": "one", "completion": " two"}, "one two",
         {("prompt",): ((2, 3),), ("completion",): ((0, 2),)}),
        ({"messages": [{"role": "o", "content": " on "}, {"role": "t", "content": "two"}]},
         "<o>on<t>two", {("messages", 0, "content"): ((1, 2),)}),
    ],
)  # fmt: skip
def test_a_span_of_the_text_is_found_in_the_strings_it_is_made_of(values, text, expected):
    """Template tokens and roles are nobody's text and stay."""
    start = text.index("on") + (2 if text.startswith("one") else 0)
    spans = [(2, 5)] if text.startswith("one") else [(start, start + 1)]

    cuts, inside = place_cuts(values, text, spans)

    assert cuts == expected
    assert cut_string(text, inside) == cut_string(text, spans)
