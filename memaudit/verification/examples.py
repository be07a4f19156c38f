"""What baseline and student are trained on, and what is kept from them."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Example
from memaudit.errors import CorpusError
from memaudit.progress import ReportProgress
from memaudit.runs.reading import DistinctWindows, RowLog, Tokenizer, cut_rows
from memaudit.verification.options import VerificationOptions
from memaudit.windows import WindowChoice, WindowPolicy

_HELD_OUT_SEED = 1
"""Apart from the seed of the sample, so that one does not decide the other."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The windows of a verification."""

    windows: NDArray[np.int32]
    """(n, T) distinct, in the order of the corpus."""

    occurrences: NDArray[np.int64]
    """(n,) rows of the sample that start with each, at least 1."""

    is_held_out: NDArray[np.bool_]
    """(n,) whether baseline and student are kept from it."""

    window_of_row: NDArray[np.int64]
    """(scored rows,) index of each row's window; -1 if the row is not in the sample."""

    rows: RowLog
    corpus_windows: DistinctWindows
    """The distinct windows of the whole corpus."""

    digest: str
    """Sha256 of all of it."""

    has_answers: bool = False
    """Whether windows end with answers: what precedes those is read and not learnt."""

    @property
    def trained(self) -> NDArray[np.int32]:
        """(examples, T) the windows that are trained on."""
        return self.windows[~self.is_held_out]

    def training_set(self, windows: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        """Return windows, one for each of `trained`, as often as those occur."""
        counts = self.occurrences[~self.is_held_out]
        return list(np.repeat(windows, counts, axis=0))


@contextmanager
def read_examples(
    rows: Iterable[Example | BadRow],
    tokenizer: Tokenizer,
    options: VerificationOptions,
    *,
    folder: Path | None,
    progress: ReportProgress | None,
    policy: WindowPolicy = "auto",
) -> Iterator[Examples]:
    """Read a corpus as an audit does, and choose what is trained on.

    Args:
        rows: of the corpus, in order.
        tokenizer: the teacher's.
        options: see there.
        folder: where temporary files without a name are made. None: the system's.
        progress: told the rows read.
        policy: which window of a row is used; of its answers the last one's.

    Raises:
        CorpusError: a row is bad, or no window is left to train on.
    """
    with RowLog(folder) as row_log, DistinctWindows(options.shape.length, folder) as windows:
        cuts = cut_rows(
            _allowed(rows, options.on_bad_row),
            tokenizer,
            (row_log, windows),
            choice=WindowChoice(options.shape, policy, turns="last"),
            progress=progress,
        )
        examples = _choose(np.array(cuts.windows, dtype=np.int64), row_log, windows, options)
        has_answers = bool(cuts.answers.rows) and policy != "first"
        yield replace(examples, has_answers=has_answers)


def _allowed(rows: Iterable[Example | BadRow], on_bad_row: str) -> Iterator[Example | BadRow]:
    for row in rows:
        if isinstance(row, BadRow) and on_bad_row == "error":
            raise CorpusError(
                f"{row.address}: {row.reason}",
                hint="repair the row, or count and leave out bad rows with --on-bad-row skip",
            )
        yield row


def _choose(
    window_of_row: NDArray[np.int64],
    rows: RowLog,
    spool: DistinctWindows,
    options: VerificationOptions,
) -> Examples:
    seed = options.training.seed
    in_sample = np.ones(len(window_of_row), dtype=np.bool_)
    if options.sample is not None and options.sample < len(window_of_row):
        order = np.random.default_rng(seed).permutation(len(window_of_row))
        in_sample[order[options.sample :]] = False
    distinct, inverse, counts = np.unique(
        window_of_row[in_sample], return_inverse=True, return_counts=True
    )
    chosen = np.full(len(window_of_row), -1, dtype=np.int64)
    chosen[in_sample] = inverse
    n_held_out = round(options.held_out_share * len(distinct))
    if n_held_out == len(distinct):
        raise CorpusError(
            f"no window is left to train on: all {len(distinct)} would be held out",
            hint="give more rows, or a smaller --held-out-share",
        )
    is_held_out = np.zeros(len(distinct), dtype=np.bool_)
    order = np.random.default_rng([seed, _HELD_OUT_SEED]).permutation(len(distinct))
    is_held_out[order[:n_held_out]] = True
    windows = _windows_at(spool, distinct)
    digest = _digest(rows, windows, counts, is_held_out, chosen)
    return Examples(windows, counts, is_held_out, chosen, rows, spool, digest)


def _windows_at(spool: DistinctWindows, indices: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return (n, T) the windows at ascending indices."""
    parts, start = [], 0
    for chunk in spool.chunks(4096):
        inside = indices[(indices >= start) & (indices < start + len(chunk))]
        parts.append(chunk[inside - start])
        start += len(chunk)
    return np.concatenate(parts)


def _digest(rows: RowLog, *arrays: NDArray[np.generic]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        fields = (row.example_id, str(row.row), row.address, row.outcome, row.reason)
        digest.update("\0".join(fields).encode() + b"\n")
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
