"""Rows from JSON: one object a line, or one array of objects a file."""

import json
import math
import re
from collections.abc import Iterator
from itertools import chain

from memaudit.corpus.base import MIB, Record, RepeatedKeys, RowError, Unreadable
from memaudit.corpus.byte_streams import split_lines
from memaudit.errors import CorpusError

MAX_ARRAY_BYTES = 128 * MIB
"""A JSON array is held in memory as a whole, so a larger one is refused."""

_MAX_DEPTH = 200
_MAX_INT_DIGITS = 4300  # Python's own default limit, whatever the process has set
_WHITESPACE = b" \t\r\n"
# A string that is not closed runs to the end: without that, matching would be quadratic.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_BRACKET = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_ARRAY_TOKEN = re.compile(_STRING + rb"|[\[\]{},]", re.DOTALL)


def read_json_lines(blocks: Iterator[bytes], max_row_bytes: int) -> Iterator[Record | Unreadable]:
    """Yield one row a line; a line of nothing but blanks is not a row."""
    number = 0
    for line in split_lines(blocks, max_row_bytes):
        if line.content is not None and not line.content.strip(_WHITESPACE):
            continue
        number += 1
        if line.content is None:
            reason = f"{line.length:,} bytes long, more than {max_row_bytes:,}"
            yield Unreadable(number, line.number, reason)
            continue
        try:
            yield Record(number, line.number, parse_object(line.content))
        except RowError as error:
            yield Unreadable(number, line.number, str(error))


def read_json(
    blocks: Iterator[bytes], shown: str, max_row_bytes: int
) -> Iterator[Record | Unreadable]:
    """Yield the elements of an array if the file starts with `[`, else one row a line.

    Raises:
        CorpusError: the array is larger than `MAX_ARRAY_BYTES` or does not end.
    """
    head = b""
    for block in blocks:
        head += block
        if head.lstrip(b"\xef\xbb\xbf" + _WHITESPACE):
            break
    if head.lstrip(b"\xef\xbb\xbf" + _WHITESPACE).startswith(b"["):
        yield from _array_rows(_whole(chain([head], blocks), shown), shown, max_row_bytes)
    else:
        yield from read_json_lines(chain([head], blocks), max_row_bytes)


def parse_object(data: bytes, unit: str = "line") -> dict[str, object]:
    """Return a JSON object, read more strictly than `json` does.

    Raises:
        RowError: not an object, not UTF-8, deeper than 200, an integer of over 4,300 digits
            or a number that is not finite. Keys that repeat give a `RepeatedKeys`.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RowError(f"invalid UTF-8 at byte {error.start + 1} of the {unit}") from error
    _check_depth(data)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowError(f"not valid JSON at character {error.pos + 1}") from error
    if not isinstance(value, dict):
        raise RowError(f"expected a JSON object, got {_KINDS[type(value)]}")
    return value


def _check_depth(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") <= _MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKET.finditer(data):
        token = match[0][:1]
        depth += (token in b"[{") - (token in b"]}")
        if depth > _MAX_DEPTH:
            raise RowError(f"nested deeper than {_MAX_DEPTH}")


def _whole(blocks: Iterator[bytes], shown: str) -> bytes:
    content = bytearray()
    for block in blocks:
        content += block
        if len(content) > MAX_ARRAY_BYTES:
            raise CorpusError(
                f"{shown}: a JSON array of more than {MAX_ARRAY_BYTES:,} bytes",
                hint="turn it into jsonl, for instance with: jq -c '.[]'",
            )
    return bytes(content)


def _array_rows(content: bytes, shown: str, max_row_bytes: int) -> Iterator[Record | Unreadable]:
    for number, element in enumerate(array_elements(content, shown), start=1):
        if len(element) > max_row_bytes:
            reason = f"{len(element):,} bytes long, more than {max_row_bytes:,}"
            yield Unreadable(number, number, reason, "row")
            continue
        try:
            yield Record(number, number, parse_object(element, "row"), "row")
        except RowError as error:
            yield Unreadable(number, number, str(error), "row")


def array_elements(content: bytes, shown: str) -> Iterator[bytes]:
    """Yield the bytes between the commas of the outermost array."""
    depth, start = 0, 0
    for match in _ARRAY_TOKEN.finditer(content):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
            start = match.end() if depth == 1 else start
        elif token == b"," and depth == 1:
            yield content[start : match.start()]
            start = match.end()
        elif token in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                last = content[start : match.start()]
                if last.strip(_WHITESPACE) or content[start - 1 : start] == b",":
                    yield last
                _require_end(content, match.end(), shown)
                return
    raise CorpusError(
        f"{shown}: the JSON array does not end, cut off at byte {len(content):,}",
        hint="copy or download it again",
    )


def _require_end(content: bytes, end: int, shown: str) -> None:
    rest = content[end:].lstrip(_WHITESPACE)
    if rest:
        first = len(content) - len(rest) + 1
        raise CorpusError(f"{shown}: more after the JSON array, at byte {first:,}")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else RepeatedKeys(pairs)


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_INT_DIGITS:
        raise RowError(f"an integer of more than {_MAX_INT_DIGITS:,} digits")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise RowError("a number too large to be finite")
    return number


def _constant(name: str) -> float:
    raise RowError(f"{name} is not JSON")


_KINDS: dict[type, str] = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_number,
    parse_constant=_constant,
)
