"""`memaudit explain`: why one row of a run is at risk."""

from dataclasses import replace
from pathlib import Path

import click

from memaudit.cli import options
from memaudit.cli.command import Command, Shown, write_file
from memaudit.cli.options import COUNT, FILE, FOLDER, corpus_option, input_option, output_option
from memaudit.errors import UsageError
from memaudit.gate.rescore import Rescoring
from memaudit.reports.explain import explain_row, explanation_page
from memaudit.reports.html import render_html
from memaudit.reports.report import read_row_texts
from memaudit.reports.tokens import score_tokens
from memaudit.runs.run import read_run
from memaudit.text import inert, shown_path


@click.command(cls=Command)
@click.argument("row", metavar="ROW")
@input_option("--run", "Folder that predict wrote.", FOLDER, metavar="DIR", required=True)
@input_option(
    "--teacher",
    "The run's teacher: scores the window again, token by token; needs --data.",
    metavar="MODEL",
)
@input_option("--reference", "With --teacher: the run's student or baseline.", metavar="MODEL")
@output_option("--html", "A page that needs no network.", FILE, metavar="FILE")
@output_option("--show-text", "Characters of the row's text, and the tokens' text.", COUNT, 0)
@corpus_option("--data", "The corpus of the run, read again.", metavar="CORPUS")
@options.shown
def explain(  # noqa: PLR0913  one for each option
    *,
    row: str,
    run: Path,
    teacher: str | None,
    reference: str | None,
    html: Path | None,
    show_text: int,
    data: str | None,
    shown: Shown,
) -> None:
    """Show why ROW, an id or FILE:LINE, has its probability, and what would lower it.

    No model is needed: everything comes from the run in DIR. With --teacher the window's tokens
    are scored again, to show where in it the teacher is sure.
    """
    if data is None and (show_text or teacher):
        raise UsageError(
            "the run keeps no text: --show-text and --teacher need the corpus",
            hint="give the corpus of the run with --data",
        )
    if data is not None and not (show_text or teacher):
        raise UsageError("--data goes with --show-text or --teacher", hint="leave out --data")

    read = read_run(run)
    found = explain_row(read, row)
    if data is not None and show_text:
        texts = read_row_texts(read.manifest, data, [found.row], show_text)
        found = replace(found, text=texts[found.row])
    if data is not None and teacher is not None:
        options.prepare_libraries(offline=False)
        again = Rescoring(1, teacher, reference)
        tokens = score_tokens(read, found.row, data, again, with_text=show_text > 0)
        found = replace(found, tokens=tokens)
    page = explanation_page(found)
    if html is not None:
        write_file(html, render_html(page).encode())
    if html is not None and not shown.as_json:
        click.echo(inert(shown_path(html)))
    else:
        shown.tell(found.document(), page)
