"""Screens are fitted and calibrated apart from what they are judged on, and the cards count right."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from memaudit.classifier import load_classifier
from memaudit.features import FEATURE_SETS
from memaudit.objectives import Objective
from study.heavy.cells import CellResult
from study.heavy.recipe import Student, read_recipe
from study.heavy.screens import fit_screen, objectives_of, prefilter_at, screen_card

RECIPE = read_recipe(Path(__file__).parents[3] / "study" / "recipes" / "heavy.toml")
BEFORE = Path(__file__).parents[3] / "study" / "before"
TEMPERED = (Student("soft"), Student("hard", "hard"), Student("soft-t1", temperature=1.0))


def make_result(role, seed, n=120):
    """A made-up cell of half-repeated windows whose teacher is surer of what it saw more often."""
    rng = np.random.default_rng(seed)
    cell = next(cell for cell in RECIPE.cells if cell.role == role)
    cell = msgspec.structs.replace(cell, name=f"{role}-{seed}", students=TEMPERED)
    occurrences = 2.0 ** rng.integers(0, 4, n)
    features = {name: rng.random(n) for name in FEATURE_SETS["teacher+student"]}
    features |= {
        "occurrences": occurrences,
        "log_occurrences": np.log(occurrences),
        "zlib_entropy": rng.uniform(60, 200, n),
        "teacher_suffix_max_entropy": rng.uniform(0, 4, n) / occurrences,
    }
    windows = rng.integers(0, 99, (n, 32), dtype=np.int32)
    return CellResult(cell, windows, features, {"soft": np.zeros(n, np.bool_)}, {}, 0.0)


@pytest.fixture(scope="module")
def classifier():
    """One of this study."""
    return load_classifier(BEFORE / "teacher.json")


@pytest.fixture(scope="module")
def results():
    """Cells of all roles."""
    roles = ("train", "calibration", "test")
    return [make_result(role, seed) for seed in range(4) for role in roles]


def test_a_screen_looks_at_every_objective_of_soft_labels_once(results):
    """Hard labels have classifiers of their own."""
    assert objectives_of(results) == [Objective(temperature=1.0), Objective(temperature=2.0)]


def test_test_cells_have_no_say_in_a_screen(results, classifier):
    """Else the survival on the card would be flattered."""
    without = [result for result in results if result.cell.role != "test"]

    assert fit_screen(classifier, results, {}) == fit_screen(classifier, without, {})


def test_calibration_cells_move_the_cutoff_and_nothing_else(results, classifier):
    """The first stage must not have seen the windows that vouch for it."""
    others = [result for result in results if result.cell.role != "calibration"]
    others += [make_result("calibration", seed) for seed in range(10, 14)]

    screen, other = (fit_screen(classifier, each, {}) for each in (results, others))
    assert screen.estimator == other.estimator
    assert screen.flagged != other.flagged


def test_a_window_counts_once_however_many_objectives_flag_it(results, classifier):
    """Five views of one window are no five witnesses."""
    screen = fit_screen(classifier, results, {})
    windows = sum(len(each.windows) for each in results if each.cell.role == "calibration")
    by_objective = screen_card(screen, classifier, results, "")["calibration"][
        "flagged_windows_by_objective"
    ]

    assert max(by_objective.values()) <= len(screen.flagged) <= windows
    assert sum(by_objective.values()) > len(screen.flagged)


def test_a_card_counts_what_is_left_out_and_what_is_lost(results, classifier):
    """By hand, with what the cascade says of the corpus' features."""
    screen = fit_screen(classifier, results, {})
    card = screen_card(screen, classifier, results, "none")
    survival = card["curve"][-1]["survival"]
    cascade = prefilter_at(screen, classifier, survival)
    runs = [each.run() for each in results if each.cell.role == "test"]
    kept = [cascade.keeps(run.features) for run in runs]
    flagged = [
        classifier.predict_proba(np.column_stack([run.features[f] for f in classifier.features]))
        >= classifier.threshold
        for run in runs
    ]

    figures = card["curve"][-1]
    assert figures["windows"] == sum(map(len, kept))
    assert figures["windows_read"] == sum(int(keep.sum()) for keep in kept)
    assert figures["teacher_tokens_read"] == 32 * figures["windows_read"]
    assert figures["flagged"] == sum(int(flags.sum()) for flags in flagged)
    assert figures["survived"] == sum(
        int((f & k).sum()) for f, k in zip(flagged, kept, strict=True)
    )
    assert set(card["test_by_cell"]) == {f"test-{seed}" for seed in range(4)}


def test_the_bound_alone_loses_nothing(results, classifier):
    """On any cells whatever."""
    card = screen_card(fit_screen(classifier, results, {}), classifier, results, "")

    for figures in card["bound_alone"].values():
        assert figures["survived"] == figures["flagged"]


def test_too_few_flagged_windows_leave_the_bound_alone(results, classifier):
    """A small study ships a screen that vouches for little, and says so."""
    few = [*results[:2], *[result for result in results if result.cell.role == "test"]]
    screen = fit_screen(classifier, few, {})

    assert screen.misses(0.995) is None
    assert screen_card(screen, classifier, few, "")["calibration"]["cutoff"] is None
    assert prefilter_at(screen, classifier, 0.995).estimator is None


def test_a_screen_looks_at_what_its_classifier_is_told_by_the_student(results):
    """The student costs little, and half of the verdict is known before the teacher has run."""
    judge = load_classifier(BEFORE / "teacher+student.json")
    of_student = {name for name in judge.features if name.startswith("student_")}

    screen = fit_screen(judge, results, {})
    card = screen_card(screen, judge, results, "")

    assert of_student
    assert of_student <= {*screen.estimator.features}
    assert not [name for name in screen.estimator.features if name.startswith("teacher_")]
    figures = card["curve"][0]
    assert figures["reference_tokens_read_before"] == figures["tokens"]
