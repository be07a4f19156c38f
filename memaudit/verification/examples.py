"""What baseline and student are trained on, and what is kept from them."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Example
from memaudit.errors import CorpusError
from memaudit.progress import ReportProgress
from memaudit.runs.reading import DistinctWindows, RowLog, RowWindows, Tokenizer, cut_rows
from memaudit.verification.options import VerificationOptions
from memaudit.windows import MIN_SUFFIX_LEN

_HELD_OUT_SEED = 1
"""Apart from the seed of the sample, so that one does not decide the other."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The windows of a verification."""

    windows: NDArray[np.int32]
    """(n, T) distinct, in the order of the corpus."""

    occurrences: NDArray[np.int64]
    """(n,) how often each occurs in the rows that are trained on, or else held out; at least 1."""

    is_held_out: NDArray[np.bool_]
    """(n,) whether baseline and student are kept from it."""

    example_of_row: NDArray[np.int64]
    """(scored rows,) equal numbers for rows with the same windows; -1 if not in the sample."""

    windows_of_rows: NDArray[np.int64]
    """(m,) indices of the windows of the rows in the sample, row after row."""

    n_windows: NDArray[np.int64]
    """(rows in the sample,) windows of each, at least 1."""

    rows: RowLog
    corpus_windows: DistinctWindows
    """The distinct windows of the whole corpus."""

    digest: str
    """Sha256 of all of it."""

    has_answers: bool = False
    """Whether windows end with answers: what precedes those is read and not learnt."""

    def windows_told(self, options: VerificationOptions) -> dict[str, Any]:
        """Return which windows these are, for the settings; nothing if each row's first."""
        told: dict[str, Any] = {}
        if options.windows == "tile" or self.has_answers:
            told["windows"] = "tile" if options.windows == "tile" else "answers"
        if self.has_answers and self.n_windows.max() > 1:
            told["turns"] = options.turns
        if self.has_answers and options.min_suffix_len != MIN_SUFFIX_LEN:
            told["min_suffix_tokens"] = options.min_suffix_len
        return told

    def any_of_row(self, of_windows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return (rows in the sample,) whether it holds for any window of a row.

        Args:
            of_windows: (n,) whether it holds for each window.
        """
        starts = np.cumsum(self.n_windows) - self.n_windows
        found: NDArray[np.bool_] = np.logical_or.reduceat(of_windows[self.windows_of_rows], starts)
        return found

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
) -> Iterator[Examples]:
    """Read a corpus as an audit does, and choose what is trained on.

    Args:
        rows: of the corpus, in order.
        tokenizer: the teacher's.
        options: see there.
        folder: where temporary files without a name are made. None: the system's.
        progress: told the rows read.

    Raises:
        CorpusError: a row is bad, or no window is left to train on.
    """
    with RowLog(folder) as row_log, DistinctWindows(options.shape.length, folder) as windows:
        cuts = cut_rows(
            _allowed(rows, options.on_bad_row),
            tokenizer,
            (row_log, windows),
            choice=options.window_choice,
            progress=progress,
        )
        examples = _choose(cuts, row_log, windows, options)
        has_answers = bool(cuts.answers.rows) and options.windows != "first"
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
    cuts: RowWindows, rows: RowLog, spool: DistinctWindows, options: VerificationOptions
) -> Examples:
    seed, texts = options.training.seed, _texts(cuts)
    in_sample = np.ones(len(texts), dtype=np.bool_)
    if options.sample is not None and options.sample < len(texts):
        order = np.random.default_rng(seed).permutation(len(texts))
        in_sample[order[options.sample :]] = False
    distinct, inverse = np.unique(texts[in_sample], return_inverse=True)
    chosen = np.full(len(texts), -1, dtype=np.int64)
    chosen[in_sample] = inverse
    n_held_out = round(options.held_out_share * len(distinct))
    order = np.random.default_rng([seed, _HELD_OUT_SEED]).permutation(len(distinct))
    is_kept_out = np.zeros(len(distinct), dtype=np.bool_)
    is_kept_out[order[:n_held_out]] = True

    n_windows = np.array(cuts.n_windows, dtype=np.int64)
    of_sample = np.array(cuts.windows, dtype=np.int64)[np.repeat(in_sample, n_windows)]
    n_windows = n_windows[in_sample]
    windows, windows_of_rows = np.unique(of_sample, return_inverse=True)
    is_trained_on = np.repeat(~is_kept_out[inverse], n_windows)
    # What also stands in a row that is trained on is learnt there: it is not held out.
    trained = np.bincount(windows_of_rows[is_trained_on], minlength=len(windows))
    is_held_out: NDArray[np.bool_] = trained == 0
    if is_held_out.all():
        raise CorpusError(
            f"no window is left to train on: all {len(windows)} would be held out",
            hint="give more rows, or a smaller --held-out-share",
        )
    counts = np.where(is_held_out, np.bincount(windows_of_rows), trained)
    tokens = _windows_at(spool, windows)
    several = (windows_of_rows, n_windows) if n_windows.max() > 1 else ()
    digest = _digest(rows, tokens, counts, is_held_out, chosen, *several)
    return Examples(
        tokens, counts, is_held_out, chosen, windows_of_rows, n_windows, rows, spool, digest
    )


def _texts(cuts: RowWindows) -> NDArray[np.int64]:
    """Return (scored rows,) equal numbers for rows with the same windows."""
    windows, edges = np.array(cuts.windows, dtype=np.int64), np.cumsum(cuts.n_windows)
    if len(windows) == len(edges):
        return windows
    rows = [part.tobytes() for part in np.split(windows, edges[:-1])]
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(row, len(numbers)) for row in rows], dtype=np.int64)


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
