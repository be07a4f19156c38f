"""`memaudit status`: how far a run is, and what is missing."""

from pathlib import Path

import click

from memaudit.cli import options
from memaudit.cli.folders import FolderType
from memaudit.text import json_text


@click.command(short_help="Show how far a run is.")
@click.argument("folder", metavar="DIR", type=FolderType())
@options.as_json
@options.color
def status(folder: Path, as_json: bool, color: str) -> None:
    """Show how far the run in DIR is, how fast, and which chunks are missing or damaged.

    It may be running meanwhile.
    """
    from memaudit.reports.status import print_status
    from memaudit.runs.status import run_status

    found = run_status(folder)
    if as_json:
        click.echo(json_text(found.document()))
    else:
        print_status(found, color=color)
