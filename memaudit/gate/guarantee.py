"""An upper bound on the number memorized, and when the data behind a classifier allow none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import RiskClassifier, load_classifier, shipped_classifiers_dir
from memaudit.errors import ClassifierError
from memaudit.gate.result import Guarantee
from memaudit.metrics import ExpectedCount
from memaudit.runs.finished import FinishedRun
from memaudit.runs.judging import out_of_range_rates
from memaudit.runs.result import OUT_OF_RANGE_LIMIT

MIN_POSITIVES = 29
"""Memorized examples in calibration below which no recall of 90 % can be vouched for at 95 %."""

MIN_RUNS = 10
"""Calibration runs below which their spread says little about the next one."""

_CONFIDENCE = 0.975  # the upper end of a two-sided interval of 95 %
_ASSUMES = (
    "the corpus and the distillation are like the classifier's calibration runs, whose counts "
    "differed from expectation by as much as the next one's will"
)
_LABELS = {"soft": "soft", "hard": "hard", "cross-entropy": "baseline"}
"""Which students of a card's cells an objective is calibrated on."""


def count_expected(run: FinishedRun, counts: NDArray[np.bool_]) -> ExpectedCount:
    """Return how many of some rows are expected to be memorized; equal ones share their fate.

    Args:
        run: all of it.
        counts: (n_rows,) which scored rows count.
    """
    windows, copies = np.unique(run.worst_windows[counts], return_counts=True)
    probabilities = run.judgement.window_probabilities[windows]
    return run.manifest.classifier.expected_count(probabilities, copies)


def make_guarantee(run: FinishedRun, expected: ExpectedCount) -> Guarantee:
    """Return the bound that a classifier's calibration allows for this run."""
    reasons = _calibration_gaps(run.manifest.classifier)
    if n_screened := run.outcomes["screened"]:
        reasons.append(f"{n_screened:,} rows were screened out and are not counted")
    outside = {n: r for n, r in out_of_range_rates(run.judgement).items() if r > OUT_OF_RANGE_LIMIT}
    if outside:
        name, rate = max(outside.items(), key=lambda item: item[1])
        reasons.append(
            f"{rate:.0%} of the scored rows are unlike those the classifier was trained on, "
            f"in {name}"
        )
    return Guarantee(
        "underpowered" if reasons else "holds",
        expected.high,
        _CONFIDENCE,
        _ASSUMES,
        tuple(reasons),
    )


def is_shipped(classifier: RiskClassifier) -> bool:
    """Whether it comes with memaudit, bit by bit."""
    folder = shipped_classifiers_dir() / classifier.name
    try:
        return folder.is_dir() and load_classifier(folder).digest == classifier.digest
    except ClassifierError:
        return False


def _calibration_gaps(classifier: RiskClassifier) -> list[str]:
    """Return why calibration cannot vouch for a bound."""
    card = _read_card(shipped_classifiers_dir() / classifier.name / "card.json")
    if card is None or card.get("digest") != classifier.digest:
        return ["how the classifier was calibrated is not known here"]
    label = _LABELS[classifier.objective]
    counts = [
        cell["counts"][label] for cell in card["cells"].values() if cell["role"] == "calibration"
    ]
    gaps = []
    if sum(counts) < MIN_POSITIVES:
        gaps.append(
            f"{sum(counts)} memorized examples in calibration, at least {MIN_POSITIVES} are needed"
        )
    if len(counts) < MIN_RUNS:
        gaps.append(f"{len(counts)} calibration runs, at least {MIN_RUNS} are needed")
    return gaps


def _read_card(path: Path) -> dict[str, Any] | None:
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return card
