"""The ways a model is trained: on the corpus itself, or on what a teacher makes of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memaudit.distillation.hard_labels import generate_hard_labels
from memaudit.distillation.losses import cross_entropy_loss, soft_loss
from memaudit.distillation.options import TrainingOptions
from memaudit.objectives import Objective

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


def fine_tune(
    model: "PreTrainedModel",
    examples: Sequence[NDArray[np.int32]],
    options: TrainingOptions,
    *,
    work_dir: "Path",
) -> None:
    """Train the model in place on the examples by cross-entropy.

    Args:
        model: all its parameters are trained, on the device that transformers' Trainer picks.
        examples: token ids, each (T,); repeat an example to expose the model to it more often.
        options: see there.
        work_dir: a folder for this training alone; it goes on from a checkpoint found there if
            `options.save_every` is given.

    Raises:
        ModelError: a weight is not finite at the end.
    """
    from memaudit.distillation.trainer import train

    train(model, examples, cross_entropy_loss, options, work_dir)


def distil(
    student: "PreTrainedModel",
    teacher: "PreTrainedModel",
    examples: Sequence[NDArray[np.int32]],
    options: TrainingOptions,
    *,
    objective: Objective,
    prefix_len: int,
    work_dir: "Path",
) -> None:
    """Train the student in place on what the teacher makes of the examples.

    Args:
        student: all its parameters are trained.
        teacher: shares the student's token ids; used as it is, in evaluation mode. For soft labels
            any module that answers `teacher(input_ids=..., use_cache=False).logits` will do.
        examples: token ids, each (T,).
        options: see there.
        objective: what the student learns.
        prefix_len: real tokens from which the teacher goes on, for hard labels.
        work_dir: as for `fine_tune`.

    Raises:
        ModelError: a weight is not finite at the end.
    """
    if objective.kind == "hard":
        examples = generate_hard_labels(teacher, examples, prefix_len)
    if objective.kind != "soft":
        fine_tune(student, examples, options, work_dir=work_dir)
        return
    from memaudit.distillation.trainer import train, training_device

    placed: Any = teacher  # torch's own `to` is wrapped in a way that types cannot follow
    placed.to(training_device(options)).eval()
    train(student, examples, soft_loss(teacher, objective), options, work_dir)
