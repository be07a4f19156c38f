"""Which columns of a corpus are used, and what a row's id and text are."""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from decimal import Decimal
from functools import cached_property
from typing import NoReturn
from uuid import UUID

from memaudit.corpus.base import (
    Conversation,
    CorpusOptions,
    Rendered,
    RenderError,
    RenderMessages,
    RepeatedKeys,
    RowError,
)
from memaudit.corpus.layouts import (
    CAPTURED_NAMES,
    CAPTURES,
    LAYOUTS,
    ROLES,
    Content,
    Layout,
    kind_of,
    quoted,
)
from memaudit.errors import CorpusError, UsageError
from memaudit.text import safe_text

_FIRST_LAYOUTS = ("text", "prompt-completion", "messages")
"""Between these `auto` does not choose; the others are looked for where none of them fits."""

_OTHER_NAMES = {
    "text": ("content", "body", "document", "article", "raw_content"),
    "prompt": ("question", "query", "input", "instruction", "problem", "source"),
    "completion": ("answer", "response", "output", "solution", "target", "label"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
}
"""What columns are often called that hold what a layout calls otherwise."""

_DEFAULT_ID = "id"
_NAMES_KEPT = 100  # for messages: each row of JSON may have other keys
_NAMES_SHOWN = 20


@dataclass(frozen=True)  # without slots: what each row asks for is worked out once
class Columns:
    """The columns that are used."""

    layout: Layout
    roles: Mapping[str, str]
    """From what the layout calls them to their names in the corpus."""

    id_column: str | None
    """The id column that was asked for."""

    captured: Mapping[str, str]
    """Likewise of those with log-probabilities; empty where they are not asked for."""

    @cached_property
    def in_words(self) -> str:
        """Their layout, and which part is trained on."""
        name = next(name for name, layout in LAYOUTS.items() if layout is self.layout)
        return f"{name}, {self.layout.in_words}"

    @cached_property
    def used(self) -> tuple[str, ...]:
        """Columns of the text, those that may be missing, then the id column, there or not."""
        return (*self.roles.values(), *self.captured.values(), self.id_column or _DEFAULT_ID)

    @property
    def required(self) -> tuple[str, ...]:
        """What every row must have."""
        content = tuple(self.roles[role] for role in self.layout.required)
        return content if self.id_column is None else (*content, self.id_column)


class ColumnChooser:
    """Settles once, from the first schema or row that has them, which columns are used."""

    def __init__(self, options: CorpusOptions) -> None:
        """Read which columns were named.

        Raises:
            UsageError: a name is none that a layout has, or is given twice.
        """
        self._shape, self._captured = options.shape, options.captured
        given = [] if options.text_column is None else [f"text={options.text_column}"]
        self._names: dict[str, str] = {}  # columns, by what layouts call them
        for item in [*given, *options.mapping]:
            role, _, column = item.partition("=")
            if not column or role not in (*ROLES, "id"):
                raise UsageError(
                    f"--map {safe_text(item)}: expected ROLE=COLUMN",
                    hint=f"roles are {', '.join((*ROLES, 'id'))}",
                )
            if role in self._names:
                raise UsageError(f"--map gives {role} twice", hint="leave out one of the two")
            self._names[role] = column
        self._id_column = self._names.pop("id", options.id_column)
        self._seen: dict[str, None] = {}
        self.has_looked = False
        self.columns: Columns | None = None

    def settle(self, names: Collection[str]) -> Columns | None:
        """Return the columns, settled from these names if they were not before."""
        if self.columns is None:
            self.columns = self._choose(names)
        if self.columns is None:
            self.has_looked = True
            room = _NAMES_KEPT - len(self._seen)
            self._seen.update(dict.fromkeys(list(names)[:room]))
        return self.columns

    def project(self, names: Sequence[str], shown: str) -> tuple[str, ...]:
        """Return the columns to read from a file with a schema.

        Raises:
            CorpusError: the schema lacks one, or has one twice.
        """
        columns = self.settle(names)
        if columns is None or not set(columns.required) <= set(names):
            self.refuse(shown, names)
        for name in columns.used:
            if names.count(name) > 1:
                raise CorpusError(f"{shown}: the column {quoted(name)} is there twice")
        return tuple(name for name in names if name in columns.used)

    def refuse(self, shown: str, names: Collection[str] | None = None) -> NoReturn:
        """Raise the error for a corpus without the columns that are needed."""
        there = list(self._seen if names is None else names)
        if self._captured and self._fitting(there) and self._capture(there) is None:
            raise CorpusError(
                f"{shown}: found no log-probabilities of a teacher, expected one of the columns "
                f"{', '.join(sorted({quoted(columns[0]) for columns in CAPTURES}))}",
                hint=f"name it with --map logprobs=COLUMN; {_list_columns(there)}",
            )
        wanted = self._missing(there)
        if wanted is None and "prompt" in there:
            raise CorpusError(
                f"{shown}: the rows hold prompts without answers, so there is no text to learn. "
                "In an on-policy distillation the student learns from text that it writes itself. "
                "It can recite what the teacher recites of the texts that the prompts are from",
                hint="audit those texts, or the prompts with --format text --text-column prompt; "
                "where there are answers, name their column with --map completion=COLUMN",
            )
        if wanted is None:
            raise CorpusError(
                f"{shown}: found no text, expected a column 'text', 'messages', 'conversations', "
                "'input_ids', or 'prompt' and 'completion', 'instruction' and 'output', "
                "'chosen' and 'rejected'",
                hint=f"{_nearest(there)}; {_list_columns(there)}",
            )
        close = difflib.get_close_matches(wanted, there, n=1)
        meant = f"did you mean {quoted(close[0])}? " if close else ""
        raise CorpusError(f"{shown}: no column {quoted(wanted)}", hint=meant + _list_columns(there))

    def _asked(self) -> tuple[str, ...]:
        if self._shape != "auto":
            return (self._shape,)
        given = [name for name in LAYOUTS if set(LAYOUTS[name].required) & set(self._names)]
        return tuple(given) or tuple(LAYOUTS)

    def _content(self, layout: str) -> list[str]:
        return [self._names.get(role, role) for role in LAYOUTS[layout].required]

    def _fitting(self, names: Collection[str]) -> list[str]:
        fitting = [name for name in self._asked() if set(self._content(name)) <= set(names)]
        # A conversation beside two answers is the prompt of both.
        fitting = [name for name in fitting if name != "sharegpt" or "preference" not in fitting]
        first = [name for name in fitting if name in _FIRST_LAYOUTS]
        return fitting if self._captured else first or fitting

    def _choose(self, names: Collection[str]) -> Columns | None:
        layouts = self._fitting(names)
        if len(layouts) > 1:
            raise CorpusError(
                f"rows could be read as {' or as '.join(layouts)}",
                hint=f"say which with --format {layouts[0]} or --format {layouts[1]}",
            )
        if not layouts or (self._id_column is not None and self._id_column not in names):
            return None
        captured = self._capture(names) if self._captured else {}
        if captured is None:
            return None
        layout = LAYOUTS[layouts[0]]
        if layouts == ["preference"] and self._shape == "auto":
            self._require_prompt(names)
        roles = {role: self._names.get(role, role) for role in layout.required + layout.optional}
        return Columns(layout, roles, self._id_column, captured)

    def _require_prompt(self, names: Collection[str]) -> None:
        """Refuse two answers beside what may be their prompt: they are scored otherwise without it."""
        there = next((name for name in _OTHER_NAMES["prompt"] if name in names), None)
        # A source is often where a row is from.
        if there in (None, "source") or not {"prompt", "conversations"}.isdisjoint(names):
            return
        raise CorpusError(
            f"rows hold 'chosen' and 'rejected' beside {quoted(there)}, which may be their prompt",
            hint=f"give --format preference, and --map prompt={there} if so",
        )

    def _capture(self, names: Collection[str]) -> dict[str, str] | None:
        """Return the columns of the first capture that is there."""
        for roles in CAPTURES:
            found = {}
            for role in roles:
                known = (self._names.get(role, role), *CAPTURED_NAMES.get(role, ()))
                found[role] = next((name for name in known if name in names), None)
            if None not in found.values():
                return {role: name for role, name in found.items() if name is not None}
        return None

    def _missing(self, names: Collection[str]) -> str | None:
        """Name one missing column; None if several layouts would do and none is there."""
        if self._fitting(names):
            assert self._id_column is not None
            return self._id_column
        asked = self._asked()
        if len(asked) > 1:
            return None
        return next(name for name in self._content(asked[0]) if name not in names)


def _nearest(names: Collection[str]) -> str:
    """Return the option that would make a layout of these columns."""

    def other(role: str) -> str | None:
        there = (role, *_OTHER_NAMES[role])
        return next((name for name in there if name in names), None)

    prompt, completion, text, chat = map(other, ("prompt", "completion", "text", "messages"))
    if prompt and completion:
        return (
            "if these are questions and answers, give "
            f"--map prompt={prompt} --map completion={completion}"
        )
    if chat:
        return f"if {quoted(chat)} holds messages, give --map messages={chat}"
    if text:
        return f"if {quoted(text)} holds the text, give --text-column {text}"
    return "name the column of the text with --text-column"


def read_id(values: Mapping[str, object], columns: Columns, fallback: str) -> str:
    """Return the id of a row as text, or the fallback if there is no id column.

    Raises:
        RowError: the id column that was asked for is missing or empty, or an id is no string,
            number or boolean.
    """
    name = columns.id_column or _DEFAULT_ID
    value = values.get(name)
    if isinstance(value, float) and not math.isfinite(value):
        value = None  # what pandas writes for no id
    if isinstance(value, int | float | Decimal | date | time | UUID):  # bool and datetime too
        return str(value)
    if isinstance(value, str) and value and _utf8_len(value) is not None:
        return value
    if columns.id_column is None and (value is None or isinstance(value, str)):
        return fallback
    raise RowError(f"no id in {quoted(name)}, expected a string or a number, got {kind_of(value)}")


def read_content(values: Mapping[str, object], columns: Columns) -> Content:
    """Return what a row holds: a text, token ids or messages.

    Raises:
        RowError: a column is missing, there twice, or of another type.
    """
    repeated = values.repeated if isinstance(values, RepeatedKeys) else frozenset[str]()
    # Where nobody looks a key may repeat.
    for name in columns.used:
        if name in repeated:
            raise RowError(f"the key {quoted(name)} is there twice")
    row: dict[str, object] = {}
    for role, name in columns.roles.items():
        is_required = role in columns.layout.required
        if is_required and name not in values:
            raise RowError(f"no key {quoted(name)}")
        # A message of its own is an object; its layout says where one may stand.
        kinds = str | list | dict if role in ("chosen", "rejected") else str | list
        if is_required and not isinstance(values[name], kinds):
            raise RowError(f"{quoted(name)} is {kind_of(values[name])}, expected text")
        if is_required or values.get(name) is not None:
            row[role] = values[name]
    return columns.layout.build(row)


def render_content(
    content: Content, render_messages: RenderMessages | None, options: CorpusOptions
) -> Rendered:
    """Return the text of a row.

    Raises:
        RowError: the template refuses the messages, or the text is too long or not Unicode.
        CorpusError: there are messages and no `render_messages`.
    """
    if isinstance(content, Conversation):
        if render_messages is None:
            raise CorpusError(
                "rows hold messages, and there is no chat template to render them with",
                hint="give a model whose tokenizer has a chat template",
            )
        try:
            content = render_messages(replace(content, date=options.template_date))
        except RenderError as error:
            raise RowError(str(error)) from error
        except ValueError as error:
            # Not what the template says: it may quote them.
            raise RowError("the chat template refuses the messages") from error
    # No limit on lines sees this: escapes, columns and templates make long texts.
    n_bytes = _utf8_len(content.text)
    if n_bytes is None:
        # JSON writes it as an escape; no tokenizer takes it.
        raise RowError("a lone surrogate, which is not text")
    if n_bytes > options.max_row_bytes:
        raise RowError(f"a text of {n_bytes:,} bytes, more than {options.max_row_bytes:,}")
    return content


def _utf8_len(text: str) -> int | None:
    """Return how many bytes the text takes; None if it is not valid Unicode."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def _list_columns(names: Collection[str]) -> str:
    if not names:
        return "there are no columns"
    shown = ", ".join(safe_text(name, 60) for name in list(names)[:_NAMES_SHOWN])
    return f"columns: {shown}" + (", …" if len(names) > _NAMES_SHOWN else "")
