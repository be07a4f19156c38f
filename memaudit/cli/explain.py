"""`memaudit explain`: why one row of a run is at risk."""

from dataclasses import replace
from pathlib import Path

import click

from memaudit.cli import options
from memaudit.cli.command import Command, Shown, write_file
from memaudit.cli.options import COUNT, FILE, FOLDER, corpus_option, input_option, output_option
from memaudit.errors import UsageError
from memaudit.text import inert, shown_path


@click.command(cls=Command, short_help="Show why one row is at risk.")
@click.argument("row", metavar="ROW")
@input_option("--run", "Folder that predict wrote.", FOLDER, metavar="DIR", required=True)
@output_option("--html", "A page that needs no network.", FILE, metavar="FILE")
@output_option("--show-text", "Characters of the row's text; needs --data.", COUNT, 0)
@corpus_option("--data", "The corpus of the run, read again for --show-text.", metavar="CORPUS")
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
        from memaudit.reports.report import read_row_texts

        texts = read_row_texts(read.manifest, data, [found.row], show_text)
        found = replace(found, text=texts[found.row])
    page = explanation_page(found)
    if html is not None:
        from memaudit.reports.html import render_html

        write_file(html, render_html(page).encode())
    if html is not None and not shown.as_json:
        click.echo(inert(shown_path(html)))
    else:
        shown.tell(found.document(), page)
