"""How a row holds its text: which columns are used, and what they make together."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from memaudit.corpus.base import CorpusOptions, RepeatedKeys, RowError
from memaudit.errors import CorpusError
from memaudit.text import safe_text

RenderMessages = Callable[[list[dict[str, str]]], str]
"""A chat template. A ValueError from it makes the row a bad row."""

_Settled = Literal["text", "prompt-completion", "messages"]
_COLUMNS: dict[_Settled, tuple[str, ...]] = {
    "text": ("text",),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
}
_DEFAULT_ID = "id"
_NAMES_KEPT = 100
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that are used."""

    shape: _Settled
    """What they hold."""

    content: tuple[str, ...]
    """Where the text is, in order."""

    id_column: str | None
    """The id column that was asked for."""

    @property
    def used(self) -> tuple[str, ...]:
        """Content columns, then the id column, there or not."""
        return (*self.content, self.id_column or _DEFAULT_ID)

    @property
    def required(self) -> tuple[str, ...]:
        """What every row must have."""
        return self.content if self.id_column is None else (*self.content, self.id_column)


class ColumnChooser:
    """Settles once, from the first schema or row that has them, which columns are used."""

    def __init__(self, options: CorpusOptions) -> None:
        self._options = options
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
                raise CorpusError(f"{shown}: the column {_quoted(name)} is there twice")
        return tuple(name for name in names if name in columns.used)

    def refuse(self, shown: str, names: Collection[str] | None = None) -> NoReturn:
        """Raise the error for a corpus without the columns that are needed."""
        there = list(self._seen if names is None else names)
        wanted = self._missing(there)
        if wanted is None:
            raise CorpusError(
                f"{shown}: found no text, expected a column 'text', 'messages', "
                "or 'prompt' and 'completion'",
                hint=f"name the column of the text with --text-column; {_list_columns(there)}",
            )
        close = difflib.get_close_matches(wanted, there, n=1)
        meant = f"did you mean {_quoted(close[0])}? " if close else ""
        raise CorpusError(
            f"{shown}: no column {_quoted(wanted)}", hint=meant + _list_columns(there)
        )

    def _asked(self) -> tuple[_Settled, ...]:
        if self._options.text_column is not None:
            return ("text",)
        if self._options.shape != "auto":
            return (self._options.shape,)
        return tuple(_COLUMNS)

    def _content(self, shape: _Settled) -> tuple[str, ...]:
        if shape == "text" and self._options.text_column is not None:
            return (self._options.text_column,)
        return _COLUMNS[shape]

    def _fitting(self, names: Collection[str]) -> list[_Settled]:
        return [shape for shape in self._asked() if set(self._content(shape)) <= set(names)]

    def _choose(self, names: Collection[str]) -> Columns | None:
        shapes = self._fitting(names)
        if len(shapes) > 1:
            raise CorpusError(
                f"rows could be read as {' or as '.join(shapes)}",
                hint=f"say which with --format {shapes[0]} or --format {shapes[1]}",
            )
        id_column = self._options.id_column
        if not shapes or (id_column is not None and id_column not in names):
            return None
        return Columns(shapes[0], self._content(shapes[0]), id_column)

    def _missing(self, names: Collection[str]) -> str | None:
        """Name one missing column; None if several shapes would do and none is there."""
        if self._fitting(names):
            assert self._options.id_column is not None
            return self._options.id_column
        asked = self._asked()
        if len(asked) > 1:
            return None
        return next(name for name in self._content(asked[0]) if name not in names)


def read_id(values: Mapping[str, object], columns: Columns, fallback: str) -> str:
    """Return the id of a row as text, or the fallback if no id column was asked for.

    Raises:
        RowError: the id column that was asked for is missing, empty, or neither string nor
            integer.
    """
    value = values.get(columns.id_column or _DEFAULT_ID)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value and _utf8_len(value) is not None:
        return value
    if columns.id_column is None:
        return fallback
    raise RowError(
        f"no id in {_quoted(columns.id_column)}, expected a string or an integer, "
        f"got {_kind(value)}"
    )


def read_example_text(
    values: Mapping[str, object],
    columns: Columns,
    *,
    render_messages: RenderMessages | None,
    max_bytes: int,
) -> str:
    """Return the text of a row.

    Prompt and completion are joined as they are; lists of messages are rendered together.

    Raises:
        RowError: a column is missing, of another type, or holds what is not valid Unicode.
        CorpusError: there are messages and no `render_messages`.
    """
    repeated = values.repeated if isinstance(values, RepeatedKeys) else frozenset[str]()
    for name in columns.used:
        if name in repeated:
            raise RowError(f"the key {_quoted(name)} is there twice")
    parts = [_content(values, name) for name in columns.content]
    if all(isinstance(part, str) for part in parts) and columns.shape != "messages":
        text = "".join(str(part) for part in parts)
    elif all(isinstance(part, list) for part in parts) and columns.shape != "text":
        text = _render([message for part in parts for message in part], render_messages)
    else:
        raise RowError(_expected(columns, parts))
    n_bytes = _utf8_len(text)
    if n_bytes is None:
        raise RowError("a lone surrogate, which is not text")
    if n_bytes > max_bytes:
        raise RowError(f"a text of {n_bytes:,} bytes, more than {max_bytes:,}")
    return text


def _content(values: Mapping[str, object], name: str) -> str | list[object]:
    value = values.get(name)
    if isinstance(value, str | list):
        return value
    if name not in values:
        raise RowError(f"no key {_quoted(name)}")
    raise RowError(f"{_quoted(name)} is {_kind(value)}, expected text")


def _expected(columns: Columns, parts: Sequence[object]) -> str:
    names = " and ".join(_quoted(name) for name in columns.content)
    got = " and ".join(_kind(part) for part in parts)
    wanted = {
        "text": "a string",
        "prompt-completion": "two strings or two lists of messages",
        "messages": "a list of messages",
    }
    return f"expected {wanted[columns.shape]} in {names}, got {got}"


def _render(messages: list[object], render_messages: RenderMessages | None) -> str:
    if render_messages is None:
        raise CorpusError(
            "rows hold messages, and there is no chat template to render them with",
            hint="give a model whose tokenizer has a chat template",
        )
    if not messages:
        raise RowError("no messages")
    checked = [_message(message, number) for number, message in enumerate(messages, start=1)]
    try:
        return render_messages(checked)
    except ValueError as error:
        raise RowError("the chat template refuses the messages") from error


def _message(message: object, number: int) -> dict[str, str]:
    """Return role, content and whatever else of the message is a string."""
    if not isinstance(message, dict) or isinstance(message, RepeatedKeys):
        raise RowError(f"message {number}: expected an object with a role and content, each once")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise RowError(f"message {number}: {key} is {_kind(message.get(key))}")
    return {key: value for key, value in message.items() if isinstance(value, str)}


def _utf8_len(text: str) -> int | None:
    """Return how many bytes the text takes; None if it is not valid Unicode."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def _kind(value: object) -> str:
    return {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string" if value else "an empty string",
        list: "a list",
        dict: "an object",
        RepeatedKeys: "an object",
    }.get(type(value), "neither a string nor a list")


def _quoted(name: str) -> str:
    return f"'{safe_text(name, 60)}'"


def _list_columns(names: Collection[str]) -> str:
    if not names:
        return "there are no columns"
    shown = ", ".join(safe_text(name, 60) for name in list(names)[:_NAMES_SHOWN])
    return f"columns: {shown}" + (", …" if len(names) > _NAMES_SHOWN else "")
