"""Predictions: a risk table read again and compared with what was found."""

import csv
import hashlib
import json
import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import find_classifier
from memaudit.errors import ClassifierError, UsageError
from memaudit.metrics import brier, expected_calibration_error, expected_count, pr_auc, roc_auc
from memaudit.text import safe_text, shown_path
from memaudit.verification.result import Comparison, MissedExample, Rate
from memaudit.windows import WindowShape

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = ("id", "row", "address", "outcome", "probability", "flagged")
_MISSED_LISTED = 100


@dataclass(frozen=True, slots=True)
class Predictions:
    """What `memaudit predict` left in a folder."""

    shown: str
    """The folder as given, safe to show."""

    summary: dict[str, Any]
    """Its `summary.json`."""

    rows: list[dict[str, Any]]
    """The columns of its risk table that matter here."""

    digest: str
    """Sha256 of the table."""


def read_predictions(folder: Path, shape: WindowShape) -> Predictions:
    """Read a folder that `memaudit predict` wrote.

    Raises:
        UsageError: it is none, or its windows are not those of this verification.
    """
    shown = shown_path(folder)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        window = (summary["window_policy"], summary["prefix_tokens"], summary["suffix_tokens"])
        tables = [folder / f"risk.{ending}" for ending in ("parquet", "jsonl", "csv")]
        table = next(path for path in tables if path.exists())
        rows = _READERS[table.suffix](table)
        digest = hashlib.sha256(table.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UsageError(
            f"{shown}: expected a folder that predict wrote, with summary.json and a risk table "
            f"({type(error).__name__})",
            hint="run 'memaudit predict' on the same corpus, and give its --out as --predictions",
        ) from error
    if window != ("first", shape.prefix_len, shape.suffix_len):
        raise UsageError(
            f"{shown}: speaks of the windows '{window[0]}' of {window[1]} + {window[2]} tokens, "
            f"expected 'first' of {shape.prefix_len} + {shape.suffix_len}",
            hint="give predict and verify the same --prefix-tokens and --suffix-tokens",
        )
    return Predictions(shown, summary, rows, digest)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=list(_COLUMNS), page_checksum_verification=True)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [{name: row[name] for name in _COLUMNS} for row in map(json.loads, lines)]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            # A ' was put before what a spreadsheet would take for a formula.
            words = {name: row[name].removeprefix("'") for name in ("id", "address", "outcome")}
            probability = float(row["probability"]) if row["probability"] else None
            flagged = row["flagged"] == "True"
            numbers = {"row": int(row["row"]), "probability": probability, "flagged": flagged}
            rows.append({**words, **numbers})
    return rows


_READERS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}


def match_rows(
    predictions: Predictions, rows: Iterable[tuple[str, int, str, str]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return probability, NaN where there is none, and flag of each row of a verification.

    Args:
        predictions: of the same corpus.
        rows: id, ordinal, address and outcome.

    Raises:
        UsageError: the two do not speak of the same corpus, or a scored row has no prediction.
    """
    by_row = {row["row"]: row for row in predictions.rows}
    probabilities, flags = array("d"), array("b")
    for example_id, row, address, outcome in rows:
        found = by_row.get(row)
        if found is None or not _same_place(found, example_id, address):
            raise UsageError(
                f"{predictions.shown}: row {row} is "
                + ("missing" if found is None else safe_text(str(found["id"])))
                + f", expected {safe_text(example_id)} at {safe_text(address)}",
                hint="predict and verify on the same corpus, with the same --id-column",
            )
        if found["probability"] is None and outcome == "scored":
            raise UsageError(
                f"{predictions.shown}: row {row} has no probability, it was {found['outcome']}",
                hint="predict and verify with the same teacher",
            )
        probabilities.append(math.nan if found["probability"] is None else found["probability"])
        flags.append(bool(found["flagged"]))
    return np.array(probabilities, dtype=np.float64), np.array(flags, dtype=np.bool_)


def _same_place(found: dict[str, Any], example_id: str, address: str) -> bool:
    # A corpus may have been named by another path, but it has the same name and lines.
    same_address = PurePath(found["address"]).name == PurePath(address.removeprefix("'")).name
    return found["id"] == example_id.removeprefix("'") and same_address


@dataclass(frozen=True, slots=True)
class _Judged:
    """The distinct examples, each by its first row."""

    rows: list[dict[str, Any]]
    copies: NDArray[np.int64]
    extracted: NDArray[np.bool_]
    probability: NDArray[np.float64]
    flagged: NDArray[np.bool_]


def compare(predictions: Predictions, table: "pa.Table") -> Comparison:
    """Compare predicted with found.

    Args:
        predictions: whose classifier made them.
        table: with its columns `probability` and `flagged`.
    """
    judged = _judged(table)
    extracted, probability = judged.extracted, judged.probability
    log_sd = _count_log_sd(predictions.summary)
    expected = expected_count(probability, log_sd or 0.0)
    n_caught = int((judged.flagged & extracted).sum())
    precision = Rate.of_counts(n_caught, int(judged.flagged.sum()))
    prevalence = float(extracted.mean())
    return Comparison(
        predictions=predictions.shown,
        predictions_digest=predictions.digest,
        classifier=str(predictions.summary.get("classifier")),
        threshold=float(predictions.summary["threshold"]),
        examples=len(extracted),
        roc_auc=roc_auc(extracted, probability),
        pr_auc=pr_auc(extracted, probability),
        brier=brier(extracted, probability),
        calibration_error=expected_calibration_error(extracted, probability),
        precision=precision,
        recall=Rate.of_counts(n_caught, int(extracted.sum())),
        lift=None if precision.rate is None or prevalence == 0 else precision.rate / prevalence,
        expected=expected.mean,
        expected_low=expected.low,
        expected_high=expected.high,
        interval_covers_level=log_sd is not None,
        found=int(extracted.sum()),
        expected_rows=float((judged.copies * probability).sum()),
        found_rows=int(judged.copies[extracted].sum()),
        missed=_missed(judged),
    )


def _judged(table: "pa.Table") -> _Judged:
    scored = [row for row in table.to_pylist() if row["outcome"] == "scored"]
    _, first, copies = np.unique(
        [row["example"] for row in scored], return_index=True, return_counts=True
    )
    rows = [scored[i] for i in first]
    return _Judged(
        rows,
        copies.astype(np.int64),
        np.array([row["extracted_by_student"] for row in rows], dtype=np.bool_),
        np.array([row["probability"] for row in rows], dtype=np.float64),
        np.array([row["flagged"] for row in rows], dtype=np.bool_),
    )


def _missed(judged: _Judged) -> tuple[MissedExample, ...]:
    """Return what was extracted and not flagged, the least probable first."""
    (missed,) = np.nonzero(judged.extracted & ~judged.flagged)
    by_probability = missed[np.argsort(judged.probability[missed], kind="stable")]
    rows = [judged.rows[i] for i in by_probability[:_MISSED_LISTED]]
    return tuple(
        MissedExample(row["id"], row["row"], row["address"], row["probability"]) for row in rows
    )


def _count_log_sd(summary: dict[str, Any]) -> float | None:
    """Return the classifier's own uncertainty of levels; None if it is not at hand."""
    try:
        classifier = find_classifier(summary["classifier"], summary["feature_set"])
    except (ClassifierError, KeyError):
        return None
    is_same = classifier.digest == summary.get("classifier_digest")
    return classifier.count_log_sd if is_same else None
