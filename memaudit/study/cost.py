"""What a study of miniatures would cost: counted from its recipe, and timed on two short trainings."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from memaudit.distillation import TrainingOptions, fine_tune
from memaudit.study.bases import base_path, needed_bases
from memaudit.study.miniature import new_model
from memaudit.study.recipe import Cell, Family, MiniatureSize, Recipe, TrainingPlan
from memaudit.study.run import bases_path, missing_cells
from memaudit.study.texts import CORPORA, texts_of_role

_TIMED_STEPS = (2, 10)
_N_INTERVENTIONS = 6
_GENERATION_BATCH = 16
_FASTEST_FLOPS = 1e11
"""A second, of one core in float32: no measurement is believed beyond it."""

_BYTES_A_TOKEN = 2.5
"""Of English under a vocabulary of about a thousand pieces."""


@dataclass(frozen=True, slots=True)
class Work:
    """Trainings and passes of one kind."""

    tokens: int = 0
    """Read or written."""

    steps: int = 0
    """Of an optimizer, or of a generation; 0 for a pass."""

    flops: float = 0.0
    """6 N a token for a training, 2 N a token for a pass; N parameters."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.steps + other.steps, self.flops + other.flops)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Processor seconds of a training, as a straight line through two measured ones."""

    seconds_a_step: float
    """Whatever the step's size."""

    seconds_a_flop: float
    """On top."""

    def seconds(self, work: Work) -> float:
        """Return processor seconds of some work."""
        return work.steps * self.seconds_a_step + work.flops * self.seconds_a_flop


@dataclass(frozen=True, slots=True)
class StudyCost:
    """What is left to do of a study."""

    cells: int
    """In the recipe, its demo among them."""

    finished: int
    """Of them; they are not in the work."""

    bases: int
    """To pretrain."""

    work: dict[str, Work]
    """By stage."""

    core_seconds: dict[str, float]
    """By stage, on one core of this machine."""

    def document(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        stages = {
            name: {
                "tokens": work.tokens,
                "steps": work.steps,
                "flops": work.flops,
                "core_seconds": round(self.core_seconds[name], 1),
            }
            for name, work in self.work.items()
        }
        return {
            "schema_version": 1,
            "dry_run": True,
            "cells": self.cells,
            "finished": self.finished,
            "bases": self.bases,
            "stages": stages,
            "total_flops": sum(work.flops for work in self.work.values()),
            "total_core_seconds": round(sum(self.core_seconds.values()), 1),
        }


def study_cost(recipe: Recipe, sample_data: Path, out: Path) -> StudyCost:
    """Return what it would cost to run what has no result in a folder yet.

    How often examples are repeated is an expected value, and the tokens of the pretraining are
    guessed from the bytes of its texts. Fitting and judging classifiers is not counted.

    Args:
        recipe: of the study.
        sample_data: the folder of the sample corpora.
        out: where its results would be; it need not exist.
    """
    cells = (recipe.demo, *recipe.cells)
    vocabulary_size = recipe.vocabulary_size
    missing = missing_cells(recipe, out)
    folder = bases_path(out, recipe)
    bases = [base for base in needed_bases(missing) if not base_path(folder, *base).exists()]
    work: dict[str, Work] = {}
    if bases:
        work["bases"] = _pretraining_work(recipe, bases, sample_data)
    for cell in missing:
        for stage, each in cell_work(cell, vocabulary_size).items():
            work[stage] = work.get(stage, Work()) + each
    step_time = _measure(cells, vocabulary_size) if work else StepTime(0, 0)
    seconds = {stage: step_time.seconds(each) for stage, each in work.items()}
    return StudyCost(len(cells), len(cells) - len(missing), len(bases), work, seconds)


def cell_work(cell: Cell, vocabulary_size: int) -> dict[str, Work]:
    """Return the work of a cell by stage, interventions among them where it keeps its models."""
    teacher = n_parameters(cell.family, cell.teacher, vocabulary_size)
    student = n_parameters(cell.family, cell.student, vocabulary_size)
    n_rows = round(cell.n_examples * mean_repeats(cell.max_repeats))
    n_students = len(cell.students)

    def training(n: int, plan: TrainingPlan, n_trainings: int = 1) -> Work:
        steps = TrainingOptions(plan.epochs, plan.learning_rate, cell.batch_size).n_steps(n_rows)
        tokens = n_trainings * plan.epochs * n_rows * cell.shape.length
        return Work(tokens, n_trainings * steps, 6.0 * n * tokens)

    def reading(n: int, n_passes: int = 1) -> Work:
        tokens = n_passes * cell.n_examples * cell.shape.length
        return Work(tokens, 0, 2.0 * n * tokens)

    work = {
        "teachers": training(teacher, cell.teacher_plan),
        "baselines": training(student, cell.student_plan),
        "students": training(student, cell.student_plan, n_students),
        "soft labels": reading(teacher),
    }
    # Each of the two references is scored beside the teacher, then each model by itself.
    work["scoring"] = reading(teacher, 3) + reading(student, 3 + n_students)
    if any(each.objective == "hard" for each in cell.students):
        n_batches = -(-cell.n_examples // _GENERATION_BATCH)
        work["hard labels"] = reading(teacher) + Work(steps=n_batches * cell.window_half)
    if cell.keep_models:
        work["interventions"] = training(student, cell.student_plan, _N_INTERVENTIONS)
    return work


def mean_repeats(max_repeats: int) -> float:
    """Return how often an example is expected to occur: 1, 2, 4, … at odds of 1/n for n."""
    levels = 2.0 ** np.arange(int(np.log2(max_repeats)) + 1)
    return float(len(levels) / (1 / levels).sum())


@cache
def n_parameters(family: Family, size: MiniatureSize, vocabulary_size: int) -> int:
    """Return the parameters of a miniature, tied ones once."""
    import torch

    with torch.device("meta"):
        return int(new_model(family, size, vocabulary_size, 0).num_parameters())


def _pretraining_work(
    recipe: Recipe, bases: Sequence[tuple[Family, MiniatureSize]], sample_data: Path
) -> Work:
    plan = recipe.pretraining
    n_bytes = sum(
        len(text.encode())
        for corpus in CORPORA
        for text in texts_of_role(sample_data, corpus, "pretraining")
    )
    n_rows = round(n_bytes / _BYTES_A_TOKEN) // plan.window
    options = TrainingOptions(plan.epochs, plan.learning_rate, plan.batch_size)
    tokens, steps = plan.epochs * n_rows * plan.window, options.n_steps(n_rows)
    works = (
        Work(tokens, steps, 6.0 * tokens * n_parameters(*base, recipe.vocabulary_size))
        for base in bases
    )
    return sum(works, Work())


def _measure(cells: Sequence[Cell], vocabulary_size: int) -> StepTime:
    """Time a step of the smallest and of the largest training of some cells."""
    sizes = {
        6.0
        * n_parameters(cell.family, size, vocabulary_size)
        * cell.batch_size
        * cell.shape.length: (
            cell,
            size,
        )
        for cell in cells
        for size in (cell.teacher, cell.student)
    }
    small, large = min(sizes), max(sizes)
    of_large = _seconds_a_step(*sizes[large], vocabulary_size)
    if small == large:
        return StepTime(0.0, of_large / large)
    of_small = _seconds_a_step(*sizes[small], vocabulary_size)
    slope = max((of_large - of_small) / (large - small), 1 / _FASTEST_FLOPS)
    return StepTime(max(0.0, of_small - slope * small), slope)


def _seconds_a_step(cell: Cell, size: MiniatureSize, vocabulary_size: int) -> float:
    """Return processor seconds of one step more, so that starting up is not in it."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, second = (
            _seconds_of(cell, size, vocabulary_size, n_steps) for n_steps in _TIMED_STEPS
        )
    finally:
        torch.set_num_threads(n_threads)
    return max(0.0, second - first) / (_TIMED_STEPS[1] - _TIMED_STEPS[0])


def _seconds_of(cell: Cell, size: MiniatureSize, vocabulary_size: int, n_steps: int) -> float:
    model = new_model(cell.family, size, vocabulary_size, 0)
    shape = (n_steps * cell.batch_size, cell.shape.length)
    windows = np.random.default_rng(0).integers(vocabulary_size, size=shape, dtype=np.int32)
    options = TrainingOptions(1, 1e-3, cell.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        fine_tune(model, list(windows), options, work_dir=Path(folder))
        return time.process_time() - started
