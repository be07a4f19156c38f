"""Recipes of the paper's own studies: too large for most machines, so they are costed, not run."""

import json
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from memaudit.errors import UsageError

KIND = "hub"
"""What `kind` says in a recipe of models on the hub; a recipe of miniatures has no `kind`."""

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12}
"""Dense bfloat16 operations a second, by GPU, as its maker gives them."""

UTILISATION = 0.4
"""Of the peak: a usual value for trainings of this size."""

_TRAINING_BYTES = 16
"""A parameter in float32: weight, gradient and AdamW's two moments."""

_BYTES = 4
_CHECKPOINT_BYTES = 12
"""A parameter: weight and two moments."""

Count = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
PaperObjective = Literal["soft", "hard"]


class HubModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model on the hub."""

    model: Name
    """Its id."""

    parameters: Count
    """All of them, embeddings included."""


class HubCorpus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Examples from a corpus on the hub."""

    source: Name
    """Its id."""

    examples: Count
    """Distinct sequences that are trained on."""

    example_tokens: Count
    """Tokens of each."""

    config: str | None = None
    """Configuration; None is the corpus's own default."""

    split: Name = "train"
    """Which part of it."""

    rows: Count | None = None
    """Rows to fetch, of which some are too short. None: as many as examples."""


class PaperWindows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What has to be reproduced of an example, from its first token on."""

    prefix_tokens: Count
    """Given to the model."""

    suffix_tokens: Count
    """To be reproduced exactly."""


class PaperTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How models are trained: AdamW, a cosine schedule."""

    learning_rate: Positive
    """Peak, of all trainings."""

    teacher_epochs: Count
    """Of the teacher, by cross-entropy."""

    student_epochs: Count
    """Of baseline and students."""

    temperature: Positive
    """Of soft labels."""

    objectives: Annotated[tuple[PaperObjective, ...], msgspec.Meta(min_length=1)]
    """One student each."""

    seeds: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(min_length=1)]
    """Every model is trained once for each."""

    batch_size: Count
    """Examples in one optimizer step."""

    held_out_share: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    """Of the examples, kept from baseline and students to measure perplexity."""


class PaperStudy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pair of models on one corpus, as Borkar et al. 2026 (arXiv:2601.15394) distil it."""

    kind: Literal["hub"]
    """`KIND`."""

    teacher: HubModel
    """Before its fine-tuning."""

    student: HubModel
    """Before its distillation; the baseline starts from it too."""

    corpus: HubCorpus
    """What all are trained on."""

    windows: PaperWindows
    """What counts as memorized."""

    training: PaperTraining
    """How."""


@dataclass(frozen=True, slots=True)
class PaperCost:
    """What running a study would cost, over all its seeds."""

    training_tokens: dict[str, int]
    """Read in trainings, by stage."""

    flops: dict[str, float]
    """By stage: 6 N a token for a training, 2 N a token for a pass; N parameters."""

    memory_bytes: dict[str, int]
    """By stage, of one training: weights, gradients and AdamW's two moments in float32, with the
    weights of a frozen teacher beside them. Activations and logits come on top."""

    storage_bytes: int
    """Trained models in float32, one checkpoint of the largest, and token ids."""

    @property
    def gpu_hours(self) -> dict[str, float]:
        """By GPU, at `UTILISATION` of its peak."""
        operations = sum(self.flops.values())
        return {gpu: operations / (peak * UTILISATION) / 3600 for gpu, peak in PEAK_FLOPS.items()}


def is_paper_recipe(path: Path) -> bool:
    """Return whether a file says that it is such a recipe; False if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, ValueError):
        return False


def read_paper_study(path: Path) -> PaperStudy:
    """Read a recipe.

    Raises:
        UsageError: not such a recipe, unknown keys, or values that contradict each other.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        study = msgspec.convert(document, PaperStudy)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise UsageError(
            f"{path}: {error}", hint="see models/recipes/paper-pythia-fineweb.toml for the form"
        ) from error
    window_tokens = study.windows.prefix_tokens + study.windows.suffix_tokens
    if window_tokens > study.corpus.example_tokens:
        raise UsageError(
            f"{path}: expected windows no longer than examples of {study.corpus.example_tokens} "
            f"tokens, got {window_tokens}"
        )
    for name in ("objectives", "seeds"):
        values = getattr(study.training, name)
        if len(set(values)) < len(values):
            raise UsageError(f"{path}: expected distinct {name}, got {values}")
    return study


def paper_cost(study: PaperStudy) -> PaperCost:
    """Return what running it would cost: arithmetic, nothing is loaded or fetched."""
    training, corpus = study.training, study.corpus
    teacher, student = study.teacher.parameters, study.student.parameters
    n_seeds = len(training.seeds)
    pass_tokens = n_seeds * corpus.examples * corpus.example_tokens
    window_tokens = study.windows.prefix_tokens + study.windows.suffix_tokens
    tokens = {
        "teacher": training.teacher_epochs * pass_tokens,
        "baseline": training.student_epochs * pass_tokens,
    }
    flops = {
        "teacher": 6.0 * teacher * tokens["teacher"],
        "baseline": 6.0 * student * tokens["baseline"],
    }
    memory = {"teacher": _TRAINING_BYTES * teacher, "baseline": _TRAINING_BYTES * student}
    for objective in training.objectives:
        stage = f"{objective} student"
        tokens[stage] = tokens["baseline"]
        flops[stage] = 6.0 * student * tokens[stage]
        memory[stage] = _TRAINING_BYTES * student
        if objective == "soft":
            flops["soft labels"] = 2.0 * teacher * tokens[stage]
            memory[stage] += _BYTES * teacher
        else:
            flops["hard labels"] = 2.0 * teacher * pass_tokens
            memory["hard labels"] = _BYTES * teacher
    n_small = 1 + len(training.objectives)
    scored = float(n_seeds * corpus.examples * window_tokens)
    flops["extraction"] = 2.0 * (teacher + n_small * student) * scored
    memory["extraction"] = _BYTES * teacher
    models = _BYTES * n_seeds * (teacher + n_small * student)
    token_ids = _BYTES * corpus.examples * corpus.example_tokens
    storage = models + _CHECKPOINT_BYTES * max(teacher, student) + token_ids
    return PaperCost(tokens, flops, memory, storage)


def paper_document(study: PaperStudy) -> dict[str, Any]:
    """Return study, cost and what runs it as one JSON document."""
    cost = paper_cost(study)
    return {
        "schema_version": 1,
        "dry_run": True,
        "study": msgspec.to_builtins(study),
        **msgspec.to_builtins(cost),
        "gpu_hours": cost.gpu_hours,
        "utilisation": UTILISATION,
        "teacher_training": teacher_training(study),
        "commands": [*corpus_commands(study), *verify_commands(study)],
        "differences": differences(study),
    }


def teacher_training(study: PaperStudy) -> str:
    """Return how the teacher is fine-tuned, which no command of ours does at such a size."""
    training = study.training
    seeds = ", ".join(map(str, training.seeds))
    memory = paper_cost(study).memory_bytes["teacher"] / 1e9
    return (
        f"Fine-tune {study.teacher.model} on {corpus_file(study)} by cross-entropy, once for each "
        f"seed ({seeds}): {training.teacher_epochs} epochs, AdamW, peak learning rate "
        f"{training.learning_rate:g}, cosine, {training.batch_size} examples a step, examples of "
        f"{study.corpus.example_tokens} tokens. Weights, gradients and moments take "
        f"{memory:,.0f} GB: shard them over GPUs with a trainer that can. Save each as "
        f"{teacher_folder(study, '<seed>')}."
    )


def corpus_commands(study: PaperStudy) -> list[str]:
    """Return what fetches the rows of the corpus into one file."""
    corpus = study.corpus
    quoted = {
        name: json.dumps(value)
        for name, value in (
            ("source", corpus.source),
            ("config", corpus.config),
            ("split", corpus.split),
            ("file", corpus_file(study)),
        )
    }
    config = "" if corpus.config is None else f", {quoted['config']}"
    code = (
        "from datasets import load_dataset; "
        f"load_dataset({quoted['source']}{config}, split={quoted['split']}, streaming=True)"
        f".take({corpus.rows or corpus.examples}).to_json({quoted['file']})"
    )
    return [shlex.join(["python", "-c", code])]


def verify_commands(study: PaperStudy) -> list[str]:
    """Return the commands that distil and verify, one for each seed and objective.

    The first of each seed trains the baseline, which the others use again.
    """
    training, windows = study.training, study.windows
    commands = []
    for seed in training.seeds:
        baseline = f"{_run_folder(study, training.objectives[0], seed)}/baseline"
        for objective in training.objectives:
            is_first = objective == training.objectives[0]
            options: list[tuple[str, Any]] = [
                ("--teacher", teacher_folder(study, seed)),
                ("--student", study.student.model),
                *([] if is_first else [("--baseline", baseline)]),
                ("--data", corpus_file(study)),
                ("--objective", objective),
                *([("--temperature", training.temperature)] if objective == "soft" else []),
                ("--epochs", training.student_epochs),
                ("--learning-rate", training.learning_rate),
                ("--batch-size", training.batch_size),
                ("--held-out-share", training.held_out_share),
                ("--prefix-tokens", windows.prefix_tokens),
                ("--suffix-tokens", windows.suffix_tokens),
                ("--dtype", "bf16"),
                ("--seed", seed),
                ("--out", _run_folder(study, objective, seed)),
            ]
            words = [word for name, value in options for word in (name, f"{value}")]
            commands.append(shlex.join(["memaudit", "verify", *words, "--keep-models"]))
    return commands


def differences(study: PaperStudy) -> list[str]:
    """Return in which ways those commands are not what the paper did."""
    window_tokens = study.windows.prefix_tokens + study.windows.suffix_tokens
    found = [
        "The first rows of the corpus stand for the paper's sequences: a row shorter than a "
        "window is left out, and of a longer one only its start is used."
    ]
    if window_tokens < study.corpus.example_tokens:
        found.append(
            f"verify trains students on the {window_tokens} tokens that it tests, not on "
            f"{study.corpus.example_tokens}: the cost above is that of the paper's examples."
        )
    found.append(
        "verify runs in one process and holds all models in float32: see the memory above, to "
        "which activations and logits come."
    )
    return found


def corpus_file(study: PaperStudy) -> str:
    """Return the name of the local copy of the corpus."""
    return f"{study.corpus.source.split('/')[-1].lower()}.jsonl"


def teacher_folder(study: PaperStudy, seed: int | str) -> str:
    """Return where the fine-tuned teacher of a seed is expected."""
    return f"teachers/{_pair(study)}-{seed}"


def _run_folder(study: PaperStudy, objective: str, seed: int) -> str:
    return f"runs/{_pair(study)}-{objective}-{seed}"


def _pair(study: PaperStudy) -> str:
    corpus = study.corpus.source.split("/")[-1].lower()
    return f"{study.teacher.model.split('/')[-1].lower()}-{corpus}"
