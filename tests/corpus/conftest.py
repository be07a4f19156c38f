"""Reading a corpus that is a few bytes long."""

from collections.abc import Callable
from pathlib import Path

import pytest

from memaudit.corpus import BadRow, CorpusOptions, Example, read_corpus


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Example | BadRow]]:
    """Return a function that writes a file and reads it as a corpus."""

    def write_and_read(name: str, content: bytes, **options) -> list[Example | BadRow]:
        path = tmp_path / name
        path.write_bytes(content)
        render = options.pop("render_messages", None)
        return list(read_corpus(CorpusOptions(str(path), **options), render_messages=render))

    return write_and_read


@pytest.fixture
def texts(read) -> Callable[..., list[str | None]]:
    """Return a function that gives the texts of a small file, None for a bad row."""

    def read_texts(name: str, content: bytes, **options) -> list[str | None]:
        return [
            row.text if isinstance(row, Example) else None for row in read(name, content, **options)
        ]

    return read_texts
