"""Bytes from files in blocks of bounded size, unpacked, and cut into lines of bounded length."""

import bz2
import gzip
import lzma
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from typing import Any, BinaryIO, Protocol

from memaudit.corpus.base import GIB, MIB, CorpusOptions, Cuts, KeepNext
from memaudit.errors import CorpusError

BLOCK_BYTES = MIB
MAX_WHOLE_BYTES = GIB
"""Formats read from their end are unpacked in memory first, up to this size."""

# A small file may repeat one line a thousand times: so little fills no memory.
_RATIO_FREE_BYTES = 64 * MIB
_ZSTD_WINDOW_BYTES = 2 * GIB  # what --long=31 writes, as large public dumps do; used as it fills
_GET_AGAIN = "copy or download it again"
_UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, without its end."""

    number: int
    """From 1."""

    content: bytes | None
    """None if it is longer than allowed."""

    length: int
    """Bytes, the line end left out."""

    end: str = "\n"
    r"""`\n` or `\r\n`; the last line has one, written or not."""


class _Member(Protocol):
    """One compressed stream; a file may hold several in a row."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _GzipMember:
    """A gzip member behind the interface of `bz2` and `lzma`."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)  # 16 for the gzip header + 15 for the window

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        # No limit is 0 for zlib, and -1 for bz2 and lzma.
        return self._stream.decompress(self._stream.unconsumed_tail + data, max(max_length, 0))


class _ZstdMember:
    """A zstd frame behind the interface of `bz2` and `lzma`."""

    needs_input = True

    def __init__(self) -> None:
        import zstandard

        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._stream = decompressor.decompressobj()
        self._error = zstandard.ZstdError

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        del max_length  # not offered by zstandard: the small input bounds the output instead
        try:
            return self._stream.decompress(data)
        except self._error as error:
            raise OSError("invalid zstd") from error


_MEMBERS: dict[str, Callable[[], _Member]] = {
    "gz": _GzipMember,
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "zst": _ZstdMember,
}
# zstd has no output limit and unpacks up to 128 KiB from 4 bytes: 1 KiB gives at most 32 MiB.
_INPUT_BYTES = {"gz": 64 * 1024, "bz2": 64 * 1024, "xz": 64 * 1024, "zst": 1024}


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file of a corpus that is being read or copied."""

    file: BinaryIO
    """At its start."""

    shown: str
    """What errors call it."""

    compression: str | None
    """`gz`, `zst`, `bz2`, `xz` or None."""

    options: CorpusOptions
    """Limits on what is unpacked and on how long a row may be."""

    @property
    def max_row_bytes(self) -> int:
        """A longer row is a bad row."""
        return self.options.max_row_bytes

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes, unpacked, in blocks of 1 MiB, zstd up to 32 MiB.

        Raises:
            CorpusError: the file is damaged, cut off, UTF-16, or unpacks to more than allowed.
        """
        is_first = True
        for block in self._blocks():
            # As PowerShell writes it. No row would be UTF-8, and to skip bad rows is to skip all.
            if is_first and block.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                raise CorpusError(
                    f"{self.shown}: UTF-16, expected UTF-8",
                    hint="convert it, for instance with: iconv -f UTF-16 -t UTF-8",
                )
            is_first = is_first and not block
            yield block

    def _blocks(self) -> Iterator[bytes]:
        n_out, most = 0, self.options.max_decompressed_bytes
        try:
            if self.compression is None:
                while block := self.file.read(BLOCK_BYTES):
                    yield block
                return
            for block in self._unpacked(self.compression):
                # Counted as it comes out: a header says what its writer wants, and that of gzip
                # wraps at 4 GiB.
                n_out, n_in = n_out + len(block), self.file.tell()
                if n_out > most:
                    raise CorpusError(
                        f"{self.shown}: unpacks to more than {most:,} bytes, "
                        f"stopped at byte {n_in:,}",
                        hint="raise it with --max-decompressed-bytes",
                    )
                if n_out > max(_RATIO_FREE_BYTES, self.options.max_compression_ratio * n_in):
                    raise CorpusError(
                        f"{self.shown}: unpacks to more than "
                        f"{self.options.max_compression_ratio:,} times its size, "
                        f"stopped at byte {n_in:,}",
                        hint="if the file is meant to be so, raise it with --max-compression-ratio",
                    )
                yield block
        except OSError as error:
            reason = error.strerror or error
            raise CorpusError(f"{self.shown}: cannot be read: {reason}") from error

    def _unpacked(self, compression: str) -> Iterator[bytes]:
        """Yield what every member of the file unpacks to."""
        more = partial(self.file.read, _INPUT_BYTES[compression])
        data = more()
        # Even an empty text packs to some bytes. What a failed download leaves has none: among
        # other files its rows would be missing without a word.
        if not data:
            reason = f"not valid {compression} data, it is empty"
            raise CorpusError(f"{self.shown}: {reason}", hint=_GET_AGAIN)
        while data:
            # bgzip and pbzip2 write many members to a file: the first alone is a small part of it.
            member = _MEMBERS[compression]()
            try:
                yield (block := member.decompress(data, BLOCK_BYTES))
                while not member.eof:
                    data = more() if member.needs_input else b""
                    # Output may be left when the input has ended: it is cut off only if none comes.
                    is_cut_off = member.needs_input and not data and not block
                    block = member.decompress(data, BLOCK_BYTES)
                    if is_cut_off and not block:
                        raise EOFError
                    yield block
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                place = f"at byte {self.file.tell():,}"
                raise CorpusError(
                    f"{self.shown}: not valid {compression} data, or cut off, {place}",
                    hint=_GET_AGAIN,
                ) from error
            data = member.unused_data or more()
            while data and not (data := data.lstrip(b"\0")):  # padding, as gzip and xz allow
                data = more()

    def whole(self) -> BinaryIO:
        """Return the file, unpacked in memory if it is compressed, for formats that seek.

        Raises:
            CorpusError: it unpacks to more than `MAX_WHOLE_BYTES`.
        """
        if self.compression is None:
            return self.file
        content = BytesIO()
        for block in self.blocks():
            content.write(block)
            if content.tell() > MAX_WHOLE_BYTES:
                raise CorpusError(
                    f"{self.shown}: unpacks to more than {MAX_WHOLE_BYTES:,} bytes",
                    hint="unpack it first: parquet and Arrow files are compressed inside already",
                )
        content.seek(0)
        return content


def packed(stream: BinaryIO, compression: str | None) -> Any:
    """Return a context that gives what compresses everything written to it into `stream`."""
    if compression is None:
        return nullcontext(stream)
    if compression == "zst":
        import zstandard

        return zstandard.ZstdCompressor().stream_writer(stream, closefd=False)
    if compression == "gz":  # no name and no time: the same rows give the same bytes
        return gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0)
    return bz2.BZ2File(stream, "wb") if compression == "bz2" else lzma.LZMAFile(stream, "wb")


def split_lines(
    blocks: Iterator[bytes], max_bytes: int, take: Callable[[bytes], None] | None = None
) -> Iterator[Line]:
    r"""Yield lines ended by `\n` or `\r\n`; a byte order mark at the start is dropped.

    A line longer than `max_bytes` is passed over without being kept in memory. `take` is given the
    bytes of each line, as they are and part by part, before it comes out.
    """
    number, length, parts = 1, 0, list[bytes]()
    for piece, ends in _pieces(blocks):
        if take is not None:
            take(piece)
        parts.append(piece)
        length += len(piece)
        if ends:
            yield _line(number, parts, length, max_bytes)
            number, length, parts = number + 1, 0, []
        elif length > max_bytes + 2:  # 2 for a line end
            # Too long already: its last byte is kept alone, for it may be a part of the line end.
            parts = [parts[-1][-1:]]
    # The last line may lack its end.
    if length:
        yield _line(number, parts, length, max_bytes)


def copy_lines(
    blocks: Iterator[bytes],
    max_bytes: int,
    is_row: Callable[[bytes], bool],
    keep_next: KeepNext,
    out: Any,
    *,
    cut: Callable[[bytes, Cuts], bytes],
) -> None:
    """Write the lines that are no rows or stay, every byte as it was.

    A line longer than `max_bytes` is a row, decided on before it ends and not kept in memory.
    `is_row` and `cut` are given lines without their ends.
    """
    line, stays, is_first = bytearray(), None, True
    # The end of the file also ends a last line without an end. Behind one it ends an empty line,
    # which is no row.
    for piece, ends in chain(_pieces(blocks), [(b"", True)]):
        line += piece
        if stays is None and len(line) > max_bytes + 2:
            stays = keep_next()
        elif stays is None and ends:
            content = bytes(line).removesuffix(b"\n").removesuffix(b"\r")
            # Before the mark goes, as in `_line`: reading and copying call the same lines long.
            is_long = len(content) > max_bytes
            content = content.removeprefix(_UTF8_BOM) if is_first else content
            stays = keep_next() if is_long or is_row(content) else True
            if isinstance(stays, Mapping):
                # Cut in its place: the mark before it and the line end behind it stay.
                place = line.index(content)
                line[place : place + len(content)] = cut(content, stays)
        if stays is not None:
            out.write(bytes(line) if stays else b"")
            line.clear()
        if ends:
            stays, is_first = None, False


def _pieces(blocks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield parts of lines, line ends included, each with whether its line ends there."""
    for block in blocks:
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            yield block[start : end + 1], True
            start = end + 1
        if start < len(block):
            yield block[start:], False


def _line(number: int, parts: list[bytes], length: int, max_bytes: int) -> Line:
    whole = b"".join(parts)
    content, end = whole.removesuffix(b"\n"), "\n"
    if content.endswith(b"\r"):
        content, end = content[:-1], "\r\n"
    length -= len(whole) - len(content)
    if length > max_bytes:
        return Line(number, None, length, end)
    if number == 1 and content.startswith(_UTF8_BOM):
        content = content[len(_UTF8_BOM) :]
    return Line(number, content, length, end)
