"""The folder of a run: what is there of it, who writes it, and whether it may be continued.

    manifest.json            what the run was given; written once the corpus has been read
    rows.parquet             what became of each row, which windows it has, and the first row
                             with the same text
    exposure.parquet         how many rows have the grams of some distinct windows, where the
                             classifier asks for it
    windows.parquet          the tokens of the distinct windows, where shards share the reading;
                             removed once there are results
    chunks/00042.parquet     the features of some distinct windows
    chunks/00043.error.json  why they could not be scored; removed at the next start
    risk.<format>            the results, made from those alone
    summary.json
    lock                     held by the one process that may write

A process may die at any moment: every file is written beside its place, synced, renamed into it,
and its folder synced. What is found at the next start is verified bit by bit; what is missing or
damaged is done again. With `rows.parquet` a run can be put together without its corpus.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from msgspec.structs import astuple, replace
from numpy.typing import NDArray

from memaudit.corpus.base import TEXT_KEY_BYTES
from memaudit.errors import MemauditError, OutputError, UsageError
from memaudit.files import TABLE_FORMATS
from memaudit.runs.chunks import ChunkPlan, remove_failures, sort_chunks
from memaudit.runs.files import (
    is_full,
    is_remote,
    locked,
    open_path,
    output_errors,
    output_folder,
    read_content,
    remove_halves,
    sync,
)
from memaudit.runs.manifest import (
    Manifest,
    looks_like_manifest,
    read_manifest,
    refuse_differences,
    write_manifest,
)
from memaudit.runs.reading import RowLog, RowWindows
from memaudit.runs.sealed_parquet import DamagedFileError, copy_sealed, is_whole, sealed_writer
from memaudit.text import shown_path

MANIFEST, ROWS, CHUNKS, LOCK = "manifest.json", "rows.parquet", "chunks", "lock"
SUMMARY, WINDOWS, EXPOSURE = "summary.json", "windows.parquet", "exposure.parquet"
"""Names in the folder of a run."""


_MAX_SUMMARY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run whose manifest is settled."""

    folder: Path
    manifest: Manifest

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the run in a folder.

        Raises:
            UsageError, OutputError: as for `read_manifest`.
        """
        return cls(folder, read_manifest(folder / MANIFEST))

    @property
    def plan(self) -> ChunkPlan:
        """Where its chunks are and what they hold."""
        inputs = self.manifest.inputs
        return ChunkPlan(
            folder=self.folder / CHUNKS,
            fingerprint=inputs.fingerprint,
            shape=inputs.shape,
            role=inputs.role,
            objective=inputs.objective,
            features=inputs.features,
            n_windows=inputs.distinct_windows,
            chunk_size=inputs.chunk_size,
            prefilter=self.manifest.prefilter,
            epochs=None if inputs.exposure is None else inputs.exposure.epochs,
        )

    @property
    def own_chunks(self) -> list[int]:
        """Numbers of the chunks that are scored here: the shard's, or all."""
        shard, chunks = self.manifest.shard, range(self.plan.n_chunks)
        return [chunk for chunk in chunks if shard is None or shard.owns(chunk)]


@contextmanager
def open_folder(path: Path | str | None, *, waits: bool = False) -> Iterator[Path]:
    """Give a folder that this process alone may write, made if missing; None: one that vanishes.

    If the work inside fails before a chunk is scored, the folder is left as it was. Another process
    at work there is an error, or is waited for.

    Raises:
        OutputError: it cannot be made, written or locked, or another process is at work in it;
            if the disk is full, with the bytes that are needed.
    """
    if path is None:
        with tempfile.TemporaryDirectory(prefix="memaudit-") as folder:
            yield Path(folder)
        return
    path = open_path(path) if isinstance(path, str) else path
    # A lock that was there before stays: another process may wait for it.
    locks = [] if (path / LOCK).exists() else [path / LOCK]
    with _full_disks_explained(path), output_folder(path), locked(path / LOCK, waits=waits):
        # Looked for only now: another process may have made them while this one waited.
        made = [file for name in (MANIFEST, ROWS, WINDOWS) if not (file := path / name).exists()]
        try:
            with output_errors(path):
                remove_halves(path)
                remove_halves(path / CHUNKS)
            yield path
        except BaseException:
            # A signal may have come while a file was cleaned up.
            with suppress(OSError):
                remove_halves(path)
                remove_halves(path / CHUNKS)
            if not is_remote(path) and not any((path / CHUNKS).glob("*.parquet")):
                _forget(made + locks, path / CHUNKS)
            raise


def begin_run(folder: Path, manifest: Manifest, *, restart: bool) -> RunFolder:
    """Begin a run in a folder, or continue the one that is there.

    Raises:
        UsageError: another run is there, and is not to be started over; or what is no run.
        OutputError: its manifest is damaged, or the folder cannot be written.
    """
    path = folder / MANIFEST
    if restart:
        _start_over(folder)
    elif not path.exists():
        tables = [f"risk.{kind}" for kind in TABLE_FORMATS]
        for name in (SUMMARY, ROWS, WINDOWS, EXPOSURE, *tables):
            if (folder / name).exists():
                raise UsageError(
                    f"{shown_path(folder / name)}: there already, and of no run",
                    hint="choose another folder with --out, or replace it with --restart",
                )
    if not is_remote(folder):
        with output_errors(folder):
            (folder / CHUNKS).mkdir(mode=0o700, exist_ok=True)
            sync(folder)
    # The manifest comes before the first chunk: a process that dies in between leaves a run that
    # can be continued, never chunks of which nobody knows what they are of.
    with suppress(FileExistsError):  # another process was faster
        if not path.exists():
            write_manifest(path, manifest)
    # Also if it was written just now: another process may have been faster.
    was = read_manifest(path)
    others = was.inputs.threads != manifest.inputs.threads
    if others and not unscored_chunks(RunFolder(folder, was)):
        # Threads round scores, and here is nothing left to be scored.
        inputs = replace(manifest.inputs, threads=was.inputs.threads)
        manifest = replace(manifest, inputs=inputs)
    refuse_differences(folder, was, manifest)
    # The first session found it out. Later ones only do as it did.
    manifest = replace(manifest, compile_choice=was.compile_choice)
    with output_errors(folder):
        # Each session tries failed chunks anew: what killed a worker may have been the machine.
        remove_failures(folder / CHUNKS)
    return RunFolder(folder, manifest)


def _start_over(folder: Path) -> None:
    """Remove the chunks of a run and its manifest; if there is no run, nothing."""
    if is_remote(folder):
        raise UsageError(
            f"{shown_path(folder)}: --restart needs a lock, and there is none",
            hint="choose another place with --out, or remove this one by hand",
        )
    path = folder / MANIFEST
    with output_errors(folder):
        if not path.exists():
            return
        # It need not be whole: --restart is what is done about a damaged one.
        if not looks_like_manifest(path):
            raise UsageError(
                f"{shown_path(path)}: not the manifest of a run",
                hint="choose another folder with --out",
            )
        # Table and summary stay until new ones replace them. Rows and counts name their run, so
        # those of another one are never taken.
        for chunk in (folder / CHUNKS).glob("*.parquet"):
            if chunk.stem.isdigit():  # somebody may keep a table of his own there
                chunk.unlink()
        # Last, so that a process that dies here leaves a run without chunks, not chunks without one.
        path.unlink()
        sync(folder)


def keep_rows(run: RunFolder, rows: RowLog, cuts: RowWindows) -> None:
    """Commit the rows of a run, unless they are there already.

    Raises:
        OutputError: they cannot be written or read.
    """
    path, fingerprint = run.folder / ROWS, run.manifest.inputs.fingerprint
    if not is_whole(path, {"memaudit.run": fingerprint}):
        write_rows(path, fingerprint, rows, cuts)


def copy_rows(source: Path, run: RunFolder) -> None:
    """Commit the rows of a run as they lie in the folder of another one, unless they are there.

    Raises:
        OutputError: they are missing or damaged there, or cannot be written.
    """
    path, metadata = source / ROWS, {"memaudit.run": run.plan.fingerprint}
    if is_whole(run.folder / ROWS, metadata):
        return
    try:
        copy_sealed(path, run.folder / ROWS, metadata)
    except (DamagedFileError, FileNotFoundError) as error:
        raise damaged_rows(path) from error


def damaged_rows(path: Path) -> OutputError:
    """Return the error for rows that are missing or not as they were written."""
    return OutputError(
        f"{shown_path(path)}: missing or damaged",
        hint="give its 'memaudit predict' command again to write it anew",
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary in the folder of a run: anybody may have changed it.

    Raises:
        OSError: it is not there, is no regular file, is too large, or cannot be read.
        ValueError: it is no JSON object.
    """
    try:
        found = json.loads(read_content(folder / SUMMARY, _MAX_SUMMARY_BYTES))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return found


def unscored_chunks(run: RunFolder) -> list[int]:
    """Return the numbers of own chunks that are missing or damaged, ascending."""
    missing, damaged = sort_chunks(run.plan, run.own_chunks)
    return sorted(missing + damaged)


@contextmanager
def _full_disks_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputError as error:
        if not is_full(error):
            raise
        needed = "1 kB for each row of the corpus"
        with suppress(MemauditError):
            run = RunFolder.read(path)
            inputs, plan = run.manifest.inputs, run.plan
            n_missing = sum(not plan.path(chunk).exists() for chunk in run.own_chunks)
            row_bytes = 8 * len(inputs.features)
            # Never compressed, so a little too much.
            n_bytes = n_missing * (plan.chunk_size * row_bytes + 8192)
            needed = f"{n_bytes + 2 * inputs.rows * (row_bytes + 200):,} bytes"
        raise OutputError(
            error.message,
            hint=f"free {needed} there, then give the same command again: "
            "what has been scored is kept",
        ) from error.__cause__


def _forget(made: list[Path], chunks: Path) -> None:
    """Remove what a run without a chunk made: it is worth nothing."""
    with suppress(OSError):
        for file in made:
            file.unlink(missing_ok=True)
        remove_failures(chunks)
        chunks.rmdir()


_ROWS_A_GROUP = 16_384
_TEXT, _NUMBER = pa.string(), pa.int64()
ROW_SCHEMA = pa.schema(
    {"id": _TEXT, "row": _NUMBER, "address": _TEXT, "outcome": _TEXT, "reason": _TEXT}
    | {"windows": pa.list_(_NUMBER), "text": _NUMBER}
)
"""Columns of the rows of a run, without missing values; before `text` there were files without it."""


def write_rows(path: Path, fingerprint: str, rows: RowLog, cuts: RowWindows) -> None:
    """Commit the rows of a run; they hold no text and no token ids.

    Raises:
        OutputError: it cannot be written.
    """
    texts, n_windows = number_texts(bytes(cuts.text_keys)).tolist(), iter(cuts.n_windows)
    numbered, windows = zip(rows, texts, strict=True), iter(cuts.windows)
    with sealed_writer(path, ROW_SCHEMA, {"memaudit.run": fingerprint}) as writer:
        while group := list(islice(numbered, _ROWS_A_GROUP)):
            records = []
            for row, text in group:
                # Only scored rows have windows.
                n = next(n_windows) if row.outcome == "scored" else 0
                records.append((*astuple(row), list(islice(windows, n)), text))
            columns = [
                pa.array(values, type=kind)
                for values, kind in zip(zip(*records, strict=True), ROW_SCHEMA.types, strict=True)
            ]
            writer.write_table(pa.table(columns, schema=ROW_SCHEMA))


def number_texts(keys: bytes) -> NDArray[np.int64]:
    """Return (n_rows,) the first row that has the same text; for each row, its `text_key` is given.

    It says which rows are equal and nothing else: unlike a digest, nobody can try texts out on it.
    """
    # numpy takes zeros at the end for padding. All keys have one length, so none become equal.
    by_row = np.frombuffer(keys, dtype=f"S{TEXT_KEY_BYTES}")
    _, first, inverse = np.unique(by_row, return_index=True, return_inverse=True)
    return first[inverse]
