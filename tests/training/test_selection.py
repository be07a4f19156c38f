"""Selection keeps what predicts runs that were not fitted on, and nothing else."""

import numpy as np
import pytest
from support.labelled_runs import COUNT, FEATURES, NOISE, RUNS, SIGNAL, make_run

from memaudit.errors import ClassifierError
from memaudit.training.fitting import LabelledRun
from memaudit.training.selection import select_features


@pytest.mark.parametrize("n_runs", [2, 4, 7])
def test_selection_finds_the_features_that_carry_the_signal(n_runs):
    """Noise stays out; the result is in the order that a classifier wants."""
    runs = [make_run(f"run-{seed}", seed, n=1000) for seed in range(n_runs)]

    found = select_features(runs, FEATURES, feature_set="teacher")

    assert found.features == (COUNT, SIGNAL)
    assert {feature for feature, _ in found.steps} == {COUNT, SIGNAL}
    assert found.log_loss == found.steps[-1][1] < found.steps[0][1]


def test_selection_prefers_what_gets_the_level_right_in_other_runs():
    """Two features rank alike within a run; one of them is shifted from run to run."""
    shifted = [
        LabelledRun(run.name, {**run.features, NOISE: run.features[SIGNAL] + 40 * i}, run.extracted)
        for i, run in enumerate(RUNS)
    ]

    found = select_features(shifted, [NOISE, SIGNAL], feature_set="teacher", max_features=1)

    assert found.features == (SIGNAL,)


def test_selection_keeps_its_limit():
    """A small classifier may be asked for."""
    limited = select_features(RUNS, FEATURES, feature_set="teacher", max_features=1)

    assert len(limited.features) == 1


def test_selection_copes_with_runs_that_memorized_nothing():
    """Six runs, positives in two that would share a fold: each still has some to be fitted on."""
    barren = [
        LabelledRun(f"barren-{i}", run.features, np.zeros(400, dtype=bool))
        for i, run in enumerate(RUNS)
    ]
    runs = [RUNS[0], *barren, RUNS[1]]

    found = select_features(runs, FEATURES, feature_set="teacher")

    assert SIGNAL in found.features


def test_selection_needs_two_runs_with_positives():
    """Nothing can be held out of one."""
    with pytest.raises(ClassifierError, match="at least 2 runs with 5"):
        select_features(RUNS[:1], FEATURES, feature_set="teacher")
