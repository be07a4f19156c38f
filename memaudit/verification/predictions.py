"""Predictions: what `memaudit predict` said of the rows that are verified."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memaudit.classifier import told_classifier
from memaudit.errors import CorpusError, UsageError
from memaudit.evaluation import RowPredictions
from memaudit.runs.folder import read_summary
from memaudit.tables import Table, find_table, match_rows, read_table
from memaudit.text import number_of, shown_path
from memaudit.windows import SHAPE_OPTIONS, WindowShape

_COLUMNS = ("id", "address", "outcome", "row", "probability", "flagged")

_TRAINING = ("objective", "temperature", "cross_entropy_share", "epochs")
"""What both `predict` and `verify` are told of the training."""

Place = tuple[str, int, str, str]
"""Id, ordinal, address and outcome of a row."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What `memaudit predict` left in a folder."""

    shown: str
    summary: dict[str, Any]
    table: Table
    """Its risk table, with row, id, address, outcome, probability and flagged."""

    @property
    def windows(self) -> dict[str, Any]:
        """Which windows it speaks of, by the names that `VerificationOptions` has for that."""
        found = {"windows": self.summary["window_policy"]}
        answers = self.summary.get("answers")
        if answers is not None:
            found |= {"turns": answers["turns"], "min_suffix_len": answers["min_suffix_tokens"]}
        return found

    def differences(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield where this speaks of another training than a verification's, in words."""
        is_soft = settings["objective"] == "soft"
        # Without soft labels the temperature and the share are in no loss.
        for key in _TRAINING if is_soft else ("objective", "epochs"):
            said, done = self.summary.get(key), settings.get(key)
            if said is not None and done is not None and said != done:
                said = f"{said:g}" if isinstance(said, float) else said
                yield f"{key.replace('_', ' ')} {said} instead of {done if isinstance(done, str) else f'{done:g}'}"
        if self.summary.get("teacher_digest") not in (None, settings["teacher_digest"]):
            yield "another teacher"


def read_predictions(folder: Path, shape: WindowShape) -> Predictions:
    """Read a folder that `memaudit predict` wrote.

    Raises:
        UsageError: it is none, or its windows are not those of this verification.
    """
    shown = shown_path(folder)
    try:
        summary = read_summary(folder)
        told = WindowShape.of_settings(summary)
        table = read_table(find_table(folder, "risk"))
        # Asked for now, while whatever is missing says that it is another folder.
        float(summary["threshold"]), summary["window_policy"]
        if not isinstance(summary.get("answers") or {}, dict):
            raise TypeError("answers")
        absent = {*_COLUMNS} - {*table.texts, *table.numbers}
        if absent:
            raise KeyError(min(absent))
    except (OSError, ValueError, KeyError, TypeError, CorpusError, UsageError) as error:
        raise UsageError(
            f"{shown}: expected a folder that predict wrote, with summary.json and a risk table "
            f"({type(error).__name__})",
            hint="run 'memaudit predict' on the same corpus, and give its --out as --predictions",
        ) from error
    if told != shape:
        raise UsageError(
            f"{shown}: speaks of windows of {told.prefix_len} + {told.suffix_len} tokens, "
            f"expected {shape.prefix_len} + {shape.suffix_len}",
            hint=f"give predict and verify the same {SHAPE_OPTIONS}",
        )
    return Predictions(shown, summary, table)


def match_predictions(predictions: Predictions, places: Iterable[Place]) -> RowPredictions:
    """Return what was predicted of each row of a verification, in the order of the corpus.

    Raises:
        UsageError: the two do not speak of the same corpus, or a scored row has no prediction.
    """
    ids, rows, addresses, outcomes = (list(column) for column in zip(*places, strict=True))
    corpus = Table(
        shown="the corpus",
        sha256="",
        texts={"id": ids, "address": addresses},
        numbers={"row": np.array(rows, dtype=np.float64)},
        n_rows=len(rows),
    )
    table = predictions.table
    match = match_rows(table, corpus)
    # Where no row matches, -1 takes the last one, and NaN its place.
    probabilities = np.where(match >= 0, table.numbers["probability"][match], math.nan)
    is_scored = np.array([outcome == "scored" for outcome in outcomes])
    for reason, is_wrong in (
        ("is missing", match < 0),
        ("has no probability", is_scored & np.isnan(probabilities)),
    ):
        if is_wrong.any():
            raise UsageError(
                f"{predictions.shown}: row {rows[int(is_wrong.argmax())]} {reason}, "
                f"1 of {number_of(int(is_wrong.sum()), 'such row')}",
                hint="predict and verify on the same corpus, with the same teacher",
            )
    summary, classifier = predictions.summary, told_classifier(predictions.summary)
    return RowPredictions(
        shown=predictions.shown,
        digest=table.sha256,
        classifier=str(summary.get("classifier")),
        threshold=float(summary["threshold"]),
        count_log_sd=None if classifier is None else classifier.count_log_sd,
        probabilities=probabilities,
        flagged=table.numbers["flagged"][match] == 1,
    )
