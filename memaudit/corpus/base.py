"""What a reader is asked for, and what comes out of it."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, get_args

from memaudit.errors import UsageError
from memaudit.text import number_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CorpusShape = Literal[
    "auto", "text", "prompt-completion", "messages", "sharegpt", "alpaca", "preference", "tokens"
]
"""How a row holds its text; `auto` settles it from the columns of the first row that has them."""

DEFAULT_TEMPLATE_DATE = "2024-07-26"
"""A text must not depend on the day it is rendered. Templates of Llama 3 write this date by
themselves where none is offered."""

Span = tuple[int, int]
"""Where a part of a text begins and ends, the end left out."""

ProjectColumns = Callable[[Sequence[str], str], tuple[str, ...]]
"""From the names in a schema and the file's name to the columns to read; may raise."""

StringPath = tuple[str | int, ...]
"""Where a string is in a row: the column, then keys and places from 0, such as
`("messages", 2, "content")`."""

Cuts = Mapping[StringPath, tuple[Span, ...]]
"""Parts of a row's strings that are left out, in characters, in order."""

KeepNext = Callable[[], bool | Cuts]
"""Whether the next row stays when a file is copied, or what is cut out of it; asked once for each
row, in order. A row that cannot be used is never cut."""

_ADDED = ("mapping", "template_date", "add_special_tokens")
"""Options that `CorpusOptions` did not have when the first runs were made."""

_UNDECLARED = ("streaming", "rows", "captured")
MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text as a model is trained on it."""

    text: str
    """All of it, template and special tokens included. For token ids: their digits."""

    answers: tuple[Span, ...] | None = None
    """What is trained on, in characters of `text`, or tokens if `token_ids` is given. None: all."""

    token_ids: tuple[int, ...] | None = None
    """The tokens, where the corpus holds them instead of text."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that a chat template makes a text of."""

    messages: list[dict[str, object]]
    """Each with `role`, `content` and whatever else the row has; at least one."""

    variables: dict[str, object] = field(default_factory=dict)
    """What else the template is given: `tools`, `documents`."""

    n_context: int | None = None
    """Messages at the start that are not trained on, all others are. None: trained on is what the
    assistant says."""

    skipped_parts: int = 0
    """Images and other parts of messages that were left out, for they are no text."""

    date: str = DEFAULT_TEMPLATE_DATE
    """What templates that ask for today's date are told, as YYYY-MM-DD."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it but the date: no model is needed to tell whether it has changed."""
        content = (self.messages, self.variables, self.n_context)
        # What JSON has no word for, such as a date in a column of Parquet, counts by its text.
        # Escaped: half of a surrogate pair has no UTF-8. Whether it may stand in a row is not
        # for a digest to say.
        return hashlib.sha256(json.dumps(content, default=repr).encode("ascii")).digest()


RenderMessages = Callable[[Conversation], Rendered]
"""A chat template. A ValueError from it makes the row a bad row."""


class RenderError(ValueError):
    """Why a template makes no text of some messages, without text of the corpus."""


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
    """The text as the model sees it in training. Valid Unicode, may be empty."""

    answers: tuple[Span, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    raw_digest: bytes | None = None
    """SHA-256 of its messages before a chat template made a text of them. None: there are none."""

    values: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)
    """Of the columns that the text is made of, by column."""

    render: "Callable[[Mapping[str, object]], Rendered] | None" = field(
        default=None, compare=False, repr=False
    )
    """Makes a text of other values in these columns; may raise `RowError`."""

    captured: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)
    """What the row holds of a teacher's log-probabilities, by the names in `CAPTURES`."""

    logprobs: "NDArray[np.float32] | None" = field(default=None, compare=False, repr=False)
    """(2, T) what was captured of each of its tokens, as `memaudit.engines.captured` makes it."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: a value, so that it is counted and the next row is read."""

    row: int
    example_id: str
    address: str
    reason: str
    """`line 17: invalid UTF-8 at byte 5 of the line`; never text of the corpus."""

    raw_digest: bytes | None = None
    """As in `Example`: a template may refuse messages that could be read."""


LONG_TEXT = 1 << 20
"""Characters of a text that any tokenizer can encode within bounds."""

CAPTURED_WRONG = "captured log-probabilities: "
"""How the reason begins of a row that is bad for these alone."""

TOO_LARGE = "the text has more than 4 MiB, and the tokenizer cannot be given it in parts"


def refused(row: Example, reason: str) -> BadRow:
    """Return what is left of a row that could be read, but not used."""
    return BadRow(row.row, row.example_id, row.address, reason, row.raw_digest)


TEXT_KEY_BYTES = 16


def text_key(row: Example | BadRow) -> bytes:
    """Return 16 bytes that are equal for equal texts with equal answers, and for nothing else."""
    if isinstance(row, BadRow):
        # What could not be read equals nothing: its number makes the key its own.
        return b"bad row ".ljust(TEXT_KEY_BYTES // 2) + row.row.to_bytes(TEXT_KEY_BYTES // 2)
    key = hashlib.blake2b(row.text.encode(), digest_size=TEXT_KEY_BYTES)
    # No mark between the two is needed: no list of spans in JSON ends with another one.
    key.update(json.dumps(row.answers).encode())
    return key.digest()


class RawDigest:
    """SHA-256 of the rows of a chat corpus before they were rendered: it needs no model."""

    def __init__(self) -> None:
        self._hash, self._has_messages = hashlib.sha256(), False

    def add(self, row: Example | BadRow) -> None:
        """Count the next row."""
        self._has_messages |= row.raw_digest is not None
        # Digests are of one length, so the parts of two rows cannot run together.
        if row.raw_digest is not None:
            self._hash.update(row.raw_digest)
        else:  # among messages there may be rows of plain text
            text = row.text.encode() if isinstance(row, Example) else b""
            self._hash.update(hashlib.sha256(text).digest())

    @property
    def value(self) -> str | None:
        """In hexadecimal. None: no row held messages."""
        return self._hash.hexdigest() if self._has_messages else None


@dataclass(slots=True)
class CorpusSeen:
    """What was found out about a corpus while it was read, for the summary."""

    layout: str | None = None
    """`messages, of which assistant turns are trained on`. None: not settled yet."""

    n_files: int = 0
    """Files that were opened; 0 for a pipe and the hub."""

    skipped_parts: int = 0
    """Images and other parts of messages that are no text."""

    @property
    def in_words(self) -> str | None:
        """What was read, without names from the corpus. None: one file of plain text."""
        if self.layout is None or (self.layout.startswith("text,") and self.n_files <= 1):
            return None
        files = f"{number_of(self.n_files, 'file')} of " if self.n_files else ""
        part = "image or other part of messages was", "images or other parts of messages were"
        skipped = f"; {number_of(self.skipped_parts, *part)} skipped" if self.skipped_parts else ""
        return f"{files}{self.layout}{skipped}"


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

    split: str | None = None
    """Split on the hub, or of a folder whose files name theirs; `all` for all of a folder. None:
    `train` on the hub, and a folder must not have several."""

    revision: str | None = None
    """Branch, tag or commit, hub only."""

    rows: Any = field(default=None, compare=False, repr=False)
    """Rows in memory, see `corpus_of`; `source` is then what messages call them. None: read the
    source."""

    streaming: bool = True
    """Whether a hub corpus is read without being downloaded first."""

    captured: bool = False
    """Whether the columns with a teacher's log-probabilities are read as well."""

    max_row_bytes: int = 16 * MIB
    """A longer row is a bad row."""

    max_decompressed_bytes: int = 256 * GIB
    """How much one compressed file may unpack to."""

    max_compression_ratio: int = 1000
    """How many times its packed size a file may unpack to. Not checked below 64 MiB."""

    mapping: tuple[str, ...] = ()
    """`prompt=question`: columns that hold what a layout calls otherwise."""

    template_date: str = DEFAULT_TEMPLATE_DATE
    """What chat templates that ask for today's date are told, as YYYY-MM-DD."""

    add_special_tokens: Literal["auto", "yes", "no"] = "auto"
    """Whether a BOS token stands in front of every window; auto: if the tokenizer adds one. There
    is never a second one, whatever a text or a template begins with."""

    def __post_init__(self) -> None:
        try:
            date.fromisoformat(self.template_date)
        except ValueError as error:
            raise UsageError(
                "--template-date: expected a date as YYYY-MM-DD", hint="such as 2026-01-31"
            ) from error
        object.__setattr__(self, "mapping", tuple(self.mapping))  # a manifest gives a list
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

    def declared(self) -> dict[str, Any]:
        """Return what decides which texts are read; whether they are streamed does not.

        What was added later is left out where it has no effect: fingerprints of runs stay.
        """
        document = {}
        for option in fields(self):
            name, value = option.name, getattr(self, option.name)
            if name not in _UNDECLARED and not (name in _ADDED and value == option.default):
                # A manifest that is read back has lists: the same must not look like another.
                document[name] = list(value) if isinstance(value, tuple) else value
        # The default was "train" when the first runs were made: their fingerprints stay.
        document["split"] = self.split or "train"
        return document


def corpus_of(data: object) -> CorpusOptions:
    """Return how a corpus is read that a user of the Python functions gives.

    Args:
        data: a path, glob or hub id; or rows in memory: a `datasets` data set, a pandas frame, what
            has Arrow's stream interface, such as tables of pyarrow and polars, or any iterable of
            dicts; or `CorpusOptions`, which say more of either.
    """
    if isinstance(data, CorpusOptions):
        return data
    if data is None or (isinstance(data, str) and not data):
        # The path `.` would be all that lies in the working folder.
        raise UsageError(
            "no corpus is given", hint="give a path, a data set, a frame, a table or dicts"
        )
    if isinstance(data, str | os.PathLike):
        return CorpusOptions(os.fspath(data))
    return CorpusOptions("rows", rows=data)


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
    unit: Literal["line", "row"] = "line"
    """What `place` counts."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that its format cannot give."""

    number: int
    place: int
    reason: str
    """As in `BadRow`, without the place."""

    unit: Literal["line", "row"] = "line"
    """What `place` counts."""


def record_of(number: int, row: Mapping[str, object] | str) -> Record | Unreadable:
    """Return a row of a format without lines: given are its values, or why it cannot be read."""
    if isinstance(row, str):
        return Unreadable(number, number, row, "row")
    return Record(number, number, row, "row")


class RepeatedKeys(dict[str, object]):
    """A JSON object in which keys repeat, the last value kept."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        # Parsers differ in which of two values counts. So nobody uses a column whose key repeats.
        counts = Counter(key for key, _ in pairs)
        self.repeated = frozenset(key for key, count in counts.items() if count > 1)
