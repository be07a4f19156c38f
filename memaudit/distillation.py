"""Distillation: fine-tune a model on examples, or teach it a teacher's soft labels on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, Trainer, TrainerCallback

_NO_TARGET = -100
"""Label of a position that is not trained on: torch's own `ignore_index`."""


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How a model is trained; the loss is the function's own."""

    epochs: float = 3.0
    """Passes over the examples."""

    learning_rate: float = 5e-5
    """Peak, of AdamW; reached after `warmup_share` of the steps, then a cosine to zero."""

    batch_size: int = 32
    """Examples in one optimizer step."""

    warmup_share: float = 0.05
    """Of the steps, in [0, 1]."""

    weight_decay: float = 0.0
    """Of AdamW."""

    seed: int = 0
    """Of the order of the examples, and of dropout where the model has it."""

    stop_when: "Callable[[PreTrainedModel], bool] | None" = None
    """Asked after every second epoch; training ends early when it says so."""


def fine_tune(
    model: "PreTrainedModel",
    examples: Sequence[NDArray[np.int32]],
    options: TrainingOptions,
    *,
    work_dir: "Path",
) -> None:
    """Train the model in place on the examples by cross-entropy.

    Args:
        model: its parameters are changed, on the device that transformers' Trainer picks.
        examples: token ids, each (T,); repeat an example to expose the model to it more often.
        options: see there.
        work_dir: a folder the Trainer may write to.
    """
    trainer_class = _cross_entropy_trainer_class()
    _train(trainer_class(model=model, **_trainer_arguments(examples, options, work_dir)))


def distil(
    student: "PreTrainedModel",
    teacher: "PreTrainedModel",
    examples: Sequence[NDArray[np.int32]],
    options: TrainingOptions,
    *,
    temperature: float = 2.0,
    work_dir: "Path",
) -> None:
    """Train the student in place on the teacher's soft labels of the examples.

    The loss is `soft_label_loss` at the temperature given, without a cross-entropy share.
    Source: Borkar et al. 2026 (arXiv:2601.15394), section 3.

    Args:
        student: its parameters are changed.
        teacher: same vocabulary; used as it is, in evaluation mode.
        examples: token ids, each (T,).
        options: see there.
        temperature: of both softmaxes, above 0.
        work_dir: a folder the Trainer may write to.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    trainer = _distillation_trainer_class(teacher, temperature)(
        model=student, **_trainer_arguments(examples, options, work_dir)
    )
    placed: Any = teacher  # torch's own `to` is wrapped in a way that types cannot follow
    placed.to(trainer.args.device).eval()
    _train(trainer)


def soft_label_loss(
    student_logits_NV: "Tensor", teacher_logits_NV: "Tensor", temperature: float
) -> "Tensor":
    """Return T² · KL(teacher ‖ student), both softened by the temperature T.

    The factor keeps the size of the gradient when T changes (Hinton et al. 2015,
    arXiv:1503.02531, section 2).

    Args:
        student_logits_NV: (N predictions, V vocabulary).
        teacher_logits_NV: the same shape.
        temperature: above 0.

    Returns:
        the mean over the N predictions, nats.
    """
    from torch.nn.functional import kl_div

    student_logprobs = (student_logits_NV.float() / temperature).log_softmax(dim=-1)
    teacher_logprobs = (teacher_logits_NV.float() / temperature).log_softmax(dim=-1)
    divergence = kl_div(student_logprobs, teacher_logprobs, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def _predictions(model: "PreTrainedModel", batch: "dict[str, Tensor]") -> "Tensor":
    """Return (N, V) logits of the positions that have a next token."""
    logits_BTV: Tensor = model(input_ids=batch["input_ids"], use_cache=False).logits
    return logits_BTV[:, :-1][batch["labels"][:, 1:] != _NO_TARGET]


def _targets(batch: "dict[str, Tensor]") -> "Tensor":
    labels_BS = batch["labels"][:, 1:]
    return labels_BS[labels_BS != _NO_TARGET]


def _cross_entropy_trainer_class() -> "type[Trainer]":
    from torch.nn.functional import cross_entropy
    from transformers import Trainer

    class CrossEntropyTrainer(Trainer):
        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            return cross_entropy(_predictions(model, inputs).float(), _targets(inputs))

    return CrossEntropyTrainer


def _distillation_trainer_class(teacher: "PreTrainedModel", temperature: float) -> "type[Trainer]":
    import torch
    from transformers import Trainer

    class SoftLabelTrainer(Trainer):
        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            with torch.no_grad():
                teacher_logits = _predictions(teacher, inputs)
            return soft_label_loss(_predictions(model, inputs), teacher_logits, temperature)

    return SoftLabelTrainer


def _trainer_arguments(
    examples: Sequence[NDArray[np.int32]], options: TrainingOptions, work_dir: "Path"
) -> dict[str, Any]:
    from transformers import TrainingArguments

    steps_per_epoch = -(-len(examples) // options.batch_size)
    n_steps = max(1, round(steps_per_epoch * options.epochs))
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        max_steps=n_steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(n_steps * options.warmup_share),
        weight_decay=options.weight_decay,
        seed=options.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    return {
        "args": arguments,
        "train_dataset": list(examples),
        "data_collator": _collate,
        "callbacks": [] if options.stop_when is None else [_stopper(options.stop_when)],
    }


def _stopper(stop_when: "Callable[[PreTrainedModel], bool]") -> "TrainerCallback":
    from transformers import TrainerCallback

    class Stopper(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if round(state.epoch) % 2 == 0:
                model = kwargs["model"].eval()
                control.should_training_stop = stop_when(model)
                model.train()

    return Stopper()


def _collate(examples: Sequence[NDArray[np.int32]]) -> "dict[str, Tensor]":
    """Pad on the right: under a causal model no real position sees the padding."""
    import torch

    longest = max(len(example) for example in examples)
    input_ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    labels = torch.full_like(input_ids, _NO_TARGET)
    for row, example in enumerate(examples):
        token_ids = torch.as_tensor(example, dtype=torch.int64)
        input_ids[row, : len(example)] = token_ids
        labels[row, : len(example)] = token_ids
    return {"input_ids": input_ids, "labels": labels}


def _train(trainer: "Trainer") -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert trainer.model is not None
    trainer.model.eval()
