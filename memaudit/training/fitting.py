"""Fitting: a logistic regression on some runs, calibrated on others."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import Calibration, RiskClassifier, zlib_record
from memaudit.errors import ClassifierError
from memaudit.objectives import ObjectiveKind
from memaudit.training.calibration import (
    MIN_CALIBRATION_POSITIVES,
    best_threshold,
    calibrated_probabilities,
    count_log_sd,
    fit_calibration,
)
from memaudit.training.labelled_run import (
    LabelledRun,
    example_weights,
    feature_matrix,
    pooled_labels,
)

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

MIN_FIT_POSITIVES = 20
"""Extracted examples below which coefficients would be noise."""


def fit_classifier(  # noqa: PLR0913  # a classifier is made of all of these
    runs: Sequence[LabelledRun],
    calibration_runs: Sequence[LabelledRun],
    *,
    name: str,
    feature_set: str,
    features: tuple[str, ...],
    provenance: Mapping[str, str],
    objective: ObjectiveKind = "soft",
    C: float = 1.0,
) -> RiskClassifier:
    """Return a classifier fitted on some runs and calibrated on others.

    Calibration (Platt 1999) and threshold come from runs that the coefficients never saw. The
    threshold maximises the mean F1 over the calibration runs that hold a positive.

    Args:
        runs: with at least 20 extracted examples together.
        calibration_runs: other runs, with at least 10.
        name: of the classifier.
        feature_set: key of `FEATURE_SETS`.
        features: of that set, in its order.
        provenance: data, recipe, seeds, command, versions.
        objective: what the students of the runs learned from.
        C: inverse strength of the L2 penalty on standardised features.

    Raises:
        ClassifierError: too few positives or negatives, a run on both sides, a missing or
            non-finite feature, or a fit that ranks the calibration runs backwards.
    """
    _require_both_kinds(runs, MIN_FIT_POSITIVES, "fitting")
    _require_both_kinds(calibration_runs, MIN_CALIBRATION_POSITIVES, "calibration")
    _require_disjoint(runs, calibration_runs)
    X = np.concatenate([feature_matrix(run, features) for run in runs])
    scaler, regression = fit_pipeline(X, pooled_labels(runs), example_weights(runs), C)
    held_out = [feature_matrix(run, features) for run in calibration_runs]
    logits = [regression.decision_function(scaler.transform(rows)) for rows in held_out]
    calibration = fit_calibration(logits, calibration_runs)
    _require_rising(calibration)
    probabilities = [calibrated_probabilities(calibration, run_logits) for run_logits in logits]
    return RiskClassifier(
        name=name,
        feature_set=feature_set,
        objective=objective,
        features=features,
        means=tuple(scaler.mean_.tolist()),
        scales=tuple(scaler.scale_.tolist()),
        coefficients=tuple(regression.coef_[0].tolist()),
        intercept=float(regression.intercept_[0]),
        calibration=calibration,
        threshold=best_threshold(probabilities, calibration_runs),
        count_log_sd=count_log_sd(logits, calibration_runs),
        feature_ranges=tuple(zip(X.min(axis=0).tolist(), X.max(axis=0).tolist(), strict=True)),
        zlib=zlib_record(),
        provenance=dict(provenance),
    )


def fit_pipeline(
    X: NDArray[np.float64], y: NDArray[np.bool_], weights: NDArray[np.float64], C: float
) -> "Pipeline":
    """Return scikit-learn's scaler and logistic regression, fitted with weighted examples."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(C=C, solver="lbfgs", tol=1e-6, max_iter=10_000)
    )
    return pipeline.fit(
        X, y, standardscaler__sample_weight=weights, logisticregression__sample_weight=weights
    )


def _require_both_kinds(runs: Sequence[LabelledRun], n_needed: int, purpose: str) -> None:
    n_positives = sum(run.n_extracted for run in runs)
    n_negatives = sum(len(run.extracted) for run in runs) - n_positives
    for kind, n_found in (("extracted", n_positives), ("not extracted", n_negatives)):
        if n_found < n_needed:
            raise ClassifierError(
                f"{purpose} needs at least {n_needed} examples that were {kind}, "
                f"the {len(runs)} runs given have {n_found}",
                hint="give more or larger runs, or runs with more epochs or more repetition",
            )


def _require_disjoint(runs: Sequence[LabelledRun], calibration_runs: Sequence[LabelledRun]) -> None:
    shared = {run.name for run in runs} & {run.name for run in calibration_runs}
    if shared:
        raise ClassifierError(
            f"expected other runs for calibration than for fitting, "
            f"got {len(shared)} in both, such as {min(shared)}",
            hint="hold whole runs out for calibration",
        )


def _require_rising(calibration: Calibration) -> None:
    if calibration.slope <= 0:
        raise ClassifierError(
            "the fit ranks the calibration runs backwards: higher risk, fewer extracted",
            hint="calibrate on runs like those that the classifier is fitted on",
        )
