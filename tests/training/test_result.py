"""Held-out figures: known on paper, with intervals that shrink for the right reasons."""

import numpy as np
import pytest
from support.fakes import make_classifier

from memaudit.metrics import clopper_pearson, pr_auc, roc_auc
from memaudit.training.fitting import LabelledRun
from memaudit.training.result import held_out_figures, judge_held_out, merge_by_name

CLASSIFIER = make_classifier()


def make_judged(name="run", seed=0, n=80, shift=0.0):
    """What the fakes' classifier says of random examples that follow it."""
    rng = np.random.default_rng(seed)
    features = {
        "log_occurrences": np.zeros(n),
        "teacher_suffix_mean_logprob": rng.normal(-3 + shift, 1, size=n),
    }
    probabilities = CLASSIFIER.predict_proba(np.column_stack(list(features.values())))
    return judge_held_out(CLASSIFIER, LabelledRun(name, features, rng.random(n) < probabilities))


RUNS = [make_judged(f"run-{i}", i) for i in range(3)]


def figures(runs=RUNS, kind="example", seed=0):
    """Return the figures."""
    return held_out_figures(runs, kind, seed=seed)


def test_ranking_is_a_mean_over_runs_and_shares_are_over_examples():
    """A large run does not drown a small one; a count is a count."""
    found = figures()

    pairs = [(part.run.extracted, part.compared.probabilities) for part in RUNS]
    extracted, flagged = (
        np.concatenate(columns)
        for columns in (
            [part.run.extracted for part in RUNS],
            [part.compared.flagged for part in RUNS],
        )
    )
    n_caught = int((extracted & flagged).sum())
    assert found["roc_auc"].value == pytest.approx(np.mean([roc_auc(*pair) for pair in pairs]))
    assert found["pr_auc"].value == pytest.approx(np.mean([pr_auc(*pair) for pair in pairs]))
    assert found["recall"].value == n_caught / extracted.sum()
    assert found["recall"].interval == clopper_pearson(n_caught, int(extracted.sum()))
    assert found["precision"].value == n_caught / flagged.sum()
    assert found["prevalence"].value == extracted.mean()


def test_every_interval_holds_its_figure():
    """Ninety-five in a hundred do; these do, for their seed is fixed."""
    for name, figure in figures(kind="run").items():
        if name != "calibration_error":  # resampling adds noise, which never lowers a gap
            assert figure.interval.low <= figure.value <= figure.interval.high, name


def test_runs_that_differ_widen_the_interval_when_runs_are_drawn():
    """Three runs say little about the next one, however many examples they hold."""
    unlike = [*RUNS, make_judged("easy", 9, shift=2.0), make_judged("hard", 10, shift=-2.0)]

    def width(kind):
        interval = figures(unlike, kind)["brier"].interval
        return interval.high - interval.low

    assert width("run") > 1.2 * width("example")


def test_the_same_seed_gives_the_same_intervals():
    """A card is the same byte for byte."""
    assert figures(kind="run") == figures(kind="run")
    assert figures(seed=1) != figures(seed=0)


def test_nothing_is_said_of_a_threshold_that_saw_the_examples():
    """It would flatter."""
    assert set(figures(kind="calibration")) == {"prevalence", "roc_auc", "pr_auc"}


def test_figures_that_do_not_exist_are_none():
    """A run without a positive has no ranking, and one without a flag no precision."""
    barren = LabelledRun("barren", RUNS[0].run.features, np.zeros(80, dtype=bool))
    judged = judge_held_out(CLASSIFIER, barren)
    found = figures([judged])

    assert found["pr_auc"].document() == {"value": None, "low": None, "high": None}
    assert found["recall"].value is None
    assert found["prevalence"].value == 0


def test_parts_of_a_run_are_put_together():
    """Five folds of one run are one run, judged by five fits."""
    first, second = make_judged("a", 0), make_judged("a", 1)

    (merged,) = merge_by_name([first, second])

    assert len(merged.run.extracted) == len(merged.compared.probabilities) == 160
    assert merged.run.n_extracted == first.run.n_extracted + second.run.n_extracted
    assert merged.expected == first.expected + second.expected
    assert [run.name for run in merge_by_name([first, RUNS[1], second])] == ["a", "run-1"]
