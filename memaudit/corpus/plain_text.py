"""Plain text: every line that is not blank is a row."""

from collections.abc import Iterator
from typing import Any

from memaudit.corpus.base import KeepNext, ProjectColumns, Record, Unreadable
from memaudit.corpus.byte_streams import OpenFile, copy_lines, split_lines
from memaudit.corpus.cuts import cut_string

COLUMN = "text"
"""The only column of a text file."""


class PlainText:
    """A `Format`: one row per line that holds more than blanks, headings included."""

    def read(self, file: OpenFile, project: ProjectColumns) -> Iterator[Record | Unreadable]:
        """Yield the rows."""
        del project
        number = 0
        for line in split_lines(file.blocks(), file.max_row_bytes):
            # Blanks of ASCII alone: the bytes are not decoded yet, and may be no UTF-8.
            if line.content is not None and not line.content.strip():
                continue
            number += 1
            if line.content is None:
                reason = f"{line.length:,} bytes long, more than {file.max_row_bytes:,}"
                yield Unreadable(number, line.number, reason)
                continue
            try:
                yield Record(number, line.number, {COLUMN: line.content.decode()})
            except UnicodeDecodeError as error:
                reason = f"invalid UTF-8 at byte {error.start + 1} of the line"
                yield Unreadable(number, line.number, reason)

    def copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        """Write the lines that stay."""
        copy_lines(
            file.blocks(),
            file.max_row_bytes,
            lambda line: bool(line.strip()),
            keep_next,
            out,
            cut=lambda line, cuts: cut_string(line.decode(), cuts[(COLUMN,)]).encode(),
        )
