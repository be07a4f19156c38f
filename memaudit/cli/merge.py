"""`memaudit merge`: the shards of a run put together."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command
from memaudit.cli.folders import FolderType
from memaudit.cli.options import chosen_table_format, output_option
from memaudit.text import json_text

if TYPE_CHECKING:
    from memaudit.runs.results import ReportOptions


@click.command(short_help="Put the shards of a run together.", cls=Command)
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=FolderType())
@output_option(
    "--out",
    type=FolderType(),
    metavar="DIR",
    required=True,
    help="Where the whole run goes.",
)
@options.table_format
@options.old_table_format
@output_option(
    "--top",
    type=options.COUNT,
    default=10,
    show_default=True,
    metavar="N",
    help="Worst examples in the summary.",
)
@options.sign
@options.as_json
@options.color
def merge(
    folders: tuple[Path, ...],
    out: Path,
    sign: Path | None,
    as_json: bool,
    color: str,
    **flags: Any,
) -> None:
    """Put together the parts that 'memaudit predict --shard' scored, each in its own DIR.

    The risk table is the one that a single run would have written, byte for byte. Parts that are
    missing, given twice, or of different runs are refused.
    """
    from memaudit.reports.predict import summary_page
    from memaudit.reports.terminal import print_page
    from memaudit.runs.merging import merge_runs
    from memaudit.runs.signature import read_signing_key, sign_run

    key = None if sign is None else read_signing_key(sign)
    result = merge_runs(folders, out, report=_report_options(flags))
    signer = None if key is None else sign_run(out, key)
    if as_json:
        click.echo(json_text(result.document()))
    else:
        print_page(summary_page(result), color=color)
        if signer is not None:
            click.echo(f"Signed with the key {signer}.")


def _report_options(flags: dict[str, Any]) -> "ReportOptions":
    from memaudit.runs.results import ReportOptions

    return ReportOptions(
        chosen_table_format(flags["table_format"], flags["old_format"]), flags["top"]
    )
