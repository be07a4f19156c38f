"""Fitting: a logistic regression on some labelled runs, calibrated on others.

Runs differ in size and in how much they memorize; each weighs the same, so that no corpus
dominates. Classes are not reweighted: a probability is meant at natural prevalence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from memaudit.classifier import Calibration, RiskClassifier, sigmoid
from memaudit.errors import ClassifierError
from memaudit.features import zlib_record
from memaudit.objectives import ObjectiveKind
from memaudit.text import number_of

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

MIN_FIT_POSITIVES = 20
"""Extracted examples below which coefficients would be noise."""

MIN_CALIBRATION_POSITIVES = 10
"""Extracted examples below which a threshold would be noise."""

_MIN_COUNT_LOG_SD = 0.1  # a few calibration runs may agree by luck


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """One distillation: its distinct examples, and which of them the student memorized."""

    name: str
    """Unique among the runs."""

    features: Mapping[str, NDArray[np.float64]]
    """(n,) for each feature name."""

    extracted: NDArray[np.bool_]
    """(n,) whether the trained student reproduces the suffix."""

    def __post_init__(self) -> None:
        for name, column in self.features.items():
            if column.shape != self.extracted.shape:
                raise ValueError(
                    f"expected {name} of shape {self.extracted.shape}, got {column.shape}"
                )

    @property
    def n_extracted(self) -> int:
        """Examples that the student memorized."""
        return int(self.extracted.sum())


def feature_matrix(run: LabelledRun, features: Sequence[str]) -> NDArray[np.float64]:
    """Return (n, n_features), all finite."""
    for name in features:
        if name not in run.features:
            raise ClassifierError(
                f"run {run.name} has no feature {name}",
                hint="choose a feature set whose models the run was scored with",
            )
        n_broken = int((~np.isfinite(run.features[name])).sum())
        if n_broken:
            raise ClassifierError(
                f"run {run.name}: feature {name} is not a finite number in "
                f"{number_of(int(n_broken), 'example')}",
                hint="score the run again, or leave it out",
            )
    return np.column_stack([run.features[name] for name in features]).astype(np.float64)


def pooled_labels(runs: Sequence[LabelledRun]) -> NDArray[np.bool_]:
    """Return whether each example of the runs was extracted, one run after the other."""
    return np.concatenate([run.extracted for run in runs])


def example_weights(runs: Sequence[LabelledRun]) -> NDArray[np.float64]:
    """Return a weight for each example: equal sums over runs, mean 1 (so that C keeps its sense)."""
    # A run without examples would divide by zero, and has no example to weigh.
    runs = [run for run in runs if len(run.extracted)]
    n_total = sum(len(run.extracted) for run in runs)
    per_run = n_total / len(runs)
    return np.concatenate(
        [np.full(len(run.extracted), per_run / len(run.extracted)) for run in runs]
    )


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
    threshold maximises the mean F1 over the calibration runs that hold a positive. `C` is the
    inverse strength of the L2 penalty on standardised features; the other arguments are fields of
    `RiskClassifier`.

    Raises:
        ClassifierError: too few positives or negatives (20 to fit, 10 to calibrate), a run on both
            sides, a missing or non-finite feature, or a fit that ranks the calibration runs
            backwards.
    """
    _require_enough(runs, calibration_runs)
    X = np.concatenate([feature_matrix(run, features) for run in runs])
    pipeline = fit_pipeline(X, pooled_labels(runs), example_weights(runs), C)
    scaler, regression = pipeline
    logits = [pipeline.decision_function(feature_matrix(run, features)) for run in calibration_runs]
    calibration = fit_calibration(logits, calibration_runs)
    if calibration.slope <= 0:
        raise ClassifierError(
            "the fit ranks the calibration runs backwards: higher risk, fewer extracted",
            hint="calibrate on runs like those that the classifier is fitted on",
        )
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
        threshold=best_threshold(
            [calibrated_probabilities(calibration, each) for each in logits], calibration_runs
        ),
        count_log_sd=count_log_sd(logits, calibration_runs),
        feature_ranges=tuple(zip(X.min(axis=0).tolist(), X.max(axis=0).tolist(), strict=True)),
        zlib=zlib_record(),
        provenance=dict(provenance),
    )


def fit_pipeline(
    X: NDArray[np.float64], y: NDArray[np.bool_], weights: NDArray[np.float64], C: float
) -> "Pipeline":
    """Return scikit-learn's scaler and logistic regression, fitted with weighted examples."""
    # Standardised first: the penalty then means the same for a length and for a probability.
    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(C=C, solver="lbfgs", tol=1e-6, max_iter=10_000)
    )
    return pipeline.fit(
        X, y, standardscaler__sample_weight=weights, logisticregression__sample_weight=weights
    )


def _require_enough(runs: Sequence[LabelledRun], calibration: Sequence[LabelledRun]) -> None:
    """Refuse sides with too few examples of either kind, and a run that is on both sides."""
    for side, n_needed, purpose in (
        (runs, MIN_FIT_POSITIVES, "fitting"),
        (calibration, MIN_CALIBRATION_POSITIVES, "calibration"),
    ):
        n_positives = sum(run.n_extracted for run in side)
        n_negatives = sum(len(run.extracted) for run in side) - n_positives
        for kind, n_found in (("extracted", n_positives), ("not extracted", n_negatives)):
            if n_found < n_needed:
                raise ClassifierError(
                    f"{purpose} needs at least {n_needed} examples that were {kind}, "
                    f"the {len(side)} runs given have {n_found}",
                    hint="give more or larger runs, or runs with more epochs or more repetition",
                )
    # Calibrated on what it was fitted on, a classifier would be too sure of itself.
    shared = {run.name for run in runs} & {run.name for run in calibration}
    if shared:
        raise ClassifierError(
            f"expected other runs for calibration than for fitting, "
            f"got {len(shared)} in both, such as {min(shared)}",
            hint="hold whole runs out for calibration",
        )


def fit_calibration(
    logits: Sequence[NDArray[np.float64]], runs: Sequence[LabelledRun]
) -> Calibration:
    """Return Platt's calibration, runs weighing the same; the slope may have any sign.

    Targets are not 0 and 1 but as Platt 1999 smooths them, which keeps the slope finite when
    the logits separate the classes. A soft target is two weighted examples, one of each class.
    """
    extracted = pooled_labels(runs)
    # Counted over examples, not over weights: the smoothing is about how much was seen.
    n_positives = int(extracted.sum())
    n_negatives = len(extracted) - n_positives
    targets = np.where(extracted, (n_positives + 1) / (n_positives + 2), 1 / (n_negatives + 2))
    z = np.concatenate(logits)
    spread = float(z.std()) or 1.0  # unit spread: the solver's tolerance then means the same
    weights = example_weights(runs)
    # Without a penalty: shrinking the slope would make every probability too moderate.
    # By Newton: a step on one column costs next to nothing, and a few reach the tolerance.
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
    # F1 changes only where a threshold passes a probability, so one between each two is enough;
    # halfway, so that rounding on another processor does not move an example across it.
    levels = np.unique(np.concatenate(probabilities))
    thresholds = (levels[1:] + levels[:-1]) / 2 if len(levels) > 1 else levels
    f1_by_run = []
    for of_run, run in zip(probabilities, runs, strict=True):
        if run.n_extracted:
            # All thresholds at once, by their places among sorted probabilities.
            n_flagged = len(of_run) - np.searchsorted(np.sort(of_run), thresholds)
            positives = np.sort(of_run[run.extracted])
            n_caught = len(positives) - np.searchsorted(positives, thresholds)
            f1_by_run.append(2 * n_caught / (n_flagged + len(positives)))
    best = thresholds[np.mean(f1_by_run, axis=0).argmax()]
    # Of equal ones argmax takes the first, the lowest: a miss costs more than a false alarm.
    # A threshold lies inside (0, 1), and probabilities may round to 0 or 1.
    return float(np.clip(best, 1e-12, 1 - 1e-12))


def count_log_sd(logits: Sequence[NDArray[np.float64]], runs: Sequence[LabelledRun]) -> float:
    """Return the spread of log(observed / expected) about 0, each run expected from the others.

    Half an example is added to both, so that runs with none count too. Where the other runs
    hold too few positives to calibrate on, all runs stand in for them.
    """
    # About 0 and not about their mean: a level that is off in all runs alike is an error, too.
    log_ratios = []
    for i, run in enumerate(runs):
        others = [j for j in range(len(runs)) if j != i]
        if sum(runs[j].n_extracted for j in others) < MIN_CALIBRATION_POSITIVES:
            others = list(range(len(runs)))
        calibration = fit_calibration([logits[j] for j in others], [runs[j] for j in others])
        # By the others alone: a run that is calibrated on expects about what it has.
        expected = calibrated_probabilities(calibration, logits[i]).sum()
        log_ratios.append(np.log((run.n_extracted + 0.5) / (expected + 0.5)))
    return max(_MIN_COUNT_LOG_SD, float(np.sqrt(np.mean(np.square(log_ratios)))))
