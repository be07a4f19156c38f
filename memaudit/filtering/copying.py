"""Files copied without some of their rows: what stays, stays as it was, byte by byte where it can."""

import bz2
import csv
import gzip
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

from memaudit.corpus.base import CorpusOptions, RowError
from memaudit.corpus.byte_streams import Line, read_blocks
from memaudit.corpus.columnar import unpack
from memaudit.corpus.delimited import RecordLines, next_fields
from memaudit.corpus.discovery import SourceFile, open_regular
from memaudit.corpus.json_lines import array_elements
from memaudit.errors import CorpusError

if TYPE_CHECKING:
    import pyarrow as pa

KeepNext = Callable[[], bool]
"""Whether the next row stays; asked once for each row, in order."""

_BOM = b"\xef\xbb\xbf"
_JSON_BLANKS = b" \t\r\n"
_BATCH_ROWS = 1024


def copy_rows(
    source: SourceFile, options: CorpusOptions, keep_next: KeepNext, stream: BinaryIO
) -> None:
    """Write the rows of a file that stay, in the format and compression of the file.

    Args:
        source: the file.
        options: how it is read: rows are counted as when it was scored.
        keep_next: asked for each row.
        stream: where to.

    Raises:
        CorpusError: it cannot be read.
    """
    with open_regular(source) as file, _packed(stream, source.compression) as out:
        blocks = read_blocks(file, source.shown, source.compression, options)
        match source.format:
            case "jsonl" | "ndjson":
                _copy_lines(blocks, options.max_row_bytes, _is_json_row, keep_next, out)
            case "json":
                _copy_json(blocks, options.max_row_bytes, keep_next, out, source.shown)
            case "txt":
                _copy_lines(blocks, options.max_row_bytes, _is_text_row, keep_next, out)
            case "csv" | "tsv" as kind:
                delimiter = "," if kind == "csv" else "\t"
                _copy_delimited(blocks, delimiter, options.max_row_bytes, keep_next, out)
            case kind:
                whole = file if source.compression is None else unpack(blocks, source.shown)
                copy = _copy_parquet if kind == "parquet" else _copy_arrow
                _copy_columnar(copy, whole, keep_next, out, source.shown)


@contextmanager
def _packed(stream: BinaryIO, compression: str | None) -> "Iterator[Any]":
    """Give what packs whatever is written to it."""
    if compression is None:
        yield stream
        return
    with _packer(stream, compression) as packer:
        yield packer


def _packer(stream: BinaryIO, compression: str) -> Any:
    if compression == "zst":
        import zstandard

        return zstandard.ZstdCompressor().stream_writer(stream, closefd=False)
    if compression == "gz":  # no name and no time: the same rows give the same bytes
        return gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0)
    return bz2.BZ2File(stream, "wb") if compression == "bz2" else lzma.LZMAFile(stream, "wb")


def _is_json_row(content: bytes) -> bool:
    return bool(content.strip(_JSON_BLANKS))


def _is_text_row(content: bytes) -> bool:
    return bool(content.strip())


class _LineCopier:
    """Lines that are kept or not; one too long to be a row is decided on before it ends."""

    def __init__(
        self, max_bytes: int, is_row: Callable[[bytes], bool], keep_next: KeepNext, out: Any
    ) -> None:
        self._max_bytes, self._is_row, self._keep_next, self._out = (
            max_bytes,
            is_row,
            keep_next,
            out,
        )
        self._line = bytearray()
        self._stays: bool | None = None
        self._is_first = True

    def add(self, piece: bytes) -> None:
        """Take a part of a line."""
        self._line += piece
        if self._stays is None and len(self._line) > self._max_bytes + 2:
            self._stays = self._keep_next()
        if self._stays is not None:
            self._flush()

    def end(self) -> None:
        """End the line."""
        if self._stays is None:
            content = bytes(self._line).removesuffix(b"\n").removesuffix(b"\r")
            is_long = len(content) > self._max_bytes
            content = content.removeprefix(_BOM) if self._is_first else content
            self._stays = self._keep_next() if is_long or self._is_row(content) else True
        self._flush()
        self._stays, self._is_first = None, False

    def _flush(self) -> None:
        if self._stays:
            self._out.write(bytes(self._line))
        self._line.clear()


def _copy_lines(
    blocks: Iterator[bytes],
    max_bytes: int,
    is_row: Callable[[bytes], bool],
    keep_next: KeepNext,
    out: Any,
) -> None:
    copier = _LineCopier(max_bytes, is_row, keep_next, out)
    is_open = False
    for block in blocks:
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            copier.add(block[start : end + 1])
            copier.end()
            start, is_open = end + 1, False
        if start < len(block):
            copier.add(block[start:])
            is_open = True
    if is_open:
        copier.end()


def _copy_json(
    blocks: Iterator[bytes], max_bytes: int, keep_next: KeepNext, out: Any, shown: str
) -> None:
    """Copy an array of objects without some, or lines."""
    head = b""
    for block in blocks:
        head += block
        if head.lstrip(_BOM + _JSON_BLANKS):
            break
    if not head.lstrip(_BOM + _JSON_BLANKS).startswith(b"["):
        _copy_lines(chain([head], blocks), max_bytes, _is_json_row, keep_next, out)
        return
    content = head + b"".join(blocks)
    elements = list(array_elements(content, shown))
    start = content.index(b"[") + 1
    end = start + sum(map(len, elements)) + max(0, len(elements) - 1)
    out.write(content[:start])
    out.write(b",".join(element for element in elements if keep_next()))
    out.write(content[end:])


class _Recorder:
    """Lines of a delimited file that remember the bytes they were made from."""

    def __init__(self, blocks: Iterator[bytes], max_bytes: int) -> None:
        self._blocks, self._max_bytes = blocks, max_bytes
        self._taken: list[bytes] = []

    def take(self) -> bytes:
        """Return the bytes of the lines that were read since the last time."""
        taken = b"".join(self._taken)
        self._taken.clear()
        return taken

    def lines(self) -> Iterator[Line]:
        """Yield lines as `split_lines` does."""
        number = 0
        for raw in _raw_lines(self._blocks):
            number += 1
            self._taken.append(raw)
            content, end = raw.removesuffix(b"\n"), "\n"
            if content.endswith(b"\r"):
                content, end = content[:-1], "\r\n"
            length = len(content)
            if length > self._max_bytes:
                yield Line(number, None, length, end)
                continue
            yield Line(number, content.removeprefix(_BOM) if number == 1 else content, length, end)


def _raw_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield lines with their ends."""
    parts: list[bytes] = []
    for block in blocks:
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            parts.append(block[start : end + 1])
            yield b"".join(parts)
            parts, start = [], end + 1
        if start < len(block):
            parts.append(block[start:])
    if parts:
        yield b"".join(parts)


def _copy_delimited(
    blocks: Iterator[bytes], delimiter: str, max_bytes: int, keep_next: KeepNext, out: Any
) -> None:
    """Copy the header, and each record with its quotes and line ends."""
    recorder = _Recorder(blocks, max_bytes)
    lines = RecordLines(recorder.lines(), max_bytes)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    is_header = True
    while True:
        try:
            next_fields(reader, lines)
        except StopIteration:
            out.write(recorder.take())
            return
        except RowError:
            pass  # a row that cannot be used is a row
        record = recorder.take()
        if is_header or keep_next():
            out.write(record)
        is_header = False


def _copy_columnar(
    copy: "Callable[[BinaryIO, KeepNext, Any], None]",
    file: BinaryIO,
    keep_next: KeepNext,
    out: Any,
    shown: str,
) -> None:
    import pyarrow as pa

    packed = BytesIO()  # what these formats write, they also seek in
    is_plain = hasattr(out, "fileno")
    try:
        copy(file, keep_next, out if is_plain else packed)
    except (pa.ArrowException, ValueError) as error:
        raise CorpusError(
            f"{shown}: damaged, or not of the format its name says",
            hint="copy or download it again",
        ) from error
    if not is_plain:
        out.write(packed.getbuffer())


def _kept(batch: "pa.RecordBatch", keep_next: KeepNext) -> "pa.RecordBatch":
    import pyarrow as pa

    for column in batch.columns:
        column.validate(full=True)
    return batch.filter(pa.array([keep_next() for _ in range(batch.num_rows)], type=pa.bool_()))


def _copy_parquet(file: BinaryIO, keep_next: KeepNext, out: Any) -> None:
    """Copy row group by row group, with the codec of each column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    with pq.ParquetWriter(out, schema, compression=_codecs(parquet)) as writer:
        for group in range(parquet.num_row_groups):
            batches = parquet.iter_batches(_BATCH_ROWS, row_groups=[group], use_threads=False)
            table = pa.Table.from_batches([_kept(batch, keep_next) for batch in batches], schema)
            if len(table):
                writer.write_table(table, row_group_size=len(table))


def _codecs(parquet: Any) -> dict[str, str] | str:
    """Return the codec of each column, as the first row group has it."""
    if not parquet.num_row_groups or not parquet.metadata.num_columns:
        return "snappy"
    group = parquet.metadata.row_group(0)
    columns = (group.column(i) for i in range(group.num_columns))
    codecs = {column.path_in_schema: column.compression.lower() for column in columns}
    return {path: "none" if codec == "uncompressed" else codec for path, codec in codecs.items()}


def _copy_arrow(file: BinaryIO, keep_next: KeepNext, out: Any) -> None:
    """Copy record batch by record batch, a file as a file and a stream as a stream."""
    import pyarrow as pa

    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_file:
        opened = pa.ipc.open_file(file)
        batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        new = pa.ipc.new_file
    else:
        opened = pa.ipc.open_stream(file)
        batches, new = iter(opened), pa.ipc.new_stream
    with new(out, opened.schema) as writer:
        for batch in batches:
            kept = _kept(batch, keep_next)
            if len(kept):
                writer.write_batch(kept)
