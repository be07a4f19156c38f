"""The judging of classifiers on whole runs."""

import numpy as np
import pytest

from study.heavy.evaluation import Judged, evaluate


def judged(extracted, probabilities, occurrences=None):
    """Return a run with a threshold of one half."""
    extracted = np.array(extracted, dtype=np.bool_)
    counts = np.ones(len(extracted)) if occurrences is None else np.array(occurrences, float)
    return Judged(extracted, np.array(probabilities, dtype=float), 0.5, counts)


def test_a_perfect_ranking_scores_one_everywhere():
    """The upper end of every statistic, by hand."""
    report = evaluate([judged([1, 0, 0, 1], [0.9, 0.1, 0.2, 0.8])] * 2, n_resamples=10)

    for name in ("roc_auc", "pr_auc", "precision", "recall", "equal_count_auc"):
        assert report[name]["value"] == 1


def test_precision_and_recall_pool_the_runs():
    """One caught of two extracted, one of two flagged."""
    runs = [judged([1, 0], [0.9, 0.1]), judged([1, 0], [0.2, 0.7])]

    report = evaluate(runs, n_resamples=0)

    assert report["precision"]["value"] == pytest.approx(0.5)
    assert report["recall"]["value"] == pytest.approx(0.5)


def test_exposure_alone_has_no_equal_count_auc_above_chance():
    """A ranking by count says nothing among examples of one count."""
    run = judged([1, 0, 1, 0], [0.8, 0.8, 0.1, 0.1], occurrences=[8, 8, 1, 1])

    assert evaluate([run], n_resamples=0)["equal_count_auc"]["value"] == pytest.approx(0.5)


def test_intervals_hold_the_value_and_are_repeatable():
    """The same seed gives the same card."""
    rng = np.random.default_rng(0)
    runs = [judged(rng.random(200) < 0.1, rng.random(200)) for _ in range(3)]

    first, second = (evaluate(runs, n_resamples=50, seed=3) for _ in range(2))

    assert first == second
    assert first["roc_auc"]["low"] < first["roc_auc"]["value"] < first["roc_auc"]["high"]


def test_a_run_without_positives_leaves_ranking_undefined():
    """No number is better than a made-up one."""
    report = evaluate([judged([0, 0], [0.1, 0.2])], n_resamples=5)

    assert report["roc_auc"] == {"value": None, "low": None, "high": None}
