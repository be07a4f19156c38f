"""Tables: the columns of a risk table or of labels, from parquet, Arrow, jsonl or csv."""

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus.base import CorpusOptions, Record, RepeatedKeys, Unreadable
from memaudit.corpus.discovery import SourceFile, find_files, open_regular
from memaudit.corpus.formats import FORMATS
from memaudit.errors import CorpusError, UsageError
from memaudit.features import FEATURE_SETS
from memaudit.text import shown_path

ALL_FEATURES = tuple(dict.fromkeys(chain.from_iterable(FEATURE_SETS.values())))
"""Every feature of any set, each once."""

LABEL_COLUMNS = ("extracted_by_student", "extracted_by_teacher", "extracted_by_baseline")
"""What a verification found; the first is what a classifier predicts."""

_TEXT_COLUMNS = ("id", "address", "outcome")
_NUMBER_COLUMNS = ("row", *LABEL_COLUMNS, *ALL_FEATURES)
_ENDINGS = ("parquet", "jsonl", "csv")
_WORDS = {"true": 1.0, "false": 0.0, "": math.nan}


@dataclass(frozen=True, slots=True)
class Table:
    """The known columns of a table; others are not read."""

    shown: str
    """Its path as given, safe to show."""

    sha256: str
    """Hexadecimal, of the file."""

    texts: dict[str, list[str]]
    """`id`, `address` and `outcome`, those that there are."""

    numbers: dict[str, NDArray[np.float64]]
    """(n,) for `row`, labels (0 or 1) and features, those that there are; NaN where empty."""

    n_rows: int
    """At least 1."""


def find_table(path: Path, stem: str) -> Path:
    """Return the table that a path stands for.

    Args:
        path: of the table, or of a folder that holds one.
        stem: of its name in a folder, such as `risk`.

    Raises:
        UsageError: there is no such path, or the folder holds no such table or several.
    """
    shown = shown_path(path)
    if not path.exists():
        raise UsageError(f"{shown}: there is no such file or folder", hint="check the path")
    if not path.is_dir():
        return path
    names = [f"{stem}.{ending}" for ending in _ENDINGS]
    found = [path / name for name in names if (path / name).is_file()]
    if len(found) != 1:
        raise UsageError(
            f"{shown}: expected one of {', '.join(names)}, "
            f"got {' and '.join(file.name for file in found) or 'none'}",
            hint="name the file" if found else "give the folder that predict or verify wrote",
        )
    return found[0]


def read_table(path: Path) -> Table:
    """Read the known columns of a table.

    Raises:
        CorpusError: it is damaged or empty, or a value is not what its column holds.
    """
    (source,) = find_files(str(path))
    shown = shown_path(source.shown)
    texts: dict[str, list[str]] = {}
    numbers: dict[str, array[float]] = {}
    n_rows = 0
    for record in _records(source):
        if isinstance(record, Unreadable):
            raise CorpusError(f"{shown}:{record.place}: {record.reason}", hint="write it again")
        if n_rows == 0:
            texts = {name: [] for name in _TEXT_COLUMNS if name in record.values}
            numbers = {name: array("d") for name in _NUMBER_COLUMNS if name in record.values}
        try:
            _append(record, texts, numbers)
        except ValueError as error:
            raise CorpusError(
                f"{shown}:{record.place}: {error}", hint="write the table again"
            ) from error
        n_rows += 1
    if n_rows == 0:
        raise CorpusError(f"{shown}: empty, there are no rows", hint="check how it was written")
    columns = {name: np.array(values, dtype=np.float64) for name, values in numbers.items()}
    return Table(shown, file_sha256(path), texts, columns, n_rows)


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _records(source: SourceFile) -> Iterator[Record | Unreadable]:
    if source.format in ("txt", "json"):
        raise UsageError(
            f"{shown_path(source.shown)}: expected a table, got .{source.format}",
            hint="give parquet, jsonl or csv",
        )
    with open_regular(source, CorpusOptions(str(source.path))) as file:
        yield from FORMATS[source.format].read(file, _project)


def _project(names: Sequence[str], shown: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in {*_TEXT_COLUMNS, *_NUMBER_COLUMNS})


def _append(
    record: Record, texts: dict[str, list[str]], numbers: dict[str, "array[float]"]
) -> None:
    """Add a row to every column; ValueError says why it cannot be."""
    values = record.values
    if isinstance(values, RepeatedKeys) and values.repeated & {*texts, *numbers}:
        raise ValueError("a key repeats")
    for name in (*texts, *numbers):
        if name not in values:
            raise ValueError(f"no column {name}, which the first row has")
    for name, words in texts.items():
        words.append(_text(values[name]))
    for name, column in numbers.items():
        try:
            column.append(_number(values[name]))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{name}: expected a number or true or false") from error


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, str):
        word = _WORDS.get(value.strip().lower())
        return float(value) if word is None else word
    raise ValueError
