"""`memaudit explain`: why one row of a run is at risk."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memaudit.cli import options
from memaudit.cli.command import Command
from memaudit.cli.options import FOLDER, Shown, corpus_option, input_option, output_option
from memaudit.errors import UsageError
from memaudit.text import inert, json_text, shown_path

if TYPE_CHECKING:
    from memaudit.reports.explain import Explanation
    from memaudit.runs.run import Run


@click.command(cls=Command, short_help="Show why one row is at risk.")
@click.argument("row", metavar="ROW")
@input_option("--run", type=FOLDER, metavar="DIR", required=True, help="Folder that predict wrote.")
@output_option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A page that needs no network.",
)
@output_option(
    "--show-text",
    type=options.COUNT,
    default=0,
    show_default=True,
    metavar="N",
    help="Characters of the row's text; needs --data.",
)
@corpus_option(
    "--data", metavar="CORPUS", help="The corpus of the run, read again for --show-text."
)
@options.shown
def explain(
    row: str, run: Path, html: Path | None, show_text: int, data: str | None, shown: Shown
) -> None:
    """Show why ROW, an id or FILE:LINE, has its probability, and what would lower it.

    No model is needed: everything comes from the run in DIR.
    """
    if bool(show_text) != bool(data):
        raise UsageError(
            "--show-text and --data go together: the run keeps no text",
            hint="give the corpus of the run with --data and how many characters with --show-text",
        )
    from memaudit.reports.explain import explain_row, explanation_page
    from memaudit.runs.run import read_run

    read = read_run(run)
    found = explain_row(read, row)
    if data is not None:
        found = _with_text(found, read, data, show_text)
    page = explanation_page(found)
    if html is not None:
        from memaudit.reports.html import render_html
        from memaudit.runs.files import committed_file, output_folder

        with output_folder(html.parent), committed_file(html) as stream:
            stream.write(render_html(page).encode())
    if shown.as_json:
        click.echo(json_text(found.document()))
    elif html is not None:
        click.echo(inert(shown_path(html)))
    else:
        from memaudit.reports.terminal import print_page

        print_page(page, color=shown.color)


def _with_text(found: "Explanation", run: "Run", data: str, n_characters: int) -> "Explanation":
    from memaudit.reports.report import read_row_texts

    texts = read_row_texts(run.manifest, data, [found.row], n_characters)
    return replace(found, text=texts[found.row])
