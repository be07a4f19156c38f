"""The work folder: what finished stages left, so that a killed verification goes on from there."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import OutputError, UsageError
from memaudit.runs.files import committed_file, output_errors, output_folder
from memaudit.text import safe_text, shown_path

_MANIFEST = "manifest.json"


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Make the output folder and a private one for unfinished work in it, and lock that.

    Raises:
        OutputError: they cannot be made, or another process is at work there.
    """
    work = out / "work"
    with output_folder(out):
        lock = _lock(work)
        try:
            _remove_halves(out, work)
            yield work
        finally:
            _remove_if_unused(work)
            os.close(lock)


def _lock(work: Path) -> int:
    """Return the descriptor that holds the lock until it is closed."""
    with output_errors(work):
        work.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(work / "lock", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OutputError(
            f"{shown_path(work.parent)}: another process is verifying there",
            hint="wait for it, or choose another folder with --out",
        ) from error
    return descriptor


def _remove_halves(out: Path, work: Path) -> None:
    """Remove what a kill left under a temporary name."""
    with output_errors(work):
        for path in [*out.glob(".verification.*.tmp"), *work.glob(".*.tmp")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove_if_unused(work: Path) -> None:
    """Remove the folder if no stage began: an error in a path leaves nothing behind."""
    if work.is_dir() and not (work / _MANIFEST).exists():
        shutil.rmtree(work)


def begin(work: Path, settings: dict[str, Any]) -> None:
    """Write down what this work is for, or check that it is for the same.

    Raises:
        UsageError: it is for other settings, corpus or models; names the first difference.
    """
    manifest = work / _MANIFEST
    if manifest.exists():
        check_same(json.loads(manifest.read_text(encoding="utf-8")), settings, work.parent)
        return
    with committed_file(manifest) as stream:
        stream.write(json.dumps(settings, sort_keys=True, indent=2).encode() + b"\n")


def check_same(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Refuse to mix two verifications in one folder.

    Raises:
        UsageError: naming the first difference.
    """
    for name in sorted({*before, *now}):
        was, is_now = before.get(name), now.get(name)
        if was != is_now:
            raise UsageError(
                f"{shown_path(out)}: holds another verification: {name} was "
                f"{safe_text(str(was))}, is now {safe_text(str(is_now))}",
                hint="give the same again to go on there, or choose another folder with --out",
            )


def stage_arrays(
    path: Path, compute: Callable[[], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a stage, which are computed unless it has finished before."""
    if not path.exists():
        arrays: dict[str, Any] = compute()
        with committed_file(path) as stream:
            np.savez(stream, **arrays)
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def commit_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Make a private folder that takes its name when all in it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with output_errors(path):
        temporary.mkdir(mode=0o700)
        write(temporary)
        for file in [*temporary.rglob("*"), temporary]:
            file.chmod(0o700 if file.is_dir() else 0o600)
            sync(file)
        temporary.replace(path)
        sync(path.parent)


@contextmanager
def model_write_errors(folder: Path) -> Iterator[None]:
    """Tell what a full disk makes torch and safetensors raise as an `OutputError`."""
    from safetensors import SafetensorError

    try:
        with output_errors(folder):
            yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        raise OutputError(
            f"{shown_path(folder)}: weights or a checkpoint cannot be written",
            hint="make room on the disk, and give the same command again to go on",
        ) from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finish(work: Path) -> None:
    """Remove the folder; what says what it is for goes last."""
    with output_errors(work):
        for path in work.iterdir():
            if path.name not in (_MANIFEST, "lock"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(work)
