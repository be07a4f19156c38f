"""Rows from plain text: every line that is not blank is one."""

from collections.abc import Iterator

from memaudit.corpus.base import Record, Unreadable
from memaudit.corpus.byte_streams import split_lines

COLUMN = "text"
"""The only column of a text file."""


def read_text_lines(blocks: Iterator[bytes], max_row_bytes: int) -> Iterator[Record | Unreadable]:
    """Yield one row a line, headings included; a line of nothing but blanks is not a row."""
    number = 0
    for line in split_lines(blocks, max_row_bytes):
        if line.content is None:
            number += 1
            reason = f"{line.length:,} bytes long, more than {max_row_bytes:,}"
            yield Unreadable(number, line.number, reason)
            continue
        if not line.content.strip():
            continue
        number += 1
        try:
            yield Record(number, line.number, {COLUMN: line.content.decode()})
        except UnicodeDecodeError as error:
            reason = f"invalid UTF-8 at byte {error.start + 1} of the line"
            yield Unreadable(number, line.number, reason)
