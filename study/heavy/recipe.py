"""Recipes: which distillations a study runs, as a TOML file says."""

import tomllib
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from memaudit.errors import UsageError
from memaudit.objectives import Objective
from memaudit.windows import WindowShape
from study.recipe import Family, Role, Size

MAIN_STUDENT = "soft"
"""The student that classifiers predict unless told otherwise: the paper's, T = 2."""


class TrainingPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model of a cell is trained."""

    epochs: int
    """Passes over the training set."""

    learning_rate: float
    """Peak of a cosine schedule."""


class Student(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One student of a cell: all start from the same weights."""

    name: str
    """Unique in the cell."""

    objective: Literal["soft", "hard", "cross-entropy"] = "soft"
    """What it learns from."""

    temperature: float = 2.0
    """Of the soft labels."""

    cross_entropy_share: float = 0.0
    """Of the loss, beside soft labels."""

    seed: int = 0
    """Added to the cell's for the order of training."""

    @property
    def loss(self) -> Objective:
        """The objective with its settings."""
        return Objective(self.objective, self.temperature, self.cross_entropy_share)


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One teacher with its baseline and its students, on one set of examples."""

    name: str
    """Unique in the recipe."""

    plan: str
    """Name of the plan that its numbers come from: cells of one plan differ in nothing else."""

    family: Family
    """Of all its models."""

    corpus: str
    """File of the sample data, without its ending."""

    role: Role
    """What its labels may be used for. Cells of different roles share no text."""

    window_half: int
    """Prefix and suffix each have this many tokens."""

    n_examples: int
    """Distinct examples."""

    max_repeats: int
    """1: each example once. Else drawn from 1, 2, 4, … up to this, n with odds 1/n."""

    seed: int
    """Of the choice of examples, the initial weights and the order of training."""

    teacher: Size
    """Its size."""

    student: Size
    """Also the baseline's."""

    teacher_plan: TrainingPlan
    """By cross-entropy."""

    student_plan: TrainingPlan
    """Of students and baseline alike."""

    students: tuple[Student, ...]
    """`MAIN_STUDENT` is among them."""

    pretrained: bool = True
    """Whether the models start from bases trained on other text, or from random weights."""

    seen_by_teacher: float = 1.0
    """Share of the examples that the teacher is trained on; others take the place of the rest."""

    batch_size: int = 16
    """Examples in one optimizer step."""

    keep_models: bool = False
    """Whether its models are kept, and its student distilled again under every intervention."""

    @property
    def shape(self) -> WindowShape:
        """Of the windows; an example is one window."""
        return WindowShape(self.window_half, self.window_half)


class Pretraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the bases are trained: on text that no cell uses."""

    epochs: int
    """Passes over that text."""

    learning_rate: float
    """Peak of a cosine schedule."""

    window: int = 128
    """Tokens of a training sequence."""

    batch_size: int = 8
    """Sequences in one optimizer step."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A study."""

    vocabulary_size: int
    """Of the byte-level BPE trained on all sample corpora."""

    pretraining: Pretraining
    """Of the bases."""

    demo: Cell
    """Its models and its corpus are what a new user tries out."""

    cells: tuple[Cell, ...]
    """In the order of running, after the demo."""


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    A cell takes what it leaves out from `[plans.NAME.FAMILY]`, `[plans.NAME]`, `[roles.NAME]` and
    `[defaults]`, the first that has it. An entry of `[[grids]]` lists values of `plan`, `corpus`, `family` and
    `role` and stands for a cell of each combination, or for those of the `passes` (of 1, 2, 3)
    that it lists: each pass holds every value of every list equally often.

    Raises:
        UsageError: not a recipe, unknown keys, or two cells of the same name.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        defaults = {key: document.pop(key, {}) for key in ("defaults", "plans", "roles")}
        grids = [_combinations(grid) for grid in document.pop("grids", [])]
        cells = [_complete(cell, defaults) for grid in grids for cell in grid]
        demo = _complete(document.pop("demo"), defaults)
        recipe = msgspec.convert({**document, "demo": demo, "cells": cells}, Recipe)
    except (OSError, ValueError, KeyError, msgspec.ValidationError) as error:
        raise UsageError(
            f"{path}: {error}", hint="see study/recipes/heavy.toml for the form"
        ) from error
    _check(path, recipe)
    return recipe


_VARIED = ("plan", "corpus", "family", "role")


def _combinations(grid: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a cell for each combination, in passes that each hold every value equally often."""
    values = [list(enumerate(grid.pop(key))) for key in _VARIED]
    passes, start = grid.pop("passes", [1, 2, 3]), grid.pop("seed")
    prefix = grid.pop("name")
    numbered = []
    for index, combination in enumerate(product(*values)):
        varied = {key: value for key, (_, value) in zip(_VARIED, combination, strict=True)}
        name = "-".join(
            (prefix, varied["role"], varied["family"], varied["corpus"], varied["plan"])
        )
        # A Latin square: of two cells in a pass, none differ in one value alone.
        number = sum(i for i, _ in combination) % 3 + 1
        numbered.append((number, {**grid, **varied, "name": name, "seed": start + 10 * index}))
    numbered.sort(key=lambda pair: pair[0])
    return [cell for number, cell in numbered if number in passes]


def _complete(cell: dict[str, Any], defaults: dict[str, dict[str, Any]]) -> dict[str, Any]:
    role, plan = defaults["roles"].get(cell["role"], {}), defaults["plans"][cell["plan"]]
    of_family = {key: value for key, value in plan.items() if key in get_args(Family)}
    of_all = {key: value for key, value in plan.items() if key not in of_family}
    own = of_family.get(cell["family"], {})
    return {**defaults["defaults"], **role, **of_all, **own, **cell}


def _check(path: Path, recipe: Recipe) -> None:
    cells = (recipe.demo, *recipe.cells)
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: two cells have the name {twice}")
    for cell in cells:
        students = [student.name for student in cell.students]
        if MAIN_STUDENT not in students or len(set(students)) < len(students):
            raise UsageError(
                f"{path}: expected distinct names of students of cell {cell.name}, "
                f"{MAIN_STUDENT} among them, got {', '.join(students)}"
            )
