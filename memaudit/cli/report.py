"""`memaudit report`, `explain` and `diff`: what finished runs say, as pages."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command, CountRange, Shown, bundle, write_file
from memaudit.cli.options import COUNT, FILE, FOLDER, corpus_option, input_option, output_option
from memaudit.errors import UsageError
from memaudit.gate import Rescoring
from memaudit.reports.charts import draw_alone
from memaudit.reports.markdown import render_markdown
from memaudit.reports.page import Page
from memaudit.text import inert, shown_path


@dataclass(frozen=True, slots=True)
class Files:
    """Where the pages of a report go, at least one of them. None: not written."""

    html: Path | None
    markdown: Path | None
    annex: Path | None
    plots: Path | None
    """Folder."""


@bundle(
    output_option("--html", "A page that needs no network.", FILE, metavar="FILE"),
    output_option("--markdown", "The same in short, as Markdown.", FILE, metavar="FILE"),
    output_option(
        "--annex",
        "For reviewers: what was tested and what was not, as Markdown, or HTML if it ends in .html.",
        FILE,
        metavar="FILE",
    ),
    output_option("--plots", "Its charts, as SVG.", FOLDER, metavar="DIR"),
)
def files(**values: Any) -> Files:
    """Return where the pages go."""
    if not any(values.values()):
        raise UsageError(
            "nothing to write, expected --html, --markdown, --annex or --plots",
            hint="add --html report.html",
        )
    return Files(**values)


@bundle(
    output_option(
        "--show-text", "Characters of the worst examples' text on the page; needs --data.", COUNT, 0
    ),
    corpus_option("--data", "The corpus of the run, read again for --show-text.", metavar="CORPUS"),
    input_option(
        "--tokenizer",
        "The teacher's: --show-text then shows the suffix, which would be recited, not the row's start.",
        metavar="MODEL",
    ),
)
def text(show_text: int, data: str | None, tokenizer: str | None) -> dict[str, Any]:
    """Return what text is shown, as arguments of `read_report`."""
    if bool(show_text) != bool(data):
        raise UsageError(
            "--show-text and --data go together: the run keeps no text",
            hint="give the corpus of the run with --data and how many characters with --show-text",
        )
    if tokenizer and not show_text:
        raise UsageError(
            "--tokenizer is for --show-text", hint="say how many characters with --show-text"
        )
    if show_text and not click.get_current_context().params["html"]:
        raise UsageError("only the page shows text", hint="add --html, or leave out --show-text")
    return {"data": data, "tokenizer": tokenizer, "n_characters": show_text}


@click.command(cls=Command)
@input_option("--run", "Folder that predict wrote.", FOLDER, metavar="DIR", required=True)
@input_option(
    "--verification",
    "Folder that verify wrote for the same corpus: what really happened.",
    FOLDER,
    metavar="DIR",
)
@input_option(
    "--policy",
    "Limits of 'memaudit gate': the report then says whether the run passes.",
    FILE,
    metavar="FILE",
)
@files
@output_option("--top", "Worst examples listed.", CountRange(0, 500), 200, metavar="N")
@text
@options.shown
def report(
    *,
    run: Path,
    verification: Path | None,
    policy: Path | None,
    files: Files,
    top: int,
    text: dict[str, Any],
    shown: Shown,
) -> None:
    """Show what the run in DIR found.

    One HTML page for the person who approves the release and the person who cleans the data. The
    page is a single file that loads nothing. It names examples by id and address, and holds no
    text of the corpus unless --show-text asks for it. Only its owner can read the files.
    """
    with shown.reading(run):
        if text["tokenizer"]:
            options.prepare_libraries()
        # Here, so that neither help nor the first word waits for numpy and pyarrow.
        from memaudit.reports.annex import annex_page, read_release
        from memaudit.reports.report import read_report
        from memaudit.reports.report_page import report_page, result_page

        def warn(warning: str) -> None:
            # By name: the bar that is shown meanwhile has taken its place, and makes room for it.
            click.echo(f"warning: {warning}", sys.stderr, err=True)

        made = read_report(run, top, verification, policy, **text, warn=warn)
        written = _write(report_page(made), files.html, files.markdown, files.plots)
        if files.annex:
            is_html = files.annex.suffix.lower() in (".html", ".htm")
            page = annex_page(made, read_release(policy))
            written += _write(page, *((files.annex, None) if is_html else (None, files.annex)))
    document = made.document() | {"written": [str(path) for path in written]}
    shown.tell(document, result_page(made))
    if not shown.as_json:  # a path is one line, however long: it may be handed on
        click.echo(inert("\n".join(("", *map(shown_path, written)))))


def _write(
    page: Page, html: Path | None, markdown: Path | None = None, plots: Path | None = None
) -> list[Path]:
    """Write what was asked for, and return the paths."""
    from memaudit.reports.html import render_html

    files = {}
    if html:
        files[html] = render_html(page).encode()
    if markdown:
        files[markdown] = render_markdown(page).encode()
    if plots:
        files |= {plots / f"{chart.name}.svg": draw_alone(chart) for chart in page.charts}
    for path, content in files.items():
        write_file(path, content)
    return list(files)


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

    with shown.reading(run):
        again = None
        if teacher is not None:
            options.prepare_libraries()
            again = Rescoring(1, teacher, reference)
        from memaudit.reports.explain import explanation_page, read_explanation

        found = read_explanation(run, row, data, show_text, again)
    page = explanation_page(found)
    _write(page, html)
    if html is not None and not shown.as_json:
        click.echo(inert(shown_path(html)))
    else:
        shown.tell(found.document(), page)


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
    with shown.reading(first, second):
        from memaudit.reports.diff import compare_runs, difference_page
        from memaudit.runs.run import read_run

        found = compare_runs(read_run(first), read_run(second))
        page = difference_page(found, n_listed=top)
    if markdown is not None:
        write_file(markdown, render_markdown(page, level=2).encode())
    shown.tell(found.document(), page)
