"""`memaudit status` and `memaudit merge`: how far a run is, and its shards put together."""

from pathlib import Path

import click

from memaudit.cli import options
from memaudit.cli.command import Command, FolderType, Shown
from memaudit.cli.options import output_option
from memaudit.files import TableFormat


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=FolderType())
@options.shown
def status(folder: Path, shown: Shown) -> None:
    """Show how far the run in DIR is, how fast, and which chunks are missing or damaged.

    The run may be under way.
    """
    with shown.reading(folder):
        from memaudit.reports.predict import status_page
        from memaudit.runs.status import run_status

        found = run_status(folder)
    shown.tell(found.document(), status_page(found))


@click.command(cls=Command)
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=FolderType())
@output_option("--out", "Where the whole run goes.", FolderType(), required=True)
@options.table
@output_option("--top", "Worst examples in the summary.", options.COUNT, 10)
@options.sign
@options.shown
def merge(
    *,
    folders: tuple[Path, ...],
    out: Path,
    table: TableFormat,
    top: int,
    sign: Path | None,
    shown: Shown,
) -> None:
    """Put together the parts that 'memaudit predict --shard' scored, each in its own DIR.

    The risk table is the one that a single run would have written, byte for byte. Parts that are
    missing, given twice, or of different runs are refused.
    """
    with shown.working("put the shards together"):
        from memaudit.reports.predict import summary_page
        from memaudit.runs import shards, signature

        # Before the work: a key that cannot be read is found now.
        key = None if sign is None else signature.read_signing_key(sign)
        result = shards.merge_runs(folders, out, table_format=table, n_worst=top)
        signer = None if key is None else signature.sign_folder(out, key)
    shown.tell(result.document(), summary_page(result))
    if signer is not None:
        shown.signed(signer)
