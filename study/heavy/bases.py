"""Bases: pretrained miniature models that the teachers and students of a study start from.

Real teachers and students are language models before they see the corpus at hand. A base has
read the texts that no cell uses.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memaudit.distillation import TrainingOptions
from memaudit.distillation.methods import fine_tune
from study.heavy.recipe import Cell, Pretraining
from study.heavy.texts import CORPORA, texts_of_role
from study.models import new_model
from study.recipe import Family, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_SEED = 1


def needed_bases(cells: Sequence[Cell]) -> list[tuple[Family, Size]]:
    """Return family and size of each base that the cells start from, in the order of need."""
    sizes = [
        (cell.family, size)
        for cell in cells
        if cell.pretrained
        for size in (cell.teacher, cell.student)
    ]
    return list(dict.fromkeys(sizes))


def base_path(bases: Path, family: Family, size: Size) -> Path:
    """Return the folder of a base."""
    return bases / f"{family}-{size}"


def pretrain_base(
    family: Family,
    size: Size,
    plan: Pretraining,
    sample_data: Path,
    tokenizer: "PreTrainedTokenizerFast",
    bases: Path,
) -> None:
    """Train a base on the pretraining texts and save it."""
    model = new_model(family, size, len(tokenizer), _SEED)
    sequences = _pretraining_sequences(plan.window, sample_data, tokenizer)
    options = TrainingOptions(plan.epochs, plan.learning_rate, plan.batch_size, seed=_SEED)
    path = base_path(bases, family, size)
    unfinished = path.with_name(f".{path.name}")
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(model, sequences, options, work_dir=Path(folder))
    model.save_pretrained(unfinished)
    unfinished.rename(path)


def _pretraining_sequences(
    length: int, sample_data: Path, tokenizer: "PreTrainedTokenizerFast"
) -> list[NDArray[np.int32]]:
    """Return (length,) sequences cut from all texts, joined by the end-of-text token."""
    texts = [
        text for corpus in CORPORA for text in texts_of_role(sample_data, corpus, "pretraining")
    ]
    end = tokenizer.eos_token_id
    token_ids = [token for ids in tokenizer(texts)["input_ids"] for token in (*ids, end)]
    n = len(token_ids) // length
    return list(np.array(token_ids[: n * length], dtype=np.int32).reshape(n, length))


def start_model(
    cell: Cell, size: Size, vocabulary_size: int, bases: Path, seed: int
) -> "PreTrainedModel":
    """Return a model of a cell before its training: the base, or random weights by the seed."""
    if not cell.pretrained:
        return new_model(cell.family, size, vocabulary_size, seed)
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base_path(bases, cell.family, size), dtype="float32"
    )
    model.eval()
    return model
