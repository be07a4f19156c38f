"""Where a filtered corpus goes, what is written beside it, and how it gets to the hub."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memaudit.corpus import CorpusOptions
from memaudit.corpus.base import Cuts
from memaudit.corpus.byte_streams import packed
from memaudit.corpus.discovery import SourceFile, find_files, open_regular
from memaudit.corpus.formats import FORMATS
from memaudit.errors import CorpusError, OutputError, UsageError
from memaudit.files import is_special, remove_abandoned
from memaudit.filtering.selection import FilterOptions, Selection
from memaudit.runs.chunks import positions
from memaudit.runs.files import committed_file, output_errors, output_folder
from memaudit.runs.run import Run
from memaudit.text import safe_text, shown_path


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file of the corpus, before or after."""

    name: str
    """Its path as given, safe to show."""

    sha256: str


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
        packing = files[0].compression
        ending = f".{files[0].format}" + (f".{packing}" if packing else "")
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
        # Below the folder or glob that was given, files have the names that they are shown with.
        depths = [file.name.count("/") + 1 for file in files]
        places = [
            (file, out.joinpath(*file.path.parts[-depth:]))
            for file, depth in zip(files, depths, strict=True)
        ]
    # Resolved: a link may be another name of the corpus.
    written = {place.resolve() for _, place in places}
    if any(file.path.resolve() in written for file in files):
        raise UsageError(f"{shown}: is the corpus itself", hint="choose another place with --out")
    if out.is_file() and not replaces:
        raise UsageError(
            f"{shown}: is there already",
            hint="replace it with --force, or choose another place with --out",
        )
    return places


def write_corpus(
    places: list[tuple[SourceFile, Path]],
    options: CorpusOptions,
    selection: Selection,
    cuts: Mapping[int, Cuts],
) -> tuple[FileDigest, ...]:
    """Write every file without the rows that go and without what is cut; return those written.

    Raises:
        CorpusError: the corpus has changed meanwhile.
        OutputError: a file cannot be written.
    """
    stays = iter((~selection.is_removed).tolist())
    # One for all files, for rows are counted through.
    decisions = (stay and cuts.get(row, True) for row, stay in enumerate(stays))
    written = []
    for file, place in places:

        def keep_next(shown: str = file.shown) -> bool | Cuts:
            try:
                return next(decisions)
            except StopIteration as error:
                raise _changed(shown) from error

        # Left from the last to the first: packing ends before the file takes its name.
        with (
            open_regular(file, options) as opened,
            output_folder(place.parent),
            committed_file(place) as stream,
            packed(stream, file.compression) as out,
        ):
            FORMATS[file.format].copy(opened, keep_next, out)
        written.append(digest_file(place))
    # Decisions are left over: the corpus has fewer rows than were scored.
    if next(decisions, None) is not None:
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
    out: Path,
    run: Run,
    options: FilterOptions,
    selection: Selection,
    cuts: Mapping[int, Cuts],
    manifest: dict[str, Any],
) -> None:
    """Write which rows went, what was cut, and the manifest; no text of the corpus is in them.

    Raises:
        OutputError: they cannot be written.
    """
    removed, excised, manifest_path = beside(out)
    remove_abandoned(excised)  # it may not be written this time
    with committed_file(removed) as stream:
        _write_table(stream, run, _removed(run, options, selection))
    if options.strategy == "excise":
        with committed_file(excised) as stream:
            # One row per part that was cut: where it stood, in characters of a string.
            parts = [
                (row, safe_text(".".join(map(str, path))), start, end)
                for row, of_row in sorted(cuts.items())
                for path, spans in of_row.items()
                for start, end in spans
            ]
            rows, *columns = zip(*parts, strict=True) if parts else ((), (), (), ())
            table = run.rows.select(["id", "row", "address"]).take(pa.array(rows, pa.int64()))
            kinds = {"string": pa.string(), "start": pa.int64(), "end": pa.int64()}
            for (name, kind), values in zip(kinds.items(), columns, strict=True):
                table = table.append_column(name, pa.array(values, kind))
            _write_table(stream, run, table)
    with committed_file(manifest_path) as stream:
        document = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
        stream.write(document.encode() + b"\n")


def beside(out: Path) -> tuple[Path, ...]:
    """Return where the rows that went are listed, what was cut, and the manifest."""
    endings = ("removed.parquet", "excised.parquet", "manifest.json")
    return tuple(out.with_name(f"{out.name}.{ending}") for ending in endings)


def _removed(run: Run, options: FilterOptions, selection: Selection) -> pa.Table:
    rows = np.flatnonzero(selection.is_removed)
    reasons = []
    for kept, is_copy in zip(
        selection.kept[rows].tolist(), selection.is_copy[rows].tolist(), strict=True
    ):
        why = "the same text as" if is_copy else "like"
        rest = "" if kept < 0 else f", {why} row {kept}, which is kept"
        reasons.append(options.in_words + rest)
    table = run.rows.select(["id", "row", "address"]).take(positions(rows))
    # `pa.array` would import pandas, as `positions` says.
    parts = [reason.encode() for reason in reasons]
    ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    strings = pa.LargeStringArray.from_buffers(
        len(parts), pa.py_buffer(ends), pa.py_buffer(b"".join(parts))
    )
    table = table.append_column("reason", strings.cast(pa.string()))
    is_known = np.packbits(run.is_scored[rows], bitorder="little")
    probabilities = pa.Array.from_buffers(
        pa.float64(), len(rows), [pa.py_buffer(is_known), pa.py_buffer(run.probabilities[rows])]
    )
    return table.append_column("probability", probabilities)


def _write_table(stream: Any, run: Run, table: pa.Table) -> None:
    metadata = {"memaudit.run": run.manifest.inputs.fingerprint}
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, stream, compression="zstd", write_page_checksum=True)


@contextmanager
def nothing_half_written(places: list[Path]) -> Iterator[None]:
    """Remove what was written if the work inside fails: half a corpus looks like a whole one."""
    was_there = {place for place in places if place.exists()}
    try:
        yield
    # Ctrl-C leaves nothing behind either.
    except BaseException:
        for place in places:
            # What failed is told, not that nothing of it can be removed.
            with suppress(OSError):
                if place not in was_there:
                    place.unlink(missing_ok=True)
        raise


def push_to_hub(out: Path, name: str, *, is_public: bool = False, api: Any = None) -> str:
    """Upload a file or a folder as a dataset and return its id.

    A repository that exists and is public is refused unless that is asked for: it would publish
    the corpus.

    Args:
        out: what to upload.
        name: `owner/name` on the hub.
        is_public: whether everybody may read it.
        api: a `huggingface_hub.HfApi`; None: with the token of this machine.

    Raises:
        UsageError: the repository is public and that was not asked for.
        OutputError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    api = api or HfApi()
    where: dict[str, Any] = {"repo_id": name, "repo_type": "dataset"}
    try:
        api.create_repo(**where, private=not is_public, exist_ok=True)
        # One that exists stays as public as it was: asked before anything is sent.
        if not is_public and not api.repo_info(**where).private:
            raise UsageError(
                f"{safe_text(name)}: is public on the hub, and --public was not given",
                hint="choose another name, or say --public if everybody may read the corpus",
            )
        if out.is_dir():
            api.upload_folder(**where, folder_path=str(out))
        else:
            api.upload_file(**where, path_or_fileobj=str(out), path_in_repo=out.name)
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise OutputError(
            f"{safe_text(name)}: cannot be uploaded: {type(error).__name__}",
            hint="check the name and the connection, and log in with: hf auth login",
        ) from error
    return name
