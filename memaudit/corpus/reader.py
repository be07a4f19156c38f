"""Read a corpus: every row of every file, of the hub or in memory, in order, each with one outcome."""

import hashlib
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from memaudit.corpus.base import (
    BadRow,
    Conversation,
    CorpusOptions,
    CorpusSeen,
    Example,
    ProjectColumns,
    Record,
    RenderMessages,
    RowError,
    Unreadable,
    record_of,
)
from memaudit.corpus.byte_streams import OpenFile
from memaudit.corpus.discovery import SourceFile, find_files, hub_corpus, open_regular
from memaudit.corpus.formats import FORMATS
from memaudit.corpus.layouts import kind_of
from memaudit.corpus.shapes import ColumnChooser, read_content, read_id, render_content
from memaudit.errors import CorpusError, MissingDependency, UsageError
from memaudit.files import forbid_core_dumps
from memaudit.text import safe_text, shown_path

_MAX_UNSETTLED_ROWS = 1000
"""Rows that may pass without the columns being found before the corpus is refused."""


_Row = tuple[str, str, Record | Unreadable]
"""A row, behind what ids and messages call the file that it is from."""


def read_corpus(
    options: CorpusOptions,
    *,
    render_messages: RenderMessages | None = None,
    stdin: BinaryIO | None = None,
    seen: CorpusSeen | None = None,
) -> Iterator[Example | BadRow]:
    """Return one outcome for each row, numbered from 0, in an order that is always the same.

    A corpus is streamed: memory does not grow with it. Which columns are used is settled by the
    first schema, or the first row, that has them; until then bad rows are held back, so that a
    corpus without them is refused before anything comes out. `stdin` is what the source `-` reads,
    None the process's own; `seen` gets what is found out about the corpus meanwhile.

    Raises:
        CorpusError: at once if nothing is there to read; while reading if a file is damaged or
            unpacks to too much, if no row has the columns, or if there is no row.
        UsageError: options that are for the hub are given for files.
    """
    forbid_core_dumps()  # here, so that it holds for whoever reads a corpus from Python
    chooser, seen = ColumnChooser(options), seen or CorpusSeen()
    rows: Iterator[_Row]
    if options.rows is not None:
        name = shown_path(options.source)
        found = enumerate(_values(options.rows, name, chooser.project), start=1)
        rows = ((options.source, name, record_of(*each)) for each in found)
    elif options.source == "-":
        # Whoever started us may have closed it.
        stdin = stdin or (sys.stdin.buffer if sys.stdin else io.BytesIO())
        items = FORMATS["jsonl"].read(OpenFile(stdin, "stdin", None, options), chooser.project)
        rows = (("stdin", "stdin", item) for item in items)
    elif (corpus := hub_corpus(options)) is not None:
        try:
            from memaudit.corpus.hub import read_hub
        except ImportError as error:
            raise MissingDependency("datasets", needed_for="reading from the hub") from error
        name, items = corpus.hub_id, read_hub(corpus, options, chooser.project)
        rows = ((name, name, item) for item in items)
    elif options.config is not None or options.revision is not None:
        raise UsageError(
            "a configuration and a revision are for corpora on the hub, got files",
            hint="leave out --config-name and --revision",
        )
    else:
        files = find_files(options.source, options.split)
        seen.n_files = len(files)
        rows = _file_rows(files, options, chooser)
    return _outcomes(rows, options, chooser, render_messages, seen)


def corpus_stamp(options: CorpusOptions) -> str | None:
    """Return what is another one once a file of the corpus is: of names, sizes and times.

    None: it may be another corpus each time it is read, such as a pipe or a branch on the hub; or
    what was captured of a teacher is read with it.

    Raises:
        CorpusError: no file is there, or one cannot be looked at.
    """
    if options.rows is not None or options.source == "-" or options.captured:
        return None
    corpus = hub_corpus(options)
    if corpus is not None:
        # A commit stays what it is; a branch or a tag may be another one tomorrow.
        return corpus.revision if re.fullmatch("[0-9a-f]{40}", corpus.revision or "") else None
    files = find_files(options.source, options.split)
    try:
        stats = [file.path.stat() for file in files]
    except OSError as error:
        raise CorpusError(f"{shown_path(options.source)}: {error.strerror}") from error
    of_files = [(f.name, s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)]
    return hashlib.sha256(json.dumps(of_files).encode()).hexdigest()


def _outcomes(
    rows: Iterator[_Row],
    options: CorpusOptions,
    chooser: ColumnChooser,
    render_messages: RenderMessages | None,
    seen: CorpusSeen,
) -> Iterator[Example | BadRow]:
    source = shown_path(options.source)
    held: list[Example | BadRow] = []
    n_rows = 0
    for n_rows, row in enumerate(rows, start=1):
        held.append(_outcome(row, n_rows - 1, options, chooser, render_messages, seen))
        if chooser.columns is None and len(held) < _MAX_UNSETTLED_ROWS:
            continue
        # Rows that cannot be read have no columns to look at: those alone go on, as bad rows.
        if chooser.columns is None and chooser.has_looked:
            break
        yield from held
        held.clear()
    if n_rows == 0:
        raise CorpusError(f"{source}: empty, there are no rows")
    if chooser.columns is None and chooser.has_looked:
        chooser.refuse(source)
    yield from held


def _outcome(
    row: _Row,
    ordinal: int,
    options: CorpusOptions,
    chooser: ColumnChooser,
    render_messages: RenderMessages | None,
    seen: CorpusSeen,
) -> Example | BadRow:
    name, shown, item = row
    address, example_id = f"{shown}:{item.place}", f"{name}:{item.number}"
    raw_digest: bytes | None = None
    try:
        if isinstance(item, Unreadable):
            raise RowError(item.reason)
        columns = chooser.settle(item.values.keys())
        if columns is None:
            raise RowError("none of the columns that hold text")
        seen.layout = columns.in_words
        # First, so that a row whose text is bad is still found by its id.
        example_id = read_id(item.values, columns, example_id)
        content = read_content(item.values, columns)
        if isinstance(content, Conversation):
            # Before the template is asked: it may refuse them.
            raw_digest = content.digest
            seen.skipped_parts += content.skipped_parts
        rendered = render_content(content, render_messages, options)
    except RowError as error:
        reason = f"{item.unit} {item.place}: {error}"
        return BadRow(ordinal, example_id, address, reason, raw_digest)
    return Example(
        ordinal,
        example_id,
        address,
        rendered.text,
        rendered.answers,
        rendered.token_ids,
        raw_digest,
        {name: item.values[name] for name in columns.roles.values() if name in item.values},
        lambda values: render_content(read_content(values, columns), render_messages, options),
        {role: item.values.get(name) for role, name in columns.captured.items()},
    )


def _file_rows(
    files: list[SourceFile], options: CorpusOptions, chooser: ColumnChooser
) -> Iterator[_Row]:
    for source in files:
        with open_regular(source, options) as file:
            for item in FORMATS[source.format].read(file, chooser.project):
                yield source.name, source.shown, item


_ROWS_AT_ONCE = 256


def _values(rows: Any, shown: str, project: ProjectColumns) -> Iterator[Mapping[str, object] | str]:
    """Yield the values of each row, or why it cannot be read."""
    # Told apart by what they can do: asking for their classes would import every library.
    if isinstance(rows, Mapping):
        names = ", ".join(safe_text(str(name), 60) for name in list(rows)[:10])
        raise UsageError(
            f"{shown}: expected rows, got a mapping of {names}", hint="give one of these alone"
        )
    if hasattr(rows, "select_columns"):  # of datasets, in memory or streamed
        # Whatever it was set to: numbers and strings, no tensors of them.
        rows = rows.with_format(None)
        if rows.column_names is not None:
            rows = rows.select_columns(list(project(rows.column_names, shown)))
        return map(_row, rows)
    # A frame of pandas, and no series. By way of Arrow, mixed columns would be refused.
    if hasattr(rows, "iloc") and hasattr(rows, "columns"):
        # Names of columns may be numbers there.
        rows = rows.set_axis([str(name) for name in rows.columns], axis="columns")
        rows = rows[list(project(list(rows.columns), shown))]
        parts = (rows.iloc[i : i + _ROWS_AT_ONCE] for i in range(0, len(rows), _ROWS_AT_ONCE))
        # As objects, in which null is no NaN: of a whole frame that would take many times its place.
        plain = (part.astype(object).where(part.notna(), None) for part in parts)
        return (_row(row) for part in plain for row in part.to_dict("records"))
    if hasattr(rows, "__arrow_c_stream__"):
        from memaudit.corpus.columnar import stream_rows

        return stream_rows(rows, shown, project)
    if isinstance(rows, Iterable) and not isinstance(rows, str | bytes):
        return (
            _row(row, keeps_null=True)
            if isinstance(row, Mapping)
            else f"expected a dict, got {kind_of(row)}"
            for row in rows
        )
    raise UsageError(
        f"{shown}: expected a path, a data set, a frame, a table or dicts, "
        f"got {type(rows).__name__}",
        hint="give rows with one column for each part of the text",
    )


def _row(row: Mapping[Any, Any], *, keeps_null: bool = False) -> dict[str, object]:
    """Return the values of a row by column, as JSON would give them.

    `keeps_null`: whether null in an object is a value. Where Arrow is behind the rows, every object
    has all keys, and null stands for what a row does not have.
    """
    return {str(name): _plain(value, keeps_null=keeps_null) for name, value in row.items()}


def _plain(value: Any, *, keeps_null: bool) -> Any:
    if hasattr(value, "tolist"):  # of numpy, torch and pandas
        value = value.tolist()
    if isinstance(value, Mapping):
        return {
            key: _plain(item, keeps_null=keeps_null)
            for key, item in value.items()
            if keeps_null or item is not None
        }
    if isinstance(value, list | tuple):
        return [_plain(item, keeps_null=keeps_null) for item in value]
    return value
