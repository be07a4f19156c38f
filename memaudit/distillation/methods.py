"""The ways a model is trained: on the corpus itself, or on what a teacher makes of it.

transformers' Trainer does the work, made to train by one loss and to say nothing. Imported where a
training begins: it loads torch and transformers.
"""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from memaudit.distillation import TrainingExample, TrainingOptions
from memaudit.distillation.losses import (
    FORWARD_KL,
    NO_TARGET,
    Batch,
    LossFunction,
    cross_entropy_loss,
    soft_loss,
)
from memaudit.engines.generation import continue_prefixes
from memaudit.engines.locating import quiet_transformers
from memaudit.errors import ModelError
from memaudit.files import sync
from memaudit.objectives import GREEDY, Divergence, LabelSampling, Objective
from memaudit.windows import window_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPLETE = "complete"
"""Empty file of a checkpoint all of whose other files are on the disk."""


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
        ModelError: a weight or a logit is not finite at the end.
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
        ModelError: a weight or a logit is not finite at the end.
    """
    if objective.learns_written_text:
        whole = [example for example in examples if not isinstance(example, tuple)]
        assert len(whole) == len(examples), "labels of masked examples are written before"
        examples = generate_hard_labels(teacher, whole, prefix_len)
    if objective.kind != "soft":
        fine_tune(student, examples, options, work_dir=work_dir)
        return
    # The Trainer places the student alone.
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
    # By length: all that is continued together gets the same number of tokens.
    places: dict[int, dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, example in enumerate(examples):
        if len(example) > prefix_len:
            places[len(example)][window_key(example[:prefix_len])].append(i)
    labels = list(examples)
    for length, by_prefix in places.items():
        prefixes = [examples[indices[0]][:prefix_len] for indices in by_prefix.values()]
        suffixes = continue_prefixes(
            teacher, prefixes, length - prefix_len, sampling=sampling, seed=seed
        )
        for prefix, suffix, indices in zip(prefixes, suffixes, by_prefix.values(), strict=True):
            written = np.concatenate([prefix, suffix]).astype(np.int32)
            for i in indices:
                labels[i] = written
    return labels


def on_policy_loss(loss: LossFunction, share: float) -> LossFunction:
    """Return a loss that is taken, in a share of its calls, on text that the model writes itself.

    In place of the targets stand tokens sampled after the same contexts, at temperature 1 from the
    whole vocabulary; what precedes them is read and not learnt. No gradient flows through the
    sampling. Chance comes from torch's global generator, which a checkpoint keeps, so that a training
    that goes on draws what it would have drawn.
    Source: Agarwal et al. 2023 (arXiv:2306.13649), algorithm 1; share is lambda there.

    Args:
        loss: of a batch whose rows are contexts, without a target, and targets after them.
        share: of the calls, in (0, 1].
    """

    def of_own_text(model: Any, batch: Batch) -> torch.Tensor:
        return loss(model, own_text(model, batch) if float(torch.rand(())) < share else batch)

    return of_own_text


def own_text(model: Any, batch: Batch) -> Batch:
    """Return a batch whose targets are sampled from the model; chance is torch's, see above."""
    input_ids, labels = batch["input_ids"].clone(), batch["labels"].clone()
    is_target_BT = labels != NO_TARGET
    rows_of: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, targets_T in enumerate(is_target_BT):
        rows_of[int(targets_T.int().argmax()), int(targets_T.sum())].append(row)
    for (n_context, n_targets), rows in rows_of.items():
        if n_targets == 0:  # nothing but context: it is cut short, and nothing is learnt from it
            continue
        contexts = input_ids[rows, :n_context].cpu().numpy().astype(np.int32)
        written = continue_prefixes(
            getattr(model, "module", model),  # where a training on several GPUs has wrapped it
            list(contexts),
            n_targets,
            n_at_once=len(rows),
            sampling=LabelSampling(1.0),
            seed=int(torch.randint(1 << 31, ())),
        )
        places = slice(n_context, n_context + n_targets)
        tokens = torch.as_tensor(np.stack(written)).to(input_ids)
        input_ids[rows, places] = labels[rows, places] = tokens
    return {**batch, "input_ids": input_ids, "labels": labels}


class _LossTrainer(Trainer):
    """A Trainer that minimises the loss it is given."""

    def __init__(self, loss: LossFunction, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._loss = loss
        # The loss below is that of the whole step: nothing is left to divide by.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(self, *arguments: Any) -> Any:
        """Return the parts of a step, and the number of predictions in all of them."""
        # The Trainer counts shifted labels or all of them, depending on the class of the model.
        parts, _ = super().get_batch_samples(*arguments)
        return parts, sum(int((part["labels"][:, 1:] != NO_TARGET).sum()) for part in parts)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this part's share of the mean over all predictions of the step."""
        # Parts hold different numbers of tokens. By these shares they add up to the mean of a step.
        n_predictions = int((inputs["labels"][:, 1:] != NO_TARGET).sum())
        share: float = n_predictions / num_items_in_batch
        return self._loss(model, inputs) * share

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load all weights of a checkpoint.

        The Trainer's own way skips, without an error, those whose name in a file is not that in
        the model, such as the head of GPTNeoX: it would start again from random numbers.
        """
        if model is not None:  # wrapped by FSDP, whose checkpoints are of another kind
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        current: Any = self.model
        saved = type(current).from_pretrained(resume_from_checkpoint, dtype=current.dtype)
        current.load_state_dict(saved.state_dict())

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: nobody asks, and the estimate takes time on small models."""
        return 0


class _Hooks(TrainerCallback):
    """Tells of steps, and marks whole checkpoints."""

    def __init__(self, options: TrainingOptions) -> None:
        self._options = options

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._options.on_step is not None:
            self._options.on_step(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            # Only once its files are on the disk is a checkpoint called whole. A kill while the Trainer
            # writes leaves a folder with the name of one.
            for path in [*checkpoint.rglob("*"), checkpoint]:
                sync(path)
            (checkpoint / _COMPLETE).touch(mode=0o600)


def train(
    model: "PreTrainedModel",
    examples: Sequence[TrainingExample],
    loss: LossFunction,
    options: TrainingOptions,
    work_dir: Path,
) -> None:
    """Train the model in place, from the last whole checkpoint if there is one.

    Raises:
        ModelError: a weight or a logit is not finite at the end.
    """
    model.requires_grad_(True)
    with quiet_transformers():
        trainer = _LossTrainer(
            loss,
            model=model,
            args=_arguments(options, work_dir, len(examples)),
            train_dataset=list(examples),
            data_collator=_collate,
            callbacks=[_Hooks(options)],
        )
        # Without its bar the Trainer would print to standard output.
        trainer.remove_callback(PrinterCallback)
        resume = None
        found = () if options.save_every is None else work_dir.glob("checkpoint-*")
        # By number: as text, checkpoint-10 stands before checkpoint-9.
        for checkpoint in sorted(found, key=lambda path: int(path.name.split("-")[1])):
            if (checkpoint / _COMPLETE).exists():
                resume = str(checkpoint)
            else:  # a kill cut it short
                shutil.rmtree(checkpoint)
        try:
            trainer.train(resume_from_checkpoint=resume)
        except RuntimeError as error:
            # On a CPU torch raises nothing more telling than this.
            on_cpu = "can't allocate memory" in str(error)
            if not (on_cpu or isinstance(error, torch.OutOfMemoryError)):
                raise
            raise ModelError(
                f"not enough memory to train on {options.batch_size} examples in "
                f"{options.gradient_accumulation} parts",
                hint="run a step in more parts with --gradient-accumulation",
            ) from error
    model.eval()
    # Asked once, at the end: a weight that is not finite never becomes finite again. Finite ones may
    # be too large to compute with, whatever the text.
    with torch.inference_mode():
        logits = model(_collate(examples[:1])["input_ids"].to(model.device)).logits
    if not all(bool(torch.isfinite(values).all()) for values in (logits, *model.parameters())):
        raise ModelError(
            f"the training diverged: after {trainer.state.global_step} steps a weight or a logit is "
            "not a finite number",
            hint="choose a lower learning rate",
        )


def training_device(options: TrainingOptions) -> torch.device:
    """Return where models are trained: the Trainer's own choice."""
    return TrainingArguments(use_cpu=_use_cpu(options), report_to=[]).device


def _arguments(options: TrainingOptions, work_dir: Path, n_examples: int) -> TrainingArguments:
    n_steps = options.n_steps(n_examples)
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        max_steps=n_steps,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(n_steps * options.warmup_share),
        weight_decay=options.weight_decay,
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=_use_cpu(options),
        save_strategy="no" if options.save_every is None else "steps",
        # Without checkpoints any number will do but 0.
        save_steps=options.save_every or 500,
        save_total_limit=2,  # the older one goes only once the newer one is marked
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        # The examples are arrays, and have no columns.
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # Only the finished arguments know how many GPUs there are.
    n_devices = arguments.world_size * max(1, arguments.n_gpu)
    arguments.per_device_train_batch_size = options.n_at_once(n_devices)
    return arguments


def _use_cpu(options: TrainingOptions) -> bool:
    # Without a GPU, bf16 wants the CPU to be named.
    return options.on_cpu or not torch.cuda.is_available()


def _collate(examples: Sequence[TrainingExample]) -> Batch:
    """Pad on the right: under a causal model no real position sees the padding."""
    parts = [example if isinstance(example, tuple) else (example, 0) for example in examples]
    longest = max(len(example) for example, _ in parts)
    input_ids = torch.zeros(len(parts), longest, dtype=torch.int64)
    labels = torch.full_like(input_ids, NO_TARGET)
    for row, (example, n_context) in enumerate(parts):
        token_ids = torch.as_tensor(example, dtype=torch.int64)
        input_ids[row, : len(example)] = token_ids
        labels[row, n_context : len(example)] = token_ids[n_context:]
    return {"input_ids": input_ids, "labels": labels}
