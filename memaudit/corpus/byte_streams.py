"""Bytes from files in blocks of bounded size, unpacked, and cut into lines of bounded length."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from memaudit.corpus.base import MIB, CorpusOptions
from memaudit.errors import CorpusError

BLOCK_BYTES = MIB
_RATIO_FREE_BYTES = 64 * MIB
_ZSTD_WINDOW_BYTES = 128 * MIB
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


def read_blocks(
    file: BinaryIO, shown: str, compression: str | None, options: CorpusOptions
) -> Iterator[bytes]:
    """Yield the bytes of a file, unpacked, in blocks of 1 MiB, zstd up to 32 MiB.

    Args:
        file: opened for reading, at its start.
        shown: what errors call it.
        compression: `gz`, `zst`, `bz2`, `xz` or None.
        options: limits on what is unpacked.

    Raises:
        CorpusError: the file is damaged, cut off, or unpacks to more than allowed.
    """
    try:
        if compression is None:
            while block := file.read(BLOCK_BYTES):
                yield block
            return
        n_out = 0
        for block in _unpacked(file, shown, compression):
            n_out += len(block)
            _check_size(n_out, file.tell(), shown, options)
            yield block
    except OSError as error:
        raise CorpusError(f"{shown}: cannot be read: {error.strerror or error}") from error


def split_lines(blocks: Iterator[bytes], max_bytes: int) -> Iterator[Line]:
    r"""Yield lines ended by `\n` or `\r\n`; a byte order mark at the start is dropped.

    A line longer than `max_bytes` is passed over without being kept in memory.
    """
    number, length, parts = 1, 0, list[bytes]()
    for block in blocks:
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            length += end - start
            parts.append(block[start:end])
            yield _line(number, parts, length, max_bytes)
            number, length, parts, start = number + 1, 0, [], end + 1
        length += len(block) - start
        parts.append(block[start:])
        if length > max_bytes + 1:  # 1 for a \r that may be its last byte
            parts = [parts[-1][-1:]]
    if length:
        yield _line(number, parts, length, max_bytes)


def _line(number: int, parts: list[bytes], length: int, max_bytes: int) -> Line:
    content, end = b"".join(parts), "\n"
    if content.endswith(b"\r"):
        content, length, end = content[:-1], length - 1, "\r\n"
    if length > max_bytes:
        return Line(number, None, length, end)
    if number == 1 and content.startswith(_UTF8_BOM):
        content = content[len(_UTF8_BOM) :]
    return Line(number, content, length, end)


def _unpacked(file: BinaryIO, shown: str, compression: str) -> Iterator[bytes]:
    """Yield what every member of the file unpacks to."""
    data = file.read(_INPUT_BYTES[compression])
    while data:
        member = _MEMBERS[compression]()
        try:
            yield from _unpacked_member(member, data, file, compression)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise CorpusError(
                f"{shown}: not valid {compression} data, or cut off, at byte {file.tell():,}",
                hint="copy or download it again",
            ) from error
        data = member.unused_data or _more(file, compression)
        while data and not (data := data.lstrip(b"\0")):  # padding, as gzip and xz allow
            data = _more(file, compression)


def _unpacked_member(
    member: _Member, data: bytes, file: BinaryIO, compression: str
) -> Iterator[bytes]:
    block = member.decompress(data, BLOCK_BYTES)
    yield block
    while not member.eof:
        data = _more(file, compression) if member.needs_input else b""
        cut_off = member.needs_input and not data and not block
        block = member.decompress(data, BLOCK_BYTES)
        if cut_off and not block:
            raise EOFError
        yield block


def _more(file: BinaryIO, compression: str) -> bytes:
    return file.read(_INPUT_BYTES[compression])


def _check_size(n_out: int, n_in: int, shown: str, options: CorpusOptions) -> None:
    if n_out > options.max_decompressed_bytes:
        raise CorpusError(
            f"{shown}: unpacks to more than {options.max_decompressed_bytes:,} bytes, "
            f"stopped at byte {n_in:,}",
            hint="raise it with --max-decompressed-bytes",
        )
    if n_out > max(_RATIO_FREE_BYTES, options.max_compression_ratio * n_in):
        raise CorpusError(
            f"{shown}: unpacks to more than {options.max_compression_ratio:,} times its size, "
            f"stopped at byte {n_in:,}",
            hint="if the file is meant to be so, raise it with --max-compression-ratio",
        )
