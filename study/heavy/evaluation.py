"""Evaluation: how well probabilities predict what distillations never seen before memorize.

Prevalence is that of each run: nothing is resampled or balanced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import RiskClassifier
from memaudit.evaluation import bootstrap
from memaudit.metrics import (
    brier,
    expected_calibration_error,
    pr_auc,
    roc_auc,
)
from memaudit.training.fitting import LabelledRun
from study.heavy.metrics import precision_recall_at, stratified_auc


@dataclass(frozen=True, slots=True)
class Judged:
    """Predictions of one method on one run."""

    extracted: NDArray[np.bool_]
    """(n,) what the student did."""

    probabilities: NDArray[np.float64]
    """(n,) what the method said; 0 or 1 for a rule."""

    threshold: float
    """At or above it, an example is flagged."""

    occurrences: NDArray[np.float64]
    """(n,) how often each example was trained on."""

    def __len__(self) -> int:
        return len(self.extracted)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return these examples in this order."""
        columns = (self.extracted[rows], self.probabilities[rows])
        return type(self)(*columns, self.threshold, self.occurrences[rows])


Statistic = Callable[[Sequence[Judged]], float | None]
"""A number about all runs; None where it is undefined."""


def _mean_over_runs(
    metric: Callable[[NDArray[np.bool_], NDArray[np.float64]], float | None],
) -> Statistic:
    def statistic(runs: Sequence[Judged]) -> float | None:
        values = [metric(run.extracted, run.probabilities) for run in runs]
        defined = [value for value in values if value is not None]
        return float(np.mean(defined)) if defined else None

    return statistic


def _pooled(
    metric: Callable[[NDArray[np.bool_], NDArray[np.float64]], float | None],
) -> Statistic:
    def statistic(runs: Sequence[Judged]) -> float | None:
        return metric(
            np.concatenate([run.extracted for run in runs]),
            np.concatenate([run.probabilities for run in runs]),
        )

    return statistic


def _precision(runs: Sequence[Judged]) -> float | None:
    n_flagged = sum(int((run.probabilities >= run.threshold).sum()) for run in runs)
    return _n_caught(runs) / n_flagged if n_flagged else None


def _recall(runs: Sequence[Judged]) -> float | None:
    n_extracted = sum(int(run.extracted.sum()) for run in runs)
    return _n_caught(runs) / n_extracted if n_extracted else None


def _n_caught(runs: Sequence[Judged]) -> int:
    counts = [precision_recall_at(run.extracted, run.probabilities, run.threshold) for run in runs]
    return sum(count.n_caught for count in counts)


def _equal_count_auc(runs: Sequence[Judged]) -> float | None:
    values = [stratified_auc(run.extracted, run.probabilities, run.occurrences) for run in runs]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


STATISTICS: dict[str, Statistic] = {
    "roc_auc": _mean_over_runs(roc_auc),
    "pr_auc": _mean_over_runs(pr_auc),
    "equal_count_auc": _equal_count_auc,
    "precision": _precision,
    "recall": _recall,
    "brier": _pooled(brier),
    "calibration_error": _pooled(expected_calibration_error),
}
"""ROC-AUC, PR-AUC and the AUC among examples that occur equally often are means over runs;
the others are over the examples of all runs together."""


def evaluate(
    runs: Sequence[Judged], *, n_resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Return every statistic with its 95 % interval.

    Runs are resampled first, then the examples of each: the interval covers both which
    distillations were run and which examples they hold.

    Returns:
        `value`, `low` and `high` by statistic; None where a statistic is undefined.
    """
    figures = bootstrap(runs, STATISTICS, n=n_resamples, seed=seed, resample_runs=True)
    return {name: figure.document() for name, figure in figures.items()}


def judge(classifier: RiskClassifier, run: LabelledRun) -> Judged:
    """Return what a classifier says about a run, beside what the student did."""
    X = np.column_stack([run.features[name] for name in classifier.features])
    return Judged(
        run.extracted,
        classifier.predict_proba(X),
        classifier.threshold,
        run.features["occurrences"],
    )
