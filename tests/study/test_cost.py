"""What a study of miniatures would cost: counts that are known on paper."""

from pathlib import Path

import numpy as np
import pytest

from memaudit.study import cost as study_costs
from memaudit.study.cost import StepTime, Work, cell_work, mean_repeats, n_parameters, study_cost
from memaudit.study.recipe import Cell, MiniatureSize, Pretraining, Recipe, Student, TrainingPlan
from memaudit.study.run import cell_path, cell_settings

SMALL, LARGE = MiniatureSize(32, 1), MiniatureSize(64, 1)


def make_cell(name="one", **changed):
    """A cell of 100 natural examples of 8 + 8 tokens."""
    settings = {
        "name": name,
        "plan": "p",
        "family": "gpt-neox",
        "corpus": "prose",
        "role": "test",
        "window_half": 8,
        "n_examples": 100,
        "max_repeats": 1,
        "seed": 0,
        "teacher": LARGE,
        "student": SMALL,
        "teacher_plan": TrainingPlan(3, 1e-3),
        "student_plan": TrainingPlan(4, 1e-3),
        "students": (Student("soft"), Student("hard", "hard")),
        "pretrained": False,
    }
    return Cell(**(settings | changed))


def test_work_is_counted_by_the_formulas():
    """100 examples of 16 tokens, in batches of 16: 7 steps an epoch."""
    teacher, student = (n_parameters("gpt-neox", size, 300) for size in (LARGE, SMALL))
    work = cell_work(make_cell(), 300)

    assert work["teachers"] == Work(4800, 21, 6.0 * teacher * 4800)
    assert work["baselines"] == Work(6400, 28, 6.0 * student * 6400)
    assert work["students"] == Work(12_800, 56, 6.0 * student * 12_800)
    assert work["hard labels"] == Work(1600, 56, 2.0 * teacher * 1600)
    assert "interventions" not in work


def test_a_cell_that_keeps_its_models_is_distilled_six_times_more():
    """Once for each intervention."""
    work = cell_work(make_cell(keep_models=True), 300)

    assert work["interventions"].tokens == 6 * work["baselines"].tokens


@pytest.mark.parametrize(("most", "mean"), [(1, 1.0), (2, 4 / 3), (4, 12 / 7)])
def test_repetition_is_expected_by_its_odds(most, mean):
    """1, 2 and 4 times at odds of 1, 1/2 and 1/4."""
    assert mean_repeats(most) == pytest.approx(mean)


def test_finished_cells_cost_nothing(tmp_path, monkeypatch):
    """What is left is what a user waits for."""
    monkeypatch.setattr(study_costs, "_measure", lambda cells, size: StepTime(0.1, 0.0))
    cells = (make_cell("one"), make_cell("two"))
    recipe = Recipe(300, Pretraining(1, 1e-3), make_cell("demo"), cells)
    settings = np.frombuffer(cell_settings(recipe, cells[0]), dtype=np.uint8)
    with cell_path(tmp_path, cells[0]).open("wb") as file:
        np.savez(file, settings=settings)

    cost = study_cost(recipe, Path("unused"), tmp_path)
    assert (cost.cells, cost.finished, cost.bases) == (3, 1, 0)
    assert cost.work["teachers"].steps == 42
    assert cost.core_seconds["teachers"] == pytest.approx(4.2)
    assert cost.document()["total_core_seconds"] == pytest.approx(0.1 * 2 * (21 + 28 + 56 + 56))


@pytest.mark.slow
def test_time_is_measured_on_the_trainings_themselves():
    """Any machine, any load: only that there is a time, and that more work takes longer."""
    step_time = study_costs._measure((make_cell(),), 300)

    assert step_time.seconds(Work(0, 10, 1e12)) > step_time.seconds(Work(0, 10, 1e9)) > 0
