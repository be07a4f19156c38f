"""The formats of files, by their endings. A new one is a file beside this one and a line here."""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

from memaudit.corpus.base import KeepNext, ProjectColumns, Record, Unreadable
from memaudit.corpus.byte_streams import OpenFile
from memaudit.corpus.delimited import Delimited
from memaudit.corpus.json_lines import Json, JsonLines
from memaudit.corpus.plain_text import PlainText


class Format(Protocol):
    """How files of a format are read, and copied without some of their rows."""

    def read(self, file: OpenFile, project: ProjectColumns) -> Iterator[Record | Unreadable]:
        """Yield the rows, in order.

        Args:
            file: opened.
            project: chooses the columns; only formats with a schema ask it.
        """
        ...

    def copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        """Write the rows that stay, byte by byte as they were where the format allows it.

        Args:
            file: opened.
            keep_next: asked for each row that `read` yields, in that order.
            out: binary, compressed as the file is.
        """
        ...


class _Late:
    """A class of `columnar`, which imports pyarrow: 0.2 s that a corpus of text need not wait for."""

    def __init__(self, name: Literal["Parquet", "Arrow"]) -> None:
        self._name = name

    def _format(self) -> Format:
        from memaudit.corpus import columnar

        found: Format = getattr(columnar, self._name)()
        return found

    def read(self, file: OpenFile, project: ProjectColumns) -> Iterator[Record | Unreadable]:
        """Yield the rows."""
        return self._format().read(file, project)

    def copy(self, file: OpenFile, keep_next: KeepNext, out: Any) -> None:
        """Write the rows that stay."""
        self._format().copy(file, keep_next, out)


FORMATS: dict[str, Format] = {
    "jsonl": JsonLines(),
    "ndjson": JsonLines(),
    "json": Json(),
    "csv": Delimited(","),
    "tsv": Delimited("\t"),
    "parquet": _Late("Parquet"),
    "arrow": _Late("Arrow"),
    "feather": _Late("Arrow"),
    "txt": PlainText(),
}
"""By the ending of a file's name."""
