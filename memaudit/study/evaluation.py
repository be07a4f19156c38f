"""Evaluation: how well a classifier ranks the examples of distillations it never saw.

Beside it stand the rules a sceptic would try first. Prevalence is that of each run: nothing is
resampled or balanced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import RiskClassifier
from memaudit.metrics import (
    brier,
    expected_calibration_error,
    pr_auc,
    precision_recall_at,
    roc_auc,
    stratified_auc,
)
from memaudit.study.cells import CellResult
from memaudit.training import LabelledRun, fit_classifier

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

TRIVIAL_RULES: dict[str, tuple[str, ...]] = {
    "zlib entropy alone": ("zlib_entropy",),
    "text statistics alone": ("zlib_entropy", "suffix_zlib_entropy", "zlib_ratio"),
    "occurrence count alone": ("log_occurrences",),
}
"""Classifiers on what needs no model, fitted and calibrated like the shipped ones."""

_N_HASHES = 2**14


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
    rng = np.random.default_rng(seed)
    resampled: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for _ in range(n_resamples):
        drawn = [_resample(runs[i], rng) for i in rng.integers(len(runs), size=len(runs))]
        for name, statistic in STATISTICS.items():
            value = statistic(drawn)
            if value is not None:
                resampled[name].append(value)
    report: dict[str, dict[str, float | None]] = {}
    for name, statistic in STATISTICS.items():
        values = resampled[name]
        low, high = np.quantile(values, [0.025, 0.975]).tolist() if values else (None, None)
        figures = {"value": statistic(runs), "low": low, "high": high}
        # Six decimals: what lies beyond depends on the processor.
        report[name] = {key: x if x is None else round(x, 6) for key, x in figures.items()}
    return report


def _resample(run: Judged, rng: np.random.Generator) -> Judged:
    drawn = rng.integers(len(run.extracted), size=len(run.extracted))
    return Judged(
        run.extracted[drawn], run.probabilities[drawn], run.threshold, run.occurrences[drawn]
    )


def judge(classifier: RiskClassifier, run: LabelledRun) -> Judged:
    """Return what a classifier says about a run, beside what the student did."""
    X = np.column_stack([run.features[name] for name in classifier.features])
    return Judged(
        run.extracted,
        classifier.predict_proba(X),
        classifier.threshold,
        run.features["occurrences"],
    )


def judge_rules(
    training: Sequence[CellResult],
    calibration: Sequence[CellResult],
    test: Sequence[CellResult],
) -> dict[str, list[Judged]]:
    """Return what the trivial rules say about the test cells, by rule."""
    judged: dict[str, list[Judged]] = {}
    for rule, features in TRIVIAL_RULES.items():
        classifier = fit_classifier(
            [cell.run for cell in training],
            [cell.run for cell in calibration],
            name=rule.replace(" ", "-"),
            feature_set="teacher",
            features=features,
            provenance={},
        )
        judged[rule] = [judge(classifier, cell.run) for cell in test]
    judged["token n-grams alone"] = _judge_blind(training, calibration, test)
    recited = {
        "teacher recites it": ("extracted_by_teacher",),
        "teacher and baseline recite it": ("extracted_by_teacher", "extracted_by_baseline"),
    }
    for rule, columns in recited.items():
        judged[rule] = [_judge_recited(cell.run, columns) for cell in test]
    return judged


def _judge_recited(run: LabelledRun, columns: Sequence[str]) -> Judged:
    flags = np.logical_and.reduce([run.features[name].astype(bool) for name in columns])
    return Judged(run.extracted, flags.astype(np.float64), 0.5, run.features["occurrences"])


def _judge_blind(
    training: Sequence[CellResult],
    calibration: Sequence[CellResult],
    test: Sequence[CellResult],
) -> list[Judged]:
    """Return what a classifier says that sees the tokens of a window and no model at all.

    It flags as large a share as the calibration cells extract.
    """
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(max_iter=2000)
    regression.fit(_ngrams(training), np.concatenate([cell.run.extracted for cell in training]))
    calibration_scores = regression.predict_proba(_ngrams(calibration))[:, 1]
    extracted_rate = np.concatenate([cell.run.extracted for cell in calibration]).mean()
    threshold = float(np.quantile(calibration_scores, 1 - extracted_rate))
    return [
        Judged(
            cell.run.extracted,
            regression.predict_proba(_ngrams([cell]))[:, 1],
            threshold,
            cell.run.features["occurrences"],
        )
        for cell in test
    ]


def _ngrams(cells: Sequence[CellResult]) -> "csr_matrix":
    """Return (n, hashes) counts of the runs of one to three token ids in each window."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(token_pattern=r"\d+", ngram_range=(1, 3), n_features=_N_HASHES)
    lines = [" ".join(map(str, window)) for cell in cells for window in cell.windows]
    return vectorizer.transform(lines)
