"""Export: a classifier as the scikit-learn pipeline that equals it. Nothing is ever loaded here."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from memaudit.classifier import RiskClassifier
from memaudit.errors import MissingDependency
from memaudit.runs.files import committed_file

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

ExportFormat = Literal["joblib", "skops"]
"""joblib is a pickle, which runs code when it is loaded; skops is not."""


def sklearn_pipeline(classifier: RiskClassifier) -> "Pipeline":
    """Return a scaler and a logistic regression with the classifier's probabilities, to 1e-12.

    Calibration is folded into the regression. Its `predict` decides at 0.5: compare the second
    column of `predict_proba` with the classifier's threshold instead.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    calibration = classifier.calibration
    scaler = StandardScaler()
    scaler.mean_ = np.array(classifier.means)
    scaler.scale_ = np.array(classifier.scales)
    scaler.var_ = np.square(scaler.scale_)
    regression = LogisticRegression()
    regression.coef_ = calibration.slope * np.array([classifier.coefficients])
    regression.intercept_ = np.array(
        [calibration.slope * classifier.intercept + calibration.intercept]
    )
    regression.classes_ = np.array([False, True])
    scaler.n_features_in_ = regression.n_features_in_ = len(classifier.features)
    return make_pipeline(scaler, regression)


def export_classifier(classifier: RiskClassifier, folder: Path, export: ExportFormat) -> Path:
    """Write the equal pipeline into a folder and return its file, `classifier.<format>`.

    Raises:
        MissingDependency: skops is asked for and not installed.
        OutputError: it cannot be written.
    """
    path = folder / f"classifier.{export}"
    with committed_file(path) as stream:
        if export == "joblib":
            import joblib

            joblib.dump(sklearn_pipeline(classifier), stream)
        else:
            stream.write(import_skops().dumps(sklearn_pipeline(classifier)))
    return path


def import_skops() -> Any:
    """Return the module `skops.io`.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return import_module("skops.io")
    except ImportError as error:
        raise MissingDependency("skops", needed_for="--export skops", extra="skops") from error
