"""The manifest of a run: everything that decides a byte of its results, written down beforehand."""

import hashlib
import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from memaudit.classifier import RiskClassifier
from memaudit.errors import OutputError, UsageError
from memaudit.features import ReferenceRole, ZlibRecord
from memaudit.objectives import Objective
from memaudit.prefilter import Prefilter
from memaudit.runs.files import committed_file, output_errors, read_content
from memaudit.sensitivity import detector_versions
from memaudit.text import safe_text, shown_path
from memaudit.windows import Turns, WindowChoice, WindowPolicy, WindowShape


class Shard(msgspec.Struct, frozen=True):
    """One of several equal parts of the chunks of a run."""

    index: int
    """From 0, below `count`."""

    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def owns(self, chunk: int) -> bool:
        """Whether a chunk is in this part: they are dealt out like cards."""
        return chunk % self.count == self.index


def parse_shard(value: str) -> Shard:
    """Return the shard that `i/N` names.

    Raises:
        UsageError: it has another form, or i is not below N.
    """
    # In ASCII: the digits of other scripts are digits, too.
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value, re.ASCII)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(
            f"a shard is i/N with i from 0 to N - 1, got {safe_text(value)}",
            hint="the first of three is 0/3, the last 2/3",
        )
    return Shard(int(match[1]), int(match[2]))


def chunk_ranges(chunks: list[int]) -> str:
    """Return ascending numbers in short: `0-3, 7`; at most ten ranges."""
    ranges: list[list[int]] = []
    for chunk in chunks:
        if ranges and chunk == ranges[-1][1] + 1:
            ranges[-1][1] = chunk
        else:
            ranges.append([chunk, chunk])
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in ranges[:10]]
    return ", ".join(shown + ["…"] * (len(ranges) > 10))


MAX_BYTES = 8 << 20
"""Of a manifest; one takes about 10 kB, most of it for the classifier."""

FORMAT = 1
"""Of run directories; goes up when an older reader would misread one."""

_PACKAGES = ("memaudit-distill", "numpy", "pyarrow", "tokenizers", "torch", "transformers")
_ADDED_INPUTS = ("answers", "exposure")
_SHOWN = 200
_CANARY_GAP = 0.05
"""Nats a token, on average over the canaries: rounding in bfloat16 is a tenth of it, and another
model, checkpoint or quantisation is further away."""


@dataclass(frozen=True, slots=True)
class ModelNames:
    """What was audited with what."""

    teacher: str
    teacher_digest: str
    reference: str | None
    """The student's or the baseline's path or hub id, as given."""

    reference_digest: str | None
    feature_set: str
    """Key of `FEATURE_SETS`: `teacher`, or with what the reference is."""

    engine: str
    """As the engine calls itself, such as `hf-float32`."""

    classifier: str
    classifier_digest: str
    memaudit_version: str

    @property
    def metadata(self) -> dict[str, str | None]:
        """What a risk table says of them."""
        return {
            "version": self.memaudit_version,
            "classifier": self.classifier,
            "classifier_digest": self.classifier_digest,
            "teacher_digest": self.teacher_digest,
            "reference_digest": self.reference_digest,
            "feature_set": self.feature_set,
            "engine": self.engine,
        }


class AnswersRead(msgspec.Struct, frozen=True):
    """Which answers of a corpus were looked at, where its rows say what is trained on."""

    turns: Turns
    min_suffix_tokens: int
    """Of the shortest answer that was scored."""

    rows: int
    """Rows that say what is trained on."""

    windows: int
    """Windows of those whose suffix has a trained token."""

    all_windows: int
    unseen_rows: int
    """Rows of those no trained token of which lies in the suffix of a window."""


class ExposureCounted(msgspec.Struct, frozen=True):
    """How exposure was counted, where the classifier asks for it."""

    gram_tokens: int
    epochs: float
    """Passes over the corpus in the student's training."""


class RunInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was given. Two runs with equal inputs have equal chunks and equal tables."""

    corpus: dict[str, Any]
    """Where the corpus is and how it is read, as the user said."""

    on_bad_row: str
    """What is done about a row that cannot be used."""

    rows: int
    rows_digest: str
    """SHA-256 of their ids, addresses and outcomes."""

    texts_digest: str
    """SHA-256 of their texts: of what was read, be it from files, a pipe or the hub."""

    distinct_windows: int
    """Windows that were cut, equal ones counted once."""

    teacher_digest: str
    """Of the model's files, the tokenizer's included."""

    reference_digest: str | None
    feature_set: str
    """Key of `FEATURE_SETS`."""

    features: tuple[str, ...]
    """Columns of a chunk."""

    classifier_digest: str
    objective: Objective
    engine: str
    """As it calls itself: all that a score's rounding depends on."""

    device: str
    """`cpu`, or the kind of GPU."""

    threads: int | None
    """CPU threads a model is run with; another number rounds differently."""

    prefix_tokens: int
    suffix_tokens: int
    windows: WindowPolicy
    chunk_size: int
    zlib: ZlibRecord
    versions: dict[str, str]
    """Of Python, the machine and the packages that compute."""

    survival: float | None = None
    """Of what would be flagged, in a prefilter. None: there is none, every window is scored."""

    cascade_digest: str | None = None
    """Of the prefilter, its screen included."""

    answers: AnswersRead | None = None
    """Where rows say what is trained on: how much of that lies in windows. None: all is."""

    exposure: ExposureCounted | None = None
    """None: the classifier does not ask for it."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of all of them."""
        document = msgspec.to_builtins(self)
        for name in _ADDED_INPUTS:  # runs without them keep the fingerprint that they had before
            if document[name] is None:
                del document[name]
        # Sorted: it outlives another order of the fields in this file.
        return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()

    @property
    def shape(self) -> WindowShape:
        """Of the windows."""
        return WindowShape(self.prefix_tokens, self.suffix_tokens)

    @property
    def role(self) -> ReferenceRole | None:
        """What the second model is. None: there is none."""
        # Behind the plus: `teacher+student`.
        return self.feature_set.partition("+")[2] or None  # type: ignore[return-value]

    @property
    def window_choice(self) -> WindowChoice:
        """Which windows were cut."""
        if (read := self.answers) is None:
            return WindowChoice(self.shape, self.windows)
        return WindowChoice(self.shape, self.windows, read.turns, read.min_suffix_tokens)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """With the chunks and the rows beside it, all that the final table is made from."""

    inputs: RunInputs
    names: ModelNames
    classifier: RiskClassifier
    prefilter: Prefilter | None = msgspec.field(default=None, name="cascade")
    """Which windows are left out. None: every window is scored."""

    shard: Shard | None = None
    """The part of the chunks that is scored here. None: all."""

    raw_digest: str | None = None
    """SHA-256 of the messages of a chat corpus as they were read. None: it has none, or an older
    memaudit wrote this. It is no input: it follows from the corpus, like the texts."""

    corpus_read: str | None = None
    """How many files the corpus had, and in which layout: in words. None: an older memaudit, or
    rows from Python."""

    unused_weights: str | None = None
    """In words which weights of their files the models do not use. None: none to speak of."""

    compile_choice: str | None = None
    """In words whether compiling the models paid when the run began. None: nobody asked, or an
    older memaudit wrote this."""

    canary: float | None = None
    """What a teacher behind an endpoint said about the canaries when the run began: the mean
    log-probability of a token, nats. It is no input: nothing is calculated from it."""

    format: int = FORMAT


class _ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    digest: str
    manifest: Manifest


def software_versions(*, sensitive: bool = False) -> dict[str, str]:
    """Return the versions of what computes, by name; imports none of it but the detectors."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    # By what was installed: to import torch for its version would take seconds.
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found | detector_versions() if sensitive else found


def differences(was: RunInputs, now: RunInputs) -> list[str]:
    """Return what differs, field by field: `threads was 2, is now 4`."""
    before, after = dict(_fields(was)), dict(_fields(now))
    return [
        f"{name} was {_shown(before.get(name))}, is now {_shown(after.get(name))}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def _fields(inputs: RunInputs) -> Iterator[tuple[str, object]]:
    for name, value in msgspec.to_builtins(inputs).items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", value[key]) for key in sorted(value))
        # Item by item, so that one feature more is told by its name.
        elif isinstance(value, tuple | list):
            yield from ((f"{name}.{item}", "there") for item in value)
        else:
            yield name.replace("_", " "), value


def _shown(value: object) -> str:
    text = safe_text(str(value), _SHOWN)
    is_digest = len(text) == 64 and all(character in "0123456789abcdef" for character in text)
    return text[:12] if is_digest else text


def refuse_differences(folder: Path, was: Manifest, now: Manifest) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        UsageError: naming all that differs.
    """
    found = differences(was.inputs, now.inputs)
    if was.shard != now.shard:
        found.append(f"shard was {was.shard or 'none'}, is now {now.shard or 'none'}")
    # An endpoint has no files to take a digest of: what it says is all that tells it apart.
    said = (was.canary, now.canary)
    if said[0] is not None and said[1] is not None and abs(said[0] - said[1]) > _CANARY_GAP:
        found.append(
            f"the endpoint gave its canaries {said[0]:g} nats a token, now gives {said[1]:g}"
        )
    if found:
        raise UsageError(
            f"{shown_path(folder)}: holds another run: {'; '.join(found)}",
            hint="give the same again to continue it, start over with --restart, "
            "or choose another folder with --out",
        )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Commit a manifest; equal ones give the same bytes.

    Raises:
        FileExistsError: there is one, in an object store.
        OutputError: it cannot be written.
    """
    content = msgspec.json.encode(_ManifestFile(digest=_digest(manifest), manifest=manifest))
    # Of two processes that begin at one place in a store, which has no lock, the second must
    # notice.
    with committed_file(path, is_new=True) as stream:
        stream.write(msgspec.json.format(content, indent=2) + b"\n")


def read_manifest(path: Path) -> Manifest:
    """Return a manifest, once it is found as it was written.

    Raises:
        OutputError: it was changed, damaged or written by another version, or cannot be read.
        UsageError: there is none.
    """
    folder = shown_path(path.parent)
    if not path.exists():
        raise UsageError(
            f"{folder}: not the folder of a run, it has no {path.name}",
            hint="give the folder that --out of 'memaudit predict' named",
        )
    content = _content(path)
    # The digest finds damage, and what was edited by hand. Forgeries are for `signature`.
    with suppress(ValueError, RecursionError):
        read = msgspec.json.decode(content, type=_ManifestFile)
        if read.digest == _digest(read.manifest) and read.manifest.format == FORMAT:
            return read.manifest
    raise OutputError(
        f"{folder}/{path.name}: changed, damaged or written by another version of memaudit",
        hint="start over with --restart, or choose another folder with --out",
    )


def looks_like_manifest(path: Path) -> bool:
    """Whether a file is a manifest of ours, be it damaged or of another version."""
    content = _content(path)
    # By two keys and not by parsing, so that a damaged one is known, too.
    return b'"manifest"' in content and b'"texts_digest"' in content


def _content(path: Path) -> bytes:
    """Return what is in the file: at most what a manifest can hold, and of no pipe or device."""
    with output_errors(path, "read"):
        return read_content(path, MAX_BYTES)


def _digest(manifest: Manifest) -> str:
    document = msgspec.to_builtins(manifest)
    # What was added later is left out where it says nothing, so that older manifests stay whole.
    later = ("raw_digest", "corpus_read", "unused_weights", "compile_choice", "canary")
    added = [(document, name) for name in later]
    added += [(document["inputs"], name) for name in _ADDED_INPUTS]
    for holder, name in added:
        if holder[name] is None:
            del holder[name]
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()
