"""A promise of recall is limited by the positives that were looked at, not by the rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memaudit.training.result import misses_allowed, positives_needed, recall_bound


@pytest.mark.parametrize(("recall", "n_needed"), [(0.9, 29), (0.95, 59), (0.99, 299)])
def test_the_positives_needed_are_those_of_the_tables(recall, n_needed):
    """0.9 ** 29 < 0.05 <= 0.9 ** 28, and so on."""
    assert positives_needed(recall) == n_needed


@pytest.mark.parametrize(
    ("n_positives", "n_allowed"),
    [(28, None), (29, 0), (59, 1), (100, 4), (200, 12), (500, 38), (1000, 84)],
)
def test_more_positives_allow_more_misses(n_positives, n_allowed):
    """Exact Clopper-Pearson bounds, for a recall of 0.9."""
    assert misses_allowed(n_positives) == n_allowed


@given(n_positives=st.integers(1, 500), n_missed=st.integers(0, 500))
def test_a_miss_lowers_the_promise(n_positives, n_missed):
    """And without one it is the root of 5 %."""
    n_missed = min(n_missed, n_positives)

    assert recall_bound(n_positives) == pytest.approx(0.05 ** (1 / n_positives))
    assert recall_bound(n_positives, n_missed) <= recall_bound(n_positives)
    assert recall_bound(n_positives, n_positives) == 0


def test_nothing_is_promised_without_a_positive():
    """Nor does it crash."""
    assert recall_bound(0) == 0
