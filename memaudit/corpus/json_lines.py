"""JSON: one object per line, or one array of objects per file."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Literal

from memaudit.corpus.base import (
    MIB,
    KeepNext,
    ProjectColumns,
    Record,
    RepeatedKeys,
    RowError,
    Unreadable,
)
from memaudit.corpus.byte_streams import Line, OpenFile, copy_lines, split_lines
from memaudit.corpus.cuts import cut_json
from memaudit.corpus.layouts import kind_of
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


def is_row(line: bytes) -> bool:
    """Return whether a line holds more than blanks."""
    return bool(line.strip(_WHITESPACE))


def read_json_lines(blocks: Iterator[bytes], max_row_bytes: int) -> Iterator[Record | Unreadable]:
    """Yield one row per line; a line of nothing but blanks is not a row."""
    number = 0
    for line in split_lines(blocks, max_row_bytes):
        if line.content is not None and not is_row(line.content):
            continue
        number += 1
        yield _row(number, line, max_row_bytes, "line")


class JsonLines:
    """A `Format`: one object per line."""

    def read(self, file: OpenFile, project: ProjectColumns) -> Iterator[Record | Unreadable]:
        """Yield the rows."""
        del project
        return read_json_lines(file.blocks(), file.max_row_bytes)

    def copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        """Write the lines that stay."""
        copy_lines(file.blocks(), file.max_row_bytes, is_row, keep_next, out, cut=cut_json)


class Json:
    """A `Format`: an array of objects if the file starts with `[`, else one object per line."""

    def read(self, file: OpenFile, project: ProjectColumns) -> Iterator[Record | Unreadable]:
        """Yield the rows.

        Raises:
            CorpusError: the array is larger than `MAX_ARRAY_BYTES` or does not end.
        """
        del project
        is_array, blocks = _is_array(file.blocks())
        limit = file.max_row_bytes
        if not is_array:
            yield from read_json_lines(blocks, limit)
            return
        content = _whole(blocks, file.shown)
        for number, element in enumerate(array_elements(content, file.shown), start=1):
            yield _row(number, Line(number, element, len(element)), limit, "row")

    def copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        """Write the elements or lines that stay."""
        is_array, blocks = _is_array(file.blocks())
        if not is_array:
            copy_lines(blocks, file.max_row_bytes, is_row, keep_next, out, cut=cut_json)
            return
        content = _whole(blocks, file.shown)
        elements = list(array_elements(content, file.shown))
        start = content.index(b"[") + 1
        # From the end of the last element on, every byte is kept.
        end = start + sum(map(len, elements)) + max(0, len(elements) - 1)
        out.write(content[:start])
        decided = ((element, keep_next()) for element in elements)
        kept = (
            cut_json(element, stays) if isinstance(stays, Mapping) else element
            for element, stays in decided
            if stays
        )
        out.write(b",".join(kept))
        out.write(content[end:])


def _is_array(blocks: Iterator[bytes]) -> tuple[bool, Iterator[bytes]]:
    """Return whether the first character is `[`, and the blocks, all of them."""
    head: list[bytes] = []
    for block in blocks:
        head.append(block)
        # Each block by itself: to strip all blanks so far anew with each would be quadratic.
        if content := block.lstrip(b"\xef\xbb\xbf" + _WHITESPACE):
            return content.startswith(b"["), chain(head, blocks)
    return False, iter(head)


def _row(number: int, line: Line, limit: int, unit: Literal["line", "row"]) -> Record | Unreadable:
    try:
        if line.content is None or line.length > limit:
            raise RowError(f"{line.length:,} bytes long, more than {limit:,}")
        return Record(number, line.number, parse_object(line.content, unit, allow_nan=True), unit)
    except RowError as error:
        return Unreadable(number, line.number, str(error), unit)


def parse_object(data: bytes, unit: str = "line", *, allow_nan: bool = False) -> dict[str, object]:
    """Return a JSON object, read more strictly than `json` does.

    Raises:
        RowError: not an object, not UTF-8, deeper than 200, an integer of over 4,300 digits
            or, unless it is allowed, a number that is not finite. Keys that repeat give a `RepeatedKeys`.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RowError(f"invalid UTF-8 at byte {error.start + 1} of the {unit}") from error
    # The decoder recurses. Nearly all rows have too few brackets to be deep, and counting is fast.
    if data.count(b"[") + data.count(b"{") > _MAX_DEPTH:
        depth = 0
        for match in _BRACKET.finditer(data):
            token = match[0][:1]
            depth += (token in b"[{") - (token in b"]}")
            if depth > _MAX_DEPTH:
                raise RowError(f"nested deeper than {_MAX_DEPTH}")
    try:
        value = (_LENIENT_DECODER if allow_nan else _DECODER).decode(text)
    except json.JSONDecodeError as error:
        raise RowError(f"not valid JSON at character {error.pos + 1}") from error
    if not isinstance(value, dict):
        got = "a string" if isinstance(value, str) else kind_of(value)
        raise RowError(f"expected a JSON object, got {got}")
    return value


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


def array_elements(content: bytes, shown: str) -> Iterator[bytes]:
    """Yield the bytes between the commas of the outermost array."""
    # Only strings, brackets and commas count here: each element is parsed as strictly as a line.
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
                if rest := content[match.end() :].lstrip(_WHITESPACE):
                    first = len(content) - len(rest) + 1
                    raise CorpusError(f"{shown}: more after the JSON array, at byte {first:,}")
                return
    raise CorpusError(
        f"{shown}: the JSON array does not end, cut off at byte {len(content):,}",
        hint="copy or download it again",
    )


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


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
# pandas writes NaN where a value is missing: in a column that nobody uses it is no error.
_LENIENT_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
