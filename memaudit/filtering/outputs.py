"""Where a filtered corpus goes, and what is written beside it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from memaudit.corpus import CorpusOptions
from memaudit.corpus.byte_streams import packed
from memaudit.corpus.discovery import SourceFile, find_files, open_regular
from memaudit.corpus.formats import FORMATS
from memaudit.errors import CorpusError, UsageError
from memaudit.files import is_special
from memaudit.filtering.options import FilterOptions
from memaudit.filtering.result import FileDigest, FilterResult
from memaudit.filtering.selection import Selection
from memaudit.runs.files import committed_file, output_errors, output_folder
from memaudit.runs.finished import FinishedRun
from memaudit.text import shown_path


def plan_files(
    source: str, out: Path, *, replaces: bool, split: str | None = None
) -> list[tuple[SourceFile, Path]]:
    """Return each file of a corpus with the place of its filtered copy.

    One file gives a file; a folder or a glob gives a folder with the same names below it, of a
    split where the run read one.

    Raises:
        UsageError: the corpus is not in files, or the place has another format or is the corpus.
        CorpusError: nothing is there to read.
    """
    shown = shown_path(out)
    if source == "-":
        raise UsageError(
            "standard input cannot be read twice", hint="give the corpus as a file with --data"
        )
    if is_special(out):
        raise UsageError(
            f"{shown}: is neither a file nor a folder, and what was written is read back",
            hint="choose another place with --out",
        )
    files = find_files(source, split)
    if len(files) == 1 and files[0].path == Path(source):
        ending = _ending(files[0])
        if not out.name.lower().endswith(ending) or out.is_dir():
            raise UsageError(
                f"{shown}: expected a file that ends in {ending}, as the corpus does",
                hint="what stays is written in the format that it has",
            )
        places = [(files[0], out)]
    else:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(
                f"{shown}: expected a new or an empty folder, for the corpus has several files",
                hint="choose another folder with --out",
            )
        places = [(file, out / _below(file)) for file in files]
    written = {place.resolve() for _, place in places}
    if any(file.path.resolve() in written for file in files):
        raise UsageError(f"{shown}: is the corpus itself", hint="choose another place with --out")
    if out.is_file() and not replaces:
        raise UsageError(
            f"{shown}: is there already",
            hint="replace it with --force, or choose another place with --out",
        )
    return places


def _ending(file: SourceFile) -> str:
    return f".{file.format}" + (f".{file.compression}" if file.compression else "")


def _below(file: SourceFile) -> Path:
    """Return the path of a file below the folder or glob that was given."""
    return Path(*file.path.parts[-(file.name.count("/") + 1) :])


def write_corpus(
    places: list[tuple[SourceFile, Path]], options: CorpusOptions, selection: Selection
) -> tuple[FileDigest, ...]:
    """Write every file without the rows that go.

    Returns:
        the files written.

    Raises:
        CorpusError: the corpus has changed meanwhile.
        OutputError: a file cannot be written.
    """
    stays: Iterator[bool] = iter((~selection.is_removed).tolist())
    written = []
    for file, place in places:

        def keep_next(shown: str = file.shown) -> bool:
            try:
                return next(stays)
            except StopIteration as error:
                raise _changed(shown) from error

        with (
            open_regular(file, options) as opened,
            output_folder(place.parent),
            committed_file(place) as stream,
            packed(stream, file.compression) as out,
        ):
            FORMATS[file.format].copy(opened, keep_next, out)
        written.append(digest_file(place))
    if next(stays, None) is not None:
        raise _changed(places[-1][0].shown)
    return tuple(written)


def _changed(shown: str) -> CorpusError:
    return CorpusError(
        f"{shown}: changed while it was filtered", hint="run 'memaudit predict' anew"
    )


def digest_file(path: Path) -> FileDigest:
    """Return the digest of a file."""
    with output_errors(path, "read"), path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileDigest(shown_path(path), digest)


def write_beside(
    out: Path, run: FinishedRun, options: FilterOptions, selection: Selection, result: FilterResult
) -> None:
    """Write which rows went, and the manifest: `<out>.removed.parquet`, `<out>.manifest.json`.

    Neither holds text of the corpus.

    Raises:
        OutputError: they cannot be written.
    """
    removed, manifest = beside(out)
    with committed_file(removed) as stream:
        _write_removed(stream, run, options, selection)
    with committed_file(manifest) as stream:
        document = json.dumps(result.document(), indent=2, sort_keys=True, allow_nan=False)
        stream.write(document.encode() + b"\n")


def beside(out: Path) -> tuple[Path, Path]:
    """Return where the rows that went are listed, and the manifest."""
    return out.with_name(f"{out.name}.removed.parquet"), out.with_name(f"{out.name}.manifest.json")


def _write_removed(
    stream: "object", run: FinishedRun, options: FilterOptions, selection: Selection
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.flatnonzero(selection.is_removed)
    table = run.rows.select(["id", "row", "address"]).take(pa.array(rows))
    reasons = [
        options.in_words if kept < 0 else f"{options.in_words}, like row {kept}, which is kept"
        for kept in selection.copy_of[rows].tolist()
    ]
    table = table.append_column("reason", pa.array(reasons, pa.string()))
    probabilities = pa.array(run.probabilities[rows], mask=np.isnan(run.probabilities[rows]))
    table = table.append_column("probability", probabilities)
    metadata = {"memaudit.run": run.manifest.inputs.fingerprint}
    pq.write_table(
        table.replace_schema_metadata(metadata),
        stream,
        compression="zstd",
        write_page_checksum=True,
    )


@contextmanager
def nothing_half_written(places: list[Path]) -> Iterator[None]:
    """Remove what was written if the work inside fails: half a corpus looks like a whole one."""
    was_there = {place for place in places if place.exists()}
    try:
        yield
    except BaseException:
        for place in places:
            if place not in was_there:
                place.unlink(missing_ok=True)
        raise
