"""What parts of parquet and Arrow files unpack to, told from their headers before anything is unpacked.

Arrow believes what a header says, and some damaged footers end the whole process when they are
looked at by its own functions. So the little that is needed is read here.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from typing import Any, BinaryIO

from memaudit.errors import CorpusError
from memaudit.text import safe_text

IPC_FILE_MAGIC = b"ARROW1"
"""Begins an Arrow file, and no stream."""

_LARGEST_PART = 256 * 1024 * 1024
_LARGEST_RATIO = 100
"""Text that is worth training on packs to a tenth. What packs this well and is this large fills all
memory from a file of some kilobytes."""

_HEADER_BYTES = 64 * 1024
"""More than the header of a page takes: writers cut its statistics off at some kilobytes."""

_FIXED_BYTES = {1: 0, 2: 0, 3: 1, 7: 8}
"""Of Thrift's kinds: true and false are in the kind itself, then byte and double."""


@dataclass(frozen=True, slots=True)
class ParquetColumn:
    """One column of one row group."""

    path: tuple[str, ...]
    """Names from the outermost in."""

    codec: int
    """Number in parquet.thrift, `CompressionCodec`."""

    start: int
    """Where its first page is."""

    packed: int
    """Bytes of its pages with their headers."""


@contextmanager
def _kinds_are_checked() -> Iterator[None]:
    """Say of a damaged header, in which a field is of another kind, that it is one."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        raise ValueError("a field is of another kind") from error


@_kinds_are_checked()
def parquet_columns(file: BinaryIO) -> list[ParquetColumn]:
    """Return the columns of all row groups, from the footer.

    Source: parquet.thrift, `FileMetaData`.

    Raises:
        ValueError, LookupError, RecursionError, struct.error: the footer is damaged.
    """
    file.seek(-8, 2)
    # The last 8 bytes are the length of the footer and the magic.
    (length,) = struct.unpack("<I4x", file.read(8))
    file.seek(-8 - length, 2)
    footer = _struct(BytesIO(file.read(length)))
    # `row_groups` of the file, `columns` of each, `meta_data` of those. Below: 3 the path, 4 the
    # codec, 7 the packed size, 9 the first page of data, 11 that of a dictionary.
    columns = [column[3] for group in footer[4] for column in group[1]]
    return [
        ParquetColumn(
            tuple(name.decode() for name in column[3]),
            column[4],
            min(offset for offset in (column.get(11), column[9]) if offset),
            column[7],
        )
        for column in columns
    ]


@_kinds_are_checked()
def refuse_large_pages(file: BinaryIO, wanted: set[str], shown: str) -> None:
    """Refuse pages of the wanted outermost columns that unpack to far more than they are.

    Raises:
        CorpusError: there is such a page.
        ValueError, LookupError, RecursionError, struct.error: a header is damaged.
    """
    columns, end = parquet_columns(file), file.seek(0, SEEK_END)
    for column in columns:
        place = column.start if column.path[0] in wanted else column.start + column.packed
        while place < column.start + column.packed:
            file.seek(place)
            header = BytesIO(file.read(_HEADER_BYTES))
            # 2 is the size unpacked, 3 packed.
            sizes = _struct(header)  # `PageHeader`
            # Arrow takes the last 32 bits of either, and has room for as much before it reads.
            if not (0 <= sizes[3] <= end - place and 0 <= sizes[2] < 1 << 31):
                raise ValueError("a page is longer than its file, or than a page can be")
            _refuse_bomb(f"{shown}: a page of column {'.'.join(column.path)}", sizes[2], sizes[3])
            place += header.tell() + sizes[3]
    file.seek(0)


def refuse_large_buffers(file: BinaryIO, shown: str) -> None:
    """Refuse buffers of an Arrow file or stream that unpack to far more than they are.

    Source: the Arrow columnar format, "Encapsulated message format" and "Compression".

    Raises:
        CorpusError: there is such a buffer.
        ValueError, LookupError, struct.error: the file is damaged.
    """
    place = 8 if file.read(len(IPC_FILE_MAGIC)) == IPC_FILE_MAGIC else 0
    while True:
        file.seek(place)
        head = file.read(8)
        size, start = struct.unpack("<i", head[4:8])[0], place + 8
        if head[:4] != b"\xff" * 4:  # as before version 0.15
            size, start = struct.unpack("<i", head[:4])[0], place + 4
        # 0 ends a stream. In a file the footer follows, and holds no rows.
        if size <= 0:
            break
        file.seek(start)
        content = file.read(size)
        message = _FlatTable(content, struct.unpack_from("<I", content)[0])
        for offset, length in message.compressed_buffers():
            file.seek(start + size + offset)
            (unpacked,) = struct.unpack("<q", file.read(8))
            _refuse_bomb(f"{shown}: a buffer", unpacked, length)
        place = start + size + message.number(3)
    file.seek(0)


def _refuse_bomb(what: str, unpacked: int, packed: int) -> None:
    if unpacked > _LARGEST_PART and unpacked > _LARGEST_RATIO * packed:
        raise CorpusError(
            f"{safe_text(what, 300)} unpacks from {packed:,} to {unpacked:,} bytes, "
            f"more than {_LARGEST_PART:,} and more than {_LARGEST_RATIO} times as many",
            hint="if that is meant, write the file again without compression, or without its "
            "longest rows",
        )


def _struct(stream: BytesIO) -> dict[int, Any]:
    """Return the fields of a struct in Thrift's compact protocol, by number."""
    fields, field = dict[int, Any](), 0
    while head := _byte(stream):
        field = field + (head >> 4) if head >> 4 else _zigzag(stream)
        fields[field] = _value(stream, head & 15)
    return fields


def _value(stream: BytesIO, kind: int) -> Any:
    if kind in (4, 5, 6):
        return _zigzag(stream)
    if kind == 12:
        return _struct(stream)
    if kind in (9, 10):  # list, set
        head = _byte(stream)
        n = _varint(stream) if head >> 4 == 15 else head >> 4
        kind = 3 if head & 15 in (1, 2) else head & 15  # in a list, true and false take a byte
        # Each takes a byte at least, so a number that lies ends where the bytes do.
        return [_value(stream, kind) for _ in range(n)]
    length = _varint(stream) if kind == 8 else _FIXED_BYTES[kind]
    content = stream.read(length)
    if len(content) < length:
        raise ValueError("cut off")
    return content


def _byte(stream: BytesIO) -> int:
    read = stream.read(1)
    if not read:
        raise ValueError("cut off")
    return read[0]


def _varint(stream: BytesIO) -> int:
    value = 0
    # 64 bits take ten bytes of seven each: more is damaged.
    for shift in range(0, 70, 7):
        read = _byte(stream)
        value |= (read & 127) << shift
        if read < 128:
            return value
    raise ValueError("a number without an end")


def _zigzag(stream: BytesIO) -> int:
    value = _varint(stream)
    return (value >> 1) ^ -(value & 1)


@dataclass(frozen=True, slots=True)
class _FlatTable:
    """A table of a FlatBuffer: the little of it that says where buffers are."""

    content: bytes
    place: int

    def field(self, index: int) -> int:
        """Where a field is; 0 if it is left out."""
        # A table says how far in front of it the list of its fields is, whose size comes first.
        names = self.place - struct.unpack_from("<i", self.content, self.place)[0]
        if 4 + 2 * index >= struct.unpack_from("<H", self.content, names)[0]:
            return 0
        offset: int = struct.unpack_from("<H", self.content, names + 4 + 2 * index)[0]
        return self.place + offset if offset else 0

    def number(self, index: int) -> int:
        """A number of 64 bits, not below 0."""
        place = self.field(index)
        value: int = struct.unpack_from("<q", self.content, place)[0] if place else 0
        # It would lead back to what was read, without an end.
        if value < 0:
            raise ValueError("a length below 0")
        return value

    def table(self, index: int) -> "_FlatTable | None":
        """A table within it."""
        place = self.field(index)
        if not place:
            return None
        return _FlatTable(self.content, place + struct.unpack_from("<I", self.content, place)[0])

    def compressed_buffers(self) -> list[tuple[int, int]]:
        """Offset and length of each buffer of a message's record batch, if they are compressed."""
        # Of a message: 1 its kind, 2 what it holds, 3 the length of its body. Of a batch: 2 its
        # buffers, 3 their compression.
        kind = self.content[self.field(1)] if self.field(1) else 0
        batch = self.table(2)
        if kind == 2 and batch is not None:  # a dictionary, with a batch of its values
            batch = batch.table(1)
        if kind not in (2, 3) or batch is None or batch.table(3) is None:
            return []
        vector = batch.table(2)
        if vector is None:
            return []
        (n,) = struct.unpack_from("<I", self.content, vector.place)
        # A buffer begins with 8 bytes for its unpacked length: one that is no longer is empty.
        pairs = struct.iter_unpack("<qq", self.content[vector.place + 4 :][: 16 * n])
        return [(offset, length) for offset, length in pairs if length > 8]
