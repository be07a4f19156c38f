"""Outputs that are whole or not there: written beside their place, then renamed into it."""

import errno
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from memaudit.errors import OutputError
from memaudit.runs.storage import check_reachable, is_remote, uploaded
from memaudit.text import shown_path

_HALF = re.compile(r"\.(manifest|rows|risk|summary|\d+)(\.\w+){1,2}\.[0-9a-f]{8}\.tmp")
"""As `committed_file` names the files of a run that are not whole yet."""


@contextmanager
def output_folder(path: Path) -> Iterator[None]:
    """Make a folder that only its owner can read, and check that it can be written.

    An existing folder keeps its permissions. If the work inside fails, the folders that were
    made for it and hold nothing are removed again. An object store has no folders.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    if is_remote(path):
        check_reachable(path)
        yield
        return
    made: list[Path] = []
    try:
        with output_errors(path):
            for folder in _missing_folders(path):
                folder.mkdir(mode=0o700)
                made.append(folder)
                sync_folder(folder.parent)
            tempfile.TemporaryFile(dir=path).close()
        yield
    except BaseException:
        with suppress(OSError):
            for folder in reversed(made):
                folder.rmdir()
        raise


@contextmanager
def committed_file(path: Path, *, is_new: bool = False) -> Iterator[BinaryIO]:
    """Open a file, readable by its owner alone, that takes its name when all went well.

    What had the name before stays until then, and for ever if the work inside fails.

    Args:
        path: its name.
        is_new: whether to refuse if an object store has one; a folder is locked anyway.

    Raises:
        FileExistsError: as above.
        OutputError: it cannot be written.
    """
    if is_remote(path):
        with uploaded(path, is_new=is_new) as stream:
            yield stream
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with output_errors(path):
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "w+b") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def output_errors(path: Path, verb: Literal["written", "read"] = "written") -> Iterator[None]:
    """Tell errors of the file system as an `OutputError` about this path."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{shown_path(path)}: cannot be {verb}: {error.strerror or 'I/O error'}",
            hint="check the space on the disk and the permissions, or choose a place with --out",
        ) from error


def remove_halves(folder: Path) -> None:
    """Remove what a process that was killed had half written; call it with the lock held."""
    if is_remote(folder):
        return
    for path in folder.glob(".*.tmp") if folder.is_dir() else ():
        if _HALF.fullmatch(path.name):
            path.unlink()


def is_full(error: OutputError) -> bool:
    """Whether something could not be written because the disk, or a quota on it, is full."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def _missing_folders(path: Path) -> list[Path]:
    """Return the folders to make, outermost first; the last one if it is no folder, to fail."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    if not missing and not path.is_dir():
        missing = [path]
    return missing[::-1]


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: only then do they survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
