"""A page on a terminal: as wide as it is, and nothing in it is obeyed."""

import re
import sys
from collections.abc import Iterator
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table as Grid
from rich.text import Text

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
    with console.capture() as captured:
        console.print(_text(page.verdict))
        if page.lead:
            console.print(_text(page.lead))
        for section in page.sections:
            if section.title:
                console.print()
                console.print(Text(section.title, style="bold"))
            for i, block in enumerate(section.blocks):
                for drawn in _drawn(block, console.width):
                    if i or not section.title:
                        console.print()
                    console.print(drawn)
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
            overflow="fold",
        )
    for row in cells:
        grid.add_row(*row)
    return grid


def _cell(value: Sentence | Cell) -> Text:
    if not isinstance(value, Cell):
        return _text(value)
    text = _text(value.text)
    if value.detail:
        text.append(" (").append_text(_text(value.detail, "dim")).append(")")
    for badge in value.badges:
        text.append(f", {badge}")
    if value.quote is not None:
        text.append("\n").append(safe_text(value.quote, len(value.quote)), "dim italic")
    return text


def _widths(columns: tuple[Column, ...], cells: list[list[Text]], width: int) -> list[int]:
    """Return the width of each column: no word is broken while there is any other way."""
    wanted, needed = [], []
    for i, column in enumerate(columns):
        texts = [row[i] for row in cells]
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
            needed.append(min(wanted[-1], max(longest, width // 3)))
    room = width - _GAP * (len(columns) - 1)
    return _shared_out(wanted, needed, room)


def _shared_out(wanted: list[int], needed: list[int], room: int) -> list[int]:
    """Return widths that add up to no more than the room, if each may be as narrow as 1."""
    if sum(wanted) <= room:
        return wanted
    widths = list(needed)
    while sum(widths) > max(room, len(widths)):
        widths[widths.index(max(widths))] -= 1
    while sum(widths) < room:
        missing = [want - size for want, size in zip(wanted, widths, strict=True)]
        widths[missing.index(max(missing))] += 1
    return widths
