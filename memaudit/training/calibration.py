"""Calibration: from logits to probabilities, a threshold and the spread of counts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import Calibration, sigmoid
from memaudit.training.labelled_run import LabelledRun, example_weights, pooled_labels

MIN_CALIBRATION_POSITIVES = 10
"""Extracted examples below which a threshold would be noise."""

_MIN_COUNT_LOG_SD = 0.1  # a few calibration runs may agree by luck


def fit_calibration(
    logits: Sequence[NDArray[np.float64]], runs: Sequence[LabelledRun]
) -> Calibration:
    """Return Platt's calibration, runs weighing the same; the slope may have any sign.

    Targets are not 0 and 1 but as Platt 1999 smooths them, which keeps the slope finite when
    the logits separate the classes. A soft target is two weighted examples, one of each class.
    """
    from sklearn.linear_model import LogisticRegression

    extracted = pooled_labels(runs)
    n_positives = int(extracted.sum())
    n_negatives = len(extracted) - n_positives
    targets = np.where(extracted, (n_positives + 1) / (n_positives + 2), 1 / (n_negatives + 2))
    z = np.concatenate(logits)
    spread = float(z.std()) or 1.0  # unit spread: the solver's tolerance then means the same
    weights = example_weights(runs)
    platt = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(
        np.concatenate([z, z])[:, np.newaxis] / spread,
        np.repeat([True, False], len(z)),
        sample_weight=np.concatenate([weights * targets, weights * (1 - targets)]),
    )
    return Calibration(
        slope=float(platt.coef_[0, 0]) / spread, intercept=float(platt.intercept_[0])
    )


def calibrated_probabilities(
    calibration: Calibration, logits: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (n,) probabilities from (n,) logits."""
    return sigmoid(calibration.slope * logits + calibration.intercept)


def best_threshold(
    probabilities: Sequence[NDArray[np.float64]], runs: Sequence[LabelledRun]
) -> float:
    """Return the lowest threshold with the best mean F1, halfway between two probabilities."""
    levels = np.unique(np.concatenate(probabilities))
    thresholds = (levels[1:] + levels[:-1]) / 2 if len(levels) > 1 else levels
    f1_by_run = [
        _f1_at(thresholds, run_probabilities, run.extracted)
        for run_probabilities, run in zip(probabilities, runs, strict=True)
        if run.n_extracted
    ]
    best = thresholds[np.mean(f1_by_run, axis=0).argmax()]
    return float(np.clip(best, 1e-12, 1 - 1e-12))


def _f1_at(
    thresholds: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    extracted: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the F1 of flagging at each threshold."""
    n_flagged = len(probabilities) - np.searchsorted(np.sort(probabilities), thresholds)
    positives = np.sort(probabilities[extracted])
    n_caught = len(positives) - np.searchsorted(positives, thresholds)
    return 2 * n_caught / (n_flagged + len(positives))


def count_log_sd(logits: Sequence[NDArray[np.float64]], runs: Sequence[LabelledRun]) -> float:
    """Return the spread of log(observed / expected) about 0, each run expected from the others.

    Half an example is added to both, so that runs with none count too. Where the other runs
    hold too few positives to calibrate on, all runs stand in for them.
    """
    log_ratios = []
    for i, run in enumerate(runs):
        others = [j for j in range(len(runs)) if j != i]
        if sum(runs[j].n_extracted for j in others) < MIN_CALIBRATION_POSITIVES:
            others = list(range(len(runs)))
        calibration = fit_calibration([logits[j] for j in others], [runs[j] for j in others])
        expected = calibrated_probabilities(calibration, logits[i]).sum()
        log_ratios.append(np.log((run.n_extracted + 0.5) / (expected + 0.5)))
    return max(_MIN_COUNT_LOG_SD, float(np.sqrt(np.mean(np.square(log_ratios)))))
