"""Training: choose features, fit a logistic regression and calibrate it, from labelled runs."""

from memaudit.training.fit import fit_on_verification
from memaudit.training.fitting import (
    MIN_CALIBRATION_POSITIVES,
    MIN_FIT_POSITIVES,
    LabelledRun,
    fit_classifier,
    fit_pipeline,
)
from memaudit.training.recalibration import Recalibrated, recalibrate
from memaudit.training.result import FitOptions, FitResult
from memaudit.training.selection import SelectionResult, select_features

__all__ = [
    "MIN_CALIBRATION_POSITIVES",
    "MIN_FIT_POSITIVES",
    "FitOptions",
    "FitResult",
    "LabelledRun",
    "Recalibrated",
    "SelectionResult",
    "fit_classifier",
    "fit_on_verification",
    "fit_pipeline",
    "recalibrate",
    "select_features",
]
