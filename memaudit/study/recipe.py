"""Recipes: which distillations a study runs, as a TOML file says."""

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from memaudit.errors import UsageError
from memaudit.windows import WindowShape

Role = Literal["train", "calibration", "test"]
"""What a cell's labels may be used for. Cells of different roles share no text."""


class MiniatureSize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size of a scratch-trained GPTNeoX model."""

    hidden: int
    """Width of the residual stream, a multiple of 32."""

    layers: int
    """Transformer blocks."""


class TrainingPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a model of a cell is trained."""

    max_epochs: int
    """Length of the learning-rate schedule, and the end if the rate below is not reached."""

    stop_at_rate: float
    """Training ends after the first epoch (of every second one) at which the model recites this
    share of the distinct examples; 1 never ends early. Miniature models pass from nothing to
    everything within a few epochs: this keeps a cell at a prevalence worth predicting."""

    learning_rate: float
    """Peak of a cosine schedule."""


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One distillation: a corpus, a teacher, a baseline and a student."""

    name: str
    """Unique in the recipe."""

    corpus: str
    """File of the sample data, without its ending."""

    role: Role
    """See there."""

    window_half: int
    """Prefix and suffix each have this many tokens."""

    n_examples: int
    """Distinct examples."""

    max_repeats: int
    """1: each example once. Else drawn from 1, 2, 4, … up to this, n with odds 1/n."""

    seed: int
    """Of the choice of examples, the initial weights and the order of training."""

    teacher: MiniatureSize
    """Its size."""

    student: MiniatureSize
    """Also the baseline's."""

    teacher_plan: TrainingPlan
    """By cross-entropy."""

    student_plan: TrainingPlan
    """By soft labels."""

    baseline_epochs: int
    """By cross-entropy, from the student's initial weights and at its learning rate."""

    batch_size: int = 32
    """Examples in one optimizer step: half of them in half the examples keeps the steps."""

    temperature: float = 2.0
    """Of the soft labels."""

    @property
    def shape(self) -> WindowShape:
        """Of the windows; an example is one window."""
        return WindowShape(self.window_half, self.window_half)


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A study."""

    vocabulary_size: int
    """Of the byte-level BPE trained on all sample corpora."""

    demo: Cell
    """Its models and its corpus are what a new user tries out."""

    cells: tuple[Cell, ...]
    """In the order of running, after the demo."""


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; a cell takes from `[defaults]` and `[plans.NAME]` what it leaves out.

    Raises:
        UsageError: not a recipe, unknown keys, or two cells of the same name.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        defaults, plans = document.pop("defaults", {}), document.pop("plans", {})
        cells = [_complete(cell, defaults, plans) for cell in document.pop("cells", [])]
        demo = _complete(document.pop("demo"), defaults, plans)
        recipe = msgspec.convert({**document, "demo": demo, "cells": cells}, Recipe)
    except (OSError, ValueError, KeyError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}", hint="see models/recipe.toml for the form") from error
    names = [cell.name for cell in (recipe.demo, *recipe.cells)]
    if len(set(names)) < len(names):
        raise UsageError(f"{path}: two cells have the same name")
    return recipe


def _complete(
    cell: dict[str, Any], defaults: dict[str, Any], plans: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    plan = plans[cell.pop("plan")] if "plan" in cell else {}
    return {**defaults, **plan, **cell}
