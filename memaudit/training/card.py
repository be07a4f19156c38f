"""The card of a fitted classifier: what a reader must know before trusting it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from memaudit.metrics import clopper_pearson
from memaudit.tables import LABEL_COLUMNS
from memaudit.training.fitting import LabelledRun
from memaudit.training.result import FitResult, HeldOutKind, HeldOutRun
from memaudit.training.splitting import SplitUnit

PROMISED_RECALL = 0.9
"""What is asked of a classifier unless something else is said."""

_CONFIDENCE = 0.95

CARD_NAME = "card.json"
"""Beside the classifier's file."""

_LIMITS = (
    "Fitted on the tables named here. Probabilities hold for corpora and distillations like "
    "those; elsewhere trust the order more than the number, and verify. A low probability is no "
    "promise that a text is not memorized, still less that it does not leak in another way. Scores "
    "without a manifest beside them are taken to be from the zlib of the interpreter that fitted."
)
SPLIT_NOTES: dict[SplitUnit, str] = {
    "run": "Whole runs are on one side, and so is a text that several runs share.",
    "example": (
        "Texts are on one side by a hash of their ids, equal ones together. Near-duplicates "
        "across the split cannot be excluded without their text: figures may be flattered."
    ),
}
"""What a split can rule out, by its unit."""

JUDGED: dict[HeldOutKind, str] = {
    "run": "Each run was judged by fits, features included, that saw other runs alone.",
    "example": "Each example was judged by a fit, features included, on four fifths of the others.",
    "calibration": (
        "Too few were extracted to hold some out: the order of the calibration examples is "
        "judged, which the coefficients never saw; the threshold was chosen on them."
    ),
}
"""How the figures came about."""

_STATISTICS = (
    "At the natural prevalence of each run. ROC-AUC and PR-AUC are means over runs; the others "
    "are over the examples of all runs together. 95 % intervals: exact for shares of independent "
    "examples, else from 500 resamples of the examples, and of whole runs where those were held out."
)


def make_card(result: FitResult) -> dict[str, Any]:
    """Return the card as one JSON document, in the layout of the shipped cards."""
    classifier, selection = result.classifier, result.selection
    steps = () if selection is None else selection.steps
    n_positives = result.n_calibration_positives
    test = {"this classifier": result.figures}
    if result.shipped_figures:
        test["shipped classifier"] = result.shipped_figures
    return {
        "name": classifier.name,
        "digest": classifier.digest,
        "feature_set": classifier.feature_set,
        "objective": classifier.objective,
        "features": list(classifier.features),
        "selection": [{"feature": name, "log_loss": value} for name, value in steps],
        "threshold": classifier.threshold,
        "cells": {
            "train": _prevalence(result.split.fit),
            "calibration": _prevalence(result.split.calibration),
        },
        "inputs": {
            one.name: one.document() | {"rows": asdict(run.counts)}
            for one, run in zip(result.inputs, result.runs, strict=True)
        },
        "split": {
            "unit": result.unit,
            "calibration_share": result.options.calibration_share,
            "seed": result.options.seed,
            "note": SPLIT_NOTES[result.unit],
        },
        "test": {
            name: {key: figure.document() for key, figure in found.items()}
            for name, found in test.items()
        },
        "test_by_cell": {run.name: _by_run(run) for run in result.held_out},
        "judged": JUDGED[result.held_out_kind],
        "not_judged": result.n_not_judged,
        "recall_promise": {
            "calibration_positives": n_positives,
            "recall_if_none_missed": round(recall_bound(n_positives), 6),
            "positives_needed_for_0.9": positives_needed(PROMISED_RECALL),
            "misses_allowed_for_0.9": misses_allowed(n_positives, PROMISED_RECALL),
        },
        "statistics": _STATISTICS,
        "provenance": classifier.provenance,
        "limits": _LIMITS,
    }


def _by_run(judged: HeldOutRun) -> dict[str, Any]:
    compared = judged.compared
    document: dict[str, Any] = {
        "examples": len(compared),
        "extracted": judged.run.n_extracted,
        "flagged": int(compared.flagged.sum()),
        "caught": compared.n_caught,
        "expected": round(float(compared.probabilities.sum()), 6),
        "features": [list(features) for features in judged.features],
    }
    if len(judged.expected) == 1:
        (count,) = judged.expected
        document["expected_interval"] = [count.low, count.high]
    return document


def _prevalence(runs: Sequence[LabelledRun]) -> dict[str, dict[str, int]]:
    return {
        run.name: {"examples": len(run.extracted), "extracted": run.n_extracted}
        | {
            name: int(run.features[name].sum())
            for name in LABEL_COLUMNS[1:]
            if name in run.features
        }
        for run in runs
    }


def recall_bound(n_positives: int, n_missed: int = 0) -> float:
    """Return the recall that is exceeded at 95 % confidence, one-sided, if so many are missed.

    It holds for a threshold chosen on other examples, and for corpora and distillations like
    those of the positives. Source: Clopper & Pearson 1934 (doi:10.1093/biomet/26.4.404).

    Args:
        n_positives: extracted examples that were looked at.
        n_missed: of these, not flagged.

    Returns:
        in [0, 1); 0 without a positive.
    """
    # Two-sided at 90 % leaves 5 % on the side that matters.
    return clopper_pearson(n_positives - n_missed, n_positives, 2 * _CONFIDENCE - 1).low


def misses_allowed(n_positives: int, recall: float = PROMISED_RECALL) -> int | None:
    """Return how many of the positives may be missed for this recall; None if not even none."""
    if recall_bound(n_positives) < recall:
        return None
    # The bound falls with every miss, so bisection finds the last miss that it can bear.
    low, high = 0, n_positives
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if recall_bound(n_positives, middle) >= recall else (low, middle)
    return low


def positives_needed(recall: float = PROMISED_RECALL) -> int:
    """Return the least number of positives that allow this recall, in (0, 1), if none is missed."""
    n_positives = 1
    while recall_bound(n_positives) < recall:
        n_positives += 1
    return n_positives
