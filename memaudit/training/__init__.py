"""Training: choose features, fit a logistic regression and calibrate it, from labelled runs.

Runs differ in size and in how much they memorize; each weighs the same, so that no corpus
dominates. Classes are not reweighted: a probability is meant at natural prevalence.
"""

from memaudit.training.calibration import MIN_CALIBRATION_POSITIVES
from memaudit.training.fit_result import FitOptions, FitResult
from memaudit.training.fitting import MIN_FIT_POSITIVES, fit_classifier, fit_pipeline
from memaudit.training.labelled_run import LabelledRun
from memaudit.training.selection import SelectionResult, select_features
from memaudit.training.verified_fit import fit_on_verification

__all__ = [
    "MIN_CALIBRATION_POSITIVES",
    "MIN_FIT_POSITIVES",
    "FitOptions",
    "FitResult",
    "LabelledRun",
    "SelectionResult",
    "fit_classifier",
    "fit_on_verification",
    "fit_pipeline",
    "select_features",
]
