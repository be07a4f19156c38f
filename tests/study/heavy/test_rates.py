"""Rates of the sets that teachers, baselines and students recite."""

import numpy as np
import pytest

from study.heavy.cells import CellResult
from study.heavy.rates import MAIN_FIGURES, ratio_figures, set_counts
from study.heavy.recipe import Cell, Student, TrainingPlan
from study.recipe import Size


def result(**extracted):
    """Return the result of a cell of which only the sets matter."""
    sets = {name: np.array(flags, dtype=bool) for name, flags in extracted.items()}
    size, plan = Size(32, 1), TrainingPlan(1, 1e-3)
    cell = Cell(
        name="cell", plan="plan", family="olmo2", corpus="prose", role="test", window_half=8,
        n_examples=4, max_repeats=1, seed=0, teacher=size, student=size, teacher_plan=plan,
        student_plan=plan, students=(Student("soft"),),
    )  # fmt: skip
    return CellResult(cell, np.zeros((4, 16), np.int32), {}, sets, {}, 0.0)


def test_sets_are_counted_as_the_paper_defines_them():
    """Easy is T∩B; inherited is what the student shares with the teacher alone."""
    counts = set_counts(
        result(
            teacher=[1, 1, 1, 0, 0],
            baseline=[1, 0, 0, 1, 0],
            soft=[1, 1, 0, 0, 1],
        )
    )

    assert counts["easy"] == 1
    assert counts["teacher_only"] == 2
    assert (counts["soft_in_easy"], counts["soft_inherited"], counts["soft_new"]) == (1, 1, 1)


def test_ratios_are_of_summed_counts_and_lie_in_their_interval():
    """Large cells weigh more than small ones."""
    cells = [{"soft": 1, "examples": 10}, {"soft": 9, "examples": 30}]

    figure = ratio_figures(cells, {"rate": ("soft", "examples")})["rate"]

    assert figure["value"] == pytest.approx(10 / 40)
    assert (figure["low"], figure["high"]) == pytest.approx((0.1, 0.3))


def test_a_figure_without_a_whole_does_not_exist():
    """Nothing was recited by the teacher alone: no share of it was inherited."""
    report = ratio_figures([{"examples": 5, "teacher": 0, "baseline": 0, "soft": 0}], MAIN_FIGURES)

    assert report["soft_inherited"]["value"] is None
    assert report["soft_rate"]["value"] == 0
