"""Text made safe to show: nothing in it steers a terminal, and no CI system obeys it.

`safe_text` is for a piece that comes from outside, such as an id. `inert` is for a finished
output of several lines: what leaves memaudit passes through it last, so no writer can forget it.
"""

import json
import re
from typing import Any

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 (tab and line breaks too: a cell is one line), DEL, C1
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\uffa0\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # invisible, bidirectional
    "\ufe00-\ufe0f\ufeff\ufff0-\ufffb\ud800-\udfff"  # variation selectors, BOM, surrogates
    "\U000e0000-\U000e0fff]"  # tag characters
)

# Azure Pipelines (`##vso[`, `##[`), TeamCity and GitHub's older commands are read anywhere in a
# line, and so are GitLab's section marks.
_COMMAND = re.compile(r"##(?=\[|vso\[|teamcity\[)|section_(?=(?:start|end):)", re.IGNORECASE)
# GitHub obeys two colons where a line begins, after any spaces; colours may stand
# before and between them.
_COLONS = re.compile(
    r"((?:\A|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])(?:\s|\x1b\[[0-9;]*m)*):(?=(?:\x1b\[[0-9;]*m)*:)"
)


def safe_text(text: str, max_len: int = 200) -> str:
    r"""Return the text on one line, with what could steer a terminal written as `\u001b`.

    Args:
        text: anything, lone surrogates included.
        max_len: characters of the input that are shown; a longer text ends in an ellipsis.

    Returns:
        printable text without line breaks, control, bidirectional or invisible characters.
    """
    # Cut first: a row of 16 MiB need not be escaped to show its start.
    escaped = _UNSAFE.sub(_escape, text[:max_len])
    return escaped + "…" if len(text) > max_len else escaped


def shown_path(path: object) -> str:
    """Return a path as text that is safe to show, whole up to the longest that Linux allows."""
    return safe_text(str(path), 4096)


def number_of(n: float, one: str, several: str = "") -> str:
    """Return a number with its noun: `1 row`, `2,000 rows`. `several`: if an s does not make it."""
    return f"{n:,.12g} {one if n == 1 else several or f'{one}s'}"


def inert(output: str) -> str:
    r"""Return output in which the log of a CI job finds no command.

    The first character that makes a command of it is written as `\u003a`, `\u0023` or `\u005f`;
    other text stays as it is.
    """
    return _COLONS.sub(r"\1\\u003a", _without_commands(output))


def json_text(document: Any, *, indent: int | None = None) -> str:
    """Return a document as JSON with sorted keys, in which the log of a CI job finds no command.

    A reader gets the same document: what `inert` writes out is an escape of JSON, too. No line of
    JSON begins with a colon.

    Raises:
        ValueError: a number is not finite.
    """
    return _without_commands(json.dumps(document, sort_keys=True, indent=indent, allow_nan=False))


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _without_commands(text: str) -> str:
    return _COMMAND.sub(
        lambda match: match.group()[:-1] + "\\u005f" if match.group().endswith("_") else "\\u0023#",
        text,
    )
