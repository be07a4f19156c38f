"""`memaudit report`: what a run found, as a page, as Markdown and as plots."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command
from memaudit.cli.options import corpus_option, input_option, output_option
from memaudit.errors import UsageError
from memaudit.text import inert, json_text, shown_path

if TYPE_CHECKING:
    from memaudit.reports.report_view import Report

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(short_help="Show what a run found, as a page, Markdown and plots.", cls=Command)
@input_option(
    "--run", type=_FOLDER, metavar="DIR", required=True, help="Folder that predict wrote."
)
@input_option(
    "--verification",
    type=_FOLDER,
    metavar="DIR",
    help="Folder that verify wrote for the same corpus: what really happened.",
)
@output_option("--html", type=_FILE, metavar="FILE", help="A page that needs no network.")
@output_option("--markdown", type=_FILE, metavar="FILE", help="The same in short, as Markdown.")
@output_option("--plots", type=_FOLDER, metavar="DIR", help="Its charts, as PNG and SVG.")
@output_option(
    "--top",
    type=click.IntRange(0, 500),
    default=200,
    show_default=True,
    metavar="N",
    help="Worst examples listed.",
)
@output_option(
    "--show-text",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Characters of the worst examples' text on the page; needs --data.",
)
@corpus_option(
    "--data", metavar="CORPUS", help="The corpus of the run, read again for --show-text."
)
@options.as_json
def report(**flags: Any) -> None:
    """Show what the run in DIR found: one page with everything, for who signs and who cleans.

    The page is a single file that loads nothing. It names examples by id and address, and holds
    no text of the corpus unless --show-text asks for it. Only its owner can read the files.
    """
    _check(flags)
    from memaudit.reports.report_view import verdict

    made = _make(flags)
    written = _write(made, flags)
    if flags["as_json"]:
        document = made.document() | {"written": [str(path) for path in written]}
        click.echo(json_text(document))
        return
    click.echo(inert(verdict(made)))
    click.echo()
    for path in written:
        click.echo(inert(shown_path(path)))


def _check(flags: dict[str, Any]) -> None:
    if not (flags["html"] or flags["markdown"] or flags["plots"]):
        raise UsageError(
            "nothing to write, expected --html, --markdown or --plots",
            hint="add --html report.html",
        )
    if bool(flags["show_text"]) != bool(flags["data"]):
        raise UsageError(
            "--show-text and --data go together: the run keeps no text",
            hint="give the corpus of the run with --data and how many characters with --show-text",
        )
    if flags["show_text"] and not flags["html"]:
        raise UsageError("only the page shows text", hint="add --html, or leave out --show-text")
    if flags["plots"]:
        from memaudit.reports.plot_style import require_matplotlib

        require_matplotlib()


def _make(flags: dict[str, Any]) -> "Report":
    from memaudit.reports.report_view import make_report
    from memaudit.runs.finished import read_finished_run

    run = read_finished_run(flags["run"])
    verified = None
    if flags["verification"]:
        from memaudit.reports.report_verified import read_verified

        verified = read_verified(flags["verification"], run)
    made = make_report(run, n_worst=flags["top"], verified=verified)
    if flags["show_text"]:
        from memaudit.reports.report_texts import read_row_texts

        rows = [worst.row for worst in made.worst]
        texts = read_row_texts(run.manifest, flags["data"], rows, flags["show_text"])
        made = replace(made, row_texts=texts)
    return made


def _write(made: "Report", flags: dict[str, Any]) -> list[Path]:
    written = []
    if flags["html"]:
        from memaudit.reports.html.page import render_page

        written.append(_write_text(flags["html"], render_page(made)))
    if flags["markdown"]:
        from memaudit.reports.report_markdown import render_markdown

        written.append(_write_text(flags["markdown"], render_markdown(made)))
    if flags["plots"]:
        from memaudit.reports.report_plots import write_report_plots

        written += write_report_plots(made, flags["plots"])
    return written


def _write_text(path: Path, text: str) -> Path:
    from memaudit.runs.files import committed_file, output_folder

    with output_folder(path.parent), committed_file(path) as stream:
        stream.write(text.encode())
    return path
