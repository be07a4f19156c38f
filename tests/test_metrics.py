"""Metrics decide which classifier ships and what a report claims; scikit-learn is the oracle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from support.outcomes import labelled, laws, predictions

from memaudit.metrics import (
    Interval,
    brier,
    clopper_pearson,
    expected_calibration_error,
    expected_count,
    pr_auc,
    roc_auc,
)


@laws
@given(predictions())
def test_ranking_metrics_and_brier_agree_with_sklearn(prediction):
    """Ties included: windows that occur equally often often score alike."""
    extracted, probabilities = prediction

    assert roc_auc(extracted, probabilities) == pytest.approx(
        roc_auc_score(extracted, probabilities), abs=1e-12
    )
    assert pr_auc(extracted, probabilities) == pytest.approx(
        average_precision_score(extracted, probabilities), abs=1e-12
    )
    assert brier(extracted, probabilities) == pytest.approx(
        brier_score_loss(extracted, probabilities), abs=1e-12
    )


@laws
@given(predictions(), st.randoms(use_true_random=False))
def test_metrics_do_not_depend_on_the_order_of_examples(prediction, random):
    """Shards may arrive in any order."""
    extracted, probabilities = prediction
    order = list(range(len(extracted)))
    random.shuffle(order)

    for metric in (roc_auc, pr_auc, brier, expected_calibration_error):
        assert metric(extracted[order], probabilities[order]) == pytest.approx(
            metric(extracted, probabilities), abs=1e-12
        )


@laws
@given(predictions())
def test_reversed_scores_mirror_the_roc_auc(prediction):
    """A tie counts half, from both sides."""
    extracted, probabilities = prediction

    assert roc_auc(extracted, -probabilities) == pytest.approx(
        1 - roc_auc(extracted, probabilities), abs=1e-12
    )


def test_constant_scores_have_chance_level():
    """AUC one half, average precision the prevalence: nothing was learned."""
    extracted = labelled(1, 0, 0, 0)

    assert roc_auc(extracted, np.full(4, 0.7)) == 0.5
    assert pr_auc(extracted, np.full(4, 0.7)) == 0.25


def test_metrics_without_the_examples_they_need_are_none():
    """A student that memorized nothing is a result, not a crash and not a 0."""
    nothing, everything = labelled(0, 0), labelled(1, 1)
    probabilities = np.array([0.1, 0.9])

    assert roc_auc(nothing, probabilities) is None
    assert roc_auc(everything, probabilities) is None
    assert pr_auc(nothing, probabilities) is None
    assert pr_auc(everything, probabilities) == 1.0
    for metric in (roc_auc, pr_auc, brier, expected_calibration_error):
        assert metric(labelled(), np.empty(0)) is None


def test_calibration_error_is_the_mean_gap_over_bins():
    """Two bins on paper: predicted .1 and observed .5, predicted .8 and observed 1."""
    extracted = labelled(0, 1, 1, 1)
    probabilities = np.array([0.05, 0.15, 0.8, 0.8])

    error = expected_calibration_error(extracted, probabilities, n_bins=2)

    assert error == pytest.approx((0.4 + 0.2) / 2)


def test_calibrated_probabilities_have_a_small_calibration_error():
    """The measure must tell calibrated from uncalibrated at a low prevalence."""
    rng = np.random.default_rng(0)
    probabilities = rng.beta(0.3, 6, size=20_000)
    extracted = rng.random(20_000) < probabilities

    assert expected_calibration_error(extracted, probabilities) < 0.005
    assert expected_calibration_error(extracted, np.sqrt(probabilities)) > 0.05


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("n_hits", "n_trials"), [(0, 1), (1, 1), (0, 29), (3, 40), (59, 60)])
def test_clopper_pearson_agrees_with_scipy(n_hits, n_trials, confidence):
    """The intervals in a report are exact."""
    oracle = binomtest(n_hits, n_trials).proportion_ci(confidence, method="exact")

    found = clopper_pearson(n_hits, n_trials, confidence)

    assert found.low == pytest.approx(oracle.low, abs=1e-12)
    assert found.high == pytest.approx(oracle.high, abs=1e-12)


def test_no_trials_say_nothing_about_a_share():
    """And more hits than trials are a mistake of the caller."""
    assert clopper_pearson(0, 0) == Interval(0.0, 1.0)
    with pytest.raises(ValueError, match="n_hits"):
        clopper_pearson(3, 2)


@laws
@given(arrays(np.float64, st.integers(0, 50), elements=st.floats(0, 1)), st.floats(0, 20))
def test_an_expected_count_lies_in_its_interval_within_the_corpus(probabilities, log_sd):
    """Between none and all, whatever the classifier claims of itself."""
    count = expected_count(probabilities, log_sd)

    assert 0 <= count.low <= count.mean + 1e-9
    assert count.mean - 1e-9 <= count.high <= len(probabilities)


def test_certain_probabilities_give_a_certain_count():
    """Closed forms: no chance and no spread, or nothing expected at all."""
    certain = np.array([1.0, 1.0, 0.0])

    assert (expected_count(certain, 0.0).low, expected_count(certain, 0.0).high) == (2, 2)
    assert expected_count(np.zeros(5), 1.0).high == 0


@pytest.mark.parametrize("log_sd", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("level", [0.0005, 0.005, 0.05])
def test_the_expected_count_interval_covers_what_it_promises(log_sd, level):
    """Simulated corpora: a factor on all probabilities, then chance; 95 % lie inside."""
    rng = np.random.default_rng(3)
    probabilities = rng.exponential(level, size=1000).clip(0, 1)
    count = expected_count(probabilities, log_sd)
    factors = np.exp(log_sd * rng.normal(size=4000))

    observed = rng.poisson(factors * count.mean).clip(0, 1000)

    assert np.mean((count.low <= observed) & (observed <= count.high)) > 0.94
