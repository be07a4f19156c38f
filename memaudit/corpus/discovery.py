"""Which files a path, a folder or a glob stands for, always in the same order."""

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from memaudit.corpus.base import CorpusOptions
from memaudit.corpus.byte_streams import OpenFile
from memaudit.corpus.formats import FORMATS
from memaudit.errors import CorpusError
from memaudit.text import safe_text, shown_path

COMPRESSIONS = ("gz", "zst", "bz2", "xz")
"""Endings that may follow."""

_ENDING = re.compile(rf"\.({'|'.join(FORMATS)})(?:\.({'|'.join(COMPRESSIONS)}))?$", re.IGNORECASE)
_ABOUT_THE_CORPUS = re.compile(
    r"(readme|licen[cs]e|notice|changelog|requirements)\b.*"
    r"|(dataset_infos?|dataset_dict|state|config|metadata|package)\.json",
    re.IGNORECASE,
)
_SUPPORTED = (
    f"files end in {', '.join('.' + ending for ending in FORMATS)}, "
    f"each also with {', '.join('.' + ending for ending in COMPRESSIONS)}"
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the corpus."""

    path: Path
    """Where it is."""

    name: str
    """What ids call it: its path below the folder or glob that was given."""

    shown: str
    """What messages call it: its path as given."""

    format: str
    """One of `FORMATS`."""

    compression: str | None
    """One of `COMPRESSIONS`."""


def find_files(source: str) -> list[SourceFile]:
    """Return the files of a corpus, sorted by name.

    A folder is read with its subfolders. Hidden files, names that start with `_`, files about
    the corpus (README, LICENSE, dataset_info.json, ...) and other endings are left out.

    Raises:
        CorpusError: nothing is there, nothing there can be read, or a link leads out.
    """
    path = Path(source)
    if path.is_dir():
        return _readable(_walk(path), root=path, source=source)
    if os.path.lexists(path):
        return [_source_file(path, root=path.parent, source=source)]
    if glob.has_magic(source):
        root = _fixed_part(path)
        matches = root.glob(path.relative_to(root).as_posix())
        return _readable(
            (match for match in matches if not match.is_dir()), root=root, source=source
        )
    return _not_found(path)


def has_known_ending(source: str) -> bool:
    """Whether the name is that of a file that could be read."""
    return _ENDING.search(source) is not None


@contextmanager
def open_regular(source: SourceFile, options: CorpusOptions) -> Iterator[OpenFile]:
    """Open a file for reading, refusing pipes and devices: they may never end.

    Raises:
        CorpusError: it is not a regular file or cannot be opened.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CorpusError(f"{source.shown}: cannot be opened: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorpusError(
                f"{source.shown}: expected a regular file, got a pipe, a device or a folder",
                hint="to read from a pipe, give - and send jsonl",
            )
        yield OpenFile(file, source.shown, source.compression, options)


def _readable(paths: Iterable[Path], *, root: Path, source: str) -> list[SourceFile]:
    wanted = sorted(
        (path for path in paths if _is_corpus(path.relative_to(root))),
        key=lambda path: path.relative_to(root).as_posix(),
    )
    if not wanted:
        raise CorpusError(f"{safe_text(source)}: no file that can be read", hint=_SUPPORTED)
    limit = root.resolve()
    for path in wanted:
        _require_inside(path, limit)
    return [_source_file(path, root=root, source=source) for path in wanted]


def _is_corpus(path: Path) -> bool:
    if any(part.startswith((".", "_")) for part in path.parts):
        return False
    return has_known_ending(path.name) and not _ABOUT_THE_CORPUS.fullmatch(path.name)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_cannot_list):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for name in folders:
            if (Path(parent) / name).is_symlink():
                raise CorpusError(
                    f"{shown_path(Path(parent) / name)}: a link to a folder",
                    hint="links to folders are not followed: give the folder itself",
                )
        yield from (Path(parent) / name for name in files)


def _cannot_list(error: OSError) -> NoReturn:
    raise CorpusError(
        f"{shown_path(error.filename)}: cannot be listed: {error.strerror}"
    ) from error


def _fixed_part(pattern: Path) -> Path:
    """Return the folder that every match of a glob is in."""
    parent = pattern.parent
    while glob.has_magic(str(parent)):
        parent = parent.parent
    return parent


def _require_inside(path: Path, limit: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(limit)
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    if not inside:
        raise CorpusError(
            f"{shown_path(path)}: a link that leads out of the folder",
            hint="give the file it points to, or copy it into the folder",
        )


def _source_file(path: Path, *, root: Path, source: str) -> SourceFile:
    shown = shown_path(path)
    ending = _ENDING.search(path.name)
    if ending is None:
        raise CorpusError(f"{shown_path(source)}: unknown ending", hint=_SUPPORTED)
    compression = ending[2]
    return SourceFile(
        path=path,
        name=shown_path(path.relative_to(root).as_posix()),
        shown=shown,
        format=ending[1].lower(),
        compression=compression.lower() if compression else None,
    )


def _not_found(path: Path) -> NoReturn:
    raise CorpusError(
        f"{shown_path(path)}: no such file or folder",
        hint="give a file, a folder, a glob, - for stdin, or a hub id such as org/name",
    )
