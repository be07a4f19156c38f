"""Predicted against found: resampling has the width of theory, and keeps what it should."""

import numpy as np

from memaudit.evaluation import Compared, bootstrap
from memaudit.metrics import Interval, pr_auc, roc_auc


def examples(extracted, probabilities):
    """The examples of one run, flagged from one half on."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return Compared(np.asarray(extracted, dtype=np.bool_), probabilities, probabilities >= 0.5)


def ranking(metric):
    """The mean of a metric over runs."""
    return lambda runs: metric(runs[0].extracted, runs[0].probabilities)


def mean(runs):
    """The mean of what was predicted, over the examples of all runs."""
    return float(np.concatenate([run.probabilities for run in runs]).mean())


def interval(runs, statistic, *, n, seed=0, resample_runs=False):
    """The interval of one statistic."""
    found = bootstrap(runs, {"it": statistic}, n=n, seed=seed, resample_runs=resample_runs)
    return found["it"].interval


def test_bootstrap_intervals_are_reproducible_and_hold_the_estimate():
    """The same seed gives the same report; another seed another resample."""
    rng = np.random.default_rng(1)
    probabilities = rng.random(200)
    runs = [examples(rng.random(200) < probabilities, probabilities)]

    found = interval(runs, ranking(roc_auc), n=200)

    assert found == interval(runs, ranking(roc_auc), n=200)
    assert found != interval(runs, ranking(roc_auc), n=200, seed=1)
    assert found.low < roc_auc(runs[0].extracted, probabilities) < found.high


def test_the_bootstrap_of_a_mean_has_the_width_of_theory():
    """Closed form: 1.96 standard errors on each side."""
    values = np.random.default_rng(2).normal(size=400)

    found = interval([examples(values > 0, values)], mean, n=2000)

    assert abs((found.high - found.low) / (2 * 1.96 * values.std() / 20) - 1) < 0.1


def test_resampling_within_runs_keeps_the_size_of_every_run():
    """A mean over runs of fixed level does not vary then; it does where runs are drawn, too."""
    runs = [examples(np.ones(n), np.full(n, level)) for n, level in ((10, 0.0), (30, 1.0))]

    assert interval(runs, mean, n=50) == Interval(0.75, 0.75)
    assert interval(runs, mean, n=50, resample_runs=True) == Interval(0.0, 1.0)


def test_there_is_no_interval_where_the_statistic_rarely_exists():
    """Better none than one of the lucky resamples."""
    runs = [examples(np.zeros(20), np.linspace(0, 1, 20))]

    assert interval(runs, ranking(pr_auc), n=50) is None
    assert interval(runs, mean, n=0) is None
