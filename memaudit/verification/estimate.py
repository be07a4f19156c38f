"""What a verification would cost: tokens, operations, memory and time, before it is run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import CorpusOptions, read_corpus
from memaudit.verification.examples import Examples, read_examples
from memaudit.verification.models import VerificationModels, check_readable, load_models
from memaudit.verification.options import DEFAULT_OPTIONS, ReportStage, VerificationOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CALIBRATION_EXAMPLES = 4
_BYTES = 4  # of a float32
_ACTIVATIONS_A_LAYER = 17
"""Numbers kept for the backward pass, a token, a layer and a unit of width: Korthikanti et al. 2022
(arXiv:2205.05198), section 4.1: 34 bytes at 2 bytes a number, attention scores apart."""


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
    """Written by the teacher, for hard labels; its prefixes are read besides."""

    scored_tokens: int
    """Read to decide extraction, by each of the three models."""

    flops: dict[str, float]
    """By stage: 6 N a token for a training, 2 N a token for a pass; N parameters."""

    memory_bytes: int
    """Peak, of models and training: weights, gradients, AdamW's two moments, activations,
    logits. A rough figure: what torch and the tokenizer need comes on top."""

    seconds: dict[str, float]
    """By stage, on this machine: from a few examples that were run once to measure."""

    def document(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        total = {
            "total_flops": sum(self.flops.values()),
            "total_seconds": sum(self.seconds.values()),
        }
        return {"schema_version": 1, "dry_run": True, **plain, **total}


def estimate_verification(
    teacher: str,
    student: str,
    data: str | Path | CorpusOptions,
    *,
    baseline: str | None = None,
    options: VerificationOptions = DEFAULT_OPTIONS,
    progress: ReportStage | None = None,
) -> Estimate:
    """Return what `verify_distillation` would cost with the same arguments.

    The corpus is read and the models are loaded; nothing is trained and nothing is written.

    Raises:
        CorpusError, ModelError: as `verify_distillation`.
    """
    corpus = data if isinstance(data, CorpusOptions) else CorpusOptions(str(data))
    models = load_models(teacher, student, baseline, options)
    tokenizer = models.teacher.tokenizer
    rows = read_corpus(corpus, render_messages=tokenizer.render_messages)
    with read_examples(rows, tokenizer, options, folder=None, progress=progress) as examples:
        check_readable(models, examples.windows[0])
        return _estimate(models, examples, options)


def _estimate(
    models: VerificationModels, examples: Examples, options: VerificationOptions
) -> Estimate:
    training, is_hard = options.training, options.objective.kind == "hard"
    n_rows = len(examples.training_set(examples.trained))
    window_len = options.shape.length + len(models.bos)
    steps = training.n_steps(n_rows)
    passes = steps / -(-n_rows // training.batch_size)
    tokens = {
        "training": round(passes * n_rows) * window_len,
        "generated": len(examples.trained) * options.shape.suffix_len * is_hard,
        "scored": len(examples.windows) * window_len,
    }
    rates = _seconds_a_token(models, examples, options)
    sizes = {role: model.n_parameters for role, model in models.given.items()}
    flops, seconds = _stages(tokens, rates, sizes, options, makes_baseline=models.baseline is None)
    return Estimate(
        parameters=sizes,
        examples=len(examples.trained),
        held_out=int(examples.is_held_out.sum()),
        training_examples=n_rows,
        steps=steps,
        training_tokens=tokens["training"],
        generated_tokens=tokens["generated"],
        scored_tokens=tokens["scored"],
        flops=flops,
        memory_bytes=_memory(models, options, window_len),
        seconds=seconds,
    )


def _stages(
    tokens: dict[str, int],
    rates: dict[str, float],
    sizes: dict[str, int],
    options: VerificationOptions,
    *,
    makes_baseline: bool,
) -> tuple[dict[str, float], dict[str, float]]:
    """Return operations and seconds by stage."""
    teacher, student = sizes["teacher"], sizes["student"]
    is_soft = options.objective.kind == "soft"
    flops = {"student": (6 * student + 2 * teacher * is_soft) * float(tokens["training"])}
    seconds = {
        "student": (rates["training"] + rates["teacher"] * is_soft) * tokens["training"],
        "extract": (rates["teacher"] + 2 * rates["student"]) * tokens["scored"],
    }
    flops["extract"] = 2.0 * (teacher + sizes.get("baseline", student) + student) * tokens["scored"]
    if makes_baseline:
        flops["baseline"] = 6.0 * student * tokens["training"]
        seconds["baseline"] = rates["training"] * tokens["training"]
    if tokens["generated"]:
        read_and_written = tokens["generated"] * options.shape.length / options.shape.suffix_len
        flops["hard labels"] = 2.0 * teacher * read_and_written
        seconds["hard labels"] = rates["generation"] * tokens["generated"]
    return flops, seconds


def _seconds_a_token(
    models: VerificationModels, examples: Examples, options: VerificationOptions
) -> dict[str, float]:
    """Return seconds a token of a training step and of passes, measured on a few examples."""
    import torch

    from memaudit.distillation.losses import cross_entropy_loss

    n = min(_CALIBRATION_EXAMPLES, options.training.batch_size, len(examples.trained))
    windows = models.with_bos(examples.trained[:n])
    batch = {name: torch.as_tensor(windows).long() for name in ("input_ids", "labels")}
    teacher, student = models.teacher.model, models.student.model
    batch = {name: tensor.to(teacher.device) for name, tensor in batch.items()}

    def read(model: "PreTrainedModel") -> None:
        with torch.inference_mode():
            cross_entropy_loss(model, batch)

    def step() -> None:
        student.requires_grad_(True)
        cross_entropy_loss(student, batch).backward()
        student.zero_grad()
        student.requires_grad_(False)

    rates = {
        "teacher": _shortest(lambda: read(teacher)) / windows.size,
        "student": _shortest(lambda: read(student)) / windows.size,
        "training": _shortest(step) / windows.size,
    }
    if options.objective.kind == "hard":
        rates["generation"] = _generation_rate(models, windows, options)
    return rates


def _generation_rate(
    models: VerificationModels, windows: NDArray[np.int32], options: VerificationOptions
) -> float:
    """Return seconds for each token that the teacher writes, at the batch size it writes with."""
    from memaudit.distillation import generate_hard_labels

    prefix_len = options.shape.prefix_len + len(models.bos)
    seconds = _shortest(
        lambda: generate_hard_labels(models.teacher.model, list(windows), prefix_len)
    )
    return seconds / (len(windows) * options.shape.suffix_len)


def _shortest(run: Callable[[], object], *, n: int = 2) -> float:
    """Return the seconds of the fastest of some runs."""
    seconds = []
    for _ in range(n):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _memory(models: VerificationModels, options: VerificationOptions, window_len: int) -> int:
    """Return bytes at the peak: while the student is trained."""
    student: Any = models.student.model
    config = student.config.get_text_config()
    sizes = {role: model.n_parameters for role, model in models.given.items()}
    training = options.training
    tokens = -(-training.batch_size // training.gradient_accumulation) * window_len
    # The models given, and of the student a copy, its gradients and two moments.
    weights = sum(sizes.values()) + 4 * sizes["student"]
    activations = _ACTIVATIONS_A_LAYER * tokens * config.hidden_size * config.num_hidden_layers
    scores = tokens * window_len * config.num_attention_heads * config.num_hidden_layers
    # Logits, their log-softmax and its gradient; of the teacher the first two.
    logits = tokens * config.vocab_size * (5 if options.objective.kind == "soft" else 3)
    return int(_BYTES * (weights + activations + 2 * scores + logits))
