"""Rows that a Python program has in memory, read as if they were a file."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memaudit.corpus.base import ProjectColumns, Record, Unreadable
from memaudit.corpus.layouts import kind_of
from memaudit.errors import UsageError
from memaudit.text import safe_text

_ROWS_AT_ONCE = 256


def read_in_memory(rows: Any, shown: str, project: ProjectColumns) -> Iterator[Record | Unreadable]:
    """Yield the rows.

    Args:
        rows: as `corpus_of` takes them.
        shown: what they are called in messages.
        project: chooses the columns, where all are known beforehand.

    Raises:
        UsageError: it is nothing that has rows.
        CorpusError: there are no columns that hold text.
    """
    for number, row in enumerate(_rows(rows, shown, project), start=1):
        if isinstance(row, str):
            yield Unreadable(number, number, row, "row")
        else:
            yield Record(number, number, row, "row")


def _rows(rows: Any, shown: str, project: ProjectColumns) -> Iterator[Mapping[str, object] | str]:
    """Yield the values of each row, or why it cannot be read."""
    if isinstance(rows, Mapping):
        names = ", ".join(safe_text(str(name), 60) for name in list(rows)[:10])
        raise UsageError(
            f"{shown}: expected rows, got a mapping of {names}", hint="give one of these alone"
        )
    if hasattr(rows, "select_columns"):  # of datasets, in memory or streamed
        rows = rows.with_format(None)
        if rows.column_names is not None:
            rows = rows.select_columns(list(project(rows.column_names, shown)))
        return map(_row, rows)
    if hasattr(rows, "iloc"):  # a frame of pandas; by way of Arrow, mixed columns would be refused
        rows = rows.set_axis([str(name) for name in rows.columns], axis="columns")
        rows = rows[list(project(list(rows.columns), shown))]
        return (_row(row) for part in _parts(rows) for row in part)
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


def _parts(frame: Any) -> Iterator[list[dict[str, object]]]:
    for start in range(0, len(frame), _ROWS_AT_ONCE):
        part = frame.iloc[start : start + _ROWS_AT_ONCE]
        yield part.astype(object).where(part.notna(), None).to_dict("records")


def _row(row: Mapping[Any, Any], *, keeps_null: bool = False) -> dict[str, object]:
    """Return the values of a row by column, as JSON would give them.

    Args:
        row: as a library gives it.
        keeps_null: whether null in an object is a value. Where Arrow is behind the rows, every
            object has all keys, and null stands for what a row does not have.
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
