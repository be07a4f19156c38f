"""A page as GitHub-flavoured Markdown: what comes from outside stands in code spans."""

from collections.abc import Iterator

from memaudit.reports.page import (
    Block,
    Bullets,
    Cell,
    Figures,
    Page,
    Paragraph,
    Sentence,
    Table,
    as_cell,
    pieces,
)
from memaudit.text import inert, safe_text

MAX_BYTES = 900_000
"""GitHub drops a job's summary beyond 1 MiB."""

_NAME_LEN = 1000
_MAX_ROWS = 20
"""Of a sortable table that are listed."""


def render_markdown(page: Page, *, level: int = 1) -> str:
    """Return a page without its charts and its folded tables; its first heading has this level."""
    lines = [f"{'#' * level} {_escaped(page.title)}", "", _inline(page.verdict), ""]
    if page.lead:
        lines += [_inline(page.lead), ""]
    for section in page.sections:
        if section.title:
            lines += [f"{'#' * (level + 1)} {_escaped(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block)]
    for note in page.notes:
        lines += [_inline(note), ""]
    return cut(inert("\n".join(lines).rstrip("\n") + "\n"), MAX_BYTES)


def code_span(text: str) -> str:
    """Return untrusted text as code in which nothing is markup, in a table's cell too."""
    # In a code span nothing but its end is markup, and in a table a bar.
    shown = safe_text(text, _NAME_LEN).replace("`", "\\u0060").replace("|", "\\u007c")
    return f"`{shown}`" if shown.strip() else "` `"


def cut(text: str, max_bytes: int) -> str:
    """Return as many whole lines as fit."""
    if len(text.encode()) <= max_bytes:
        return text
    # Whole lines: one that is cut may leave a code span open, and its text would be markup.
    kept, size = [], 0
    for line in text.splitlines(keepends=True):
        size += len(line.encode())
        if size > max_bytes - 100:  # room for the line that says so
            break
        kept.append(line)
    return "".join(kept) + "\n_cut: there is more_\n"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Paragraph(text, "warning"):
            yield from (f"> {_inline(text)}", "")
        case Paragraph(text):
            yield from (_inline(text), "")
        case Bullets(items):
            yield from (f"- {_inline(item)}" for item in items)
            yield ""
        case Figures(rows):
            yield from _rows(["", "", ""], ["---", "---:", "---"], [list(row) for row in rows])
        case Table() if not block.is_folded:
            if block.title:
                yield from (f"{_escaped(block.title)}:", "")
            # A pull request is narrow: bars and minor columns stay out.
            shown = {i: column for i, column in enumerate(block.columns) if not column.is_minor}
            names = [_escaped(column.name) for column in shown.values()]
            rules = ["---:" if column.is_number else "---" for column in shown.values()]
            listed = block.rows[:_MAX_ROWS] if block.anchor else block.rows
            yield from _rows(names, rules, [[_cell(row[i]) for i in shown] for row in listed])
            n_left = len(block.rows) - len(listed)
            if rest := f"and {n_left:,} more on the page" if n_left else block.rest:
                yield from (_escaped(rest), "")


def _rows(names: list[str], rules: list[str], rows: list[list[str]]) -> Iterator[str]:
    # GitHub takes lines for a table only below a row of names, be they empty.
    yield f"| {' | '.join(names)} |"
    yield f"|{'|'.join(rules)}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _cell(value: Sentence | Cell) -> str:
    cell = as_cell(value)
    detail = f"({_inline(cell.detail)})" if cell.detail else ""
    parts = [_inline(cell.text), detail, *map(_escaped, cell.badges)]
    return " ".join(part for part in parts if part)


def _inline(sentence: Sentence) -> str:
    return "".join(
        code_span(piece.text)
        if piece.is_name
        else f"**{_escaped(piece.text)}**"
        if piece.kind == "strong"
        else _escaped(piece.text)
        for piece in pieces(sentence)
    )


def _escaped(text: str) -> str:
    """Return our own text with what Markdown would read as markup written out."""
    return "".join(
        # `@` would notify a person, `&` begins an entity and `~` strikes out.
        f"\\{character}" if character in "\\`*_[]<>|&@~" else character
        for character in safe_text(text, len(text))
    )
