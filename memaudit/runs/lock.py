"""One writer a folder, by a lock that the system releases whatever becomes of the process."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memaudit.errors import OutputError
from memaudit.runs.commit import output_errors
from memaudit.runs.storage import is_remote
from memaudit.text import shown_path

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 5
_SECONDS_BETWEEN = 0.05


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which is made if missing and stays; in an object store there is none.

    Raises:
        OutputError: another process holds it, or the file system has no locks.
    """
    if is_remote(path):
        yield
        return
    with output_errors(path):
        descriptor = _acquire(path)
    try:
        with output_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def lock_holder(path: Path) -> int | None:
    """Return the id of the process that holds a lock; None if nobody does, 0 if it is unknown."""
    if is_remote(path):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _take(descriptor, fcntl.LOCK_SH):
            return None
        content = os.pread(descriptor, 32, 0).strip()
        return int(content) if content.isdigit() else 0
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """Return a descriptor that holds the lock."""
    # More than once: whoever looks at the state of a run holds the lock for a moment.
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            if _take(descriptor, fcntl.LOCK_EX) and _is_still_there(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_SECONDS_BETWEEN)
    raise OutputError(
        f"{shown_path(path.parent)}: in use by process {lock_holder(path) or 'unknown'}",
        hint="wait for it, or choose another folder with --out",
    )


def _take(descriptor: int, kind: int) -> bool:
    try:
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


def _is_still_there(path: Path, descriptor: int) -> bool:
    """Whether the file that is locked still has the name: its last holder may have removed it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))
