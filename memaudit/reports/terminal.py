"""A page on a terminal, as wide as it is, and progress on standard error: a bar, or plain lines."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table as Grid
from rich.text import Text

from memaudit.progress import Progress, clock, listening, short_number
from memaudit.reports.page import (
    Block,
    Bullets,
    Cell,
    Column,
    Figures,
    Page,
    Paragraph,
    Sentence,
    Table,
    as_cell,
    pieces,
)
from memaudit.text import inert, safe_text

_STYLES = {
    "strong": "bold",
    "quiet": "dim",
    "good": "bold green",
    "warning": "bold yellow",
    "risk": "bold red",
}
_GAP = 2
# A longer silence looks like a hang, and a line for each chunk would bury the log of a day.
_SECONDS_A_LINE = 10.0
# Padding may end in the code that closes a style: only its spaces may go.
_PADDING = re.compile(r"(?:[ ]|\x1b\[[0-9;]*m)+$", re.MULTILINE)


def print_page(page: Page, stream: TextIO | None = None, *, color: str = "auto") -> None:
    """Print a page.

    Args:
        page: from its verdict to its notes; charts and folded tables stay out.
        stream: where to; None for standard output.
        color: `auto` looks at the terminal and the environment, `always` or `never`.
    """
    stream = sys.stdout if stream is None else stream
    console = make_console(stream, color)
    # Captured, not printed: two harmless pieces side by side can be a command for a CI log, so
    # `inert` has to see the whole.
    with console.capture() as captured:
        console.print(_text(page.verdict))
        if page.lead:
            console.print(_text(page.lead))
        for section in page.sections:
            if section.title:
                console.print()
                console.print(Text(section.title, style="bold"))
            for i, block in enumerate(section.blocks):
                drawn = list(_drawn(block, console.width))
                if drawn and (i or not section.title):
                    console.print()
                for each in drawn:
                    console.print(each)
        for note in page.notes:
            console.print()
            console.print(_text(note, "dim"))
    # Cells are padded to the width of their column: the last one of a line needs none of it.
    unpadded = _PADDING.sub(lambda padding: padding.group().replace(" ", ""), captured.get())
    stream.write(inert(unpadded))


def make_console(stream: TextIO, color: str) -> Console:
    """Return a console that reads no markup, emoji codes or highlights into text."""
    return Console(
        file=stream,
        force_terminal=True if color == "always" else None,
        no_color=True if color == "never" else None,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )


def _text(sentence: Sentence, style: str = "") -> Text:
    text = Text(style=style, overflow="fold")
    for piece in pieces(sentence):
        # At full length: what is too long was cut where the page was made.
        text.append(safe_text(piece.text, len(piece.text)), _STYLES.get(piece.kind, ""))
    return text


def _drawn(block: Block, width: int) -> Iterator[RenderableType]:
    match block:
        case Paragraph():
            yield _text(block.text, _STYLES.get(block.kind, ""))
        case Bullets():
            yield Text("\n").join(_text(("- ", *pieces(item))) for item in block.items)
        case Figures():
            rows: tuple[tuple[Sentence | Cell, ...], ...] = block.rows
            columns = (Column(breaks="nowhere"), Column(is_number=True), Column(kind="quiet"))
            yield _grid(Table(columns=columns, rows=rows), width)
        # A chart, and the folded table of its numbers, have no case: a terminal leaves them out.
        case Table() if not block.is_folded:
            grid = _grid(block, width)
            if block.title:
                yield Text(block.title, style="bold")
            yield grid
            if block.rest:
                yield Text(block.rest, style="dim")


def _grid(table: Table, width: int) -> Grid:
    columns = table.columns
    cells = [[_cell(value) for value in row] for row in table.rows]
    named = any(column.name for column in columns)
    widths = _widths(columns, cells, width)
    grid = Grid(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=named)
    grid.header_style = "dim"
    for column, size in zip(columns, widths, strict=True):
        grid.add_column(
            column.name,
            justify="right" if column.is_number else "left",
            style=_STYLES.get(column.kind, ""),
            width=size,
            # Rich would put an ellipsis: half of an id finds no row, and half of a path no file.
            overflow="fold",
        )
    for row in cells:
        grid.add_row(*row)
    return grid


def _cell(value: Sentence | Cell) -> Text:
    cell = as_cell(value)
    text = _text(cell.text)
    if cell.detail:
        text.append(" (").append_text(_text(cell.detail, "dim")).append(")")
    for badge in cell.badges:
        text.append(f", {badge}")
    if cell.quote is not None:
        text.append("\n").append(safe_text(cell.quote, len(cell.quote)), "dim italic")
    return text


def _widths(columns: tuple[Column, ...], cells: list[list[Text]], width: int) -> list[int]:
    """Return the width of each column: no word is broken while there is any other way.

    They add up to no more than the width, if each may be as narrow as 1.
    """
    wanted, needed = [], []
    for i, column in enumerate(columns):
        texts = [row[i] for row in cells]
        # Cells, not characters: a Chinese letter is two cells wide.
        whole = max(
            (cell_len(line) for text in texts for line in text.plain.split("\n")), default=0
        )
        unbroken = [text.plain for text in texts] if column.breaks == "words" else []
        words = " ".join((*unbroken, column.name)).split()
        longest = max(map(cell_len, words), default=1)
        wanted.append(max(whole, longest, len(column.name)))
        if column.is_number or column.breaks == "nowhere":
            needed.append(max(whole, longest))
        elif column.breaks == "words":
            needed.append(longest)
        else:
            # Ids and paths may be broken, but not into pieces that nobody can read.
            needed.append(min(wanted[-1], max(longest, width // 3)))
    room = width - _GAP * (len(columns) - 1)
    if sum(wanted) <= room:
        return wanted
    # Where not even the longest words have room, the widest column gives way first.
    widths = needed
    while sum(widths) > max(room, len(widths)):
        widths[widths.index(max(widths))] -= 1
    # What is left goes to the column that misses most.
    while sum(widths) < room:
        missing = [want - size for want, size in zip(wanted, widths, strict=True)]
        widths[missing.index(max(missing))] += 1
    return widths


@contextmanager
def show_progress(
    *, quiet: bool, color: str, start: str = ""
) -> Iterator[Callable[[Progress], None]]:
    """Give what shows the progress of a run, and tidy up after it.

    Args:
        quiet: show nothing.
        color: `auto`, `always` or `never`.
        start: what is done before there is anything to count, such as loading models: importing
            torch alone takes seconds in which nothing else would be shown.
    """
    console = make_console(sys.stderr, color)
    if quiet:
        yield lambda progress: None
    # A dumb terminal cannot move its cursor, so it gets lines, as a log does.
    elif console.is_terminal and console.is_interactive:
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}", markup=False),
        )
        # Taken away at the end: what stays on the screen is the result.
        with Bars(*columns, console=console, transient=True) as bars:
            # Without a total the bar only moves: nothing is counted yet.
            first = bars.add_task(start, total=None, numbers="") if start else None

            def hear(what: str, n: int) -> None:
                if first is not None and not n:
                    # Until the next progress: a server may have to be waited for in the middle.
                    bars.update(first, description=safe_text(what), visible=True)

            with listening(hear):
                yield _bar_updater(bars, first)
    else:
        if start:
            sys.stderr.write(f"{start}\n")
            sys.stderr.flush()
        yield _LinePrinter()


def progress_line(progress: Progress) -> str:
    """Return `score 120000/1000000 12.0% 8.4k windows/s eta 01:44`, or `read 5000 rows, 2.5k rows/s`."""
    total, eta = progress.total, progress.eta_seconds
    unit = progress.unit.removesuffix("s") if progress.done == 1 else progress.unit
    done = f"{progress.done} {unit}," if total is None else f"{progress.done}/{total}"
    parts = [progress.stage, done]
    if total:
        parts.append(f"{progress.done / total:.1%}")
    parts.append(f"{short_number(progress.rate)} {progress.unit}/s")
    if eta is not None:
        parts.append(f"eta {clock(eta)}")
    return " ".join(parts)


class _LinePrinter:
    """Prints a line every ten seconds, and one when a stage with a known end has ended."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS_A_LINE or progress.done == progress.total:
            self._last = now
            sys.stderr.write(progress_line(progress) + "\n")
            sys.stderr.flush()


def _bar_updater(bars: Bars, first: TaskID | None) -> Callable[[Progress], None]:
    tasks = {}

    def update(progress: Progress) -> None:
        if first is not None:
            bars.update(first, visible=False)
        if progress.stage not in tasks:
            tasks[progress.stage] = bars.add_task(progress.stage, numbers="")
        numbers = progress_line(progress).removeprefix(f"{progress.stage} ")
        bars.update(
            tasks[progress.stage], total=progress.total, completed=progress.done, numbers=numbers
        )

    return update
