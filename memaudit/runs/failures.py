"""Chunks that nobody can score: each gets a marker, and its rows the outcome `error`.

A chunk that killed whoever worked on it several times must not end a run of days. Its marker holds
the reason and no text; the next session removes it and tries again.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from memaudit.errors import ModelError
from memaudit.runs.chunks import ChunkPlan
from memaudit.runs.commit import committed_file, output_errors
from memaudit.runs.cutting import RowCuts
from memaudit.runs.shards import chunk_ranges
from memaudit.runs.spool import RowOutcome, RowSpool
from memaudit.runs.storage import spool_folder

MAX_ATTEMPTS = 3
"""Processes that may die at a chunk before it is given up."""

_MAX_IN_A_ROW = 3
"""Chunks that may be given up without one that is scored: then it is not the chunks' fault."""

_ENDING = ".error.json"


class _Failure(msgspec.Struct, frozen=True):
    run: str
    chunk: int
    reason: str


class _FailureFile(msgspec.Struct, frozen=True):
    digest: str
    failure: _Failure


class Attempts:
    """How often the chunks of a run were lost together with whoever worked on them."""

    def __init__(self, plan: ChunkPlan) -> None:
        self._plan = plan
        self._n_lost: Counter[int] = Counter()
        self._n_given_up = 0

    def scored(self) -> None:
        """Note that a chunk was scored: whoever works can work."""
        self._n_given_up = 0

    def lost(self, chunk: int, reason: str) -> bool:
        """Note that a process died at a chunk, and how.

        Returns:
            whether the chunk is to be tried again; if not, it has a marker now.

        Raises:
            ModelError: several chunks in a row had to be given up.
            OutputError: the marker cannot be written.
        """
        self._n_lost[chunk] += 1
        if self._n_lost[chunk] < MAX_ATTEMPTS:
            return True
        self._n_given_up += 1
        reason = f"{MAX_ATTEMPTS} processes died at it, the last {reason}"
        if self._n_given_up == _MAX_IN_A_ROW:
            raise ModelError(
                f"{_MAX_IN_A_ROW} chunks in a row could not be scored; chunk {chunk}: {reason}",
                hint="if memory ran out, let fewer processes score at a time, or start over with "
                "a smaller --chunk-size",
            )
        write_failure(self._plan, chunk, reason)
        return False


def write_failure(plan: ChunkPlan, chunk: int, reason: str) -> None:
    """Commit the marker of a chunk that cannot be scored.

    Raises:
        OutputError: it cannot be written.
    """
    failure = _Failure(plan.fingerprint, chunk, reason)
    with committed_file(_path(plan, chunk)) as stream:
        stream.write(msgspec.json.encode(_FailureFile(_digest(failure), failure)) + b"\n")


def read_failures(plan: ChunkPlan, chunks: Collection[int]) -> dict[int, str]:
    """Return why chunks could not be scored, for those that are not there and have a marker.

    A marker that is damaged or of another run is none: its chunk is missing, like any other.

    Raises:
        OutputError: a marker cannot be read.
    """
    failures = {}
    for chunk in chunks:
        path = _path(plan, chunk)
        if path.exists() and not plan.path(chunk).exists():
            with output_errors(path, "read"):
                content = path.read_bytes()
            failure = _decoded(content)
            if failure is not None and (failure.run, failure.chunk) == (plan.fingerprint, chunk):
                failures[chunk] = failure.reason
    return failures


def remove_failures(folder: Path) -> None:
    """Remove all markers from the folder of chunks, so that their chunks count as missing."""
    for path in folder.glob(f"*{_ENDING}"):
        if path.name.removesuffix(_ENDING).isdigit():
            path.unlink()


@contextmanager
def rows_that_failed(
    plan: ChunkPlan, rows: RowSpool, cuts: RowCuts, failures: Mapping[int, str]
) -> Iterator[tuple[RowSpool, RowCuts]]:
    """Give the rows with the outcome `error` for those with a window in a failed chunk.

    A row is as risky as its worst window, so one window that is unknown leaves the row unknown.

    Args:
        plan: of the run.
        rows: of the corpus, in order.
        cuts: which windows they have.
        failures: reasons by chunk.

    Yields:
        rows and cuts in which such a row has no window any more.

    Raises:
        ModelError: no row is left.
    """
    if not failures:
        yield rows, cuts
        return
    with RowSpool(spool_folder(plan.folder)) as known:
        left = RowCuts()
        lengths, start = iter(cuts.n_windows), 0
        for row in rows:
            windows = cuts.windows[start : start + next(lengths)] if row.outcome == "scored" else ()
            start += len(windows)
            failed = [w // plan.chunk_size for w in windows if w // plan.chunk_size in failures]
            if failed:
                reason = f"chunk {failed[0]}: {failures[failed[0]]}"
                row = RowOutcome(row.example_id, row.row, row.address, "error", reason)
            elif windows:
                left.windows.extend(windows)
                left.n_windows.append(len(windows))
            left.outcomes[row.outcome] += 1
            known.append(row)
        if not left.n_windows:
            raise failure_error(failures, left.outcomes["error"])
        yield known, left


def failure_error(failures: Mapping[int, str], n_rows: int | None = None) -> ModelError:
    """Return what to tell about chunks that could not be scored, and about their rows."""
    first = min(failures)
    rows = "" if n_rows is None else f"{n_rows:,} {'row' if n_rows == 1 else 'rows'} in "
    return ModelError(
        f"{rows}{'chunk' if len(failures) == 1 else 'chunks'} {chunk_ranges(sorted(failures))} "
        f"could not be scored; chunk {first}: {failures[first]}",
        hint="give the same command again to try once more; if memory ran out, let fewer "
        "processes score at a time, with the same --threads",
    )


def _path(plan: ChunkPlan, chunk: int) -> Path:
    return plan.path(chunk).with_suffix(_ENDING)


def _decoded(content: bytes) -> _Failure | None:
    try:
        read = msgspec.json.decode(content, type=_FailureFile)
    except ValueError:
        return None
    return read.failure if read.digest == _digest(read.failure) else None


def _digest(failure: _Failure) -> str:
    return hashlib.sha256(msgspec.json.encode(failure)).hexdigest()
