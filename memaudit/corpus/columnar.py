"""Parquet and Arrow files, read batch by batch and only the columns that are used."""

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from memaudit.corpus.base import Cuts, KeepNext, ProjectColumns, Record, Unreadable, record_of
from memaudit.corpus.byte_streams import OpenFile
from memaudit.corpus.cuts import cut_values
from memaudit.corpus.unpacked_sizes import (
    IPC_FILE_MAGIC,
    parquet_columns,
    refuse_large_buffers,
    refuse_large_pages,
)
from memaudit.errors import CorpusError

_BATCH_ROWS = 256
_BUFFER_BYTES = 1024 * 1024
_BYTES_AT_ONCE = 4 * 1024 * 1024
_CODECS = {0: "none", 1: "snappy", 2: "gzip", 4: "brotli", 5: "lz4", 6: "zstd", 7: "lz4"}
"""By their numbers in parquet.thrift, as `ParquetWriter` calls them. 5 frames lz4 in an older way; what
is written has 7."""


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
            for batch in self._batches(file, project):
                for row in arrow_rows(batch):
                    number += 1
                    yield record_of(number, row)

    def copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        """Write the rows that stay, as columns of the types and codecs they have."""
        with _as_corpus_error(file.shown):
            # What these formats write, they also seek in.
            stream = out if hasattr(out, "fileno") else BytesIO()
            self._copy(file, keep_next, stream)
            if stream is not out:
                out.write(stream.getbuffer())

    def _batches(self, file: OpenFile, project: ProjectColumns) -> Iterator[pa.RecordBatch]:
        """Yield small batches of the columns that are used."""
        raise NotImplementedError

    def _copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        raise NotImplementedError


class Parquet(_Columnar):
    """A `Format`: parquet, copied row group by row group."""

    def _batches(self, file: OpenFile, project: ProjectColumns) -> Iterator[pa.RecordBatch]:
        whole = file.whole()
        # Without a buffer size a whole column of a row group would be read at once.
        parquet = pq.ParquetFile(whole, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        wanted = list(project(parquet.schema_arrow.names, file.shown))
        # Before the first batch: Arrow makes room for a page of the size that its header says.
        refuse_large_pages(whole, {*wanted}, file.shown)
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
            # Selected again: asked for `a.b`, Arrow also brings the field b of a column a.
            yield batch.select(wanted)

    def _copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        whole = file.whole()
        parquet = pq.ParquetFile(whole)
        schema = parquet.schema_arrow
        refuse_large_pages(whole, {*schema.names}, file.shown)
        codecs: dict[str, str] = {}
        for column in parquet_columns(whole):  # as the first row group has them
            codecs.setdefault(".".join(column.path), _CODECS[column.codec])
        with pq.ParquetWriter(out, schema, compression=codecs or "snappy") as writer:
            for group in range(parquet.num_row_groups):
                batches = parquet.iter_batches(row_groups=[group], use_threads=False)
                kept = [_kept(batch, _decided(batch, keep_next)) for batch in batches]
                table = pa.Table.from_batches(kept, schema).unify_dictionaries()
                # A group for each group of the corpus. pyarrow refuses one without rows.
                if len(table):
                    writer.write_table(table, row_group_size=len(table))


class Arrow(_Columnar):
    """A `Format`: Arrow files (Feather) and streams, copied record batch by record batch."""

    def _batches(self, file: OpenFile, project: ProjectColumns) -> Iterator[pa.RecordBatch]:
        _, schema, batches = _open_arrow(file)
        wanted = list(project(schema.names, file.shown))
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.select(wanted).slice(start, _BATCH_ROWS)

    def _copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        is_file, schema, batches = _open_arrow(file)
        coded = [i for i, kind in enumerate(schema.types) if _has_dictionary(kind)]
        if is_file and coded:
            file.file.seek(0)
            kept = _with_one_dictionary(batches, coded, keep_next, _open_arrow(file)[2])
        else:
            kept = (_kept(batch, _decided(batch, keep_next)) for batch in batches)
        with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(out, schema) as writer:
            for batch in kept:
                if len(batch):
                    writer.write_batch(batch)


def _open_arrow(file: OpenFile) -> tuple[bool, pa.Schema, Iterator[pa.RecordBatch]]:
    """Return whether it is a file and no stream, its schema, and its record batches."""
    whole = file.whole()
    refuse_large_buffers(whole, file.shown)
    is_file = whole.read(len(IPC_FILE_MAGIC)) == IPC_FILE_MAGIC
    whole.seek(0)
    if is_file:
        opened = pa.ipc.open_file(whole)
        batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
        return True, opened.schema, batches
    opened = pa.ipc.open_stream(whole)
    return False, opened.schema, iter(opened)


@contextmanager
def _as_corpus_error(shown: str, place: Callable[[], str] = str) -> Iterator[None]:
    """Say of a damaged file what it is."""
    try:
        yield
    # A length that was changed asks for memory that no machine has, or for a kind that is none.
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        LookupError,
        struct.error,
        MemoryError,
        RecursionError,
    ) as error:
        raise CorpusError(
            f"{shown}: damaged, or not of the format its name says{place()}",
            hint="copy or download it again",
        ) from error


def _with_one_dictionary(
    batches: Iterator[pa.RecordBatch],
    coded: list[int],
    keep_next: KeepNext,
    again: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """Yield what stays of an Arrow file, in which a column has one dictionary for all batches.

    Args:
        batches: of the file.
        coded: which columns have a dictionary.
        keep_next: asked for each row.
        again: the same batches, for a second time through: the dictionaries are known then.
    """
    decided, parts = [], []
    for batch in batches:
        decided.append(_decided(batch, keep_next))
        parts.append(_kept(batch.select(coded), decided[-1]))
    if not parts:  # a file without record batches, such as a shard that got no rows
        return
    whole = pa.Table.from_batches([part for part in parts if len(part)], parts[0].schema)
    unified = iter(whole.unify_dictionaries().to_batches())
    for batch, stays in zip(again, decided, strict=True):
        if any(stays):
            kept, columns = _kept(batch, stays), next(unified)
            for i, column in zip(coded, columns.columns, strict=True):
                kept = kept.set_column(i, batch.schema.field(i), column)
            yield kept


def _decided(batch: pa.RecordBatch, keep_next: KeepNext) -> list[bool | Cuts]:
    """Return for each row whether it stays, or what is cut out of it."""
    # First: what leaves rows out follows offsets, and damaged ones point anywhere.
    for column in batch.columns:
        column.validate(full=True)
    return [keep_next() for _ in range(batch.num_rows)]


def _kept(batch: pa.RecordBatch, stays: list[bool | Cuts]) -> pa.RecordBatch:
    cut = {row: each for row, each in enumerate(stays) if isinstance(each, Mapping)}
    # Only columns in which something is cut become Python objects, and are built anew.
    for place in {
        batch.schema.get_field_index(str(path[0])) for cuts in cut.values() for path in cuts
    } - {-1}:
        name, values = batch.schema.names[place], batch.column(place).to_pylist()
        for row, cuts in cut.items():
            values[row] = cut_values({name: values[row]}, cuts)[name]
        column = pa.array(values, type=batch.schema.field(place).type)
        batch = batch.set_column(place, batch.schema.field(place), column)
    mask = pa.array(list(map(bool, stays)), type=pa.bool_())
    left = [_left(column, mask) for column in batch.columns]
    return pa.RecordBatch.from_arrays(left, schema=batch.schema)


def _left(column: pa.Array, mask: pa.BooleanArray) -> pa.Array:
    """Return the values that stay, without anything of the others.

    A dictionary, and the buffers behind views, also hold what no row holds any more: the file would
    look clean, and hold the text of all rows that went.
    """
    kind, views = column.type, (pa.string_view(), pa.binary_view())
    if not _has_dictionary(kind) and not any(
        each in views or pa.types.is_run_end_encoded(each) for each in _types_in(kind)
    ):
        return column.filter(mask)  # nothing of a value that goes stays behind
    if not pa.types.is_dictionary(kind):
        pairs = zip(column.to_pylist(), mask.to_pylist(), strict=True)
        return pa.array([value for value, stays in pairs if stays], type=kind)
    indices = column.indices.filter(mask)
    used = indices.drop_null().unique().sort()  # the order of categories may mean something
    places = pc.index_in(indices, value_set=used).cast(indices.type)
    return pa.DictionaryArray.from_arrays(
        places, column.dictionary.take(used), ordered=kind.ordered, safe=False
    )


def _types_in(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield a type, and those of the values in it."""
    yield kind
    for i in range(kind.num_fields):
        yield from _types_in(kind.field(i).type)


def _has_dictionary(kind: pa.DataType) -> bool:
    return any(pa.types.is_dictionary(each) for each in _types_in(kind))


def arrow_rows(batch: pa.RecordBatch) -> Iterator[dict[str, object] | str]:
    """Yield the values of each row, or why it cannot be read."""
    names = batch.schema.names
    # As Python objects numbers take ten times their place: few rows are turned into them at once.
    step = max(1, _BYTES_AT_ONCE * batch.num_rows // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, step):
        columns = [_values(column) for column in batch.slice(start, step).columns]
        for values in zip(*columns, strict=True):
            try:
                yield {name: _decoded(value) for name, value in zip(names, values, strict=True)}
            except UnicodeDecodeError:
                yield "invalid UTF-8"


def _values(column: pa.Array) -> list[object]:
    """Return the values of a column: strings as bytes, so that a bad one does not hide the others.

    Lists of numbers within lists become arrays, one for each. Nothing in these files is trusted:
    offsets and sizes are checked before they are followed.
    """

    def is_list(kind: pa.DataType) -> bool:
        return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))

    if pa.types.is_dictionary(column.type):
        column.validate(full=True)
        column = column.dictionary_decode()
    # As bytes before it is validated: of strings, one that is not UTF-8 would refuse all others.
    column = column.cast(_bytes_type(column.type))
    column.validate(full=True)
    # Captured of a teacher are K numbers for each of T tokens: too many to be Python objects.
    inner = column.type.value_type if is_list(column.type) else pa.null()
    if not is_list(inner) or pa.types.is_nested(inner.value_type):
        return column.to_pylist()  # type: ignore[no-any-return]
    # Not `values`: that also holds what lies before a slice.
    lists = column.flatten()
    numbers = lists.flatten()
    if not (pa.types.is_integer(numbers.type) or pa.types.is_floating(numbers.type)):
        return column.to_pylist()  # type: ignore[no-any-return]
    # Nulls among the numbers become NaN.
    content = numbers.to_numpy(zero_copy_only=False)
    ends, places = _ends(lists), _ends(column)
    arrays = [content[start:end] for start, end in pairwise(ends)]
    found = [arrays[start:end] for start, end in pairwise(places)]
    return [
        None if is_null else each
        for is_null, each in zip(column.is_null().to_pylist(), found, strict=True)
    ]


def _ends(lists: pa.Array) -> list[int]:
    """Return where each list ends in what they hold together, 0 in front."""
    lengths = lists.value_lengths().fill_null(0).to_pylist()
    return [0, *accumulate(lengths)]


def _bytes_type(kind: pa.DataType) -> pa.DataType:
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


def stream_rows(
    rows: Any, shown: str, project: ProjectColumns
) -> Iterator[Mapping[str, object] | str]:
    """Yield the rows of what gives a stream of Arrow, each as values or why it cannot be read."""
    reader = pa.RecordBatchReader.from_stream(rows)
    wanted = list(project(reader.schema.names, shown))
    for batch in reader:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield from arrow_rows(batch.select(wanted).slice(start, _BATCH_ROWS))
