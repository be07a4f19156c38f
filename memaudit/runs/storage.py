"""Where runs are kept: a folder, or a place in an object store such as `s3://bucket/run`.

An object store has neither rename nor fsync nor locks, and needs none of them here. An upload makes
the whole object or nothing. A chunk follows from the manifest and its number alone, so two
processes that work at one place at the same time can only put equal bytes under equal names; and
the manifest is created on condition that there is none, so that of two different runs one is
refused. What needs a lock is to start over: it is refused there.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from memaudit.errors import MissingDependency, OutputError
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


def spool_folder(folder: Path) -> Path | None:
    """Return where files that have no name go: None, where the system keeps them."""
    return None if is_remote(folder) else folder


@contextmanager
def uploaded(path: Path, *, is_new: bool) -> Iterator[BinaryIO]:
    """Open a local file that is put under its name in an object store when all went well.

    Args:
        path: in the store.
        is_new: whether to refuse if there is one.

    Raises:
        FileExistsError: there is one.
        OutputError: it cannot be put there.
    """
    with tempfile.NamedTemporaryFile() as stream:
        yield stream  # type: ignore[misc]  # it wraps one
        stream.flush()
        with _remote_errors(path, "written"):
            path.fs.put_file(  # type: ignore[attr-defined]  # a path of fsspec
                stream.name, _key(path), mode="create" if is_new else "overwrite"
            )


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; one in an object store is fetched first.

    Raises:
        OSError: it is not there or cannot be read.
        OutputError: it cannot be fetched.
    """
    if not is_remote(path):
        with path.open("rb") as stream:
            yield stream
        return
    with tempfile.NamedTemporaryFile() as fetched:
        with _remote_errors(path, "read"):
            path.fs.get_file(_key(path), fetched.name)  # type: ignore[attr-defined]
        with Path(fetched.name).open("rb") as stream:
            yield stream


def check_reachable(path: Path) -> None:
    """See whether there is an object store, and whether we may look into it.

    Raises:
        OutputError: no.
    """
    with _remote_errors(path, "reached"):
        path.exists()
        bucket = _key(path).partition("/")[0]
        if path.fs.protocol != "memory" and not path.fs.exists(bucket):  # type: ignore[attr-defined]
            raise FileNotFoundError(f"there is no {bucket}")


def _key(path: Path) -> str:
    key: str = path.path  # type: ignore[attr-defined]  # a path of fsspec
    return key


@contextmanager
def _remote_errors(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, OutputError):
        raise
    except Exception as error:  # each store has errors of its own
        raise OutputError(
            f"{shown_path(path)}: cannot be {verb}: {type(error).__name__}: {error}",
            hint="check the name, the credentials and the network; what has been scored is kept",
        ) from error
