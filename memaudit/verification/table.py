"""The table of a verification: one row for each row of the corpus, no text of it."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import OutputError
from memaudit.text import shown_path
from memaudit.verification.examples import Examples
from memaudit.verification.result import ROLES, SCHEMA_VERSION, ExtractionSet

if TYPE_CHECKING:
    import pyarrow as pa

_LABEL_COLUMNS = ("id", "row", "address", "outcome", *(f"extracted_by_{role}" for role in ROLES))


def label_table(
    examples: Examples, found: dict[str, NDArray[np.bool_]], sets: list[ExtractionSet]
) -> "pa.Table":
    """Return the table, in the order of the corpus.

    The outcome of a row is `scored` if it was trained on and looked at; else `held_out`,
    `not_sampled`, `too_short` or `bad`. Only scored rows have labels. `example` numbers the
    distinct windows among them.

    Args:
        examples: of the verification.
        found: (examples,) whether each role's model recites it.
        sets: of the examples.
    """
    import pyarrow as pa

    number = np.cumsum(~examples.is_held_out) - 1
    window_of_row = iter(examples.window_of_row.tolist())
    records: list[dict[str, Any]] = []
    for row in examples.rows:
        record: dict[str, Any] = {
            "id": row.example_id,
            "row": row.row,
            "address": row.address,
            "outcome": row.outcome,
        }
        if row.outcome == "scored":
            window = next(window_of_row)
            if window < 0:
                record["outcome"] = "not_sampled"
            elif examples.is_held_out[window]:
                record["outcome"] = "held_out"
            else:
                example = int(number[window])
                record["example"], record["set"] = example, sets[example]
                for role in ROLES:
                    record[f"extracted_by_{role}"] = bool(found[role][example])
        records.append(record)
    return pa.Table.from_pylist(records, schema=_schema())


def _schema() -> "pa.Schema":
    import pyarrow as pa

    text, number, flag = pa.string(), pa.int64(), pa.bool_()
    types = (text, number, text, text, flag, flag, flag)
    fields = [*zip(_LABEL_COLUMNS, types, strict=True), ("set", text), ("example", number)]
    return pa.schema(fields, metadata={"memaudit.verification_schema": str(SCHEMA_VERSION)})


def count_outcomes(table: "pa.Table") -> dict[str, int]:
    """Return the rows by outcome."""
    return dict(sorted(Counter(table["outcome"].to_pylist()).items()))


def labels_digest(table: "pa.Table") -> str:
    """Return sha256 over rows and labels, whatever predictions stand beside them."""
    digest = hashlib.sha256()
    for name in (*_LABEL_COLUMNS, "set", "example"):
        digest.update(repr((name, table[name].to_pylist())).encode())
    return digest.hexdigest()


def places(table: "pa.Table") -> Iterator[tuple[str, int, str, str]]:
    """Yield id, ordinal, address and outcome of each row."""
    yield from zip(*(table[name].to_pylist() for name in _LABEL_COLUMNS[:4]), strict=True)


def with_predictions(
    table: "pa.Table", probability: NDArray[np.float64], flagged: NDArray[np.bool_]
) -> "pa.Table":
    """Return the table with what was predicted; rows without it are empty.

    Args:
        table: as `label_table` made it, or with earlier predictions.
        probability: (rows,) NaN where there is none.
        flagged: (rows,)
    """
    import pyarrow as pa

    missing = np.isnan(probability)
    columns = {
        "probability": pa.array(probability, mask=missing),
        "flagged": pa.array(flagged, mask=missing),
    }
    for name, column in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, column)
    return table


def write_table(stream: BinaryIO, table: "pa.Table") -> None:
    """Write it as parquet with page checksums; the same table gives the same bytes."""
    import pyarrow.parquet as pq

    pq.write_table(table, stream, compression="zstd", write_page_checksum=True)


def read_table(path: Path) -> "pa.Table":
    """Read what `write_table` wrote.

    Raises:
        OutputError: it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{shown_path(path)}: cannot be read again: {type(error).__name__}",
            hint="verify into another folder with --out",
        ) from error
