"""Cells: one real distillation each, from texts to features and labels."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memaudit.distillation import TrainingOptions, distil, fine_tune
from memaudit.features import FEATURE_SETS, ReferenceRole, window_features
from memaudit.memorization import extracted
from memaudit.runs.commit import committed_file
from memaudit.study.miniature import new_model
from memaudit.study.recipe import Cell, TrainingPlan
from memaudit.study.texts import texts_of_role
from memaudit.training import LabelledRun
from memaudit.windows import cut_windows, window_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_LABEL = "extracted_by_student"


@dataclass(frozen=True, slots=True)
class CellExamples:
    """What the models of a cell are trained on."""

    windows: list[NDArray[np.int32]]
    """Distinct, each (T,)."""

    texts: list[str]
    """The texts they start."""

    occurrences: NDArray[np.int64]
    """(n,) how many times each is in the training set."""

    @property
    def training_set(self) -> list[NDArray[np.int32]]:
        """Every window as often as it occurs."""
        pairs = zip(self.windows, self.occurrences, strict=True)
        return [window for window, count in pairs for _ in range(count)]


@dataclass(frozen=True, slots=True)
class CellModels:
    """The models of a cell; the student before training is `untrained`."""

    teacher: "PreTrainedModel"
    untrained: "PreTrainedModel"
    baseline: "PreTrainedModel"
    student: "PreTrainedModel"


@dataclass(frozen=True, slots=True)
class CellResult:
    """What a cell leaves."""

    run: LabelledRun
    """Features and labels; beside them what teacher and baseline recite."""

    windows: NDArray[np.int32]
    """(n, T) token ids of its examples."""


def choose_examples(
    cell: Cell, sample_data: Path, tokenizer: "PreTrainedTokenizerFast"
) -> CellExamples:
    """Return the examples of a cell, drawn with its seed from the texts of its role."""
    rng = np.random.default_rng(cell.seed)
    texts = texts_of_role(sample_data, cell.corpus, cell.role)
    windows = list[NDArray[np.int32]]()
    chosen = list[str]()
    seen = set[bytes]()
    for index in rng.permutation(len(texts)):
        for window in cut_windows(tokenizer.encode(texts[index]), cell.shape):
            key = window_key(window)
            if key not in seen and len(windows) < cell.n_examples:
                seen.add(key)
                windows.append(window)
                chosen.append(texts[index])
    levels = 2 ** np.arange(int(np.log2(cell.max_repeats)) + 1)
    odds = (1 / levels) / (1 / levels).sum()
    return CellExamples(windows, chosen, rng.choice(levels, size=len(windows), p=odds))


def train_models(cell: Cell, examples: CellExamples, vocabulary_size: int) -> CellModels:
    """Train teacher and baseline by cross-entropy, and the student by the teacher's soft labels.

    Baseline and student start from the same weights.
    """
    training_set = examples.training_set
    teacher = new_model(cell.teacher, vocabulary_size, cell.seed)
    untrained, baseline, student = (
        new_model(cell.student, vocabulary_size, cell.seed + 1) for _ in range(3)
    )

    def options(plan: TrainingPlan, seed: int) -> TrainingOptions:
        stop = _stop_rule(examples, cell.window_half, plan.stop_at_rate)
        return TrainingOptions(
            plan.max_epochs, plan.learning_rate, cell.batch_size, seed=seed, stop_when=stop
        )

    with tempfile.TemporaryDirectory() as folder:
        work_dir = Path(folder)
        fine_tune(teacher, training_set, options(cell.teacher_plan, cell.seed), work_dir=work_dir)
        baseline_options = TrainingOptions(
            cell.baseline_epochs,
            cell.student_plan.learning_rate,
            cell.batch_size,
            seed=cell.seed + 1,
        )
        fine_tune(baseline, training_set, baseline_options, work_dir=work_dir)
        distil(
            student,
            teacher,
            training_set,
            options(cell.student_plan, cell.seed + 1),
            temperature=cell.temperature,
            work_dir=work_dir,
        )
    return CellModels(teacher, untrained, baseline, student)


def _stop_rule(
    examples: CellExamples, prefix_len: int, rate: float
) -> "Callable[[PreTrainedModel], bool]":
    def reached(model: "PreTrainedModel") -> bool:
        return float(extracted_by(model, examples.windows, prefix_len).mean()) >= rate

    return reached


def extracted_by(
    model: "PreTrainedModel", windows: Sequence[NDArray[np.int32]], prefix_len: int
) -> NDArray[np.bool_]:
    """Return (n,) whether the model reproduces each window's suffix, in float32."""
    from memaudit.engines.hf import HfEngine

    scores = HfEngine(model).score(windows)
    return np.array([extracted(score.teacher, prefix_len) for score in scores])


def cell_features(
    cell: Cell,
    examples: CellExamples,
    models: CellModels,
    decode: Callable[[list[list[int]]], list[str]],
) -> dict[str, NDArray[np.float64]]:
    """Return (n,) for every feature of every feature set."""
    from memaudit.engines.hf import HfEngine

    texts = decode([window.tolist() for window in examples.windows])
    suffixes = decode([window[cell.window_half :].tolist() for window in examples.windows])
    references: dict[ReferenceRole, PreTrainedModel] = {
        "student": models.untrained,
        "baseline": models.baseline,
    }
    columns: dict[str, NDArray[np.float64]] = {}
    for role, reference in references.items():
        scores = HfEngine(models.teacher, reference).score(examples.windows)
        rows = [
            window_features(
                scores[i],
                prefix_len=cell.window_half,
                text=texts[i],
                suffix_text=suffixes[i],
                occurrences=int(examples.occurrences[i]),
                role=role,
            )
            for i in range(len(scores))
        ]
        names = FEATURE_SETS[f"teacher+{role}"]
        columns |= {name: np.array([row[name] for row in rows]) for name in names}
    return columns


def run_cell(
    cell: Cell, sample_data: Path, tokenizer: "PreTrainedTokenizerFast", out: Path
) -> CellModels:
    """Run one distillation and write its features and labels to `out`.

    The file holds token ids of the examples: it is as private as the corpus.
    """
    examples = choose_examples(cell, sample_data, tokenizer)
    models = train_models(cell, examples, len(tokenizer))
    features = cell_features(cell, examples, models, tokenizer.batch_decode)
    labels = {
        f"extracted_by_{role}": extracted_by(model, examples.windows, cell.window_half)
        for role, model in (
            ("teacher", models.teacher),
            ("baseline", models.baseline),
            ("student", models.student),
        )
    }
    with committed_file(out) as stream:
        columns: dict[str, Any] = {"windows": np.stack(examples.windows), **features, **labels}
        np.savez_compressed(stream, **columns)
    return models


def read_cell(cell: Cell, path: Path) -> CellResult:
    """Return what `run_cell` wrote."""
    with np.load(path, allow_pickle=False) as columns:
        features = {name: columns[name] for name in columns.files}
    windows = features.pop("windows")
    return CellResult(LabelledRun(cell.name, features, features.pop(_LABEL)), windows)
