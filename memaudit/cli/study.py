"""`memaudit study`: really distil, cell by cell, and fit classifiers on what came out."""

from pathlib import Path

import click

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(short_help="Run distillations by a recipe, and fit classifiers on them.")
@click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--sample-data",
    type=_FOLDER,
    default=Path("sample_data"),
    show_default=True,
    metavar="DIR",
    help="Folder of the sample corpora.",
)
@click.option(
    "--out",
    type=_FOLDER,
    default=Path("build/study"),
    show_default=True,
    metavar="DIR",
    help="One result a cell; cells that have one are not run again.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Cells that run at the same time.",
)
@click.option(
    "--models",
    type=_FOLDER,
    metavar="DIR",
    help="Fit and judge classifiers when all cells are done, and put them here with the demo.",
)
def study(recipe: Path, sample_data: Path, out: Path, jobs: int, models: Path | None) -> None:
    """Run every distillation of RECIPE that has no result yet.

    Takes hours on a laptop; it can be stopped and started again.
    """
    from memaudit.study.recipe import read_recipe
    from memaudit.study.run import run_study
    from memaudit.study.shipping import ship_classifiers, ship_demo

    plan = read_recipe(recipe)
    run_study(plan, sample_data, out, n_jobs=jobs)
    if models is not None:
        ship_classifiers(plan, out, models)
        ship_demo(plan, out, models, sample_data)
