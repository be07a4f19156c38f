"""Parts cut out of the strings of a row, while everything else keeps its bytes."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memaudit.corpus.base import Cuts, Span, StringPath

# Strings come first: brackets and commas inside them are no structure.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)
# What decodes to one character: a pair of surrogates, another escape, or the character itself.
_JSON_CHARACTER = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.|.", re.DOTALL)
_CSV_CHARACTER = re.compile(r'""|.', re.DOTALL)
# Strings that say what a message is: without them it would be another one, or none.
_NOT_TEXT = ("role", "from", "name", "id", "type", "tool_call_id")


def cut_string(text: str, spans: Sequence[Span]) -> str:
    """Return a text without some spans of characters, which are in order and do not overlap."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return "".join(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))


def cut_values(values: Any, cuts: Cuts) -> Any:
    """Return what a row holds, lists and objects all the way down, with its strings cut."""
    if isinstance(values, str):
        return cut_string(values, cuts.get((), ()))
    if isinstance(values, Mapping):
        return {key: cut_values(value, _below(cuts, key)) for key, value in values.items()}
    if isinstance(values, list):
        return [cut_values(value, _below(cuts, i)) for i, value in enumerate(values)]
    return values


def _below(cuts: Cuts, step: str | int) -> Cuts:
    return {path[1:]: spans for path, spans in cuts.items() if path[:1] == (step,)}


def cut_json(raw: bytes, cuts: Cuts) -> bytes:
    """Return a JSON value with its strings cut, byte by byte as it was elsewhere."""
    text = raw.decode()
    removed: list[Span] = []
    steps: list[str | int] = []  # the path of the next value
    is_key: list[bool] = []  # whether an object waits for a key; False in lists
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "{[":
            steps.append("" if token == "{" else 0)
            is_key.append(token == "{")
        elif token in "}]":
            steps.pop()
            is_key.pop()
        elif token == ",":
            last = steps[-1]
            is_key[-1] = isinstance(last, str)
            steps[-1] = last if isinstance(last, str) else last + 1
        elif token.startswith('"') and is_key and is_key[-1]:
            # By what it means: a key may be written with escapes.
            steps[-1], is_key[-1] = json.loads(token), False
        elif token.startswith('"'):
            spans = cuts.get(tuple(steps), ())
            removed += _removed(token[1:-1], match.start() + 1, _JSON_CHARACTER, spans)
    return cut_string(text, removed).encode()


def _removed(
    written: str, start: int, character: re.Pattern[str], spans: Sequence[Span]
) -> list[Span]:
    """Return where the characters of a string are that are cut, as it is written in a file."""
    if not spans:
        return []
    # Spans count characters as they were read. An escape is several, as it is written.
    places = [start + match.start() for match in character.finditer(written)]
    places.append(start + len(written))
    return [(places[a], places[b]) for a, b in spans]


def cut_record(raw: bytes, delimiter: str, header: Sequence[str], cuts: Cuts) -> bytes:
    """Return a record of a delimited file with its fields cut, byte by byte as it was elsewhere."""
    text = raw.decode()
    removed: list[Span] = []
    # A quoted field ends at a quote that is not doubled, another at the delimiter or line end.
    field = re.compile(rf'"((?:[^"]|"")*)"|([^{re.escape(delimiter)}\r\n]*)')
    place = len(text) - len(text.lstrip("\r\n"))  # empty lines are no records
    for name in header:
        match = field.match(text, place)
        assert match is not None  # it matches the empty field
        group = 1 if match[1] is not None else 2
        character = _CSV_CHARACTER if group == 1 else re.compile(".", re.DOTALL)
        removed += _removed(match[group], match.start(group), character, cuts.get((name,), ()))
        place = match.end() + 1  # behind the delimiter
    return cut_string(text, removed).encode()


def place_cuts(
    values: Mapping[str, object], text: str, spans: Sequence[Span]
) -> tuple[Cuts, list[Span]]:
    """Return which parts of a row's strings the spans of its text are, and these parts in the text.

    Spans are in characters of the text, which is made of the values. What a template adds between
    the strings is in none of them, and stays. A short string may be found in the wrong place:
    whoever cuts has to look at the text that comes of it.
    """
    cuts: dict[StringPath, tuple[Span, ...]] = {}
    covered: set[Span] = set()
    cursor = 0
    for path, string in _strings(list(values.items())):
        stripped = string.strip()  # as many templates do
        # First behind the last string: the same words may stand before it, too.
        tries = ((string, cursor), (stripped, cursor), (string, 0), (stripped, 0))
        found = ((part, text.find(part, since)) for part, since in tries if part)
        part, start = next(((part, start) for part, start in found if start >= 0), ("", 0))
        if not part:
            continue
        cursor = start + len(part)
        # `part` may lack the blanks in front of the string, and spans count those.
        offset = start - string.index(part)
        inside = [(max(a, start), min(b, cursor)) for a, b in spans if a < cursor and b > start]
        if inside:
            cuts[path] = tuple((a - offset, b - offset) for a, b in inside)
            covered.update(inside)
    return cuts, sorted(covered)


def _strings(items: Sequence[tuple[str | int, object]]) -> Iterator[tuple[StringPath, str]]:
    for step, value in items:
        if isinstance(value, str) and step not in _NOT_TEXT:
            yield (step,), value
        elif isinstance(value, Mapping | list):
            below = value.items() if isinstance(value, Mapping) else enumerate(value)
            for path, string in _strings(list(below)):
                yield (step, *path), string
