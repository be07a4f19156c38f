"""Csv and tsv, with a header line; fields may be quoted and span lines."""

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memaudit.corpus.base import Cuts, KeepNext, ProjectColumns, Record, RowError, Unreadable
from memaudit.corpus.byte_streams import OpenFile, split_lines
from memaudit.corpus.cuts import cut_record
from memaudit.errors import CorpusError


@dataclass(frozen=True, slots=True)
class Delimited:
    """A `Format`: a header line, then one row per record; an empty line is not a row."""

    delimiter: str

    def read(self, file: OpenFile, project: ProjectColumns) -> Iterator[Record | Unreadable]:
        """Yield the rows.

        A quote that is never closed makes one bad row of all that follows, up to the row limit.

        Raises:
            CorpusError: the header cannot be read or lacks a column.
        """
        lines = _RecordLines(file)
        # Not strict, it would guess what a quote in the wrong place means.
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        try:
            header = _next_fields(reader, lines)
        except StopIteration:
            return
        except RowError as error:
            raise CorpusError(
                f"{file.shown}:{lines.first}: the header cannot be read: {error}"
            ) from error
        wanted = [(header.index(name), name) for name in project(header, file.shown)]
        number = 0
        while True:
            number += 1
            try:
                fields = _next_fields(reader, lines)
                # Not filled up: nobody knows which text then stands in which column.
                if len(fields) != len(header):
                    raise RowError(f"{len(fields):,} fields, expected {len(header):,}")
                yield Record(number, lines.first, {name: fields[index] for index, name in wanted})
            except StopIteration:
                return
            except RowError as error:
                yield Unreadable(number, lines.first, str(error))

    def copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        """Write the header, and each record that stays, with its quotes and line ends."""
        record = _RecordBytes(file.max_row_bytes, keep_next, out)
        lines = _RecordLines(file, record.take)
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        header: list[str] | None = None
        while True:
            fields: list[str] = []
            try:
                fields = _next_fields(reader, lines)
            except StopIteration:
                # Empty lines at the end belong to no record.
                out.write(bytes(record.content))
                return
            except RowError:
                pass  # a row that cannot be used is a row
            content, stays = bytes(record.content), record.stays
            record.content, record.stays = bytearray(), None
            if stays is None:
                stays = header is None or keep_next()
            if header is not None and isinstance(stays, Mapping):
                content = cut_record(content, self.delimiter, header, stays)
            if stays:
                out.write(content)
            header = fields if header is None else header


class _RecordBytes:
    """The bytes of the record that is being copied; once a line of it is too long, none are kept."""

    def __init__(self, max_row_bytes: int, keep_next: KeepNext, out: Any) -> None:
        self._max_row_bytes, self._keep_next, self._out = max_row_bytes, keep_next, out
        self._length = 0  # of the line
        self.content = bytearray()
        self.stays: bool | Cuts | None = None  # None: decided when all of it is read

    def take(self, piece: bytes) -> None:
        """Keep the next part of a line, its end included."""
        self.content += piece
        self._length += len(piece)
        # 2 for a line end. Whatever follows, it is a row that cannot be used.
        if self._length > self._max_row_bytes + 2:
            self.stays = self._keep_next() if self.stays is None else self.stays
            self._out.write(bytes(self.content) if self.stays else b"")
            self.content.clear()
        if piece.endswith(b"\n"):
            self._length = 0


class _RecordLines:
    """Lines as text for `csv.reader`, with the number of the first one of each record."""

    def __init__(self, file: OpenFile, take: Callable[[bytes], None] | None = None) -> None:
        self._max_row_bytes = file.max_row_bytes
        self._lines = split_lines(file.blocks(), file.max_row_bytes, take)
        self.n_bytes = self.first = 0  # of the record, set back where the next one begins

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.first = self.first or line.number
        self.n_bytes += line.length + 1
        # 1 more: the end of its last line is not counted.
        if line.content is None or self.n_bytes > self._max_row_bytes + 1:
            raise RowError(f"more than {self._max_row_bytes:,} bytes long")
        # An undecodable byte becomes a lone surrogate, found when the record is complete.
        return line.content.decode(errors="surrogateescape") + line.end


def _next_fields(reader: Iterator[list[str]], lines: _RecordLines) -> list[str]:
    """Return the fields of the next record that is not an empty line."""
    fields: list[str] = []
    # The limit is the module's, 131,072 characters; a long text is no error here. It is set back
    # after each record: others in the process may read csv too.
    previous_limit = csv.field_size_limit(2**31 - 1)
    try:
        while not fields:
            lines.n_bytes = lines.first = 0
            fields = next(reader)
    except csv.Error as error:
        raise RowError("fields are not quoted as csv asks for, or a quote is not closed") from error
    finally:
        csv.field_size_limit(previous_limit)
    for field in fields:
        if not field.isascii() and any("\ud800" <= letter <= "\udfff" for letter in field):
            raise RowError("invalid UTF-8")
    return fields
