"""The whole flow of a study: distil, judge, intervene, and ship the demo."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memaudit.engines.locating import quiet_transformers
from memaudit.runs.files import committed_file
from study.heavy.cells import CellResult, read_cell, read_settings
from study.heavy.demo import ship_demo
from study.heavy.interventions import read_interventions, run_interventions
from study.heavy.recipe import Recipe
from study.heavy.results import SETTINGS, study_results
from study.heavy.run import cell_path, load_tokenizer, run_study, weights_path
from study.heavy.transfer import Split, fit_split, shipped_split, splits_by

_INTERVENING_SET = "teacher+student"
"""Costs no training: what a team would use before it distils."""


def conduct_study(
    recipe: Recipe, sample_data: Path, out: Path, *, models: Path | None = None, n_jobs: int = 1
) -> dict[str, Any]:
    """Run what has not been run, judge classifiers on it, intervene, and ship the demo.

    Args:
        recipe: which cells.
        sample_data: the folder of the sample corpora.
        out: one file a cell, `interventions/` and `results.json`.
        models: gets the demo models. None ships nothing.
        n_jobs: processes.

    Returns:
        what stands in `results.json`.
    """
    run_study(recipe, sample_data, out, n_jobs=n_jobs)
    results = [read_cell(cell, cell_path(out, cell)) for cell in recipe.cells]
    tables = study_results(results, n_jobs=n_jobs)
    tables["interventions"] = _intervene(results, sample_data, out, n_jobs)
    with committed_file(out / "results.json") as stream:
        stream.write(json.dumps(tables, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n")
    if models is not None:
        with quiet_transformers():
            ship_demo(recipe, out, models, sample_data)
    return tables


def _intervene(
    results: Sequence[CellResult], sample_data: Path, out: Path, n_jobs: int
) -> dict[str, Any]:
    """Run the interventions, each family's by a classifier that has not seen the family."""
    from joblib import Parallel, delayed, parallel_config

    folder = out / "interventions"
    folder.mkdir(exist_ok=True)
    by_family = splits_by(shipped_split(results, "soft"), SETTINGS["family"])
    splits = {split.name: split for split in by_family}
    chosen = [result for result in results if result.cell.keep_models]
    with parallel_config("loky", inner_max_num_threads=1):
        Parallel(n_jobs=n_jobs, batch_size=1)(
            delayed(_intervene_in)(
                result, splits[f"without {result.cell.family}"], sample_data, out
            )
            for result in chosen
        )
    return {
        result.cell.name: read_interventions(folder / f"{result.cell.name}.json")
        for result in chosen
    }


def _intervene_in(result: CellResult, split: Split, sample_data: Path, out: Path) -> None:
    import torch

    torch.set_num_threads(1)
    classifier = fit_split(split, _INTERVENING_SET)
    assert classifier is not None
    with quiet_transformers():
        run_interventions(
            result,
            classifier,
            sample_data,
            load_tokenizer(out),
            weights=weights_path(out, result.cell),
            settings=read_settings(cell_path(out, result.cell)),
            out=out / "interventions" / f"{result.cell.name}.json",
        )
