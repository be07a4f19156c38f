"""Rows from parquet and Arrow files, read batch by batch and only the columns that are used."""

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from memaudit.corpus.base import GIB, ProjectColumns, Record, Unreadable
from memaudit.errors import CorpusError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_UNPACKED_BYTES = 1 * GIB
"""These formats are read from their end: a compressed one is unpacked in memory first."""

_BATCH_ROWS = 256
_BUFFER_BYTES = 1024 * 1024
_IPC_FILE_MAGIC = b"ARROW1"


def read_columnar(
    file: BinaryIO,
    shown: str,
    read_batches: Callable[[BinaryIO, str, ProjectColumns], Iterator["pa.RecordBatch"]],
    project: ProjectColumns,
) -> Iterator[Record | Unreadable]:
    """Yield the rows of a parquet file, an Arrow file (Feather) or an Arrow stream.

    Memory is bounded by a page of a parquet file, and by one record batch of an Arrow file.

    Raises:
        CorpusError: the file is damaged, or its schema lacks a column.
    """
    import pyarrow as pa

    number = 0
    try:
        for batch in read_batches(file, shown, project):
            for row in _rows(batch):
                number += 1
                if isinstance(row, str):
                    yield Unreadable(number, number, row, "row")
                else:
                    yield Record(number, number, row, "row")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorpusError(
            f"{shown}: damaged, or not of the format its name says, after row {number:,}",
            hint="copy or download it again",
        ) from error


def unpack(blocks: Iterator[bytes], shown: str) -> BinaryIO:
    """Return what a compressed file holds as a file in memory.

    Raises:
        CorpusError: it is larger than `MAX_UNPACKED_BYTES`.
    """
    content = BytesIO()
    for block in blocks:
        content.write(block)
        if content.tell() > MAX_UNPACKED_BYTES:
            raise CorpusError(
                f"{shown}: unpacks to more than {MAX_UNPACKED_BYTES:,} bytes",
                hint="unpack it first: parquet and Arrow files are compressed inside already",
            )
    content.seek(0)
    return content


def parquet_batches(
    file: BinaryIO, shown: str, project: ProjectColumns
) -> Iterator["pa.RecordBatch"]:
    """Yield small batches of the columns that are used, of a parquet file."""
    import pyarrow.parquet as pq

    # Without a buffer size a whole column of a row group would be read at once.
    parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    wanted = project(parquet.schema_arrow.names, shown)
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(wanted), use_threads=False):
        yield batch.select(list(wanted))


def arrow_batches(
    file: BinaryIO, shown: str, project: ProjectColumns
) -> Iterator["pa.RecordBatch"]:
    """Yield small batches of the columns that are used, of an Arrow file or stream."""
    import pyarrow as pa

    is_file = file.read(len(_IPC_FILE_MAGIC)) == _IPC_FILE_MAGIC
    file.seek(0)
    if is_file:
        opened = pa.ipc.open_file(file)
        batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
    else:
        opened = pa.ipc.open_stream(file)
        batches = iter(opened)
    wanted = list(project(opened.schema.names, shown))
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.select(wanted).slice(start, _BATCH_ROWS)


def _rows(batch: "pa.RecordBatch") -> Iterator[dict[str, object] | str]:
    """Yield the values of each row, or why it cannot be read."""
    names = batch.schema.names
    columns = [_with_bytes(column).to_pylist() for column in batch.columns]
    for values in zip(*columns, strict=True):
        try:
            yield {name: _decoded(value) for name, value in zip(names, values, strict=True)}
        except UnicodeDecodeError:
            yield "invalid UTF-8"


def _with_bytes(column: "pa.Array") -> "pa.Array":
    """Return the column with strings as bytes, so that a bad one does not hide the others.

    Nothing in these files is trusted: offsets and sizes are checked before they are followed.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column.validate(full=True)
        column = column.dictionary_decode()
    as_bytes = column.cast(_bytes_type(column.type))
    as_bytes.validate(full=True)
    return as_bytes


def _bytes_type(kind: "pa.DataType") -> "pa.DataType":
    import pyarrow as pa

    leaves = {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_bytes_type(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_bytes_type(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_bytes_type(field.type)) for field in kind.fields])
    return leaves.get(kind, kind)


def _decoded(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    return value
