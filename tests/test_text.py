"""Text of a corpus may be hostile to a terminal; what is shown must not be."""

import json
import sys
import unicodedata
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ci_commands import SYSTEMS, hostile_lines

from memaudit.text import inert, json_text, number_of, safe_text, shown_path

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ünïcödé, 漢字, 🙂", "plain text, ünïcödé, 漢字, 🙂"),
        ("\x1b]0;pwned\x07", r"\u001b]0;pwned\u0007"),
        ("\x1b[2J\x9b31m", r"\u001b[2J\u009b31m"),
        ("a\r\nb\tc\b", r"a\u000d\u000ab\u0009c\u0008"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("pay\u200bpal\ufeff", r"pay\u200bpal\ufeff"),
        ("a\u2028b", r"a\u2028b"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("", ""),
    ],
)
def test_what_steers_a_terminal_is_written_out(text, shown):
    """The reader sees what is there, and nothing acts."""
    assert safe_text(text) == shown


@settings(deadline=None)
@given(any_text, st.integers(0, 20))
def test_shown_text_is_one_line_that_any_file_can_hold(text, max_len):
    """No separator, no control character, nothing that UTF-8 cannot encode; and it is short."""
    shown = safe_text(text, max_len)

    assert len(shown.splitlines()) <= 1
    assert shown.encode().decode() == shown
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert len(shown) <= 10 * max_len + 1


INVISIBLE = (
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFEFF, 0xFFA0),
    *range(0x180B, 0x1810),
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFE00, 0xFE10),
    *range(0xFFF0, 0xFFFC),
    *range(0x1BCA0, 0x1BCA4),
    *range(0x1D173, 0x1D17B),
    *range(0xE0000, 0xE1000),
)
"""What Unicode calls default ignorable, and the separators and annotations beside it."""


def test_every_control_and_every_invisible_character_is_escaped():
    """All of Unicode: a text must not hide a part of itself from who reviews it."""
    categories = {"Cc", "Cs", "Zl", "Zp"}
    controls = [c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) in categories]

    for code in (*controls, *INVISIBLE):
        assert safe_text(chr(code)) in (f"\\u{code:04x}", f"\\U{code:08x}")


@pytest.mark.parametrize("text", ["a" * 200, "\n" * 200])
def test_the_limit_counts_characters_of_the_input(text):
    """Exactly as long is shown whole; one more ends in an ellipsis."""
    assert not safe_text(text).endswith("…")
    assert safe_text(text + "b") == safe_text(text) + "…"


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_ci_system_finds_a_command_in_what_is_written(system):
    """10,000 strings that want to be one, as lines, as cells and in the middle of a line."""
    obeys = SYSTEMS[system]
    lines = list(islice(hostile_lines(system), 10_000))

    assert sum(map(obeys, lines)) > 5000
    for line in lines:
        assert not obeys(inert(line))
        assert not obeys(inert(f"id  {line}\n\x1b[1m{line}\x1b[0m"))
        assert not obeys(inert(safe_text(line, 10_000)))


@pytest.mark.parametrize("system", SYSTEMS)
def test_json_keeps_its_meaning_and_holds_no_command(system):
    """Programs read the same document that a log shows."""
    for line in islice(hostile_lines(system, seed=1), 10_000):
        written = json_text({"id": line, line: [1.5, None]}, indent=1)

        assert json.loads(written) == {"id": line, line: [1.5, None]}
        assert not SYSTEMS[system](written)


def test_harmless_output_stays_as_it_is():
    """`std::vector`, a heading and a number sign are no commands."""
    output = "a::b std::vector\n## heading\n#[x] section_one: 1\n  : one colon\n"

    assert inert(output) == output
    assert json_text({"b": "a::b", "a": 1.0}) == '{"a": 1.0, "b": "a::b"}'


def test_a_path_is_shown_whole_and_safely():
    """Nobody finds a file by half its path."""
    assert shown_path("a" * 300 + "\x1b[2J") == "a" * 300 + r"\u001b[2J"


def test_a_number_has_the_noun_that_goes_with_it():
    """`1 rows` reads as if nobody had looked."""
    rows = [number_of(n, "row") for n in (0, 1, 2, 1234)]
    assert rows == ["0 rows", "1 row", "2 rows", "1,234 rows"]
    assert [number_of(n, "day") for n in (0.5, 1.0)] == ["0.5 days", "1 day"]
    assert number_of(1, "entry is", "entries are") == "1 entry is"
    assert number_of(2, "entry is", "entries are") == "2 entries are"
