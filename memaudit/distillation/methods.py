"""The ways a model is trained: on the corpus itself, or on what a teacher makes of it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memaudit.distillation.losses import FORWARD_KL, cross_entropy_loss, soft_loss
from memaudit.objectives import DEFAULT_EPOCHS, GREEDY, Divergence, LabelSampling, Objective
from memaudit.windows import window_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TrainingExample = NDArray[np.int32] | tuple[NDArray[np.int32], int]
"""Token ids, each (T,); with a number, so many of them at the start are read and not learnt."""


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How a model is trained; the loss is the function's own."""

    epochs: float = DEFAULT_EPOCHS
    """Passes over the examples, above 0."""

    learning_rate: float = 5e-5
    """Peak, of AdamW; reached after `warmup_share` of the steps, then a cosine to zero."""

    batch_size: int = 32
    """Examples in one optimizer step, on all devices together."""

    warmup_share: float = 0.05
    """Of the steps, in [0, 1]."""

    weight_decay: float = 0.0
    seed: int = 0
    """Of the order of the examples, and of dropout where the model has it."""

    gradient_accumulation: int = 1
    """Parts that a batch is run in: the same step, up to rounding, in less memory."""

    bf16: bool = False
    """Run in bfloat16 under autocast; the weights and the optimizer stay as they are."""

    on_cpu: bool = False
    """Train on the CPU even where there is a GPU."""

    save_every: int | None = None
    """Steps between checkpoints in the work folder, from which a killed training goes on. None
    writes none."""

    on_step: Callable[[int, int], None] | None = None
    """Told the steps done and their total, after each step."""

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.learning_rate > 0):
            raise ValueError("epochs and learning_rate must be above 0")
        if min(self.batch_size, self.gradient_accumulation) < 1:
            raise ValueError("batch_size and gradient_accumulation must be at least 1")
        if self.save_every is not None and self.save_every < 1:
            raise ValueError(f"save_every must be at least 1, got {self.save_every}")

    def n_steps(self, n_examples: int) -> int:
        """Return the optimizer steps of a training on so many examples, at least 1."""
        return max(1, round(-(-n_examples // self.batch_size) * self.epochs))


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
    from memaudit.distillation.trainer import train

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
    from memaudit.distillation.trainer import on_policy_loss, train, training_device

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
    from memaudit.engines.generation import continue_prefixes

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
