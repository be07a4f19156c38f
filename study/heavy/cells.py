"""Cells: a teacher, its baseline and its students really trained, from texts to labels."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memaudit.distillation import TrainingOptions
from memaudit.distillation.methods import distil, fine_tune
from memaudit.features import (
    FEATURE_SETS,
    ReferenceRole,
    corpus_features,
    model_features,
    objective_features,
)
from memaudit.memorization import extracted
from memaudit.objectives import Objective
from memaudit.runs.files import committed_file
from memaudit.training.fitting import LabelledRun
from memaudit.windows import cut_windows, window_key
from study.heavy.bases import start_model
from study.heavy.recipe import MAIN_STUDENT, Cell, Student, TrainingPlan
from study.heavy.texts import texts_of_role

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_N_HELD_OUT = 200


@dataclass(frozen=True, slots=True)
class CellExamples:
    """What the models of a cell are trained on."""

    windows: list[NDArray[np.int32]]
    """Distinct, each (T,)."""

    texts: list[str]
    """The texts they start."""

    occurrences: NDArray[np.int64]
    """(n,) how many times each is in the training set."""

    others: list[NDArray[np.int32]]
    """What a teacher sees in the place of those of the above that it does not see."""

    held_out: list[NDArray[np.int32]]
    """Windows that no model of the cell is trained on."""

    def training_set(self, seen: float = 1.0) -> list[NDArray[np.int32]]:
        """Return every window as often as it occurs.

        Args:
            seen: share of the windows that are in it; the others are in the place of the rest.
        """
        n_seen = round(seen * len(self.windows))
        windows = self.windows if seen == 1 else [*self.windows[:n_seen], *self.others]
        pairs = zip(windows, self.occurrences, strict=True)
        return [window for window, count in pairs for _ in range(count)]


@dataclass(frozen=True, slots=True)
class CellModels:
    """The models of a cell; the student before distillation is `base`."""

    teacher: "PreTrainedModel"
    base: "PreTrainedModel"
    baseline: "PreTrainedModel"
    students: "dict[str, PreTrainedModel]"

    def trained(self) -> "dict[str, PreTrainedModel]":
        """Return by name what was trained on the examples."""
        return {"teacher": self.teacher, "baseline": self.baseline, **self.students}


@dataclass(frozen=True, slots=True)
class CellResult:
    """What a cell leaves."""

    cell: Cell
    """Its settings."""

    windows: NDArray[np.int32]
    """(n, T) token ids of its examples."""

    features: dict[str, NDArray[np.float64]]
    """(n,) by name, of every feature set; those of the objective are the main student's."""

    extracted: dict[str, NDArray[np.bool_]]
    """(n,) by model: `teacher`, `baseline` and the students' names."""

    perplexity: dict[str, float]
    """Of the held-out windows, by model, `base` among them."""

    cpu_seconds: float
    """Processor time of the cell."""

    def objective(self, student: str) -> Objective:
        """Return what a student learned from; the baseline is a student of the corpus alone."""
        if student == "baseline":
            return Objective("cross-entropy")
        return next(each for each in self.cell.students if each.name == student).loss

    def run(self, student: str = MAIN_STUDENT) -> LabelledRun:
        """Return features and labels for one of the students, or for the baseline."""
        settings = objective_features(self.objective(student))
        columns = {name: np.full(len(self.windows), value) for name, value in settings.items()}
        name = self.cell.name if student == MAIN_STUDENT else f"{self.cell.name}/{student}"
        return LabelledRun(name, {**self.features, **columns}, self.extracted[student])


def choose_examples(
    cell: Cell, sample_data: Path, tokenizer: "PreTrainedTokenizerFast"
) -> CellExamples:
    """Return the examples of a cell, drawn with its seed from the texts of its role."""
    rng = np.random.default_rng(cell.seed)
    texts = texts_of_role(sample_data, cell.corpus, cell.role)
    windows = list[NDArray[np.int32]]()
    starts = list[str]()
    seen = set[bytes]()
    n = cell.n_examples
    n_others = n - round(cell.seen_by_teacher * n)
    n_needed = n + n_others + _N_HELD_OUT
    for index in rng.permutation(len(texts)):
        for window in cut_windows(tokenizer.encode(texts[index]), cell.shape):
            key = window_key(window)
            if key not in seen and len(windows) < n_needed:
                seen.add(key)
                windows.append(window)
                starts.append(texts[index])
    levels = 2 ** np.arange(int(np.log2(cell.max_repeats)) + 1)
    odds = (1 / levels) / (1 / levels).sum()
    if len(windows) < n_needed:
        raise ValueError(f"cell {cell.name}: expected {n_needed} windows, got {len(windows)}")
    return CellExamples(
        windows[:n],
        starts[:n],
        occurrences=rng.choice(levels, size=n, p=odds),
        others=windows[n : n + n_others],
        held_out=windows[n + n_others :],
    )


def train_models(
    cell: Cell, examples: CellExamples, vocabulary_size: int, bases: Path
) -> CellModels:
    """Train teacher and baseline by cross-entropy, and each student by its objective.

    Baseline and students start from the same weights, and train equally long on the same
    examples, at the same learning rate.
    """

    def start(size_of: str, seed: int) -> "PreTrainedModel":
        return start_model(cell, getattr(cell, size_of), vocabulary_size, bases, seed)

    teacher = start("teacher", cell.seed)
    base, baseline = start("student", cell.seed + 1), start("student", cell.seed + 1)
    training_set = examples.training_set()
    with tempfile.TemporaryDirectory() as folder:
        work_dir = Path(folder)
        teacher_set = examples.training_set(cell.seen_by_teacher)
        options = training_options(cell, cell.teacher_plan, seed=cell.seed)
        fine_tune(teacher, teacher_set, options, work_dir=work_dir)
        options = training_options(cell, cell.student_plan, seed=cell.seed + 1)
        fine_tune(baseline, training_set, options, work_dir=work_dir)
        remembered = remembered_logits(teacher, examples.windows)
        students = {}
        for student in cell.students:
            students[student.name] = start("student", cell.seed + 1)
            train_student(
                students[student.name], teacher, training_set, cell, student,
                remembered=remembered, work_dir=work_dir,
            )  # fmt: skip
    return CellModels(teacher, base, baseline, students)


def train_student(
    model: "PreTrainedModel",
    teacher: "PreTrainedModel",
    training_set: Sequence[NDArray[np.int32]],
    cell: Cell,
    student: Student,
    *,
    remembered: "Module",
    work_dir: Path,
) -> None:
    """Distil one student of a cell, in place.

    Args:
        model: what it starts from.
        teacher: for hard labels.
        training_set: every window as often as it occurs.
        cell: for the plan.
        student: for the objective.
        remembered: the teacher again, its logits of the windows computed already.
        work_dir: a folder that may be written to.
    """
    distil(
        model,
        teacher if student.objective == "hard" else remembered,  # type: ignore[arg-type]
        training_set,
        training_options(cell, cell.student_plan, seed=cell.seed + 1 + student.seed),
        objective=student.loss,
        prefix_len=cell.window_half,
        work_dir=work_dir,
    )


def training_options(cell: Cell, plan: TrainingPlan, *, seed: int) -> TrainingOptions:
    """Return the options that a plan stands for."""
    return TrainingOptions(plan.epochs, plan.learning_rate, cell.batch_size, seed=seed)


def remembered_logits(teacher: "PreTrainedModel", windows: Sequence[NDArray[np.int32]]) -> "Module":
    """Return a stand-in for the teacher that knows its logits of these windows by heart.

    Several students learn from one teacher over many epochs: asking it once is a third cheaper.
    """
    import torch
    from transformers.modeling_outputs import CausalLMOutput

    rows = {window_key(window): row for row, window in enumerate(windows)}
    with torch.no_grad():
        batches = torch.as_tensor(np.stack(windows), dtype=torch.int64).split(64)
        logits = torch.cat([teacher(input_ids=batch, use_cache=False).logits for batch in batches])

    class RememberedLogits(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> CausalLMOutput:
            keys = (window_key(window) for window in input_ids.numpy().astype(np.int32))
            return CausalLMOutput(logits=logits[[rows[key] for key in keys]])

    return RememberedLogits()


def extracted_by(
    model: "PreTrainedModel", windows: Sequence[NDArray[np.int32]], prefix_len: int
) -> NDArray[np.bool_]:
    """Return (n,) whether the model reproduces each window's suffix, in float32."""
    from memaudit.engines.hf import HfEngine

    scores = HfEngine(model).score(windows)
    return np.array([extracted(score.teacher, prefix_len) for score in scores])


def held_out_perplexity(model: "PreTrainedModel", windows: Sequence[NDArray[np.int32]]) -> float:
    """Return exp of the mean negative log-probability of a token of the windows."""
    from memaudit.engines.hf import HfEngine

    logprobs = [score.teacher.logprobs for score in HfEngine(model).score(windows)]
    return float(np.exp(-np.concatenate(logprobs).mean(dtype=np.float64)))


def cell_features(
    cell: Cell,
    examples: CellExamples,
    references: "Mapping[ReferenceRole, PreTrainedModel]",
    teacher: "PreTrainedModel",
    decode: Callable[[list[list[int]]], list[str]],
) -> dict[str, NDArray[np.float64]]:
    """Return (n,) for every feature that the references allow."""
    from memaudit.engines.hf import HfEngine

    texts = decode([window.tolist() for window in examples.windows])
    suffixes = decode([window[cell.window_half :].tolist() for window in examples.windows])
    columns: dict[str, NDArray[np.float64]] = {}
    for role, reference in references.items():
        scores = HfEngine(teacher, reference).score(examples.windows)
        rows = [
            corpus_features(texts[i], suffixes[i], int(examples.occurrences[i]))
            | model_features(scores[i], prefix_len=cell.window_half, role=role)
            for i in range(len(scores))
        ]
        names = FEATURE_SETS[f"teacher+{role}"]
        columns |= {name: np.array([row[name] for row in rows]) for name in names}
    return columns


def run_cell(
    cell: Cell,
    sample_data: Path,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    bases: Path,
    weights: Path | None,
    settings: bytes,
    out: Path,
) -> None:
    """Train the models of a cell and write its features and labels.

    Args:
        cell: its settings.
        sample_data: the folder of the sample corpora.
        tokenizer: of all models of the study.
        bases: the folder of the pretrained bases.
        weights: where the models go, a folder each. None: nowhere.
        settings: all that decides the result, written beside it.
        out: written last. It holds token ids of the examples: it is as private as the corpus.
    """
    started = time.process_time()
    examples = choose_examples(cell, sample_data, tokenizer)
    models = train_models(cell, examples, len(tokenizer), bases)
    references: dict[ReferenceRole, PreTrainedModel] = {
        "student": models.base,
        "baseline": models.baseline,
    }
    columns: dict[str, Any] = {
        "settings": np.frombuffer(settings, dtype=np.uint8),
        "windows": np.stack(examples.windows),
    }
    features = cell_features(cell, examples, references, models.teacher, tokenizer.batch_decode)
    columns |= {f"feature/{name}": column for name, column in features.items()}
    for name, model in models.trained().items():
        columns[f"extracted/{name}"] = extracted_by(model, examples.windows, cell.window_half)
    for name, model in {"base": models.base, **models.trained()}.items():
        columns[f"perplexity/{name}"] = held_out_perplexity(model, examples.held_out)
    columns["cpu_seconds"] = time.process_time() - started
    if weights is not None:
        for name, model in {"base": models.base, **models.trained()}.items():
            model.save_pretrained(weights / name)
    with committed_file(out) as stream:
        np.savez_compressed(stream, **columns)


def read_settings(path: Path) -> bytes:
    """Return the settings that a result was made with; empty if there is none."""
    if not path.exists():
        return b""
    with np.load(path, allow_pickle=False) as file:
        return bytes(file["settings"]) if "settings" in file.files else b""


def read_cell(cell: Cell, path: Path) -> CellResult:
    """Return what `run_cell` wrote."""
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}

    def group(prefix: str) -> dict[str, NDArray[Any]]:
        start = f"{prefix}/"
        return {
            name.removeprefix(start): column
            for name, column in columns.items()
            if name.startswith(start)
        }

    return CellResult(
        cell,
        columns["windows"],
        group("feature"),
        group("extracted"),
        {name: float(value) for name, value in group("perplexity").items()},
        float(columns["cpu_seconds"]),
    )
