"""Running a study: cell by cell, in several processes, going on where it was left."""

from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.study.cells import run_cell
from memaudit.study.miniature import train_tokenizer
from memaudit.study.recipe import Cell, Recipe
from memaudit.study.texts import CORPORA, read_sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TOKENIZER = "tokenizer"


def run_study(recipe: Recipe, sample_data: Path, out: Path, *, n_jobs: int = 1) -> None:
    """Run every cell of the recipe that has no result in `out` yet.

    Args:
        recipe: which cells.
        sample_data: the folder of the sample corpora.
        out: one file a cell; made if it is missing.
        n_jobs: processes, each with one thread: for miniature models that is the fastest way.
    """
    from joblib import Parallel, delayed, parallel_config

    out.mkdir(parents=True, exist_ok=True)
    if not (out / _TOKENIZER).exists():
        texts = (text for corpus in CORPORA for text in read_sample(sample_data, corpus))
        train_tokenizer(texts, recipe.vocabulary_size).save_pretrained(out / _TOKENIZER)
    missing = [cell for cell in (recipe.demo, *recipe.cells) if not cell_path(out, cell).exists()]
    with parallel_config("loky", inner_max_num_threads=1):
        Parallel(n_jobs=n_jobs)(delayed(_run)(cell, sample_data, out) for cell in missing)


def cell_path(out: Path, cell: Cell) -> Path:
    """Return where the result of a cell is."""
    return out / f"{cell.name}.npz"


def weights_path(out: Path, cell: Cell) -> Path:
    """Return the folder of the models of a cell, one folder each."""
    return out / "weights" / cell.name


def load_tokenizer(out: Path) -> "PreTrainedTokenizerFast":
    """Return the tokenizer that the models of a study share."""
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(out / _TOKENIZER)
    return tokenizer


def _run(cell: Cell, sample_data: Path, out: Path) -> None:
    """Run one cell in a process of its own."""
    import torch

    torch.set_num_threads(1)
    models = run_cell(cell, sample_data, load_tokenizer(out), cell_path(out, cell))
    for role in ("teacher", "untrained", "baseline", "student"):
        getattr(models, role).save_pretrained(weights_path(out, cell) / role)
