"""A pilot moves the level, in proportion to what it can know; the order stays."""

import numpy as np
import pytest
from support.verified_tables import COUNT, SIGNAL, make_rows, write_run, write_runs

from memaudit.classifier import load_classifier
from memaudit.errors import ClassifierError
from memaudit.training.fit import fit_on_verification
from memaudit.training.recalibration import fit_shift, recalibrate
from memaudit.training.result import FitOptions

FEATURES = FitOptions(features=(SIGNAL, COUNT))


def pilot(n, *, shift=0.0, slope=1.0, level=-4.0, seed=0):
    """Log-odds as a classifier gives them, and labels by other ones."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(level, 1.5, size=n)
    true = level + shift + slope * (log_odds - level)
    return log_odds, rng.random(n) < 1 / (1 + np.exp(-true))


def expected(log_odds):
    """The sum of probabilities."""
    return (1 / (1 + np.exp(-log_odds))).sum()


@pytest.mark.parametrize(("shift", "slope"), [(0.0, 1.0), (2.0, 1.0), (-1.5, 1.0), (1.0, 0.7)])
def test_a_large_pilot_decides_alone(shift, slope):
    """The two numbers that made the labels come out, whatever they were."""
    log_odds, extracted = pilot(60_000, shift=shift, slope=slope)

    found = fit_shift(log_odds, extracted)

    truth = -4.0 + shift + slope * (log_odds + 4.0)
    assert found.slope == pytest.approx(slope, abs=0.06)
    assert expected(found.apply(log_odds)) == pytest.approx(expected(truth), rel=0.06)


def test_a_small_pilot_is_not_taken_at_its_word():
    """Five examples where one was expected may be luck: the level moves most of the way."""
    log_odds = np.full(500, -6.2)
    extracted = np.arange(500) < 5

    found = fit_shift(log_odds, extracted)

    taken_at_its_word = np.log(5 / 495) + 6.2
    assert 0.7 * taken_at_its_word < found.shift < 0.99 * taken_at_its_word
    assert found.slope == pytest.approx(1.0, abs=1e-6)


def test_the_level_of_an_agreeing_pilot_stays():
    """No change is what the prior says, so agreement must not move it."""
    log_odds, extracted = pilot(3000)

    assert abs(fit_shift(log_odds, extracted).shift) < 0.25


def test_a_larger_pilot_leaves_less_unknown():
    """The interval narrows with the memorized examples; the spread of seeds stays."""
    spreads = [fit_shift(*pilot(n, shift=1.0)).count_log_sd for n in (300, 3000, 30_000)]

    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] >= 0.1


@pytest.mark.parametrize("seed", range(6))
def test_the_number_expected_elsewhere_is_right_within_its_interval(seed):
    """A pilot of 800 of a corpus whose level is off by a factor of five."""
    log_odds, extracted = pilot(800, shift=2.0, level=-5.0, seed=seed)
    found = fit_shift(log_odds, extracted)

    elsewhere, recited = pilot(20_000, shift=2.0, level=-5.0, seed=100 + seed)
    mean, n = expected(found.apply(elsewhere)), recited.sum()
    assert expected(elsewhere) < 0.4 * n
    assert np.exp(-2.6 * found.count_log_sd) < n / mean < np.exp(2.6 * found.count_log_sd)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A classifier of runs that memorize little."""
    folder = tmp_path_factory.mktemp("fitted")
    fit_on_verification(write_runs(folder, 3, n=600, level=-3.0), folder / "low", FEATURES)
    return folder / "low"


def test_a_classifier_takes_the_level_of_the_pilot_and_keeps_its_order(fitted, tmp_path):
    """From a fifth of what is found to all of it, with the same ranking."""
    pair = write_run(tmp_path, "pilot", *make_rows(seed=9, n=400, level=-0.5))

    result = recalibrate(str(fitted), [pair], tmp_path / "mine")

    before, after = result.figures_before, result.figures_after
    assert before.expected.mean < 0.6 * result.n_extracted
    assert after.expected.mean == pytest.approx(result.n_extracted, rel=0.1)
    assert after.expected.low <= result.n_extracted <= after.expected.high
    assert after.log_loss < before.log_loss
    mine, low = load_classifier(tmp_path / "mine"), load_classifier(fitted)
    assert mine == result.classifier
    assert (mine.coefficients, mine.threshold) == (low.coefficients, low.threshold)
    X = np.column_stack([result.runs[0].run.features[name] for name in mine.features])
    shifted = np.log(mine.predict_proba(X) / (1 - mine.predict_proba(X)))
    earlier = np.log(low.predict_proba(X) / (1 - low.predict_proba(X)))
    assert shifted == pytest.approx(result.shift.apply(earlier), abs=1e-9)
    assert mine.provenance["recalibrated"] == f"from low, {low.digest}"


def relabelled(change, level=-3.0):
    """Rows whose labels were changed."""
    scores, labels = make_rows(seed=9, n=300, level=level)
    changed = change(np.array([row["extracted_by_student"] for row in labels]), scores)
    labels = [
        row | {"extracted_by_student": bool(x)} for row, x in zip(labels, changed, strict=True)
    ]
    return scores, labels


def test_a_level_that_no_training_explains_is_refused(fitted, tmp_path):
    """Odds that are wrong by a factor of thousands are those of other rows or another teacher."""
    scores, labels = relabelled(lambda y, scores: np.array([r[SIGNAL] for r in scores]) > 0.5)
    scores = [row | {SIGNAL: row[SIGNAL] - 6} for row in scores]
    pair = write_run(tmp_path, "pilot", scores, labels)

    with pytest.raises(ClassifierError, match="contradicts the classifier low: it expects "):
        recalibrate(str(fitted), [pair], tmp_path / "mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, scores: np.cumsum(y) * y > np.cumsum(y)[-1] - 4, "at least 5 .* memorized"),
        (lambda y, scores: np.ones(300), "at least 5 .* that were not memorized"),
        (
            lambda y, scores: np.array([row[SIGNAL] for row in scores]) < -1.2,
            "no better than chance",
        ),
    ],
)
def test_a_pilot_that_makes_no_sense_is_refused(fitted, tmp_path, change, message):
    """Labels of other rows would give a classifier that looks like any other."""
    pair = write_run(tmp_path, "pilot", *relabelled(change))

    with pytest.raises(ClassifierError, match=message) as caught:
        recalibrate(str(fitted), [pair], tmp_path / "mine")

    assert caught.value.hint
    assert not (tmp_path / "mine").exists()
