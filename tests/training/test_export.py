"""An exported pipeline is the classifier in scikit-learn's words."""

import sys

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.fakes import make_classifier

from memaudit.classifier import Calibration
from memaudit.errors import MissingDependency
from memaudit.training.fit import export_classifier, sklearn_pipeline

CLASSIFIER = make_classifier()
CALIBRATED = type(CLASSIFIER)(
    **{name: getattr(CLASSIFIER, name) for name in CLASSIFIER.__struct_fields__}
    | {"calibration": Calibration(slope=0.37, intercept=-1.9), "intercept": 0.4}
)
matrices = arrays(np.float64, st.tuples(st.integers(1, 9), st.just(2)), elements=st.floats(-50, 50))


@given(X=matrices)
def test_probabilities_agree_calibration_included(X):
    """To 1e-12: whoever uses the export gets the numbers of the card."""
    exported = sklearn_pipeline(CALIBRATED).predict_proba(X)[:, 1]

    assert exported == pytest.approx(CALIBRATED.predict_proba(X), abs=1e-12)


def test_a_joblib_file_holds_the_pipeline_and_has_the_same_bytes_again(tmp_path):
    """What is exported twice is the same file."""
    first = export_classifier(CALIBRATED, tmp_path, "joblib")
    content = first.read_bytes()
    second = export_classifier(CALIBRATED, tmp_path, "joblib")

    X = np.random.default_rng(0).normal(size=(20, 2))
    assert first == second == tmp_path / "classifier.joblib"
    assert second.read_bytes() == content
    assert joblib.load(first).predict_proba(X)[:, 1] == pytest.approx(
        CALIBRATED.predict_proba(X), abs=1e-12
    )
    assert first.stat().st_mode & 0o777 == 0o600


def test_skops_without_its_package_says_how_to_get_it(tmp_path, monkeypatch):
    """There is no fallback to pickle, and nothing is left behind."""
    monkeypatch.setitem(sys.modules, "skops", None)
    monkeypatch.setitem(sys.modules, "skops.io", None)

    with pytest.raises(MissingDependency, match="needs the package skops") as caught:
        export_classifier(CALIBRATED, tmp_path, "skops")
    assert caught.value.hint == "pip install 'memaudit-distill[skops]'"
    assert not list(tmp_path.iterdir())


def test_a_skops_file_needs_no_trust(tmp_path):
    """Only types that skops trusts by itself are in it."""
    skops_io = pytest.importorskip("skops.io")

    path = export_classifier(CALIBRATED, tmp_path, "skops")

    assert skops_io.get_untrusted_types(file=path) == []
    X = np.random.default_rng(0).normal(size=(20, 2))
    assert skops_io.load(path, trusted=[]).predict_proba(X)[:, 1] == pytest.approx(
        CALIBRATED.predict_proba(X), abs=1e-12
    )
