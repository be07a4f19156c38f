"""`memaudit report`: what a run found, as a page, as Markdown and as charts."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command
from memaudit.cli.options import corpus_option, input_option, output_option
from memaudit.errors import UsageError
from memaudit.text import inert, json_text, safe_text, shown_path

if TYPE_CHECKING:
    from memaudit.reports.report import Report
    from memaudit.runs.run import Run

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(short_help="Show what a run found, as a page, Markdown and charts.", cls=Command)
@input_option(
    "--run", type=_FOLDER, metavar="DIR", required=True, help="Folder that predict wrote."
)
@input_option(
    "--verification",
    type=_FOLDER,
    metavar="DIR",
    help="Folder that verify wrote for the same corpus: what really happened.",
)
@input_option(
    "--policy",
    type=_FILE,
    metavar="FILE",
    help="Limits of 'memaudit gate': the report then says whether the run passes.",
)
@output_option("--html", type=_FILE, metavar="FILE", help="A page that needs no network.")
@output_option("--markdown", type=_FILE, metavar="FILE", help="The same in short, as Markdown.")
@output_option("--plots", type=_FOLDER, metavar="DIR", help="Its charts, as SVG.")
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
    type=options.COUNT,
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
    """Show what the run in DIR found.

    One HTML page for the person who approves the release and the person who cleans the data. The
    page is a single file that loads nothing. It names examples by id and address, and holds no
    text of the corpus unless --show-text asks for it. Only its owner can read the files.
    """
    _check(flags)
    from memaudit.runs.run import read_run

    run = read_run(flags["run"])
    made = _make(run, flags)
    written = _write(made, _warnings(run), flags)
    if flags["as_json"]:
        document = made.document() | {"written": [str(path) for path in written]}
        click.echo(json_text(document))
        return
    from memaudit.reports.gate import gate_sentence
    from memaudit.reports.page import plain
    from memaudit.reports.report_page import verdict

    said = [plain(verdict(made))]
    if made.gate is not None:
        said.append(plain(gate_sentence(made.gate)))
    lines = [*(safe_text(each, len(each)) for each in said), "", *map(shown_path, written)]
    click.echo(inert("\n".join(lines)))


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


def _warnings(run: "Run") -> tuple[str, ...]:
    """Return what beside the run must not be relied on, and say so at once."""
    from memaudit.runs.same_table import changed_tables

    warnings = tuple(
        f"{table} was changed after the run was made; nothing here was read from it."
        for table in changed_tables(run)
    )
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    return warnings


def _make(run: "Run", flags: dict[str, Any]) -> "Report":
    from memaudit.reports.report import make_report, read_row_texts

    verified = None
    if flags["verification"]:
        from memaudit.labels import read_verified_rows

        verified = read_verified_rows(flags["verification"], run)
    made = make_report(run, n_worst=flags["top"], verified=verified)
    if flags["policy"]:
        from memaudit.gate import GateInputs, check_gate, effective_policy

        inputs = GateInputs(verification=flags["verification"], data=flags["data"])
        policy = effective_policy(flags["policy"], {})
        made = replace(made, gate=check_gate(run, policy, inputs, n_worst=0))
    if not flags["show_text"]:
        return made
    rows = [worst.row for worst in made.worst]
    texts = read_row_texts(run.manifest, flags["data"], rows, flags["show_text"])
    return replace(made, row_texts=texts)


def _write(made: "Report", warnings: tuple[str, ...], flags: dict[str, Any]) -> list[Path]:
    from memaudit.reports.report_page import report_page

    page, written = report_page(made), []
    page = replace(page, notes=(*page.notes, *warnings))
    if flags["html"]:
        from memaudit.reports.html import render_html

        written.append(_write_file(flags["html"], render_html(page).encode()))
    if flags["markdown"]:
        from memaudit.reports.markdown import render_markdown

        written.append(_write_file(flags["markdown"], render_markdown(page).encode()))
    if flags["plots"]:
        from memaudit.reports.charts import draw_alone

        for chart in page.charts:
            written.append(_write_file(flags["plots"] / f"{chart.name}.svg", draw_alone(chart)))
    return written


def _write_file(path: Path, content: bytes) -> Path:
    from memaudit.runs.files import committed_file, output_folder

    with output_folder(path.parent), committed_file(path) as stream:
        stream.write(content)
    return path
