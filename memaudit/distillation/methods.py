"""The ways a model is trained: on the corpus itself, or on what a teacher makes of it."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memaudit.distillation import TrainingExample, TrainingOptions
from memaudit.distillation.losses import FORWARD_KL, cross_entropy_loss, soft_loss
from memaudit.distillation.trainer import on_policy_loss, train, training_device
from memaudit.engines.generation import continue_prefixes
from memaudit.objectives import GREEDY, Divergence, LabelSampling, Objective
from memaudit.windows import window_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fine_tune(
    model: "PreTrainedModel",
    examples: Sequence[TrainingExample],
    options: TrainingOptions,
    *,
    work_dir: Path,
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
    train(model, examples, cross_entropy_loss, options, work_dir)


def distil(  # noqa: PLR0913  # who learns what from whom, and how
    student: "PreTrainedModel",
    teacher: "PreTrainedModel",
    examples: Sequence[TrainingExample],
    options: TrainingOptions,
    *,
    objective: Objective,
    divergence: Divergence = FORWARD_KL,
    prefix_len: int,
    work_dir: Path,
) -> None:
    """Train the student in place on what the teacher makes of the examples.

    Args:
        student: all its parameters are trained.
        teacher: shares the student's token ids; used as it is, in evaluation mode. For soft labels
            any module that answers `teacher(input_ids=..., use_cache=False).logits` will do.
        examples: token ids, each (T,).
        options: see there.
        objective: what the student learns.
        divergence: of teacher and student, for soft labels. If any step is on policy, the student goes
            on from the prefixes, and the other steps learn the suffixes alone, see `on_policy_loss`.
        prefix_len: real tokens from which the teacher, or the student, goes on.
        work_dir: as for `fine_tune`.

    Raises:
        ModelError: a weight is not finite at the end.
    """
    if objective.learns_written_text:
        whole = [example for example in examples if not isinstance(example, tuple)]
        assert len(whole) == len(examples), "labels of masked examples are written before"
        examples = generate_hard_labels(teacher, whole, prefix_len)
    if objective.kind != "soft":
        fine_tune(student, examples, options, work_dir=work_dir)
        return
    placed: Any = teacher  # torch's own `to` is wrapped in a way that types cannot follow
    placed.to(training_device(options)).eval()
    loss = soft_loss(teacher, objective, divergence)
    if divergence.on_policy:
        examples = [each if isinstance(each, tuple) else (each, prefix_len) for each in examples]
        loss = on_policy_loss(loss, divergence.on_policy)
    train(student, examples, loss, options, work_dir)


def generate_hard_labels(
    teacher: "PreTrainedModel",
    examples: Sequence[NDArray[np.int32]],
    prefix_len: int,
    *,
    sampling: LabelSampling = GREEDY,
    seed: int = 0,
) -> list[NDArray[np.int32]]:
    """Return each example with all after its prefix replaced by the teacher's continuation.

    Equal prefixes are continued once. An example that is not longer than the prefix stays as it is.

    Args:
        teacher: used as it is, in evaluation mode, on its device.
        examples: token ids, each (T,); a BOS token, where the model wants one, is part of them.
        prefix_len: tokens of each example that the teacher is given, at least 1.
        sampling: of the teacher's tokens.
        seed: of the sampling.

    Returns:
        in the order given, each (T,) as its example.
    """
    if prefix_len < 1:
        raise ValueError(f"prefix_len must be at least 1, got {prefix_len}")
    prefixes: dict[int, dict[bytes, NDArray[np.int32]]] = defaultdict(dict)
    for example in examples:
        if len(example) > prefix_len:
            prefix = example[:prefix_len]
            prefixes[len(example)][window_key(prefix)] = prefix
    written: dict[tuple[int, bytes], NDArray[np.int32]] = {}
    for length, by_key in prefixes.items():
        found = continue_prefixes(
            teacher, list(by_key.values()), length - prefix_len, sampling=sampling, seed=seed
        )
        written |= {
            (length, key): np.concatenate([by_key[key], suffix]).astype(np.int32)
            for key, suffix in zip(by_key, found, strict=True)
        }
    return [
        written[len(example), window_key(example[:prefix_len])]
        if len(example) > prefix_len
        else example
        for example in examples
    ]
