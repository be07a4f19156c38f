"""What a fit on one's own verification is asked for, how well it does on the unseen, and its card."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from memaudit.classifier import RiskClassifier
from memaudit.errors import UsageError
from memaudit.evaluation import Compared, Figure, Rate, bootstrap
from memaudit.features import FEATURE_SETS
from memaudit.metrics import (
    ExpectedCount,
    Interval,
    Metric,
    brier,
    clopper_pearson,
    expected_calibration_error,
    pr_auc,
    roc_auc,
)
from memaudit.objectives import ObjectiveKind
from memaudit.tables import LABEL_COLUMNS
from memaudit.training.fitting import LabelledRun, feature_matrix
from memaudit.training.inputs import Input, VerifiedRun
from memaudit.training.selection import SelectionResult
from memaudit.training.splitting import Split, SplitUnit, source_name

_N_RESAMPLES = 500

ExportFormat = Literal["joblib", "skops"]
"""joblib is a pickle, which runs code when it is loaded; skops is not."""

HeldOutKind = Literal["run", "example", "calibration"]
"""What was held out from the fits that are judged. `calibration`: only the calibration examples
of the one fit, whose order is honest while the threshold was chosen on them."""


@dataclass(frozen=True, slots=True)
class HeldOutRun:
    """Predictions for the examples of a run that were held out, or for all of them."""

    name: str
    run: LabelledRun
    compared: Compared
    """What was predicted of them, flagged by the threshold of the fit that predicted it."""

    expected: tuple[ExpectedCount, ...]
    """How many would be memorized, by fit."""

    features: tuple[tuple[str, ...], ...]
    """What each fit looks at, by name."""

    def document(self) -> dict[str, Any]:
        """Return what the card says of it."""
        compared = self.compared
        document: dict[str, Any] = {
            "examples": len(compared),
            "extracted": self.run.n_extracted,
            "flagged": int(compared.flagged.sum()),
            "caught": compared.n_caught,
            "expected": round(float(compared.probabilities.sum()), 6),
            "features": [list(features) for features in self.features],
        }
        # Intervals of several fits do not add up: each allows for the same unknown level.
        if len(self.expected) == 1:
            (count,) = self.expected
            document["expected_interval"] = [count.low, count.high]
        return document


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a classifier is fitted."""

    feature_set: str | None = None
    """Key of `FEATURE_SETS`. None: the one that most columns of the scores belong to."""

    features: tuple[str, ...] = ()
    """What to fit on. Empty: chosen over two or more runs, else the shipped classifier's."""

    objective: ObjectiveKind | None = None
    """What the students learned from. None: what stands beside the labels says, else soft."""

    calibration_share: float = 0.3
    """Of the runs or examples, for calibration and threshold; in (0, 1)."""

    seed: int = 0
    """Of the split and of the resampling, at least 0."""

    export: ExportFormat | None = None
    """Also write the equal pipeline of scikit-learn."""

    command: str = "memaudit.training.fit_on_verification"
    """What was called, for the card."""

    def __post_init__(self) -> None:
        if not 0 < self.calibration_share < 1:
            raise UsageError(
                f"expected a calibration share between 0 and 1, got {self.calibration_share}",
                hint="the default is 0.3",
            )
        if self.feature_set is not None and self.feature_set not in FEATURE_SETS:
            raise ValueError(f"expected a feature set of {tuple(FEATURE_SETS)}")


DEFAULT_OPTIONS = FitOptions()
"""Features are chosen, three tenths calibrate, nothing is exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A classifier, and how well such a fit does on what it has not seen."""

    classifier: RiskClassifier
    """Fitted and calibrated on all examples."""

    selection: SelectionResult | None
    """How features were chosen; None if they were given or are the shipped classifier's."""

    inputs: tuple[Input, ...]
    runs: tuple[VerifiedRun, ...]
    unit: SplitUnit
    split: Split
    held_out_kind: HeldOutKind
    held_out: tuple[HeldOutRun, ...]
    """Predictions by run, of fits that did not see the examples."""

    figures: Mapping[str, Figure]
    """Of the predictions, by name; those of the threshold only if it has not seen the examples."""

    shipped_figures: Mapping[str, Figure]
    """Of the shipped classifier of the set on the same examples; empty if it lacks a feature."""

    options: FitOptions
    folder: Path

    @property
    def n_calibration_positives(self) -> int:
        """Extracted examples that calibration and threshold rest on."""
        return sum(run.n_extracted for run in self.split.calibration)

    @property
    def n_not_judged(self) -> int:
        """Distinct examples about which no fit without them could be made."""
        n_judged = sum(len(part.run.extracted) for part in self.held_out)
        return sum(run.counts.distinct for run in self.runs) - n_judged


def judge_held_out(classifier: RiskClassifier, run: LabelledRun) -> HeldOutRun:
    """Return what a classifier says about examples that it was not fitted on."""
    probabilities = classifier.predict_proba(feature_matrix(run, classifier.features))
    return HeldOutRun(
        name=source_name(run),
        run=run,
        compared=Compared(run.extracted, probabilities, probabilities >= classifier.threshold),
        expected=(classifier.expected_count(probabilities),),
        features=(classifier.features,),
    )


def merge_by_name(parts: Sequence[HeldOutRun]) -> list[HeldOutRun]:
    """Return one entry a name: the parts of a run that were held out from different fits."""
    by_name: dict[str, list[HeldOutRun]] = {}
    for part in parts:
        by_name.setdefault(part.name, []).append(part)
    merged = []
    for name, those in by_name.items():
        compared = pooled([part.compared for part in those])
        columns = {
            feature: np.concatenate([part.run.features[feature] for part in those])
            for feature in those[0].run.features
        }
        merged.append(
            HeldOutRun(
                name=name,
                run=LabelledRun(name, columns, compared.extracted),
                compared=compared,
                expected=tuple(count for part in those for count in part.expected),
                features=tuple(names for part in those for names in part.features),
            )
        )
    return merged


def held_out_figures(
    runs: Sequence[HeldOutRun], kind: HeldOutKind, *, seed: int
) -> dict[str, Figure]:
    """Return how well predictions do, by name, at the prevalence of each run; nothing of no runs.

    ROC-AUC and PR-AUC are means over runs, the others are over the examples of all runs
    together. Shares have exact intervals (Clopper-Pearson), for examples that are independent;
    the others are resampled.

    Args:
        runs: judged.
        kind: what was held out. Of calibration examples nothing is said that depends on the
            threshold. Where it was runs, an interval also covers which runs there are.
        seed: of the resampling.
    """
    if not runs:
        return {}
    # Ranking is a mean over runs, for scores of two runs are not comparable: their levels differ.
    compared = [part.compared for part in runs]
    whole = pooled(compared)
    shares = {"prevalence": Rate.of_counts(int(whole.extracted.sum()), len(whole))}
    statistics = {
        "roc_auc": partial(_mean_over_runs, roc_auc),
        "pr_auc": partial(_mean_over_runs, pr_auc),
    }
    if kind != "calibration":
        shares |= {"precision": whole.precision, "recall": whole.recall}
        statistics["brier"] = partial(_over_examples, brier)
        statistics["calibration_error"] = partial(_over_examples, expected_calibration_error)
    figures = {
        name: Figure(share.rate, Interval(share.low, share.high) if share.of else None)
        for name, share in shares.items()
    }
    return figures | bootstrap(
        compared, statistics, n=_N_RESAMPLES, seed=seed, resample_runs=kind == "run"
    )


def pooled(runs: Sequence[Compared]) -> Compared:
    """Return the examples of all runs, one run after the other."""
    return Compared(
        np.concatenate([run.extracted for run in runs]),
        np.concatenate([run.probabilities for run in runs]),
        np.concatenate([run.flagged for run in runs]),
    )


def _mean_over_runs(metric: Metric, runs: Sequence[Compared]) -> float | None:
    """Return the mean of a metric over the runs on which it exists."""
    values = [metric(run.extracted, run.probabilities) for run in runs]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _over_examples(metric: Metric, runs: Sequence[Compared]) -> float | None:
    """Return a metric over the examples of all runs together."""
    whole = pooled(runs)
    return metric(whole.extracted, whole.probabilities)


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
        **classifier.card,
        "selection": [{"feature": name, "log_loss": value} for name, value in steps],
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
        "test_by_cell": {run.name: run.document() for run in result.held_out},
        "judged": JUDGED[result.held_out_kind],
        "not_judged": result.n_not_judged,
        "recall_promise": {
            "calibration_positives": n_positives,
            "recall_if_none_missed": round(recall_bound(n_positives), 6),
            "positives_needed_for_0.9": positives_needed(PROMISED_RECALL),
            "misses_allowed_for_0.9": misses_allowed(n_positives, PROMISED_RECALL),
        },
        "statistics": _STATISTICS,
        "limits": _LIMITS,
    }


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
    misses = range(1, n_positives)
    return bisect_left(misses, True, key=lambda n: recall_bound(n_positives, n) < recall)


def positives_needed(recall: float = PROMISED_RECALL) -> int:
    """Return the least number of positives that allow this recall, in (0, 1), if none is missed."""
    n_positives = 1
    while recall_bound(n_positives) < recall:
        n_positives += 1
    return n_positives
