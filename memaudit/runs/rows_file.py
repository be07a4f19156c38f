"""`rows.parquet`: what became of each row and which windows it has.

With it a run can be put together without its corpus.
"""

from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from memaudit.runs.commit import output_errors
from memaudit.runs.cutting import RowCuts
from memaudit.runs.sealed import DamagedFileError, open_sealed, sealed_writer
from memaudit.runs.spool import RowOutcome, RowSpool

_ROWS_A_GROUP = 16_384


def write_rows(path: Path, fingerprint: str, rows: RowSpool, cuts: RowCuts) -> None:
    """Commit the rows of a run; they hold no text and no token ids.

    Args:
        path: of the file.
        fingerprint: of the run's manifest.
        rows: of the corpus, in order.
        cuts: which windows they were cut into.

    Raises:
        OutputError: it cannot be written.
    """
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    names = ("id", "row", "address", "outcome", "reason", "windows")
    types = (text, number, text, text, text, pa.list_(number))
    schema = pa.schema(list(zip(names, types, strict=True)))
    records = _records(rows, cuts)
    with sealed_writer(path, schema, {"memaudit.run": fingerprint}) as writer:
        while group := list(islice(records, _ROWS_A_GROUP)):
            columns = [
                pa.array(list(values), type=kind)
                for values, kind in zip(zip(*group, strict=True), types, strict=True)
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _records(rows: RowSpool, cuts: RowCuts) -> Iterator[tuple[object, ...]]:
    lengths = iter(cuts.n_windows)
    start = 0
    for row in rows:
        n_windows = next(lengths) if row.outcome == "scored" else 0
        windows = cuts.windows[start : start + n_windows].tolist()
        start += n_windows
        yield row.example_id, row.row, row.address, row.outcome, row.reason, windows


def read_rows(path: Path, fingerprint: str, rows: RowSpool) -> RowCuts:
    """Put the rows of a run into an empty spool.

    Returns:
        which windows they were cut into, without digests.

    Raises:
        DamagedFileError: the file is not what was written, or belongs to another run.
        OutputError: it cannot be read.
    """
    cuts = RowCuts()
    with (
        output_errors(path, "read"),
        open_sealed(path, {"memaudit.run": fingerprint}) as file,
    ):
        for batch in file.iter_batches(_ROWS_A_GROUP):
            for record in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                example_id, row, address, outcome, reason, windows = record
                rows.append(RowOutcome(example_id, row, address, outcome, reason))
                cuts.outcomes[outcome] += 1
                cuts.windows.extend(windows)
                cuts.n_windows.extend(array("q", [len(windows)] if windows else []))
    return cuts


def rows_are_whole(path: Path, fingerprint: str) -> bool:
    """Whether the file is there as it was written."""
    if not path.exists():
        return False
    try:
        with output_errors(path, "read"), open_sealed(path, {"memaudit.run": fingerprint}):
            return True
    except DamagedFileError:
        return False
