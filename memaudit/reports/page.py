"""A page: what a report says, as a value that a terminal, Markdown and HTML render alike.

A page holds words, numbers in words and shares for bars. What it must never hold is markup:
each renderer escapes for itself, so a text from outside stays a text in all of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from memaudit.reports.charts import Bar, Chart

Kind = Literal["", "strong", "quiet", "good", "warning", "risk"]
"""How a piece of text stands out: `risk` is what nobody should overlook."""


@dataclass(frozen=True, slots=True)
class Words:
    """A piece of text that stands out, or that comes from outside."""

    text: str
    kind: Kind = ""
    is_name: bool = False
    """From outside: Markdown shows it as code, in which nothing is markup."""


Sentence = str | int | Words | tuple[str | Words, ...]
"""Text in pieces; a plain string is our own, and a count is shown in groups of three digits."""


def name(text: str, kind: Kind = "", *, max_len: int = 200) -> Words:
    """Return a text from outside, such as an id or the name of a model; a longer one is cut."""
    return Words(text if len(text) <= max_len else f"{text[:max_len]}…", kind, is_name=True)


def path_name(path: object) -> Words:
    """Return a path as text from outside, whole up to the longest that Linux allows."""
    return name(str(path), max_len=4096)


def model_name(model: str, kind: Kind = "") -> Words:
    """Return the name of a model, without the folders that it lies in."""
    # `.` and `/` have no name of their own.
    return name(PurePath(model).name or model, kind)


def pieces(sentence: Sentence) -> Iterator[Words]:
    """Return the pieces of a sentence, in order."""
    for piece in sentence if isinstance(sentence, tuple) else (sentence,):
        if isinstance(piece, Words):
            yield piece
        else:
            yield Words(piece if isinstance(piece, str) else f"{piece:,}")


def plain(sentence: Sentence) -> str:
    """Return a sentence without what makes its pieces stand out."""
    return "".join(piece.text for piece in pieces(sentence))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell of a table that holds more than a sentence."""

    text: Sentence = ""
    detail: Sentence = ""
    """In small letters after the text: an address, an interval."""
    badges: tuple[str, ...] = ()
    """What the row holds, in a word each."""
    quote: str | None = None
    """Text of the corpus, below; only if a user asked for it. Markdown leaves it out."""
    bar: Bar | None = None
    """Beside the number, in HTML alone."""
    value: float | None = None
    """To sort by, where the page is sortable; None for the text itself."""


def as_cell(value: Sentence | Cell) -> Cell:
    """Return a value of a row as a cell."""
    return value if isinstance(value, Cell) else Cell(text=value)


@dataclass(frozen=True, slots=True)
class Column:
    """What a column holds and how it may break."""

    name: str = ""
    """With the unit, if the cells have none."""
    breaks: Literal["nowhere", "words", "anywhere"] = "words"
    """Where a cell may be broken on a narrow terminal: `anywhere` is for ids and paths."""
    is_number: bool = False
    """Set to the right, and never broken."""
    is_minor: bool = False
    """Left out where there is little room: in Markdown."""
    kind: Kind = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under named columns, or a list of labels with values if no column has a name."""

    title: str = ""
    """One line; HTML makes it the caption."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Sentence | Cell, ...], ...]
    rest: str = ""
    """What is not listed, such as "and 12 more"."""
    is_folded: bool = False
    """The numbers of a chart: HTML shows them on a click, the others leave them out."""
    anchor: str = ""
    """Makes the table sortable and filterable in HTML; at most one of a page."""
    row_kinds: tuple[str, ...] = ()
    """Of each row, what a filter chooses by: words that are separated by spaces."""
    choices: tuple[tuple[str, str], ...] = ()
    """What a filter offers: a word of `row_kinds` and how it reads."""
    style: str = ""
    """A class of the style sheet."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A few numbers that are read first: name, number, and what it is of or its interval."""

    rows: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One sentence or several."""

    text: Sentence
    kind: Kind = ""
    """`warning` is set apart: who reads the numbers must have read it."""
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Bullets:
    """Sentences that are read one by one."""

    items: tuple[Sentence, ...]


Block = Figures | Paragraph | Bullets | Table | Chart


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks under a heading."""

    title: str = ""
    """Empty for what needs none."""
    anchor: str = ""
    """Where links of the page lead; needed in HTML if there is a title."""
    nav: str = ""
    """Its name among the links at the top of a page; without one it has no link there."""
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a report says, from its verdict to its fine print."""

    title: str
    """What kind of report it is; a terminal leaves it out."""
    verdict: Sentence
    """What it comes to, in one sentence that can stand alone."""
    lead: Sentence = ""
    """What else belongs to the verdict."""
    sections: tuple[Section, ...]
    notes: tuple[Sentence, ...] = ()
    """What a reader must know before relying on the numbers, each in a paragraph."""
    document: Mapping[str, Any] | None = None
    """The numbers for programs; HTML carries them."""
    made_by: str = ""
    """Version that made the run."""

    @property
    def charts(self) -> tuple[Chart, ...]:
        """In the order in which the page shows them."""
        blocks = (block for section in self.sections for block in section.blocks)
        return tuple(block for block in blocks if isinstance(block, Chart))


def numbers(*names: str) -> tuple[Column, ...]:
    """Return columns of numbers."""
    return tuple(Column(each, is_number=True) for each in names)


BARS = Column(is_minor=True)
"""A column of bars beside their numbers."""

LABEL = Column(breaks="nowhere", kind="quiet")
"""Of a list of facts: the name of each."""


def facts(
    rows: Mapping[str, Sentence | Cell | None], *, title: str = "", is_folded: bool = False
) -> Table:
    """Return a list of names with values; an empty text, 0 or None is left out."""
    given = tuple((key, value) for key, value in rows.items() if value)
    columns = (LABEL, Column(breaks="anywhere"))
    return Table(title=title, columns=columns, rows=given, is_folded=is_folded, style="facts")


def counts(*rows: tuple[str, str | int, str]) -> Table:
    """Return a list of names with numbers and what they count."""
    columns = (LABEL, Column(is_number=True), Column(kind="quiet"))
    return Table(columns=columns, rows=rows, style="counts")
