"""Which files a path, a folder or a glob stands for, always in the same order."""

import glob
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

from memaudit.corpus.base import CorpusOptions
from memaudit.corpus.byte_streams import OpenFile
from memaudit.corpus.formats import FORMATS
from memaudit.errors import CorpusError, UsageError
from memaudit.files import read_small
from memaudit.text import safe_text, shown_path

COMPRESSIONS = ("gz", "zst", "bz2", "xz")
"""Endings that may follow."""

_ENDING = re.compile(rf"\.({'|'.join(FORMATS)})(?:\.({'|'.join(COMPRESSIONS)}))?$", re.IGNORECASE)
_MAX_STATE_BYTES = 16 << 20
"""Of the file in which `datasets` lists what it saved."""

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
    name: str
    """What ids call it: its path below the folder or glob that was given."""

    shown: str
    """What messages call it: its path as given."""

    format: str
    """One of `FORMATS`."""

    compression: str | None
    """One of `COMPRESSIONS`."""


def find_files(source: str, split: str | None = None) -> list[SourceFile]:
    """Return the files of a corpus, sorted by name.

    A folder is read with its subfolders; of a data set that `datasets` saved, the files that it
    lists. Hidden files, names that start with `_`, files about the corpus (README, LICENSE,
    dataset_info.json, ...), what memaudit wrote beside a corpus and other endings are left out.

    Args:
        source: path of a file or folder, or a glob.
        split: of files of several splits: as `datasets` saved them, or by their names; `all` for
            all of them.

    Raises:
        CorpusError: nothing is there, nothing there can be read, a link leads out, files are there
            twice, or a split must be chosen.
    """
    path = Path(source)
    if path.is_dir():
        return _of_split(_readable(_walk(path), root=path, source=source), split, source)
    # Before globs: names may hold brackets. A broken link is there, and told for what it is.
    if os.path.lexists(path):
        return _of_split([_source_file(path, root=path.parent, source=source)], split, source)
    if glob.has_magic(source):
        root = path.parent
        # Ids begin below the part of the glob that names one folder.
        while glob.has_magic(str(root)):
            root = root.parent
        matches = root.glob(path.relative_to(root).as_posix())
        found = _readable(
            (match for match in matches if not match.is_dir()), root=root, source=source
        )
        return _of_split(found, split, source)
    raise CorpusError(
        f"{shown_path(path)}: no such file or folder",
        hint="give a file, a folder, a glob, - for stdin, or a hub id such as org/name",
    )


_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""By the words that stand for them in names of files and folders, as `datasets` has it."""


def _of_split(files: list[SourceFile], split: str | None, source: str) -> list[SourceFile]:
    """Return the files of one split, where there are several; what names none is `train`."""
    split_of: dict[str, str] = {}
    saved: set[str] = set()
    # Of a `DatasetDict` that `datasets` saved, each split has a folder of its name. What cannot be
    # read as its list is of another program, and says nothing.
    with suppress(KeyError, OSError, RecursionError, TypeError, ValueError):
        listed = json.loads(read_small(Path(source) / "dataset_dict.json", _MAX_STATE_BYTES))
        saved = {str(name) for name in listed["splits"]}
    for file in files:
        words = {*re.split(r"[^a-z]+", file.name.lower())}
        named = (each for each, others in _SPLITS.items() if words & {*others})
        top = file.name.split("/")[0]
        split_of[file.name] = top if top in saved else next(named, "train")
    names = sorted({*split_of.values()})
    if split == "all" or (split in (None, "train") and len(names) == 1):
        return files
    if split not in names:
        # As the hub has it, such as train_sft beside train_gen: by their words both are train. The
        # name of a file counts without its number, and so do those of its folders.
        own = [re.sub(r"-\d{5}-of-\d{5}$", "", without_ending(file.name)) for file in files]
        exact = [file for file, name in zip(files, own, strict=True) if split in name.split("/")]
        if exact:
            return exact
        raise CorpusError(
            f"{shown_path(source)}: holds "
            + (f"the splits {', '.join(names)}" if len(names) > 1 else f"the split {names[0]}")
            + ("" if split is None else f", and no {safe_text(split)}"),
            hint=f"choose with --split one of {', '.join(names)}, or all to read them together",
        )
    return [file for file in files if split_of[file.name] == split]


_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class HubCorpus:
    """A corpus on the hub."""

    hub_id: str
    """`org/name`."""

    revision: str | None
    """Branch, tag or commit; None is the main branch."""


def hub_corpus(options: CorpusOptions) -> HubCorpus | None:
    """Return the hub corpus that `org/name[@revision]` names, if no file or folder has that name.

    Raises:
        UsageError: two different revisions are asked for.
    """
    match = _HUB_ID.fullmatch(options.source)
    # What ends like a file is one that is missing: the hub is not asked for it.
    if match is None or os.path.lexists(options.source) or has_known_ending(options.source):
        return None
    if match["revision"] and options.revision not in (None, match["revision"]):
        raise UsageError(
            f"two revisions, {match['revision']} and {options.revision}", hint="give one of the two"
        )
    return HubCorpus(match["id"], match["revision"] or options.revision)


def without_ending(source: str) -> str:
    """Return the name of a file without what says its format and compression."""
    return _ENDING.sub("", source)


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
        # Of what was opened: the path may be something else by now.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorpusError(
                f"{source.shown}: expected a regular file, got a pipe, a device or a folder",
                hint="to read from a pipe, give - and send jsonl",
            )
        yield OpenFile(file, source.shown, source.compression, options)


def _readable(paths: Iterable[Path], *, root: Path, source: str) -> list[SourceFile]:
    # Each file system lists in an order of its own. Sorted, a row has one number everywhere.
    files = sorted(
        (
            _source_file(path, root=root, source=source)
            for path in paths
            if has_known_ending(path.name)
            and not _ABOUT_THE_CORPUS.fullmatch(path.name)
            and not any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
        ),
        key=lambda file: file.path.relative_to(root).as_posix(),
    )
    if not files:
        raise CorpusError(f"{safe_text(source)}: no file that can be read", hint=_SUPPORTED)
    inside, by_stem = [root.resolve()], dict[Path, SourceFile]()
    # The cache of the hub keeps contents in blobs/ and links to them from snapshots/<commit>/.
    commits = (path for path in (*inside, *inside[0].parents) if path.parent.name == "snapshots")
    inside += [commit.parent.parent / "blobs" for commit in islice(commits, 1)]
    for file in files:
        try:
            # A folder that was downloaded must not make us read other files of this machine.
            is_inside = any(file.path.resolve().is_relative_to(folder) for folder in inside)
        except (OSError, RuntimeError):  # a link to itself
            is_inside = False
        if not is_inside:
            raise CorpusError(
                f"{file.shown}: a link that leads out of the folder",
                hint="give the file it points to, or copy it into the folder",
            )
        stem = file.path.with_suffix("") if file.compression else file.path
        other = by_stem.setdefault(stem, file)
        if other.path != file.path:
            raise CorpusError(
                f"{other.shown} and {file.shown}: one file, packed and not, so every row would be "
                "read twice",
                hint="remove one of the two, or give the files that are meant",
            )
    _require_unfiltered(files)
    return files


def _require_unfiltered(files: list[SourceFile]) -> None:
    """Refuse a file beside what `memaudit filter` made of it: every text that stays counts twice."""
    by_path = {file.path: file for file in files}
    for file in files:
        for name, digest in _filtered_from(file.path):
            original = by_path.get(file.path.parent / name)  # `with_name` takes no empty name
            # By its content: a file may only have the name of another one.
            if original is not None and original is not file and _sha256(original.path) == digest:
                raise CorpusError(
                    f"{file.shown} and {original.shown}: the first was filtered from the second, so "
                    "rows would be read twice",
                    hint="remove one of the two, or give the file that is meant",
                )


def _filtered_from(path: Path) -> list[tuple[str, str]]:
    """Return names and digests of the files that `memaudit filter` made this one of, if it did."""
    try:
        beside = path.with_name(f"{path.name}.manifest.json")
        inputs = json.loads(read_small(beside, _MAX_STATE_BYTES))["inputs"]
        return [(Path(str(file["name"])).name, str(file["sha256"])) for file in inputs]
    except (KeyError, OSError, RecursionError, TypeError, ValueError):
        return []  # there is none, or it is of another program


def _sha256(path: Path) -> str | None:
    # To open a pipe would wait for ever.
    if path.is_file():
        with suppress(OSError), path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    return None


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_cannot_list):
        # As `datasets` and Spark do: hidden files, and what writers leave, such as _SUCCESS.
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for name in folders:
            if (Path(parent) / name).is_symlink():
                raise CorpusError(
                    f"{shown_path(Path(parent) / name)}: a link to a folder",
                    hint="links to folders are not followed: give the folder itself",
                )
        if {*files} >= {"manifest.json", "rows.parquet"}:  # a run of memaudit
            folders.clear()
            continue
        # Of a data set that `datasets` saved, the files that it lists: others there are its caches.
        # A state.json of another program lists none, and every file counts.
        with suppress(KeyError, OSError, RecursionError, TypeError, ValueError):
            state = json.loads(read_small(Path(parent) / "state.json", _MAX_STATE_BYTES))
            names = [str(file["filename"]) for file in state["_data_files"]]
            # The list came with the corpus: a name with folders in it could lead anywhere.
            files = [name for name in names if Path(name).name == name]
        for name in files:
            # What `memaudit filter` writes beside a corpus.
            original = re.sub(r"\.(manifest\.json|(removed|excised)\.parquet)$", "", name)
            if original == name or not (Path(parent) / original).exists():
                yield Path(parent) / name


def _cannot_list(error: OSError) -> NoReturn:
    raise CorpusError(
        f"{shown_path(error.filename)}: cannot be listed: {error.strerror}"
    ) from error


def _source_file(path: Path, *, root: Path, source: str) -> SourceFile:
    ending = _ENDING.search(path.name)
    if ending is None:
        raise CorpusError(f"{shown_path(source)}: unknown ending", hint=_SUPPORTED)
    return SourceFile(
        path=path,
        name=shown_path(path.relative_to(root).as_posix()),
        shown=shown_path(path),
        format=ending[1].lower(),
        compression=ending[2].lower() if ending[2] else None,
    )
