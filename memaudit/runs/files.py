"""Files of a run: where they are kept, how they are committed, and who may write them.

They are in a folder, or at a place in an object store such as `s3://bucket/run`.

In a folder a file is written beside its place, synced and renamed into it, so that a reader finds
the whole file or none, whenever the process dies. One process writes at a time: it holds a lock
that the system releases when the process ends, however it ends.

An object store has neither rename nor fsync nor locks, and needs none of them here. An upload makes
the whole object or nothing. A chunk follows from the manifest and its number alone, so two
processes that work at one place at the same time can only put equal bytes under equal names. The
manifest is created on condition that there is none, so of two different runs one is refused.
Starting over is what needs a lock, so it is refused there.
"""

import errno
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import unquote, urlsplit

from memaudit.errors import MissingDependency, OutputError
from memaudit.files import open_regular, read_small, written_file
from memaudit.files import output_errors as output_errors
from memaudit.files import sync as sync
from memaudit.text import safe_text, shown_path


def open_path(value: str) -> Path:
    """Return the path that a user named: of the file system, or of what fsspec knows.

    The latter is no `Path`, but it has the same methods.

    Raises:
        MissingDependency: a package for such places is not installed.
        OutputError: nobody knows such places.
    """
    scheme, separator, _ = value.partition("://")
    if not separator:
        return Path(value)
    if scheme == "file":
        # A folder after all, with rename, sync and locks.
        return Path(unquote(urlsplit(value).path))
    extra = "gs" if scheme in ("gs", "gcs") else "s3"
    try:
        from upath import UPath
    except ImportError as error:
        raise MissingDependency(
            "universal-pathlib", needed_for=f"{safe_text(scheme)}://", extra=extra
        ) from error
    try:
        # What others have put there meanwhile must be seen.
        path: Path = UPath(value, use_listings_cache=False)  # type: ignore[assignment]
        is_there = path.fs is not None  # type: ignore[attr-defined]  # imports what it needs
    except ImportError as error:
        raise MissingDependency(
            f"for {safe_text(scheme)}://", needed_for=shown_path(value), extra=extra
        ) from error
    except ValueError as error:
        raise OutputError(
            f"{shown_path(value)}: no such kind of place", hint="give a folder, s3:// or gs://"
        ) from error
    assert is_there
    return path


def is_remote(path: Path) -> bool:
    """Whether a path is in an object store."""
    return hasattr(path, "fs")


def scratch_folder(folder: Path) -> Path | None:
    """Return where files that have no name go: None, where the system keeps them."""
    return None if is_remote(folder) else folder


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; one in an object store is fetched first.

    Raises:
        OSError: it is not there or cannot be read.
        OutputError: it cannot be fetched.
    """
    if not is_remote(path):
        with open_regular(path) as stream:
            yield stream
        return
    # The digest covers every byte, and parquet is read from its end: a stream would not do.
    with tempfile.NamedTemporaryFile() as fetched:
        with _remote_errors(path, "read"):
            path.fs.get_file(_key(path), fetched.name)  # type: ignore[attr-defined]
        stream = Path(fetched.name).open("rb")  # noqa: SIM115  it outlives its name
    with stream:
        yield stream


def read_content(path: Path, max_bytes: int) -> bytes:
    """Return the content of a small file, wherever it is.

    Raises:
        OSError: it is not there, is no regular file, has more bytes, or cannot be read.
    """
    return path.read_bytes() if is_remote(path) else read_small(path, max_bytes)


def _key(path: Path) -> str:
    return path.path  # type: ignore[attr-defined, no-any-return]  # a path of fsspec


@contextmanager
def _remote_errors(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    # `FileExistsError` is an answer: another process has begun a run there.
    except (FileExistsError, OutputError):
        raise
    except Exception as error:  # each store has errors of its own
        raise OutputError(
            f"{shown_path(path)}: cannot be {verb}: {type(error).__name__}: {error}",
            hint="check the name, the credentials and the network; what has been scored is kept",
        ) from error


_HALF = re.compile(
    r"\.(manifest|rows|exposure|windows|risk|summary|\d+)(\.\w+){1,2}\.[0-9a-f]{8}\.tmp"
)
"""As `committed_file` names the files of a run that are not whole yet."""


@contextmanager
def output_folder(path: Path) -> Iterator[None]:
    """Make a folder that only its owner can read, and check that it can be written.

    An existing folder keeps its permissions. If the work inside fails, the folders that were
    made for it and hold nothing are removed again. An object store has no folders: it must be
    there, and we may look into it.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    if is_remote(path):
        with _remote_errors(path, "reached"):
            path.exists()
            # In a bucket that is not there, a path is merely missing. The corpus would be read in
            # vain.
            bucket = _key(path).partition("/")[0]
            if path.fs.protocol != "memory" and not path.fs.exists(bucket):  # type: ignore[attr-defined]
                raise FileNotFoundError(f"there is no {bucket}")
        yield
        return
    made: list[Path] = []
    try:
        with output_errors(path):
            missing = [folder for folder in (path, *path.parents) if not folder.exists()]
            for folder in missing[::-1]:
                with suppress(FileExistsError):  # another process may have been faster
                    folder.mkdir(mode=0o700)
                    made.append(folder)
                    # A power cut could take a new folder with all that was committed in it.
                    sync(folder.parent)
            if not path.is_dir():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            # Tried, for permissions say nothing of quotas or of a disk that is mounted
            # read-only.
            tempfile.TemporaryFile(dir=path).close()
        yield
    except BaseException:
        with suppress(OSError):
            # `rmdir` refuses a folder that holds something.
            for folder in reversed(made):
                folder.rmdir()
        raise


@contextmanager
def committed_file(path: Path, *, is_new: bool = False, clear: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes its name when all went well, as `written_file` does, or an object.

    If it `is_new`, an object that is there is refused; a folder is locked anyway. In a folder of
    many chunks `remove_halves` clears, once.

    Raises:
        FileExistsError: there is one.
        OutputError: it cannot be written.
    """
    if not is_remote(path):
        with written_file(path, clear=clear) as stream:
            yield stream
        return
    # A seal is written into a file when all else is there, and an object cannot be changed.
    with tempfile.NamedTemporaryFile() as whole:
        yield whole  # type: ignore[misc]  # it wraps one
        whole.flush()
        with _remote_errors(path, "written"):
            path.fs.put_file(  # type: ignore[attr-defined]  # a path of fsspec
                whole.name, _key(path), mode="create" if is_new else "overwrite"
            )


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


# No link is followed: what a planted one leads to could be truncated. A child process that
# inherited the descriptor would hold the lock on after this process has died.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 5
_SECONDS_BETWEEN = 0.05


@contextmanager
def locked(path: Path, *, waits: bool = False) -> Iterator[None]:
    """Hold a lock file, which is made if missing and stays; in an object store there is none.

    Raises:
        OutputError: another process holds it and is not waited for, it is something else, or the
            file system has no locks.
    """
    if is_remote(path):
        yield
        return
    with output_errors(path):
        descriptor = _acquire(path, waits=waits)
    try:
        with output_errors(path):
            # Of another program, it would be lost.
            if os.pread(descriptor, 32, 0).strip(b"0123456789\n"):
                raise OutputError(
                    f"{shown_path(path)}: not a lock of memaudit",
                    hint="choose another folder with --out",
                )
            # What locks is the open file; who holds it is only for people to read.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: another process may have opened it already, and wait for its lock.
        os.close(descriptor)


def lock_holder(path: Path) -> int | None:
    """Return the id of the process that holds a lock; None if nobody does, 0 if it is unknown."""
    if is_remote(path):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, so that two processes that look do not take each other for the holder.
        if _take(descriptor, fcntl.LOCK_SH):
            return None
        content = os.pread(descriptor, 32, 0).strip()
        return int(content) if content.isdigit() else 0
    finally:
        os.close(descriptor)


def _acquire(path: Path, *, waits: bool) -> int:
    """Return a descriptor that holds the lock."""
    # More than once: whoever looks at the state of a run holds the lock for a moment.
    for _ in repeat(None) if waits else range(_ATTEMPTS):
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            if _take(descriptor, fcntl.LOCK_EX):
                # The last holder may have removed it: then the name is another file's, or nobody's.
                with suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(descriptor)):
                        return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_SECONDS_BETWEEN * (10 if waits else 1))
    raise OutputError(
        f"{shown_path(path.parent)}: in use by process {lock_holder(path) or 'unknown'}",
        hint="wait for it, or choose another folder with --out",
    )


def _take(descriptor: int, kind: int) -> bool:
    try:
        # Not `lockf`: its locks go when this process closes any descriptor of the file, and
        # `lock_holder` does.
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise OutputError(
                f"the file system has no locks: {error.strerror}",
                hint="choose a folder on a local disk with --out",
            ) from error
        raise
    return True


class NamelessFile:
    """A file only this process can reach: it has no name, so a crash leaves nothing behind."""

    def __init__(self, folder: Path | None) -> None:
        """Open it in a folder, or where the system keeps temporary files."""
        self._place = folder or Path(tempfile.gettempdir())
        with output_errors(self._place):
            self._file = tempfile.TemporaryFile(dir=self._place)  # noqa: SIM115  closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # What is left in its buffer finds no room where the disk was full before, and nobody wants it.
        with suppress(OSError):
            self._file.close()

    def _append(self, content: bytes) -> None:
        with output_errors(self._place):
            self._file.write(content)

    def _seek(self, place: int) -> None:
        # Writes what is still in the buffer: the disk may turn out to be full only now.
        with output_errors(self._place):
            self._file.seek(place)
