"""Tables: a risk table or labels, from parquet, Arrow, jsonl or csv, and how their rows match.

This is the one reader of the tables that predict and verify write, and of a table of one's own.
"""

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus.base import CorpusOptions, Record, RepeatedKeys, Unreadable
from memaudit.corpus.discovery import find_files, open_regular
from memaudit.corpus.formats import FORMATS
from memaudit.errors import CorpusError, UsageError
from memaudit.features import KNOWN_FEATURES
from memaudit.files import TABLE_FORMATS
from memaudit.text import safe_text, shown_path

ALL_FEATURES = tuple(dict.fromkeys(chain.from_iterable(KNOWN_FEATURES.values())))
"""Every feature of any set, each once."""

LABEL_COLUMNS = ("extracted_by_student", "extracted_by_teacher", "extracted_by_baseline")
"""What a verification found; the first is what a classifier predicts."""

_TEXT_COLUMNS = ("id", "address", "outcome")
_NUMBER_COLUMNS = ("row", *LABEL_COLUMNS, "probability", "flagged", *ALL_FEATURES)
_COLUMNS = {*_TEXT_COLUMNS, *_NUMBER_COLUMNS}
# csv has no types: booleans and what is missing are words there.
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
    """(n,) for `row`, labels and flags (0 or 1), probability and features, those that there are;
    NaN where empty."""

    n_rows: int
    """At least 1."""


def find_table(path: Path, stem: str) -> Path:
    """Return the table that a path stands for.

    Raises:
        UsageError: there is no such path, or the folder holds no such table or several.
    """
    shown = shown_path(path)
    if not path.exists():
        raise UsageError(f"{shown}: there is no such file or folder", hint="check the path")
    if not path.is_dir():
        return path
    names = [f"{stem}.{ending}" for ending in TABLE_FORMATS]
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
    if source.format in ("txt", "json"):
        raise UsageError(
            f"{shown}: expected a table, got .{source.format}", hint="give parquet, jsonl or csv"
        )
    texts: dict[str, list[str]] = {}
    numbers: dict[str, array[float]] = {}
    n_rows = 0
    with open_regular(source, CorpusOptions(str(source.path))) as file:
        for record in FORMATS[source.format].read(
            file, lambda names, _: tuple(name for name in names if name in _COLUMNS)
        ):
            if isinstance(record, Unreadable):
                raise CorpusError(f"{shown}:{record.place}: {record.reason}", hint="write it again")
            if n_rows == 0:
                texts = {name: [] for name in _TEXT_COLUMNS if name in record.values}
                # Eight bytes a number: a list would take four times as many for a table of
                # millions of rows.
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
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Table(shown, sha256, texts, columns, n_rows)


def _append(
    record: Record, texts: dict[str, list[str]], numbers: dict[str, "array[float]"]
) -> None:
    """Add a row to every column; ValueError says why it cannot be."""
    values = record.values
    # Of a key that stands twice some readers take the first value, some the last.
    if isinstance(values, RepeatedKeys) and values.repeated & {*texts, *numbers}:
        raise ValueError("a key repeats")
    for name in (*texts, *numbers):
        if name not in values:
            raise ValueError(f"no column {name}, which the first row has")
    for name, words in texts.items():
        value = values[name]
        words.append("" if value is None else str(value))
    for name, column in numbers.items():
        try:
            column.append(_number(values[name]))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{name}: expected a number or true or false") from error


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, str):
        word = _WORDS.get(value.strip().lower())
        return float(value) if word is None else word
    raise ValueError


def match_rows(labels: Table, scores: Table) -> NDArray[np.int64]:
    """Return the row of one table that belongs to each row of another.

    Rows are joined by ordinal, or by id where a table has no ordinals. Where both tables have
    them, ids and addresses have to agree: an ordinal alone would join any two corpora.

    Returns:
        (n_scores,) rows of `labels`; -1 where there is none.

    Raises:
        UsageError: a key is missing, empty or repeats, or ids or addresses differ.
    """
    by = "row" if all("row" in table.numbers for table in (labels, scores)) else "id"
    place = {key: i for i, key in enumerate(_keys(labels, by))}
    match = np.array([place.get(key, -1) for key in _keys(scores, by)], dtype=np.int64)
    for column in ("id", "address"):
        if column not in labels.texts or column not in scores.texts:
            continue
        # Two commands may name a corpus by different paths, but its file has the same name and
        # lines.
        comparable = (lambda word: PurePath(word).name) if column == "address" else str
        ours = [comparable(word) for word in _bare(scores.texts[column])]
        theirs = [comparable(word) for word in _bare(labels.texts[column])]
        wrong = [i for i, j in enumerate(match.tolist()) if j >= 0 and ours[i] != theirs[j]]
        if wrong:
            label = f"row {wrong[0]:,}"
            if "id" in scores.texts:
                label = f"id {safe_text(scores.texts['id'][wrong[0]])}"
            raise UsageError(
                f"{column} differs between {scores.shown} and {labels.shown} in {len(wrong):,} of "
                f"{int((match >= 0).sum()):,} rows, first at {label}",
                hint="predict and verify on the same corpus, or pair the tables in the same order",
            )
    return match


def _keys(table: Table, by: str) -> list[float] | list[str]:
    if by not in table.texts and by not in table.numbers:
        raise UsageError(
            f"{table.shown}: expected the column {by}, for the other table has no other key",
            hint="give both tables the columns id and row",
        )
    keys = table.numbers["row"].tolist() if by == "row" else _bare(table.texts["id"])
    n_empty = sum(str(key) in ("", "nan") for key in keys)
    if n_empty:
        raise UsageError(
            f"{table.shown}: {by} is empty in {n_empty:,} of {table.n_rows:,} rows",
            hint="give every row its ordinal in the corpus",
        )
    n_repeated = len(keys) - len(set(keys))
    if n_repeated:
        raise UsageError(
            f"{table.shown}: {by} repeats in {n_repeated:,} of {table.n_rows:,} rows, "
            "so that rows cannot be told apart",
            hint="give both tables the column row, the ordinal in the corpus",
        )
    return keys


def _bare(words: Sequence[str]) -> list[str]:
    """Return words without the `'` that csv tables put before what a spreadsheet would run."""
    return [word.removeprefix("'") for word in words]
