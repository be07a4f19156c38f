"""`memaudit diff`: how two runs differ."""

from pathlib import Path

import click

from memaudit.cli import options
from memaudit.cli.command import Command, Shown, write_file
from memaudit.cli.options import COUNT, FILE, FOLDER, output_option
from memaudit.reports.diff import compare_runs, difference_page
from memaudit.reports.markdown import render_markdown
from memaudit.runs.run import read_run


@click.command(cls=Command)
@click.argument("first", metavar="RUN_A", type=FOLDER)
@click.argument("second", metavar="RUN_B", type=FOLDER)
@output_option(
    "--markdown", "Write the same as Markdown, for a pull request.", FILE, metavar="FILE"
)
@output_option("--top", "Rows listed of each kind; the JSON document has all.", COUNT, 10)
@options.shown
def diff(first: Path, second: Path, markdown: Path | None, top: int, shown: Shown) -> None:
    """Show what changed from RUN_A to RUN_B: before and after a filter, or with another teacher.

    Rows are told by their ids. The runs must have scored the same column and windows of a row;
    teacher, recipe and corpus may differ. It ends with 0 whether or not the runs differ.
    """
    found = compare_runs(read_run(first), read_run(second))
    page = difference_page(found, n_listed=top)
    if markdown is not None:
        write_file(markdown, render_markdown(page, level=2).encode())
    shown.tell(found.document(), page)
