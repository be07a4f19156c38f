"""Which examples are known: keyed hashes that stay the same when a row moves.

A run keeps no text and no hash of one, so an example is told by what its worst window's features
say of its content: three exact compressed lengths and three scores of the teacher. Those are the
same in another place of the corpus, under another id, and in another batch but for rounding; so
each window has two hashes, on two grids: what falls on a border of one lies inside on the other.
A changed text, and a changed teacher, make an example new. So does one more copy of it.
"""

import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.errors import UsageError
from memaudit.files import read_small
from memaudit.runs.files import committed_file, output_errors
from memaudit.runs.risks import Risks
from memaudit.runs.run import Run
from memaudit.text import shown_path

KEY_BYTES = 32
_MAX_KEY_BYTES = 1024
_MAX_BASELINE_BYTES = 1 << 30  # about 100 bytes for each distinct example
_FORMAT = 2
# 128 bits: of a billion examples no two share a hash by chance.
_HASH_BYTES = 16
_EXACT = ("zlib_entropy", "suffix_zlib_entropy", "zlib_ratio")
_STEPS = {
    "teacher_suffix_logprob": 0.1,
    "teacher_entropy": 0.01,
    "teacher_prefix_mean_logprob": 0.01,
}
"""Many times what another batch or another processor changes in float32."""


class _BaselineFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int
    key: str
    """Digest of the key that the hashes need."""
    run: str
    known: tuple[dict[str, int], dict[str, int]]
    """Copies by hash, for each of the two grids."""
    mac: str = ""
    """Keyed digest of all else. Hashes are public, in SARIF for one: without it anybody could add
    one and so make a finding known. Format 1 had none."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Examples that were there before."""

    digest: str
    """Sha256 of the file, or the fingerprint of the run."""

    known: tuple[Counter[str], Counter[str]]
    """Copies by hash, for each of the two grids."""


def read_key(path: Path, *, create: bool) -> bytes:
    """Return the key of a project; hashes of short texts without one could be guessed.

    Args:
        path: of its file.
        create: whether a missing one is made, readable by its owner alone.

    Raises:
        UsageError: there is none, or it is not a key.
        OutputError: it cannot be read or written.
    """
    where = shown_path(path)
    if create and not path.exists():
        with committed_file(path) as stream:
            stream.write(secrets.token_bytes(KEY_BYTES).hex().encode() + b"\n")
    with output_errors(path, "read"):
        content = read_small(path, _MAX_KEY_BYTES) if path.is_file() else b""
    with suppress(ValueError):
        key = bytes.fromhex(content.decode("ascii", errors="replace").strip())
        # An empty key, or a short one, would make hashes that anybody can make.
        if len(key) == KEY_BYTES:
            return key
    raise UsageError(
        f"{where}: expected a key of {KEY_BYTES} bytes in hexadecimal",
        hint="give the key that the baseline was written with as --key-file",
    )


def window_hashes(risks: Risks, windows: Sequence[int], key: bytes) -> tuple[list[str], list[str]]:
    """Return the hashes of windows on both grids."""
    columns = [risks.feature_names.index(name) for name in (*_EXACT, *_STEPS)]
    X = risks.X[np.asarray(windows, dtype=np.int64)][:, columns]
    exact, scaled = X[:, : len(_EXACT)], X[:, len(_EXACT) :] / np.array(list(_STEPS.values()))
    hashes: list[list[str]] = []
    # One key has several uses: `person` keeps a hash of one of them from passing for another.
    for person, offset in ((b"row\0", 0.0), (b"row\1", 0.5)):
        # Adding 0 makes one zero of -0.0 and 0.0.
        rows = np.hstack([exact, np.floor(scaled + offset)]) + 0.0
        hashed = partial(hashlib.blake2b, digest_size=_HASH_BYTES, key=key, person=person)
        hashes.append([hashed(row.tobytes()).hexdigest() for row in rows])
    return hashes[0], hashes[1]


def known_rows(run: Run, baseline: Baseline, key: bytes) -> NDArray[np.bool_]:
    """Return which rows were there before; of copies, as many as there were.

    Returns:
        (n_rows,)
    """
    windows, row_counts = np.unique(run.worst_windows[run.is_scored], return_counts=True)
    first, second = window_hashes(run.risks, windows.tolist(), key)
    left = (baseline.known[0].copy(), baseline.known[1].copy())
    n_known = {}
    for window, count, *hashes in zip(
        windows.tolist(), row_counts.tolist(), first, second, strict=True
    ):
        # What rounding has moved over a border of one grid the other still knows.
        n_known[window] = min(count, max(left[0][hashes[0]], left[1][hashes[1]]))
        for counts, digest in zip(left, hashes, strict=True):
            # Of several windows with one hash no more are known than there were.
            counts[digest] -= n_known[window]
    known = np.zeros(run.n_rows, dtype=np.bool_)
    for row, window in enumerate(run.worst_windows.tolist()):
        if window >= 0 and n_known[window] > 0:
            n_known[window] -= 1
            known[row] = True
    return known


def baseline_of(run: Run, key: bytes) -> Baseline:
    """Return all examples of a run as known."""
    windows, row_counts = np.unique(run.worst_windows[run.is_scored], return_counts=True)
    known = (Counter[str](), Counter[str]())
    for counts, hashes in zip(known, window_hashes(run.risks, windows.tolist(), key), strict=True):
        for digest, count in zip(hashes, row_counts.tolist(), strict=True):
            counts[digest] += count
    return Baseline(run.manifest.inputs.fingerprint, known)


def write_baseline(path: Path, run: Run, key: bytes) -> None:
    """Write the examples of a run as known ones: keyed hashes and counts, no text and no ids.

    Raises:
        OutputError: it cannot be written.
    """
    known = baseline_of(run, key).known
    file = _BaselineFile(
        format=_FORMAT,
        key=_key_digest(key),
        run=run.manifest.inputs.fingerprint,
        known=(dict(known[0]), dict(known[1])),
    )
    file = msgspec.structs.replace(file, mac=_mac(file, key))
    with committed_file(path) as stream:
        stream.write(msgspec.json.encode(file, order="sorted") + b"\n")


def read_baseline(path: Path, key: bytes, *, pinned_digest: str | None = None) -> Baseline:
    """Read what `write_baseline` wrote.

    `pinned_digest` is that of the file of format 1 that may be read: it has no keyed digest of its
    own.

    Raises:
        UsageError: it is none, was changed, or was written with another key.
        OutputError: it cannot be read.
    """
    where = shown_path(path)
    with output_errors(path, "read"):
        content = read_small(path, _MAX_BASELINE_BYTES)
    try:
        file = msgspec.json.decode(content, type=_BaselineFile)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: not a baseline",
            hint="give what --write-baseline wrote, or the folder of an earlier run",
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if file.format == 1 and digest != pinned_digest:
        raise UsageError(
            f"{where}: written by memaudit 0.1, which left no trace of changes",
            hint="write it anew with --write-baseline, or pin its digest in the policy as "
            "baseline-digest",
        )
    if file.format not in (1, _FORMAT) or any(
        min(known.values(), default=1) < 1 for known in file.known
    ):
        raise UsageError(f"{where}: written by another version of memaudit, or changed")
    if file.key != _key_digest(key):
        raise UsageError(
            f"{where}: written with another key",
            hint="give the key that it was written with as --key-file",
        )
    if file.format != 1 and not hmac.compare_digest(file.mac.encode(), _mac(file, key).encode()):
        raise UsageError(
            f"{where}: changed since it was written", hint="write it anew with --write-baseline"
        )
    return Baseline(digest, (Counter(file.known[0]), Counter(file.known[1])))


def _mac(file: _BaselineFile, key: bytes) -> str:
    """Return the keyed digest of a baseline."""
    # Sorted: the order in which hashes were found says nothing.
    content = msgspec.json.encode(msgspec.structs.replace(file, mac=""), order="sorted")
    return hashlib.blake2b(content, digest_size=32, key=key, person=b"baseline").hexdigest()


def _key_digest(key: bytes) -> str:
    return hashlib.blake2b(b"", digest_size=_HASH_BYTES, key=key, person=b"key").hexdigest()


def one_time_key() -> bytes:
    """Return a key for hashes that no file keeps."""
    return secrets.token_bytes(KEY_BYTES)
