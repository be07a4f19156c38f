"""Parquet and Arrow files, read batch by batch and only the columns that are used."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

from memaudit.corpus.base import KeepNext, ProjectColumns, Record, Unreadable
from memaudit.corpus.byte_streams import OpenFile
from memaudit.corpus.cuts import cut_values
from memaudit.errors import CorpusError
from memaudit.text import safe_text

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 256
_BUFFER_BYTES = 1024 * 1024
_IPC_FILE_MAGIC = b"ARROW1"
_LARGEST_PAGE = 256 * 1024 * 1024
_FIXED_BYTES = {1: 0, 2: 0, 3: 1, 7: 8}
"""Of Thrift's kinds: true and false are in the kind itself, then byte and double."""
_PAGE_HEADER_BYTES = 64 * 1024
"""More than a header takes: writers cut the statistics in it off at some kilobytes."""


class _Columnar:
    """What parquet and Arrow have in common: rows come in batches of columns.

    Memory is bounded by a page of a parquet file, and by one record batch of an Arrow file.
    """

    def read(self, file: OpenFile, project: ProjectColumns) -> Iterator[Record | Unreadable]:
        """Yield the rows.

        Raises:
            CorpusError: the file is damaged, or its schema lacks a column.
        """
        number = 0
        with _as_corpus_error(file.shown, lambda: f", after row {number:,}"):
            for batch in self._batches(file.whole(), file.shown, project):
                for row in arrow_rows(batch):
                    number += 1
                    if isinstance(row, str):
                        yield Unreadable(number, number, row, "row")
                    else:
                        yield Record(number, number, row, "row")

    def copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        """Write the rows that stay, as columns of the types and codecs they have."""
        with _as_corpus_error(file.shown):
            if hasattr(out, "fileno"):
                self._copy(file.whole(), file.shown, keep_next, out)
                return
            content = BytesIO()  # what these formats write, they also seek in
            self._copy(file.whole(), file.shown, keep_next, content)
            out.write(content.getbuffer())

    def _batches(
        self, file: BinaryIO, shown: str, project: ProjectColumns
    ) -> Iterator["pa.RecordBatch"]:
        """Yield small batches of the columns that are used."""
        raise NotImplementedError

    def _copy(self, file: BinaryIO, shown: str, keep_next: KeepNext, out: Any) -> None:
        raise NotImplementedError


class Parquet(_Columnar):
    """A `Format`: parquet, copied row group by row group."""

    def _batches(
        self, file: BinaryIO, shown: str, project: ProjectColumns
    ) -> Iterator["pa.RecordBatch"]:
        import pyarrow.parquet as pq

        # Without a buffer size a whole column of a row group would be read at once.
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        wanted = list(project(parquet.schema_arrow.names, shown))
        _refuse_large_pages(file, parquet.metadata, {*wanted}, shown)
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
            yield batch.select(wanted)

    def _copy(self, file: BinaryIO, shown: str, keep_next: KeepNext, out: Any) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        _refuse_large_pages(file, parquet.metadata, {*schema.names}, shown)
        with pq.ParquetWriter(out, schema, compression=_codecs(parquet)) as writer:
            for group in range(parquet.num_row_groups):
                batches = parquet.iter_batches(row_groups=[group], use_threads=False)
                kept = [_kept(batch, keep_next) for batch in batches]
                table = pa.Table.from_batches(kept, schema)
                if len(table):
                    writer.write_table(table, row_group_size=len(table))


def _refuse_large_pages(file: BinaryIO, metadata: Any, wanted: set[str], shown: str) -> None:
    """Refuse pages that would not fit into memory: a few kilobytes can say that they unpack to it.

    Only the header of a page says how large it becomes, and Arrow believes it.

    Raises:
        CorpusError: a page is too large, or a header is damaged.
    """
    for group in range(metadata.num_row_groups):
        columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
        for column in columns:
            if column.path_in_schema.split(".")[0] not in wanted:
                continue
            offsets = (column.dictionary_page_offset, column.data_page_offset)
            place = min(offset for offset in offsets if offset)
            end = place + column.total_compressed_size
            while place < end:
                file.seek(place)
                sizes, length = _page_sizes(file.read(_PAGE_HEADER_BYTES))
                if sizes[0] > _LARGEST_PAGE:
                    raise CorpusError(
                        f"{shown}: a page of column {safe_text(column.path_in_schema, 100)} unpacks "
                        f"to {sizes[0]:,} bytes, at most {_LARGEST_PAGE:,} are read at once",
                        hint="write the file again with smaller pages, or its longest rows not at all",
                    )
                place += length + sizes[1]


def _page_sizes(header: bytes) -> tuple[tuple[int, int], int]:
    """Return the bytes of a page unpacked and as it lies there, and the length of its header.

    Source: parquet.thrift, `PageHeader`, in Thrift's compact protocol.
    """
    stream = BytesIO(header)
    found = dict(_thrift_numbers(stream))
    sizes = found.get(2, -1), found.get(3, -1)
    if min(sizes) < 0:
        raise ValueError("no size in a page header")
    return sizes, stream.tell()


def _thrift_numbers(stream: BytesIO) -> Iterator[tuple[int, int]]:
    """Yield the numbers of a struct by field, to its end; pass over all else in it."""
    field = 0
    while head := _byte(stream):
        field = field + (head >> 4) if head >> 4 else _zigzag(stream)
        yield field, _thrift_value(stream, head & 15)


def _thrift_value(stream: BytesIO, kind: int) -> int:
    """Read a value and return it if it is a whole number, else -1."""
    if kind in (4, 5, 6):
        return _zigzag(stream)
    if kind == 12:
        for _ in _thrift_numbers(stream):
            pass
    elif kind in (9, 10):  # list, set
        head = _byte(stream)
        for _ in range(_varint(stream) if head >> 4 == 15 else head >> 4):
            _thrift_value(stream, head & 15)
    else:
        length = _varint(stream) if kind == 8 else _FIXED_BYTES[kind]
        if len(stream.read(length)) < length:
            raise ValueError("a page header is cut off")
    return -1


def _byte(stream: BytesIO) -> int:
    read = stream.read(1)
    if not read:
        raise ValueError("a page header is cut off")
    return read[0]


def _varint(stream: BytesIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        read = _byte(stream)
        value |= (read & 127) << shift
        if read < 128:
            return value
    raise ValueError("no number in a page header")


def _zigzag(stream: BytesIO) -> int:
    value = _varint(stream)
    return (value >> 1) ^ -(value & 1)


class Arrow(_Columnar):
    """A `Format`: Arrow files (Feather) and streams, copied record batch by record batch."""

    def _batches(
        self, file: BinaryIO, shown: str, project: ProjectColumns
    ) -> Iterator["pa.RecordBatch"]:
        _, schema, batches = _open_arrow(file)
        wanted = list(project(schema.names, shown))
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.select(wanted).slice(start, _BATCH_ROWS)

    def _copy(self, file: BinaryIO, shown: str, keep_next: KeepNext, out: Any) -> None:
        import pyarrow as pa

        is_file, schema, batches = _open_arrow(file)
        with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(out, schema) as writer:
            for batch in batches:
                kept = _kept(batch, keep_next)
                if len(kept):
                    writer.write_batch(kept)


def _open_arrow(file: BinaryIO) -> tuple[bool, "pa.Schema", Iterator["pa.RecordBatch"]]:
    """Return whether it is a file and no stream, its schema, and its record batches."""
    import pyarrow as pa

    is_file = file.read(len(_IPC_FILE_MAGIC)) == _IPC_FILE_MAGIC
    file.seek(0)
    if is_file:
        opened = pa.ipc.open_file(file)
        batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
        return True, opened.schema, batches
    opened = pa.ipc.open_stream(file)
    return False, opened.schema, iter(opened)


@contextmanager
def _as_corpus_error(shown: str, place: Callable[[], str] = str) -> Iterator[None]:
    """Say of a damaged file what it is."""
    import pyarrow as pa

    try:
        yield
    # A length that was changed asks for memory that no machine has, or for a kind that is none.
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        LookupError,
        MemoryError,
        RecursionError,
    ) as error:
        raise CorpusError(
            f"{shown}: damaged, or not of the format its name says{place()}",
            hint="copy or download it again",
        ) from error


def _kept(batch: "pa.RecordBatch", keep_next: KeepNext) -> "pa.RecordBatch":
    import pyarrow as pa

    for column in batch.columns:
        column.validate(full=True)
    stays = [keep_next() for _ in range(batch.num_rows)]
    cut = {row: each for row, each in enumerate(stays) if isinstance(each, Mapping)}
    for place in {
        batch.schema.get_field_index(str(path[0])) for cuts in cut.values() for path in cuts
    }:
        name, values = batch.schema.names[place], batch.column(place).to_pylist()
        for row, cuts in cut.items():
            values[row] = cut_values({name: values[row]}, cuts)[name]
        column = pa.array(values, type=batch.schema.field(place).type)
        batch = batch.set_column(place, batch.schema.field(place), column)
    return batch.filter(pa.array(list(map(bool, stays)), type=pa.bool_()))


def _codecs(parquet: Any) -> dict[str, str] | str:
    """Return the codec of each column, as the first row group has it."""
    if not parquet.num_row_groups or not parquet.metadata.num_columns:
        return "snappy"
    group = parquet.metadata.row_group(0)
    columns = (group.column(i) for i in range(group.num_columns))
    codecs = {column.path_in_schema: column.compression.lower() for column in columns}
    return {path: "none" if codec == "uncompressed" else codec for path, codec in codecs.items()}


def arrow_rows(batch: "pa.RecordBatch") -> Iterator[dict[str, object] | str]:
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
        # Arrow gives every struct all keys: null stands for what a row does not have.
        return {key: _decoded(item) for key, item in value.items() if item is not None}
    return value
