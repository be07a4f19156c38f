"""Files on a disk: written whole or not at all, and small ones read within bounds.

Every output of every command goes through `written_file`. Every small file that may come from
somewhere else (a policy, a manifest, a key) goes through `read_small`.
"""

import ctypes
import errno
import fcntl
import os
import re
import resource
import secrets
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal, cast, get_args

from memaudit.errors import OutputError
from memaudit.text import shown_path

TableFormat = Literal["parquet", "jsonl", "csv"]
"""How a table is written: parquet and jsonl are exact, csv is for spreadsheets."""

TABLE_FORMATS: tuple[TableFormat, ...] = get_args(TableFormat)

_PR_SET_DUMPABLE = 4
# Never a file or a link that somebody else has put there: it may lead to another file.
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SECONDS_FOR_A_READER = 5.0
_OWN_DESCRIPTOR = re.compile(r"/proc/(\d+)/fd/(\d+)")
_MAX_LINKS = 8
_core_dumps_allowed = threading.Event()
_PLACE_HINT = "something of another kind has this name, or a part of it: choose another place"


@contextmanager
def output_errors(path: Path, verb: Literal["written", "read"] = "written") -> Iterator[None]:
    """Tell errors of the file system as an `OutputError` about this path."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{shown_path(path)}: cannot be {verb}: {error.strerror or 'I/O error'}",
            hint=_PLACE_HINT
            if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
            else "make its folder first, or choose another place"
            if error.errno == errno.ENOENT and verb == "written"
            else "check the space on the disk and the permissions, or choose a place with --out",
        ) from error


@contextmanager
def written_file(path: Path, *, clear: bool = True) -> Iterator[BinaryIO]:
    """Open a file, readable by its owner alone, that takes its name when all went well.

    What had the name before stays until then, and for ever if the work inside fails. A link is
    replaced, and what it points to is not: it may have been planted. What is no regular file, such
    as /dev/null, /dev/stdout or a pipe, is never replaced. It is given all of the content at the
    end, or none. `clear` removes first what a process that was killed had begun under this name,
    and reads the names of the whole folder for it.

    Raises:
        OutputError: it cannot be written.
    """
    with output_errors(path):
        if not path.name:  # such as `.` and `/`
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        descriptor = _own_descriptor(path)
        if descriptor is not None or _is_special(path):
            with tempfile.TemporaryFile() as stream:
                yield cast(BinaryIO, stream)
                stream.seek(0)
                with os.fdopen(_opened_special(path, descriptor), "wb") as special:
                    shutil.copyfileobj(stream, special)
            return
        if clear:
            remove_abandoned(path)
        # Beside it: only within a file system is a rename one step.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with os.fdopen(os.open(temporary, _NEW, 0o600), "w+b") as stream:
                # Held while it is written: `remove_abandoned` takes only what nobody holds.
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield stream
                # Content, then its name, then the folder that holds the name: a power cut at any
                # moment leaves the old file or the new one, and whole.
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> None:
    """Remove what processes that were killed had begun under this name: it may hold corpus text.

    Who is still writing holds a lock, which the system releases when a process ends.
    """
    abandoned = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    found: list[Path] = []
    with suppress(OSError):  # the folder is made later
        found = [file for file in path.parent.iterdir() if abandoned.fullmatch(file.name)]
    for file in found:
        with suppress(OSError), open_regular(file) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, once it is a regular one: a pipe or a device may never end.

    Raises:
        OSError: it is not there, is something else, or cannot be read.
    """
    # Without O_NONBLOCK a pipe that nobody writes to would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    stream = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return stream


def read_small(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file that cannot be large.

    Raises:
        OSError: it is not there, is no regular file, has more bytes, or cannot be read.
    """
    with open_regular(path) as stream:
        # One byte too many tells that there are more.
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes", str(path))
    return content


def is_special(path: Path) -> bool:
    """Whether something is there under the name that is neither a regular file nor a folder."""
    return _own_descriptor(path) is not None or _is_special(path)


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _own_descriptor(path: Path) -> int | None:
    """Return the open file of this process that a name such as /dev/stdout stands for, if any.

    Opening it by its name would begin at the start of what the shell has redirected it to.
    """
    place = path.absolute()
    # Links may lead in a circle.
    for _ in range(_MAX_LINKS):
        # Link by link: realpath of /dev/stdout is the file behind it, and no longer a descriptor.
        place = Path(os.path.realpath(place.parent), place.name)
        match = _OWN_DESCRIPTOR.fullmatch(str(place))
        if match is not None:
            return int(match[2]) if int(match[1]) == os.getpid() else None
        try:
            place = place.parent / place.readlink()
        except OSError:  # not a link
            return None
    return None


def _opened_special(path: Path, descriptor: int | None) -> int:
    if descriptor is not None:
        sys.stdout.flush()  # what was printed before comes first
        return os.dup(descriptor)
    if path.is_block_device():
        # A slip of the keyboard, and the file system on it is gone.
        raise OSError(errno.EINVAL, "is a disk", str(path))
    patience = time.monotonic() + _SECONDS_FOR_A_READER
    while True:
        try:
            opened = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > patience:
                raise
            time.sleep(0.05)  # nobody reads the pipe yet
        else:
            # A reader that is slow is waited for from here on.
            os.set_blocking(opened, True)
            return opened


def allow_core_dumps() -> None:
    """Let `forbid_core_dumps` do nothing from now on, in this process."""
    _core_dumps_allowed.set()


def forbid_core_dumps() -> None:
    """Let the system keep no image of this process if it crashes: corpus text would be in it.

    The processes that this one starts inherit the limit.
    """
    if _core_dumps_allowed.is_set():
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):  # not Linux
        # A program that takes dumps from a pipe is not bound by the limit. It gets none of a
        # process that is not dumpable; such a one cannot be debugged or share memory of a GPU, so
        # this is done only where it is needed.
        if Path("/proc/sys/kernel/core_pattern").read_bytes().startswith(b"|"):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
