"""A filter on a terminal: what it changes first, then its price."""

import sys

from rich.table import Table
from rich.text import Text

from memaudit.filtering.result import FilterResult
from memaudit.filtering.selection import Outlook
from memaudit.reports.style import make_console, untrusted


def print_filter(result: FilterResult, *, color: str = "auto") -> None:
    """Print what a filter did, or would do, on standard output.

    Args:
        result: of a filter.
        color: `auto`, `always` or `never`.
    """
    console = make_console(sys.stdout, color)
    verb = "removed" if result.out else "would be removed"
    console.print(
        Text.assemble(
            (f"{result.removed:,} of {result.rows:,} rows {verb}", "bold"),
            f": expect {_count(result.after)} to be memorized, before {_count(result.before)}",
        )
    )
    console.print()
    console.print(_numbers(result))
    for note in notes(result):
        console.print()
        console.print(untrusted(note, "dim", max_len=2000))


def notes(result: FilterResult) -> list[str]:
    """Return what a reader must know before relying on the numbers."""
    found = []
    if result.after.is_estimate:
        found.append(
            "After: an estimate, with how often each window is left and all else as before. It "
            "is known once 'memaudit predict' has run on the filtered corpus."
        )
    elif result.options.strategy == "drop":
        found.append("After: the sum over the rows that stay, whose probabilities do not change.")
    else:
        found.append(
            "After: this classifier does not look at how often a window occurs, so copies that "
            "went change nothing for the one that stays. Run 'memaudit predict' again."
        )
    if result.options.expected_at_most is not None:
        found.append("The limit holds for the upper end of the 95 % interval, not for its mean.")
    return found


def _count(outlook: Outlook) -> str:
    expected = outlook.expected
    mean = f"{expected.mean:,.1f}" if expected.mean < 10 else f"{expected.mean:,.0f}"
    return f"{mean} ({expected.low:,} to {expected.high:,})"


def _numbers(result: FilterResult) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=10)
    table.add_column(overflow="fold")
    share = result.removed_text_share
    rows = {
        "why": f"{result.options.in_words}, {result.options.strategy}",
        "flagged": f"{result.before.flagged:,} before, {result.after.flagged:,} after",
        "copies": f"{result.removed_copies:,} of the removed, one of each is kept"
        if result.removed_copies
        else "",
        "price": f"{result.removed_text_bytes:,} of {result.text_bytes:,} bytes of text ({share:.2%})",
        "tokens": f"{result.removed_tokens:,} of {result.tokens:,}"
        if result.tokens is not None
        else "",
        "not scored": f"{result.unscored_kept:,} rows, kept" if result.unscored_kept else "",
        "corpus": "" if result.out is None else str(result.out),
        "removed": "" if result.out is None else f"{result.out}.removed.parquet",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, untrusted(value, max_len=4096))
    return table
