"""What a fit on one's own verification is asked for, and how well it does on the unseen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    expected_calibration_error,
    pr_auc,
    roc_auc,
)
from memaudit.objectives import ObjectiveKind
from memaudit.training.fitting import LabelledRun, feature_matrix
from memaudit.training.inputs import Input
from memaudit.training.joining import VerifiedRun
from memaudit.training.selection import SelectionResult
from memaudit.training.splitting import Split, SplitUnit

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
    """Of the run."""

    run: LabelledRun
    """Their features and what the student did."""

    compared: Compared
    """What was predicted of them, flagged by the threshold of the fit that predicted it."""

    expected: tuple[ExpectedCount, ...]
    """How many would be memorized, by fit."""

    features: tuple[tuple[str, ...], ...]
    """Of each fit."""


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
    """The tables."""

    runs: tuple[VerifiedRun, ...]
    """What they hold together."""

    unit: SplitUnit
    """What the split never cuts."""

    split: Split
    """What the classifier was fitted and calibrated on."""

    held_out_kind: HeldOutKind
    """How it was judged."""

    held_out: tuple[HeldOutRun, ...]
    """Predictions by run, of fits that did not see the examples."""

    figures: Mapping[str, Figure]
    """Of the predictions, by name; those of the threshold only if it has not seen the examples."""

    shipped_figures: Mapping[str, Figure]
    """Of the shipped classifier of the set on the same examples; empty if it lacks a feature."""

    options: FitOptions
    """As given."""

    folder: Path
    """Where the classifier is."""

    @property
    def n_calibration_positives(self) -> int:
        """Extracted examples that calibration and threshold rest on."""
        return sum(run.n_extracted for run in self.split.calibration)

    @property
    def n_not_judged(self) -> int:
        """Distinct examples about which no fit without them could be made."""
        n_judged = sum(len(part.run.extracted) for part in self.held_out)
        return sum(run.counts.distinct for run in self.runs) - n_judged


def judge_held_out(name: str, classifier: RiskClassifier, run: LabelledRun) -> HeldOutRun:
    """Return what a classifier says about examples that it was not fitted on."""
    probabilities = classifier.predict_proba(feature_matrix(run, classifier.features))
    return HeldOutRun(
        name=name,
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
    runs: Sequence[HeldOutRun], *, with_threshold: bool, resample_runs: bool, seed: int
) -> dict[str, Figure]:
    """Return how well predictions do, by name, at the prevalence of each run.

    ROC-AUC and PR-AUC are means over runs, the others are over the examples of all runs
    together. Shares have exact intervals (Clopper-Pearson), for examples that are independent;
    the others are resampled.

    Args:
        runs: at least one.
        with_threshold: whether calibration and threshold have not seen the examples, so that
            what depends on them may be said.
        resample_runs: whether an interval covers which runs there are, beside their examples.
        seed: of the resampling.
    """
    # Ranking is a mean over runs, for scores of two runs are not comparable: their levels differ.
    compared = [part.compared for part in runs]
    whole = pooled(compared)
    shares = {"prevalence": Rate.of_counts(int(whole.extracted.sum()), len(whole))}
    statistics = {"roc_auc": _mean_over_runs(roc_auc), "pr_auc": _mean_over_runs(pr_auc)}
    if with_threshold:
        shares |= {"precision": whole.precision, "recall": whole.recall}
        statistics["brier"] = _over_examples(brier)
        statistics["calibration_error"] = _over_examples(expected_calibration_error)
    figures = {
        name: Figure(share.rate, Interval(share.low, share.high) if share.of else None)
        for name, share in shares.items()
    }
    return figures | bootstrap(
        compared, statistics, n=_N_RESAMPLES, seed=seed, resample_runs=resample_runs
    )


def pooled(runs: Sequence[Compared]) -> Compared:
    """Return the examples of all runs, one run after the other."""
    return Compared(
        np.concatenate([run.extracted for run in runs]),
        np.concatenate([run.probabilities for run in runs]),
        np.concatenate([run.flagged for run in runs]),
    )


def _mean_over_runs(metric: Metric) -> Callable[[Sequence[Compared]], float | None]:
    """Return the statistic that averages a metric over the runs on which it exists."""

    def statistic(runs: Sequence[Compared]) -> float | None:
        values = [metric(run.extracted, run.probabilities) for run in runs]
        defined = [value for value in values if value is not None]
        return float(np.mean(defined)) if defined else None

    return statistic


def _over_examples(metric: Metric) -> Callable[[Sequence[Compared]], float | None]:
    """Return the statistic that takes a metric over the examples of all runs together."""

    def statistic(runs: Sequence[Compared]) -> float | None:
        whole = pooled(runs)
        return metric(whole.extracted, whole.probabilities)

    return statistic
