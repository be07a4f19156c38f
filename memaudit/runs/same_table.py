"""Whether the risk tables beside a run still say what the run says; nothing reads them as truth."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from memaudit.files import open_regular
from memaudit.runs.risk_table import COLUMNS
from memaudit.runs.run import Run

_CHECKED = [name for name in COLUMNS if name != "reason"]
_MAX_LINE = 1 << 20
_ROUNDING = 1e-9
"""What another processor may change in a probability."""

_Record = tuple[object, ...]
_Reader = Callable[[Path], Iterator[_Record]]


def changed_tables(run: Run) -> list[str]:
    """Return the names of the risk tables in the folder of a run that do not match it."""
    readers = {"parquet": _parquet, "jsonl": _jsonl, "csv": _csv}
    return [
        f"risk.{kind}"
        for kind, read in readers.items()
        if (path := run.folder / f"risk.{kind}").exists() and not _matches(path, read, run)
    ]


def _matches(path: Path, read: _Reader, run: Run) -> bool:
    try:
        return all(
            expected is not None and found is not None and _is_same(found, expected)
            for found, expected in zip_longest(read(path), _expected(run))
        )
    except (
        *(OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError),
        *(csv.Error, pa.ArrowException),
    ):
        return False


def _is_same(found: _Record, expected: _Record) -> bool:
    if found == expected:  # nearly always, and the rest takes a hundred times as long
        return True
    (*place, probability, flagged), (*true_place, true, truly_flagged) = found, expected
    # In csv a `'` stands before what a spreadsheet would take for a formula.
    is_there = all(
        one in (true_one, f"'{true_one}") for one, true_one in zip(place, true_place, strict=True)
    )
    if not is_there or flagged != truly_flagged:
        return False
    if isinstance(probability, float) and isinstance(true, float):
        return math.isclose(probability, true, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    return probability == true


def _expected(run: Run) -> Iterator[_Record]:
    """Yield id, row, address, outcome, probability and flagged of every row."""
    names = ("id", "row", "address", "outcome")
    rows = zip(*(run.rows.column(name).to_pylist() for name in names), strict=True)
    numbers = zip(run.probabilities.tolist(), run.is_flagged.tolist(), strict=True)
    for (*row, outcome), (probability, flagged) in zip(rows, numbers, strict=True):
        scored = outcome == "scored"
        yield (*row, outcome, probability if scored else None, flagged if scored else False)


def _record(values: dict[str, object]) -> _Record:
    # The probability of a screened row is the first stage's, which a run does not keep.
    is_screened = values["outcome"] == "screened"
    return tuple(
        None if name == "probability" and is_screened else values[name] for name in _CHECKED
    )


def _parquet(path: Path) -> Iterator[_Record]:
    with open_regular(path) as stream, pq.ParquetFile(stream) as file:
        for batch in file.iter_batches(columns=_CHECKED):
            # By columns: a dict for each row would take most of the time of a gate.
            columns = [batch.column(name).to_pylist() for name in _CHECKED]
            columns[_CHECKED.index("probability")] = [
                None if outcome == "screened" else probability
                for outcome, probability in zip(
                    columns[_CHECKED.index("outcome")],
                    columns[_CHECKED.index("probability")],
                    strict=True,
                )
            ]
            yield from zip(*columns, strict=True)


def _jsonl(path: Path) -> Iterator[_Record]:
    with open_regular(path) as stream:
        while line := stream.readline(_MAX_LINE):
            yield _record(json.loads(line))


def _csv(path: Path) -> Iterator[_Record]:
    with open_regular(path) as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
        for values in csv.DictReader(text):
            shown: dict[str, object] = dict(values)
            shown["row"] = int(values["row"])
            shown["probability"] = float(values["probability"]) if values["probability"] else None
            shown["flagged"] = {"True": True, "False": False}[values["flagged"]]
            yield _record(shown)
