"""The stages of a study: each leaves a file or a folder, so that a killed study goes on there."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from memaudit.engines.generation import continue_prefixes
from memaudit.objectives import GREEDY, Divergence, LabelSampling
from study.models import cut_model, new_model, train_tokenizer
from study.recipe import Cell, Family, Recipe, Size, Student
from study.texts import CellWindows, cell_windows, documents, pretraining_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from study.loops import SoftLabels

_BASE_SEED = 1
_TEACHER_SEED = 101
_BASELINE_SEED = 102
_WINDOWS = "windows.npz"
_PEAK = "peak_bytes.txt"
_CONTINUED_AT_ONCE = {"cpu": 16, "cuda": 1024}
"""Prefixes of hard labels, by kind of device."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """A recipe, the text it reads and the folder in which its models are kept."""

    recipe: Recipe
    sample_data: Path
    work: Path
    """Tokenizer, bases and the models of every cell. About 30 MB per cell."""

    say: Callable[[str], None]
    """Called with a line whenever a stage ends."""

    device: str = "cpu"
    """Where models are trained and asked, `cuda` for instance."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products in training: weights, optimizer and scores stay in float32."""

    def cell_folder(self, cell: Cell) -> Path:
        """Where the windows and models of a cell are."""
        return self.work / "cells" / cell.name

    def base_folder(self, family: Family, size: Size) -> Path:
        """Where a base is."""
        return self.work / "bases" / f"{family}-{size}"


def train_cell(shop: Workshop, cell: Cell, *, later: bool) -> None:
    """Train what is missing of a cell: its bases, teacher, baseline and students.

    Args:
        shop: the recipe and its folders.
        cell: one of the recipe.
        later: also the students that can wait.
    """
    regime = shop.recipe.regimes[cell.regime]
    windows = read_windows(shop, cell)
    folder = shop.cell_folder(cell)
    rows = np.repeat(np.arange(len(windows.windows)), windows.counts)
    seen = {"all": rows, "half": rows[windows.in_half[rows]], "none": rows[:0]}[cell.teacher_saw]
    for name, size, schedule, seed, learned in (
        ("teacher", regime.teacher, regime.teacher_schedule, _TEACHER_SEED, seen),
        ("baseline", regime.student, regime.student_schedule, _BASELINE_SEED, rows),
    ):
        if not (folder / name).exists():
            model = _base(shop, cell.family, size)
            options = {"rows": learned, "seed": seed, "first": regime.first}
            _train(shop, folder / name, model, windows.windows, schedule, **options)
    for student in cell.students:
        if later or not student.later:
            train_student(shop, cell, student, folder / student.name)


def train_student(
    shop: Workshop,
    cell: Cell,
    student: Student,
    folder: Path,
    keeps: "NDArray[np.bool_] | None" = None,
) -> None:
    """Train a student of a cell whose teacher is there, if it is not there itself.

    Args:
        shop: the recipe and its folders.
        cell: one of the recipe.
        student: one of the cell.
        folder: for the student.
        keeps: (windows,) which of its windows it is trained on. None: on all of them.
    """
    if folder.exists():
        return
    windows, regime = read_windows(shop, cell), shop.recipe.regimes[cell.regime]
    schedule = regime.student_schedule
    if student.epochs is not None:
        schedule = msgspec.structs.replace(schedule, epochs=student.epochs)
    rows = np.repeat(np.arange(len(windows.windows)), windows.counts)
    if student.is_half or student.is_other_half:
        rows = rows[windows.in_half[rows] == student.is_half]
    if keeps is not None:
        rows = rows[keeps[rows]]
    texts, labels = windows.windows, None
    if student.hard_labels is None:
        labels = _as_learnt(_soft_labels(shop.cell_folder(cell), shop.device, shop.dtype), student)
        if student.on_policy:
            teacher = load_model(shop.cell_folder(cell) / "teacher", shop.device)
            labels = replace(labels, teacher=teacher)
    elif student.hard_labels != "text":
        teacher = load_model(shop.cell_folder(cell) / "teacher", shop.device)
        sampling = LabelSampling(1.0) if student.hard_labels == "sampled" else GREEDY
        texts = _hard_labels(teacher, texts, regime.prefix_len, sampling, student.seed)
    model = _base(shop, cell.family, regime.student)
    first = regime.prefix_len if student.on_policy else regime.first
    options = {"rows": rows, "seed": student.seed, "labels": labels, "first": first}
    _train(shop, folder, model, texts, schedule, **options)


def _hard_labels(
    teacher: "PreTrainedModel",
    texts: "NDArray[np.int32]",
    prefix_len: int,
    sampling: LabelSampling,
    seed: int,
) -> "NDArray[np.int32]":
    """Return windows as the package's `generate_hard_labels` does, many at once on a GPU."""
    prefixes = texts[:, :prefix_len]
    _, first, places = np.unique(prefixes, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they stand in the windows: what is sampled depends on it
    continued = continue_prefixes(
        teacher,
        list(prefixes[first[order]]),
        texts.shape[1] - prefix_len,
        n_at_once=_CONTINUED_AT_ONCE[teacher.device.type],
        sampling=sampling,
        seed=seed,
    )
    suffixes = np.stack(continued)[np.argsort(order)[places]]
    return np.concatenate([prefixes, suffixes], axis=1).astype(np.int32)


def read_windows(shop: Workshop, cell: Cell) -> CellWindows:
    """Return the windows of a cell; they are cut when they are first asked for."""
    path = shop.cell_folder(cell) / _WINDOWS
    if not path.exists():
        made = cell_windows(cell, shop.recipe, shop.sample_data, read_tokenizer(shop))
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(".windows.npz")
        np.savez_compressed(unfinished, **{f.name: getattr(made, f.name) for f in fields(made)})
        unfinished.rename(path)
        shop.say(f"{cell.name}: {len(made.windows):,} windows")
    return _load_windows(path.parent)


def _load_windows(folder: Path) -> CellWindows:
    with np.load(folder / _WINDOWS) as arrays:
        return CellWindows(**{name: arrays[name] for name in arrays})


def read_tokenizer(shop: Workshop) -> "PreTrainedTokenizerFast":
    """Return the study's tokenizer; it is trained when it is first asked for."""
    from transformers import PreTrainedTokenizerFast

    folder = shop.work / "tokenizer"
    if not folder.exists():
        plan = shop.recipe.pretraining
        texts = [text for source in plan.sources for text in documents(shop.sample_data, source)]
        trained = train_tokenizer(texts, shop.recipe.vocabulary_size)
        _save(folder, trained)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def load_model(folder: Path, device: str = "cpu") -> "PreTrainedModel":
    """Return a trained model of the study, ready to score."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def training_seconds(folder: Path) -> float:
    """Return the seconds that a model took: of the processor, or of the wall beside a GPU."""
    return float((folder / "seconds.txt").read_text(encoding="ascii"))


def peak_bytes(folder: Path) -> int | None:
    """Return the most memory that a model's training held on a GPU. None: it was on a CPU."""
    path = folder / _PEAK
    return int(path.read_text(encoding="ascii")) if path.exists() else None


def _base(shop: Workshop, family: Family, size: Size) -> "PreTrainedModel":
    folder = shop.base_folder(family, size)
    if not folder.exists():
        plan, tokenizer = shop.recipe.pretraining, read_tokenizer(shop)
        sequences = pretraining_tokens(plan, shop.sample_data, tokenizer)
        given = shop.recipe.pretrained.get(family)
        model: Any = (
            cut_model(load_model(shop.base_folder(family, given)), size.layers)
            if given is not None
            else new_model(family, size, shop.recipe.vocabulary_size, _BASE_SEED)
        )
        rows, model = np.arange(len(sequences)), model.to(shop.device)
        _train(shop, folder, model, sequences, plan.schedule, rows=rows, seed=_BASE_SEED)
    return load_model(folder, shop.device)


def _train(
    shop: Workshop,
    folder: Path,
    model: "PreTrainedModel",
    windows: "NDArray[np.int32]",
    schedule: Any,
    **options: Any,
) -> None:
    import torch

    from study.loops import clock, train

    before, is_on_gpu = clock(model), model.device.type == "cuda"
    if is_on_gpu:
        torch.cuda.reset_peak_memory_stats()
    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = folder.with_name(f".{folder.name}.checkpoint")
    options |= {"checkpoint": checkpoint, "dtype": getattr(torch, shop.dtype)}
    earlier = train(model, windows, schedule, **options)
    if is_on_gpu:
        torch.cuda.synchronize()
    seconds = clock(model) - before + earlier
    about = {"seconds.txt": f"{seconds:.1f}"}
    if is_on_gpu:
        about[_PEAK] = str(torch.cuda.max_memory_allocated())
    _save(folder, model, about)
    checkpoint.unlink(missing_ok=True)
    shop.say(f"{folder.parent.name}/{folder.name}: {seconds:.0f} s")


@lru_cache(maxsize=1)  # the students of a cell come one after another
def _soft_labels(folder: Path, device: str, dtype: str) -> "SoftLabels":
    import torch

    from study.loops import soft_labels

    teacher, windows = load_model(folder / "teacher", device), _load_windows(folder).windows
    return soft_labels(teacher, windows, 1.0, getattr(torch, dtype))


def _as_learnt(labels: "SoftLabels", student: Student) -> "SoftLabels":
    divergence = Divergence(student.divergence, top_k=student.top_k, on_policy=student.on_policy)
    return replace(labels, temperature=student.temperature, divergence=divergence)


def _save(folder: Path, thing: Any, about: dict[str, str] | None = None) -> None:
    """Write a folder that is either complete or not there, with texts about it by file name."""
    unfinished = folder.with_name(f".{folder.name}")
    thing.save_pretrained(unfinished)
    for name, text in (about or {}).items():
        (unfinished / name).write_text(text, encoding="ascii")
    unfinished.rename(folder)
