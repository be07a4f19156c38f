"""`memaudit study`: really distil, cell by cell, and fit classifiers on what came out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options

if TYPE_CHECKING:
    from memaudit.reports.study import StudyTable

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Run distillations by a recipe, and fit classifiers on them.")
@click.argument("recipe", type=_FILE)
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
    help="Put the classifiers here with the demo, when all cells are done.",
)
@click.option("--plots", is_flag=True, help="Draw plots as PNG and SVG into DIR/plots.")
@click.option("--markdown", type=_FILE, metavar="FILE", help="Write all tables into FILE.")
@click.option("--dry-run", is_flag=True, help="Print what it would cost; run nothing.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of the tables."
)
@options.color
def study(**flags: Any) -> None:
    """Run every distillation of RECIPE that has no result yet, and judge classifiers on all.

    Takes hours on a laptop; it can be stopped and started again. Recipes of models on the hub are
    costed by --dry-run, which also prints the commands that run them; study itself does not.
    """
    from memaudit.study.paper import is_paper_recipe

    is_paper = is_paper_recipe(flags["recipe"])
    if is_paper and flags["dry_run"]:
        _print_paper_cost(flags)
    elif is_paper:
        _refuse_paper(flags["recipe"])
    elif flags["dry_run"]:
        _print_cost(flags)
    else:
        _study(flags)


def _study(flags: dict[str, Any]) -> None:
    from memaudit.reports.study import print_study
    from memaudit.reports.study_tables import study_tables
    from memaudit.study.recipe import read_recipe
    from memaudit.study.workflow import conduct_study

    out = flags["out"]
    if flags["plots"]:
        _require_matplotlib()
    document = conduct_study(
        read_recipe(flags["recipe"]),
        flags["sample_data"],
        out,
        models=flags["models"],
        n_jobs=flags["jobs"],
    )
    tables = study_tables(document)
    written = _write_extras(flags, document, tables)
    if flags["as_json"]:
        click.echo(json.dumps(document, sort_keys=True, allow_nan=False))
    else:
        print_study(tables, out / "results.json", written=written, color=flags["color"])


def _require_matplotlib() -> None:
    """Say that plots cannot be drawn before hours have been spent, not after."""
    from memaudit.reports.plot_style import require_matplotlib

    require_matplotlib()


def _write_extras(
    flags: dict[str, Any], document: dict[str, Any], tables: "list[StudyTable]"
) -> list[Path]:
    """Write Markdown and plots where they were asked for."""
    from memaudit.reports.study import write_markdown
    from memaudit.reports.study_plots import write_plots

    written = []
    if flags["markdown"] is not None:
        write_markdown(tables, flags["markdown"])
        written.append(flags["markdown"])
    if flags["plots"]:
        written += write_plots(document, flags["out"] / "plots")
    return written


def _print_cost(flags: dict[str, Any]) -> None:
    from memaudit.reports.study_costs import print_study_cost
    from memaudit.study.cost import study_cost
    from memaudit.study.recipe import read_recipe

    cost = study_cost(read_recipe(flags["recipe"]), flags["sample_data"], flags["out"])
    if flags["as_json"]:
        click.echo(json.dumps(cost.document(), sort_keys=True, allow_nan=False))
    else:
        print_study_cost(cost, color=flags["color"])


def _print_paper_cost(flags: dict[str, Any]) -> None:
    from memaudit.reports.study_costs import print_paper_cost
    from memaudit.study.paper import paper_document, read_paper_study

    paper = read_paper_study(flags["recipe"])
    if flags["as_json"]:
        click.echo(json.dumps(paper_document(paper), sort_keys=True, allow_nan=False))
    else:
        print_paper_cost(paper, color=flags["color"])


def _refuse_paper(recipe: Path) -> None:
    """Fail on a recipe that cannot be run here, once it is known to be a good one."""
    from memaudit.errors import UsageError
    from memaudit.study.paper import read_paper_study

    read_paper_study(recipe)
    raise UsageError(
        f"{recipe}: nothing was run: its models are on the hub and need GPUs",
        hint="see what it costs and which commands run it with --dry-run",
    )
