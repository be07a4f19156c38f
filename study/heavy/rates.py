"""Rates: what teachers, baselines and students recite, and how far the sets agree."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from study.heavy.cells import CellResult
from study.heavy.recipe import MAIN_STUDENT

Figures = dict[str, dict[str, float | None]]
"""`value`, `low` and `high` by name; None where a figure does not exist."""

Counts = Mapping[str, int]
"""How many examples each name holds, in one cell."""

_N_RESAMPLES = 2000


def set_counts(result: CellResult) -> dict[str, int]:
    """Return how many examples of a cell are in each set, `examples` being all of them.

    T, B and S are what teacher, baseline and the main student recite; H is the student of hard
    labels, where the cell has one. `easy` is T∩B, `teacher_only` T but not B. Source: Borkar et al. 2026
    (arXiv:2601.15394), sections 3 and 6.
    """
    sets = result.extracted
    teacher, baseline = sets["teacher"], sets["baseline"]
    counts = {
        "examples": len(teacher),
        "teacher": int(teacher.sum()),
        "baseline": int(baseline.sum()),
        "easy": int((teacher & baseline).sum()),
        "teacher_only": int((teacher & ~baseline).sum()),
    }
    for name, student in sets.items():
        if name in ("teacher", "baseline"):
            continue
        counts |= {
            name: int(student.sum()),
            f"{name}_in_easy": int((student & teacher & baseline).sum()),
            f"{name}_inherited": int((student & teacher & ~baseline).sum()),
            f"{name}_new": int((student & ~teacher & ~baseline).sum()),
        }
    return counts


MAIN_FIGURES: dict[str, tuple[str, str]] = {
    "teacher_rate": ("teacher", "examples"),
    "baseline_rate": ("baseline", "examples"),
    "soft_rate": (MAIN_STUDENT, "examples"),
    "hard_rate": ("hard", "examples"),
    "soft_in_easy": (f"{MAIN_STUDENT}_in_easy", MAIN_STUDENT),
    "soft_against_baseline": (MAIN_STUDENT, "baseline"),
    "soft_inherited": (f"{MAIN_STUDENT}_inherited", "teacher_only"),
    "hard_inherited": ("hard_inherited", "teacher_only"),
}
"""Figures of the main table: a count over another, each summed over cells."""


def ratio_figures(
    cells: Sequence[Counts], figures: Mapping[str, tuple[str, str]] = MAIN_FIGURES, *, seed: int = 0
) -> Figures:
    """Return ratios of summed counts, with 95 % intervals from resampling the cells.

    Examples of one cell share its teacher: they are not independent, so cells are resampled.

    Args:
        cells: counts of each.
        figures: numerator and denominator by the figure's name.
        seed: the same seed gives the same intervals.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(cells), size=(_N_RESAMPLES, len(cells)))
    report: Figures = {}
    for name, (part, whole) in figures.items():
        parts = np.array([cell.get(part, 0) for cell in cells])
        wholes = np.array([cell.get(whole, 0) for cell in cells])
        if not wholes.sum() or not any(part in cell for cell in cells):
            report[name] = {"value": None, "low": None, "high": None}
            continue
        resampled = wholes[drawn].sum(axis=1)
        ratios = parts[drawn].sum(axis=1)[resampled > 0] / resampled[resampled > 0]
        low, high = np.quantile(ratios, [0.025, 0.975]).tolist()
        report[name] = {"value": float(parts.sum() / wholes.sum()), "low": low, "high": high}
    return report


def rates_by(
    results: Sequence[CellResult], group: Callable[[CellResult], str]
) -> dict[str, dict[str, object]]:
    """Return counts and figures of the main table for each group of cells, in order of name."""
    groups: dict[str, list[CellResult]] = {}
    for result in results:
        groups.setdefault(group(result), []).append(result)
    table: dict[str, dict[str, object]] = {}
    for name in sorted(groups):
        cells = [set_counts(result) for result in groups[name]]
        totals = {
            key: sum(cell.get(key, 0) for cell in cells) for key in sorted(set().union(*cells))
        }
        table[name] = {"cells": len(cells), "counts": totals, "figures": ratio_figures(cells)}
    return table


def objectives_against_baseline(results: Sequence[CellResult]) -> dict[str, dict[str, object]]:
    """Return, for each student's name, counts and figures over the cells that have it.

    The baseline's and the main student's counts are over the same cells.
    """
    names = sorted({student.name for result in results for student in result.cell.students})
    table: dict[str, dict[str, object]] = {}
    for name in names:
        cells = [set_counts(result) for result in results if name in result.extracted]
        figures = {
            "rate": (name, "examples"),
            "against_baseline": (name, "baseline"),
            "against_soft": (name, MAIN_STUDENT),
            "in_easy": (f"{name}_in_easy", name),
            "inherited": (f"{name}_inherited", "teacher_only"),
        }
        totals = {
            key: sum(cell[key] for cell in cells)
            for key in ("examples", "baseline", name, f"{name}_inherited", "teacher_only")
        }
        student = next(
            student
            for result in results
            for student in result.cell.students
            if student.name == name
        )
        table[name] = {
            "objective": {**asdict(student.loss), "seed": student.seed},
            "cells": len(cells),
            "counts": totals,
            "figures": ratio_figures(cells, figures),
        }
    return table


def held_out_perplexities(results: Sequence[CellResult]) -> dict[str, float]:
    """Return the geometric mean over cells of each model's held-out perplexity."""
    names = sorted(set().union(*(result.perplexity for result in results)))
    means = {}
    for name in names:
        values = [result.perplexity[name] for result in results if name in result.perplexity]
        means[name] = float(np.exp(np.mean(np.log(values))))
    return means
