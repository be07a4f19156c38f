"""Metrics of the heavy study, against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.outcomes import labelled, laws, predictions

from memaudit.metrics import roc_auc
from study.heavy.metrics import precision_recall_at, stratified_auc


def test_counts_at_a_threshold_include_the_threshold_itself():
    """Flagged means at or above: the boundary decides a gate."""
    counts = precision_recall_at(labelled(1, 1, 0, 0, 0), np.array([0.9, 0.4, 0.5, 0.5, 0.1]), 0.5)

    assert (counts.n_examples, counts.n_extracted) == (5, 2)
    assert (counts.n_flagged, counts.n_caught) == (3, 1)
    assert counts.precision == pytest.approx(1 / 3)
    assert counts.recall == pytest.approx(1 / 2)


def test_shares_of_nothing_are_none():
    """Precision without a flag would be 0 / 0."""
    unflagged = precision_recall_at(labelled(0, 0), np.array([0.1, 0.2]), 0.5)

    assert unflagged.precision is None
    assert unflagged.recall is None


def test_pairs_within_strata_ignore_what_only_the_stratum_knows():
    """Scores that follow the number of occurrences alone rank at chance among equals."""
    occurrences = np.repeat([1, 2, 16], 4)
    extracted = labelled(0, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1)

    assert roc_auc(extracted, occurrences / 16) > 0.7
    assert stratified_auc(extracted, occurrences / 16, occurrences) == 0.5


@laws
@given(predictions(), st.data())
def test_the_stratified_auc_counts_every_pair_of_equal_stratum(prediction, data):
    """Against the definition, pair by pair."""
    extracted, probabilities = prediction
    strata = data.draw(arrays(np.int64, len(extracted), elements=st.integers(0, 3)))
    pairs = [
        np.sign(probabilities[i] - probabilities[j]) / 2 + 0.5
        for i in np.flatnonzero(extracted)
        for j in np.flatnonzero(~extracted)
        if strata[i] == strata[j]
    ]

    found = stratified_auc(extracted, probabilities, strata)

    assert found == (pytest.approx(np.mean(pairs), abs=1e-12) if pairs else None)


def test_one_stratum_is_the_plain_auc_and_unmixed_strata_hold_no_pair():
    """The two ends of stratification."""
    extracted, probabilities = labelled(1, 0, 1, 0), np.array([0.9, 0.2, 0.3, 0.4])

    assert stratified_auc(extracted, probabilities, np.zeros(4)) == roc_auc(
        extracted, probabilities
    )
    assert stratified_auc(extracted, probabilities, extracted) is None
