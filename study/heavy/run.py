"""Running a study: cell by cell, in several processes, going on where it was left."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from memaudit.engines.locating import quiet_transformers
from study.heavy.bases import base_path, needed_bases, pretrain_base
from study.heavy.cells import read_settings, run_cell
from study.heavy.recipe import Cell, Recipe
from study.heavy.texts import CORPORA, read_sample
from study.models import train_tokenizer
from study.recipe import Family, Size

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
    out.mkdir(parents=True, exist_ok=True)
    if not (out / _TOKENIZER).exists():
        texts = (text for corpus in CORPORA for text in read_sample(sample_data, corpus))
        train_tokenizer(texts, recipe.vocabulary_size).save_pretrained(out / _TOKENIZER)
    cells = missing_cells(recipe, out)
    folder = bases_path(out, recipe)
    bases = [base for base in needed_bases(cells) if not base_path(folder, *base).exists()]
    _run_all(n_jobs, _pretrain, ((recipe, base, sample_data, out) for base in bases))
    _run_all(n_jobs, _run, ((recipe, cell, sample_data, out) for cell in cells))


def missing_cells(recipe: Recipe, out: Path) -> list[Cell]:
    """Return the cells without a result, in the order of running.

    A result made with other settings is none: it would stand in the tables under a false name.
    """
    return [
        cell
        for cell in (recipe.demo, *recipe.cells)
        if read_settings(cell_path(out, cell)) != cell_settings(recipe, cell)
    ]


def cell_settings(recipe: Recipe, cell: Cell) -> bytes:
    """Return all that the recipe says about a cell, and about the bases it may start from."""
    return msgspec.json.encode((recipe.vocabulary_size, recipe.pretraining, cell), order="sorted")


def bases_path(out: Path, recipe: Recipe) -> Path:
    """Return where the bases of a recipe are: those of another one are not taken for them."""
    settings = msgspec.json.encode((recipe.vocabulary_size, recipe.pretraining), order="sorted")
    return out / f"bases-{hashlib.sha256(settings).hexdigest()[:12]}"


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


def _run_all(n_jobs: int, task: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> None:
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("loky", inner_max_num_threads=1):
        Parallel(n_jobs=n_jobs, batch_size=1, pre_dispatch="n_jobs")(
            delayed(task)(*each) for each in arguments
        )


def _pretrain(recipe: Recipe, base: tuple[Family, Size], sample_data: Path, out: Path) -> None:
    """Train one base in a process of its own."""
    import torch

    torch.set_num_threads(1)
    with quiet_transformers():
        pretrain_base(
            *base, recipe.pretraining, sample_data, load_tokenizer(out), bases_path(out, recipe)
        )


def _run(recipe: Recipe, cell: Cell, sample_data: Path, out: Path) -> None:
    """Run one cell in a process of its own."""
    import torch

    torch.set_num_threads(1)
    with quiet_transformers():
        run_cell(
            cell,
            sample_data,
            load_tokenizer(out),
            bases=bases_path(out, recipe),
            weights=weights_path(out, cell) if cell.keep_models else None,
            settings=cell_settings(recipe, cell),
            out=cell_path(out, cell),
        )
