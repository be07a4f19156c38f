"""The status of a run on a terminal."""

import sys

from rich.table import Table
from rich.text import Text

from memaudit.reports.progress import clock, short_number
from memaudit.reports.style import make_console, untrusted
from memaudit.runs.manifest import chunk_ranges
from memaudit.runs.status import RunStatus

_STYLES = {"finished": "bold green", "scored": "bold green", "running": "bold", "stopped": "bold"}


def print_status(status: RunStatus, *, color: str = "auto") -> None:
    """Print how far a run is on standard output.

    Args:
        status: of the run.
        color: `auto`, `always` or `never`.
    """
    console = make_console(sys.stdout, color)
    console.print(_verdict(status))
    console.print()
    console.print(_numbers(status))
    console.print()
    console.print(Text(what_next(status), style="dim"))


def what_next(status: RunStatus) -> str:
    """Return what there is to do for a run in this state."""
    if status.state == "scored" and status.shard is not None:
        return "Nothing is left to do here. When all shards are: memaudit merge DIR... --out DIR"
    if status.state != "running" and status.failures:
        return "Give the same command again to try the failed chunks once more."
    return {
        "running": "It can be stopped at any moment: the same command goes on where it was.",
        "stopped": "Give the same command again to score what is missing.",
        "finished": "Nothing is left to do.",
        "scored": "Give the same command again to write the results.",
    }[status.state]


def _verdict(status: RunStatus) -> Text:
    share = status.windows_done / status.windows if status.windows else 1.0
    return Text.assemble(
        (status.state, _STYLES[status.state]),
        f": {share:.1%} of the windows ",
        f"of shard {status.shard} " if status.shard else "",
        "are scored",
    )


def _numbers(status: RunStatus) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=10)
    table.add_column(overflow="fold")
    n_gone = len(status.missing) + len(status.failures) + len(status.damaged)
    rows = {
        "folder": str(status.folder),
        "process": "" if status.process is None else str(status.process or "unknown"),
        "examples": f"{status.rows:,}",
        "windows": f"{status.windows_done:,} of {status.windows:,}",
        "chunks": f"{status.chunks - n_gone:,} of {status.chunks:,}",
        "missing": chunk_ranges(list(status.missing)),
        "failed": chunk_ranges(list(status.failures)),
        "reason": next(iter(status.failures.values()), ""),
        "damaged": chunk_ranges(list(status.damaged)),
        "rate": "" if status.rate is None else f"{short_number(status.rate)} windows/s",
        "time left": "" if status.eta_seconds is None else clock(status.eta_seconds),
        "run": status.run[:12],
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, untrusted(value, max_len=4096))
    return table
