"""`memaudit diff`: how two runs differ."""

from pathlib import Path

import click

from memaudit.cli import options
from memaudit.cli.command import Command
from memaudit.cli.options import FOLDER, Shown, output_option
from memaudit.text import json_text


@click.command(cls=Command, short_help="Show how two runs differ.")
@click.argument("first", metavar="RUN_A", type=FOLDER)
@click.argument("second", metavar="RUN_B", type=FOLDER)
@output_option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the same as Markdown, for a pull request.",
)
@output_option(
    "--top",
    type=options.COUNT,
    default=10,
    show_default=True,
    metavar="N",
    help="Rows listed of each kind; the JSON document has all.",
)
@options.shown
def diff(first: Path, second: Path, markdown: Path | None, top: int, shown: Shown) -> None:
    """Show what changed from RUN_A to RUN_B: before and after a filter, or with another teacher.

    Rows are told by their ids. The runs must have scored the same column and windows of a row;
    teacher, recipe and corpus may differ. It ends with 0 whether or not the runs differ.
    """
    from memaudit.reports.diff import compare_runs, difference_page
    from memaudit.runs.run import read_run

    found = compare_runs(read_run(first), read_run(second))
    page = difference_page(found, n_listed=top)
    if markdown is not None:
        from memaudit.reports.markdown import render_markdown
        from memaudit.runs.files import committed_file, output_folder

        with output_folder(markdown.parent), committed_file(markdown) as stream:
            stream.write(render_markdown(page, level=2).encode())
    if shown.as_json:
        click.echo(json_text(found.document()))
    else:
        from memaudit.reports.terminal import print_page

        print_page(page, color=shown.color)
