"""`memaudit status`: how far a run is, and what is missing."""

from pathlib import Path

import click

from memaudit.cli import options
from memaudit.cli.command import Command
from memaudit.cli.folders import FolderType
from memaudit.cli.options import Shown
from memaudit.text import json_text


@click.command(cls=Command, short_help="Show how far a run is.")
@click.argument("folder", metavar="DIR", type=FolderType())
@options.shown
def status(folder: Path, shown: Shown) -> None:
    """Show how far the run in DIR is, how fast, and which chunks are missing or damaged.

    It may be running meanwhile.
    """
    from memaudit.reports.predict import status_page
    from memaudit.reports.terminal import print_page
    from memaudit.runs.status import run_status

    found = run_status(folder)
    if shown.as_json:
        click.echo(json_text(found.document()))
    else:
        print_page(status_page(found), color=shown.color)
