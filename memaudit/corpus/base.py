"""What a reader is asked for, and what comes out of it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from memaudit.errors import UsageError

CorpusShape = Literal["auto", "text", "prompt-completion", "messages"]
"""How a row holds its text; `auto` settles it from the columns of the first row that has them."""

ProjectColumns = Callable[[Sequence[str], str], tuple[str, ...]]
"""From the names in a schema and the file's name to the columns to read; may raise."""

KeepNext = Callable[[], bool]
"""Whether the next row stays when a file is copied; asked once for each row, in order."""

MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Example:
    """A row that can be used."""

    row: int
    """Ordinal in the whole corpus from 0, counting every row read, bad ones too."""

    example_id: str
    """The id column's value, else `<file name>:<row of that file from 1>`. May repeat."""

    address: str
    """`<file name as given>:<line or row>`, for messages."""

    text: str
    """What the model is trained on. Valid Unicode, may be empty."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: a value, so that it is counted and the next row is read."""

    row: int
    """As in `Example`."""

    example_id: str
    """As in `Example`."""

    address: str
    """As in `Example`."""

    reason: str
    """`line 17: invalid UTF-8 at byte 5 of the line`; never text of the corpus."""


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """Where the corpus is and how its rows are read."""

    source: str
    """Path of a file or folder, glob, `-` for jsonl on stdin, or hub id `org/name[@revision]`."""

    shape: CorpusShape = "auto"
    """How a row holds its text."""

    text_column: str | None = None
    """Column of the text. None means `text`. Only for the shape `text`."""

    id_column: str | None = None
    """Column every row must have. None means `id` where it is a string or integer."""

    config: str | None = None
    """Configuration, hub only."""

    split: str = "train"
    """Split, hub only."""

    revision: str | None = None
    """Branch, tag or commit, hub only."""

    streaming: bool = True
    """Whether a hub corpus is read without being downloaded first."""

    max_row_bytes: int = 16 * MIB
    """A longer row is a bad row."""

    max_decompressed_bytes: int = 256 * GIB
    """How much one compressed file may unpack to."""

    max_compression_ratio: int = 1000
    """How many times its packed size a file may unpack to. Not checked below 64 MiB."""

    def __post_init__(self) -> None:
        if self.shape not in get_args(CorpusShape):
            raise ValueError(f"shape must be one of {get_args(CorpusShape)}, got {self.shape!r}")
        limits = (self.max_row_bytes, self.max_decompressed_bytes, self.max_compression_ratio)
        if min(limits) < 1:
            raise ValueError(f"limits must be at least 1, got {min(limits)}")
        if self.text_column is not None and self.shape not in ("auto", "text"):
            raise UsageError(
                f"--text-column goes with rows of plain text, got --format {self.shape}",
                hint="leave out one of the two",
            )


class RowError(Exception):
    """Why one row cannot be used, without text of the corpus; becomes a `BadRow`."""


@dataclass(frozen=True, slots=True)
class Record:
    """A row as its format gives it, before a shape is looked for."""

    number: int
    """Row of its file, from 1."""

    place: int
    """Where a person finds it, from 1: the line if the format has lines, else the row."""

    values: Mapping[str, object]
    """By column."""

    unit: Literal["line", "row"] = "line"
    """What `place` counts."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that its format cannot give."""

    number: int
    """As in `Record`."""

    place: int
    """As in `Record`."""

    reason: str
    """As in `BadRow`, without the place."""

    unit: Literal["line", "row"] = "line"
    """What `place` counts."""


class RepeatedKeys(dict[str, object]):
    """A JSON object in which keys repeat, the last value kept."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.repeated = frozenset(key for key, count in counts.items() if count > 1)
