"""What a verification would cost: tokens, operations, memory and time, before it is run."""

import timeit
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import msgspec
import numpy as np
import torch

from memaudit.distillation.losses import cross_entropy_loss
from memaudit.distillation.methods import generate_hard_labels
from memaudit.engines.generation import near_verbatim_logprobs
from memaudit.memorization import BEAM_WIDTH
from memaudit.progress import ReportProgress
from memaudit.verification.examples import DEFAULT_OPTIONS, Examples, VerificationOptions, make_task
from memaudit.verification.models import VerificationModels, check_readable, load_models
from memaudit.windows import without_padding

_SAMPLE_EXAMPLES = 4
_ACTIVATIONS_PER_LAYER = 17
"""Numbers kept for the backward pass for each token, layer and unit of width: Korthikanti et al.
2022 (arXiv:2205.05198), section 4.1: 34 bytes at 2 bytes a number, without attention scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a verification would cost."""

    parameters: dict[str, int]
    """By role, of the models given; embeddings included."""

    examples: int
    """Distinct windows to train on."""

    held_out: int
    """Distinct windows kept from training."""

    training_examples: int
    """Rows to train on, equal ones counted each time."""

    steps: int
    """Optimizer steps of each training."""

    training_tokens: int
    """Read in each training, over all epochs."""

    generated_tokens: int
    """Written by the teacher, for hard labels; it reads their prefixes as well."""

    scored_tokens: int
    """Read by each of the three models to decide what can be extracted."""

    flops: dict[str, float]
    """By stage: 6 N a token for a training, 2 N a token for a pass; N parameters."""

    memory_bytes: int
    """Peak of models and training: weights, gradients, AdamW's two moments, activations and
    logits. What torch and the tokenizer need comes on top."""

    seconds: dict[str, float]
    """By stage, on this machine: measured on a few examples."""

    def document(self) -> dict[str, Any]:
        """Return the estimate as one JSON document."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        totals = {f"total_{name}": sum(plain[name].values()) for name in ("flops", "seconds")}
        return {"schema_version": 1, "dry_run": True, **plain, **totals}


def estimate_verification(
    teacher: str | PathLike[str],
    student: str | PathLike[str],
    data: object,
    *,
    baseline: str | PathLike[str] | None = None,
    options: VerificationOptions = DEFAULT_OPTIONS,
    progress: ReportProgress | None = None,
) -> Estimate:
    """Return what `verify_distillation` would cost with the same arguments.

    The corpus is read and the models are loaded; nothing is trained.

    Raises:
        CorpusError, ModelError: as `verify_distillation`.
    """
    task = make_task(data, None, options)
    models = load_models(teacher, student, baseline, task.options)
    with task.examples(models.teacher.tokenizer, None, progress) as examples:
        check_readable(models, without_padding(examples.windows[0]))
        n_rows = len(examples.training_set(examples.trained))
        window_len = options.shape.length + len(models.bos)
        passes = options.training.n_passes(n_rows)
        is_hard = options.objective.learns_written_text
        tokens = {
            "training": round(passes * n_rows) * window_len,
            "generated": len(examples.trained) * options.shape.suffix_len * is_hard,
            "own text": round(
                options.divergence.on_policy * passes * n_rows * options.shape.suffix_len
            ),
            "scored": len(examples.windows) * window_len,
        }
        stages = _stages(models, tokens, _seconds_per_token(models, examples, options), options)
        return Estimate(
            parameters={role: model.n_parameters for role, model in models.given.items()},
            examples=len(examples.trained),
            held_out=int(examples.is_held_out.sum()),
            training_examples=n_rows,
            steps=options.training.n_steps(n_rows),
            training_tokens=tokens["training"],
            generated_tokens=tokens["generated"],
            scored_tokens=tokens["scored"],
            flops={stage: float(flops) for stage, (flops, _) in stages.items()},
            memory_bytes=_training_memory(models, options, window_len),
            seconds={stage: seconds for stage, (_, seconds) in stages.items()},
        )


def _stages(
    models: VerificationModels,
    tokens: dict[str, int],
    rates: dict[str, float],
    options: VerificationOptions,
) -> dict[str, tuple[float, float]]:
    """Return operations and seconds by stage."""
    sizes = {role: model.n_parameters for role, model in models.given.items()}
    teacher, student = sizes["teacher"], sizes["student"]
    baseline = sizes.get("baseline", student)
    trained, scored, generated = tokens["training"], tokens["scored"], tokens["generated"]
    is_soft = options.objective.kind == "soft"
    own = tokens["own text"]
    stages: dict[str, tuple[float, float]] = {
        "student": (
            (6 * student + 2 * teacher * is_soft) * trained + 2 * student * own,
            (rates["training"] + rates["teacher"] * is_soft) * trained
            + rates.get("own text", 0.0) * own,
        ),
        "extract": (
            2 * (teacher + baseline + student) * scored,
            (rates["teacher"] + 2 * rates["student"]) * scored,
        ),
    }
    if options.near_verbatim is not None:
        # Measured on the teacher. The other two take as much less as one pass of theirs does.
        followed = BEAM_WIDTH * scored
        teacher_time = rates["near-verbatim"] * scored
        stages["near-verbatim"] = (
            2 * (teacher + baseline + student) * followed,
            teacher_time * (1 + 2 * rates["student"] / rates["teacher"]),
        )
    if models.baseline is None:
        stages["baseline"] = (6 * student * trained, rates["training"] * trained)
    if generated:
        read_and_written = generated * options.shape.length / options.shape.suffix_len
        stages["hard labels"] = (2 * teacher * read_and_written, rates["generation"] * generated)
    return stages


def _seconds_per_token(
    models: VerificationModels, examples: Examples, options: VerificationOptions
) -> dict[str, float]:
    """Return seconds per token of a training step, of passes and of writing, on a few examples."""
    n = min(_SAMPLE_EXAMPLES, options.training.batch_size, len(examples.trained))
    # What a window lacks costs nothing to leave in: the time is that of whole windows.
    windows = models.with_bos(np.maximum(examples.trained[:n], 0))
    teacher, student = models.teacher.model, models.student.model
    token_ids = torch.as_tensor(windows).long().to(teacher.device)
    batch = {"input_ids": token_ids, "labels": token_ids}
    prefix_len = options.shape.prefix_len + len(models.bos)

    def step() -> None:
        student.requires_grad_(True)
        cross_entropy_loss(student, batch).backward()
        student.zero_grad()
        student.requires_grad_(False)

    runs: dict[str, tuple[Callable[[], object], int]] = {
        "teacher": (lambda: cross_entropy_loss(teacher, batch), windows.size),
        "student": (lambda: cross_entropy_loss(student, batch), windows.size),
        "training": (step, windows.size),
    }
    for name, writer, is_written in (
        ("generation", teacher, options.objective.learns_written_text),
        ("own text", student, options.divergence.on_policy),
    ):
        if is_written:
            write = partial(generate_hard_labels, writer, list(windows), prefix_len)
            runs[name] = (write, n * options.shape.suffix_len)
    if (max_distance := options.near_verbatim) is not None:
        runs["near-verbatim"] = (
            lambda: near_verbatim_logprobs(
                teacher, list(windows), [prefix_len] * n, max_distance=max_distance
            ),
            windows.size,
        )
    # The faster of two: the first one warms up.
    return {
        name: min(timeit.repeat(run, repeat=2, number=1)) / n_tokens
        for name, (run, n_tokens) in runs.items()
    }


def _training_memory(
    models: VerificationModels, options: VerificationOptions, window_len: int
) -> int:
    """Return bytes at the peak: while the student is trained, all in float32."""
    student: Any = models.student.model
    config = student.config.get_text_config()
    tokens = options.training.n_at_once() * window_len
    # The models given, and of the student a copy, its gradients and two moments.
    weights = sum(model.n_parameters for model in models.given.values())
    # A baseline that is trained here is still there while the student is trained.
    weights += (4 + (models.baseline is None)) * models.student.n_parameters
    per_layer = _ACTIVATIONS_PER_LAYER * config.hidden_size
    per_layer += 2 * window_len * config.num_attention_heads  # attention scores and weights
    # Logits, their log-softmax and its gradient; of the teacher the first two.
    logits = config.vocab_size * (5 if options.objective.kind == "soft" else 3)
    return int(4 * (weights + tokens * (per_layer * config.num_hidden_layers + logits)))
