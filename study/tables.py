"""A study's tables as Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memaudit.runs.files import committed_file


@dataclass(frozen=True, slots=True)
class StudyTable:
    """A table of a study, as text."""

    name: str
    """Short and unique, such as `rates`."""

    title: str
    """What it is about."""

    columns: tuple[str, ...]
    """Headers, in lines. The first `n_labels` columns are words, the others numbers."""

    rows: tuple[tuple[str, ...], ...]
    """As many cells as columns each. What follows a line break in a cell is its interval."""

    notes: tuple[str, ...] = ()
    """What to know, and what contradicts the paper."""

    n_labels: int = 1
    """Columns of words, on the left."""


def markdown(tables: Sequence[StudyTable]) -> str:
    """Return tables under a heading each."""
    return "\n".join(_markdown_section(table) for table in tables)


def write_markdown(tables: Sequence[StudyTable], path: Path) -> None:
    """Write tables as Markdown into a file that anybody may read.

    Raises:
        OutputError: it cannot be written.
    """
    with committed_file(path) as stream:
        stream.write(markdown(tables).encode())
    path.chmod(0o644)


def _markdown_section(table: StudyTable) -> str:
    rules = ["---" if i < table.n_labels else "---:" for i in range(len(table.columns))]
    lines = [f"### {_escaped(table.title)}", ""]
    headers = [_escaped(column).replace("-\n", "-").replace("\n", " ") for column in table.columns]
    lines += [_joined(headers), _joined(rules)]
    lines += [_joined([_markdown_cell(cell) for cell in row]) for row in table.rows]
    if table.notes:
        lines += ["", *(f"- {_escaped(note)}" for note in table.notes)]
    return "\n".join([*lines, ""])


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: str) -> str:
    value, _, interval = _escaped(cell).partition("\n")
    interval = interval.replace("\n", " ")
    return f"{value} ({interval})" if interval else value


def _escaped(text: str) -> str:
    """Return text in which nothing is read as Markdown's own, or ends a cell."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text


def in_order(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Return names in the same order whether or not a file has sorted them."""
    present = set(names)
    return [name for name in first if name in present] + sorted(present.difference(first))


def decimal(value: float | None, digits: int = 3) -> str:
    """Return `0.957`, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_interval(figure: dict[str, Any] | None, digits: int = 3, *, scale: float = 1.0) -> str:
    """Return a figure with its interval below it, where it has one.

    Args:
        figure: `value`, `low` and `high`, each None where it does not exist.
        digits: after the point.
        scale: 100 for percent.
    """
    if figure is None or figure["value"] is None:
        return "–"
    value = f"{scale * figure['value']:.{digits}f}"
    if figure["low"] is None or figure["high"] is None:
        return value
    return f"{value}\n{scale * figure['low']:.{digits}f}–{scale * figure['high']:.{digits}f}"
