"""Fitting turns runs into a classifier; what it writes must equal what scikit-learn fitted."""

import numpy as np
import pytest
from support.labelled_runs import COUNT, FEATURES, NOISE, RUNS, SIGNAL, make_run

from memaudit.classifier import load_classifier, save_classifier
from memaudit.errors import ClassifierError
from memaudit.training.fitting import LabelledRun, fit_classifier, fit_pipeline

CALIBRATION_RUNS = [make_run(f"held-out-{seed}", 100 + seed) for seed in range(3)]


def fit(runs=RUNS, calibration_runs=CALIBRATION_RUNS, features=FEATURES, **changes):
    """Fit with the names that every test shares."""
    fields = {"name": "teacher", "feature_set": "teacher", "provenance": {"seed": "0"}}
    return fit_classifier(runs, calibration_runs, features=features, **(fields | changes))


def matrix(run):
    """Return the run's X."""
    return np.column_stack([run.features[name] for name in FEATURES])


def test_a_classifier_equals_the_pipeline_of_sklearn_before_and_after_saving(tmp_path):
    """What is read without scikit-learn is what scikit-learn fitted, to 1e-12."""
    X = np.concatenate([matrix(run) for run in RUNS])
    y = np.concatenate([run.extracted for run in RUNS])
    pipeline = fit_pipeline(X, y, np.ones(len(X)), C=1.0)

    save_classifier(fit(), tmp_path)
    classifier = load_classifier(tmp_path)

    new = matrix(make_run("new", 7))
    expected = pipeline.decision_function(new)
    assert classifier.predict_logit(new) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert classifier == fit()


def test_calibrated_probabilities_match_the_risk_that_made_the_labels():
    """At natural prevalence: neither balancing nor calibration may shift them."""
    run = make_run("new", 8, n=20_000)
    logit = 1.5 * (run.features[SIGNAL] + 2) + 2 * run.features[COUNT] - 3

    probabilities = fit().predict_proba(matrix(run))

    assert np.abs(probabilities - 1 / (1 + np.exp(-logit))).mean() < 0.03


def test_calibration_follows_the_prevalence_of_the_calibration_runs():
    """Runs that memorize less lower every probability, and keep the order."""
    rare = [make_run(f"rare-{seed}", 200 + seed, level=-5.0) for seed in range(3)]

    common, lowered = fit(), fit(calibration_runs=rare)

    X = matrix(make_run("new", 9))
    assert (common.predict_logit(X) == lowered.predict_logit(X)).all()
    assert lowered.predict_proba(X).mean() < common.predict_proba(X).mean() / 2


def f1(extracted, flagged):
    """Harmonic mean of precision and recall."""
    return 2 * (extracted & flagged).sum() / (extracted.sum() + flagged.sum())


def test_the_threshold_has_the_best_mean_f1_over_the_calibration_runs():
    """Against every other threshold, one by one."""
    classifier = fit()
    probabilities = [classifier.predict_proba(matrix(run)) for run in CALIBRATION_RUNS]

    def mean_f1(threshold):
        pairs = zip(CALIBRATION_RUNS, probabilities, strict=True)
        return np.mean([f1(run.extracted, p >= threshold) for run, p in pairs])

    best = max(mean_f1(threshold) for threshold in np.concatenate(probabilities))
    assert mean_f1(classifier.threshold) == pytest.approx(best, abs=1e-12)


def test_every_run_weighs_the_same():
    """A corpus ten times as large must not decide alone: copies of its rows change nothing."""
    large = RUNS[0]
    repeated = LabelledRun(
        large.name,
        {name: np.tile(column, 10) for name, column in large.features.items()},
        np.tile(large.extracted, 10),
    )

    plain, weighted = fit(C=1e6), fit([repeated, *RUNS[1:]], C=1e6)

    assert weighted.means == pytest.approx(plain.means, rel=1e-9)
    assert weighted.coefficients == pytest.approx(plain.coefficients, rel=1e-3)


def test_the_count_spread_grows_with_the_disagreement_of_the_runs():
    """Prevalence that varies from run to run makes an expected number less sure."""
    levels = (-6.0, -3.0, -1.0)
    unlike = [make_run(f"unlike-{i}", 300 + i, level=level) for i, level in enumerate(levels)]

    alike = [make_run(f"alike-{i}", 400 + i, n=4000) for i in range(3)]

    assert fit(calibration_runs=unlike).count_log_sd > 0.7
    assert fit(calibration_runs=alike).count_log_sd == 0.1


def test_one_calibration_run_is_enough_to_calibrate():
    """Small studies have one; its spread is then the floor."""
    assert fit(calibration_runs=CALIBRATION_RUNS[:1]).count_log_sd == 0.1


def test_logits_that_separate_the_classes_give_a_finite_calibration():
    """Perfect prediction happens on easy corpora; the slope must not run away."""
    runs = [make_run(f"run-{seed}", seed) for seed in range(3)]
    separable = [LabelledRun(run.name, run.features, run.features[SIGNAL] > -1.5) for run in runs]

    classifier = fit(separable[:2], separable[2:])

    probabilities = classifier.predict_proba(matrix(separable[2]))
    assert f1(separable[2].extracted, probabilities >= classifier.threshold) > 0.95
    assert 0 < classifier.calibration.slope < 100


def test_ranges_are_those_of_the_training_rows():
    """They tell later how far a corpus is from what was fitted."""
    X = np.concatenate([matrix(run) for run in RUNS])

    ranges = np.array(fit().feature_ranges)

    assert (ranges[:, 0] == X.min(axis=0)).all()
    assert (ranges[:, 1] == X.max(axis=0)).all()
    assert fit().out_of_range_rate(X) == dict.fromkeys(FEATURES, 0.0)


def test_a_constant_feature_does_no_harm():
    """A corpus without repeats has occurrences of 1 throughout."""
    runs = [
        LabelledRun(run.name, {**run.features, COUNT: np.zeros(len(run.extracted))}, run.extracted)
        for run in (*RUNS, *CALIBRATION_RUNS)
    ]

    classifier = fit(runs[:4], runs[4:])

    assert classifier.scales[1] == 1.0
    assert classifier.coefficients[1] == 0.0


@pytest.mark.parametrize(
    ("n_fit", "n_calibration", "message"),
    [
        (
            19,
            10,
            "fitting needs at least 20 examples that were extracted, the 1 runs given have 19",
        ),
        (20, 9, "calibration needs at least 10 examples that were extracted, .* have 9"),
        (400, 10, "fitting needs at least 20 examples that were not extracted, .* have 0"),
    ],
)
def test_too_few_labels_of_a_kind_are_refused_with_their_number(n_fit, n_calibration, message):
    """Coefficients from a handful of positives are noise, and would look like any other."""
    run, held_out = make_run("run", 0), make_run("held out", 1)
    runs = [LabelledRun("run", run.features, np.arange(400) < n_fit)]
    calibration_runs = [LabelledRun("held out", held_out.features, np.arange(400) < n_calibration)]

    with pytest.raises(ClassifierError, match=message) as caught:
        fit(runs, calibration_runs)
    assert caught.value.hint


def test_a_run_on_both_sides_is_refused():
    """Calibration on training rows promises too much."""
    with pytest.raises(ClassifierError, match="1 in both, such as run-0"):
        fit(calibration_runs=[*CALIBRATION_RUNS, RUNS[0]])


def test_a_fit_that_ranks_the_calibration_runs_backwards_is_refused():
    """A falling calibration would turn the verdict around."""
    backwards = [make_run(f"backwards-{seed}", 500 + seed, sign=-1.0) for seed in range(3)]

    with pytest.raises(ClassifierError, match="backwards"):
        fit(calibration_runs=backwards)


def test_missing_and_broken_features_are_named():
    """One NaN would otherwise poison every coefficient."""
    broken = make_run("broken", 3)
    broken.features[NOISE][5] = np.nan

    with pytest.raises(ClassifierError, match=r"run broken: feature zlib_entropy .* 1 example$"):
        fit([*RUNS, broken])
    with pytest.raises(ClassifierError, match="run run-0 has no feature zlib_ratio"):
        fit(features=("zlib_entropy", "zlib_ratio"))


def test_features_out_of_order_are_a_mistake_of_the_caller():
    """A classifier could not be read back."""
    with pytest.raises(ValueError, match="in its order"):
        fit(features=FEATURES[::-1])


def test_columns_of_unequal_length_are_a_mistake_of_the_caller():
    """Labels would otherwise belong to other examples."""
    with pytest.raises(ValueError, match="expected zlib_entropy of shape"):
        LabelledRun("run", {"zlib_entropy": np.zeros(3)}, np.zeros(2, dtype=bool))
