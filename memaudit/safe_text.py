"""Text from outside made safe to show: no control character reaches a terminal or a file."""

import re

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 (tab and line breaks too: a cell is one line), DEL, C1
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\uffa0\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # invisible, bidirectional
    "\ufe00-\ufe0f\ufeff\ufff0-\ufffb\ud800-\udfff"  # variation selectors, BOM, surrogates
    "\U000e0000-\U000e0fff]"  # tag characters
)


def safe_text(text: str, max_len: int = 200) -> str:
    r"""Return the text on one line, with what could steer a terminal written as `\u001b`.

    Args:
        text: anything, lone surrogates included.
        max_len: characters of the input that are shown; a longer text ends in an ellipsis.

    Returns:
        printable text without line breaks, control, bidirectional or invisible characters.
    """
    shown = text[:max_len]
    escaped = _UNSAFE.sub(_escape, shown)
    return escaped + "…" if len(text) > max_len else escaped


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
