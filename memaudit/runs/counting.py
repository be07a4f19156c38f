"""The counting pass: all rows once more, past the grams of the windows that are to be scored.

Only where a classifier looks at exposure. The rows' tokens wait for it in a file without a name:
the grams of all windows are known only when the last row was read, and a pipe can be read once.

On Ray too they wait in that file of the driver, rather than in the object store of the nodes where
they were made. The file has no name, and what Ray spills to a disk has one and outlives a crash. A
lost object could only be rebuilt from the texts, which the driver would have to keep instead. The
price: to send a token and hear of it costs the driver a fifth of what it costs a task to count it.

Every shard counts its own windows in the whole corpus, as it cuts the whole corpus, unless shards
share the reading: then one counts them all. Counts of
parts would add up, but then no shard could score a window before all others had read theirs.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memaudit.exposure import BETWEEN, GramCounts, grams_of_suffixes, summarise
from memaudit.progress import ReportProgress, begin_stage
from memaudit.runs.chunks import ChunkPlan, read_columns, write_columns
from memaudit.runs.files import NamelessFile, output_errors
from memaudit.runs.folder import EXPOSURE, RunFolder, unscored_chunks
from memaudit.runs.reading import HERE, DistinctWindows, Tasks
from memaudit.runs.sealed_parquet import is_whole, open_sealed
from memaudit.windows import NO_TOKEN, without_padding

_COLUMNS = ("median", "share")
_LEAST_GRAMS, _MOST_GRAMS = 1 << 23, 1 << 30
"""Counted in one pass over the rows, if there are so many. The numbers in a table have 32 bits."""

_BYTES_PER_GRAM, _SHARED_BYTES_PER_GRAM = 60, 24
"""Of memory at the height of a pass, measured 39 to 56; of that in the table, which tasks share."""

_TOKENS_AT_ONCE = 1 << 20


class RowTokens(NamelessFile):
    """The tokens of all rows of a corpus."""

    def __init__(self, folder: Path | None, tasks: Tasks = HERE) -> None:
        """Open an empty file; `tasks` count in it."""
        super().__init__(folder)
        self.tasks = tasks

    def append(self, token_ids: NDArray[np.int32]) -> None:
        """Add rows after the others, `BETWEEN` after each."""
        self._append(token_ids.tobytes())

    def parts(self) -> Iterator[NDArray[np.int32]]:
        """Yield some rows at a time, `BETWEEN` after each. Nothing may be kept meanwhile."""
        self._seek(0)
        rest: list[NDArray[np.int32]] = []
        while block := self._file.read(4 * _TOKENS_AT_ONCE):
            tokens = np.frombuffer(block, dtype=np.int32)
            # Cut behind a row only: a gram across a cut would be lost, and a row with a gram on
            # both sides of one would count twice.
            ends = np.flatnonzero(tokens == BETWEEN)
            if len(ends) == 0:  # a row is longer than a block
                rest.append(tokens)
                continue
            yield np.concatenate([*rest, tokens[: ends[-1] + 1]])
            rest = [tokens[ends[-1] + 1 :]]


def count_missing(
    run: RunFolder, windows: DistinctWindows, rows: RowTokens, progress: ReportProgress | None
) -> None:
    """Give the windows of a run their exposure, counted now or in an earlier session.

    Raises:
        OutputError: it cannot be read or written.
    """
    plan = run.plan
    # The features of a chunk hold its exposure: only what is still to be scored needs counts.
    if plan.epochs is None or not unscored_chunks(run):
        return

    path = run.folder / EXPOSURE
    # A shard counts for its own windows, and has NaN for all others.
    metadata = {"memaudit.run": plan.fingerprint, "memaudit.shard": str(run.manifest.shard)}
    if not is_whole(path, metadata):
        count_exposure(plan, run.own_chunks, windows, rows, progress)
        assert windows.exposure is not None
        write_columns(path, _COLUMNS, windows.exposure, metadata)
    else:
        with output_errors(path, "read"), open_sealed(path, metadata) as file:
            windows.exposure = read_columns(file.read(), _COLUMNS)


def count_exposure(
    plan: ChunkPlan,
    chunks: Sequence[int],
    windows: DistinctWindows,
    rows: RowTokens,
    progress: ReportProgress | None = None,
) -> None:
    """Count how many rows have the grams of the windows of some chunks, and note it in `windows`."""
    windows.exposure = np.full((len(windows), len(_COLUMNS)), np.nan)
    n_windows = sum(len(plan.windows_of(chunk)) for chunk in chunks)
    report, done = begin_stage("count", "windows", progress), 0
    at_once = grams_at_once(rows.tasks.shared_bytes)
    for indices, hashes, n_grams in _in_passes(plan, chunks, windows, at_once):
        counts = GramCounts(hashes)
        # Tasks share the table, which never changes. The sums are kept here.
        for counted in rows.tasks.map(counts.table.count, rows.parts()):
            counts.add_counted(*counted)
            report(done, n_windows)
        found = summarise(counts.counts, n_grams)
        windows.exposure[indices] = np.column_stack([found.median, found.share])
        done += len(indices)
        report(done, n_windows)
        del counts, hashes  # before the grams of the next pass are gathered


def grams_at_once(shared_bytes: int | None = None) -> int:
    """Return how many grams are counted in one pass over the rows.

    As many as fit into a quarter of the memory that is available now, at 60 bytes each: several
    shards may count on one machine, and the rows' tokens are read faster from what is left. Never
    fewer than 2^23, which take 0.5 GB, unless their table of 24 bytes each does not fit into
    `shared_bytes`; never more than 2^30, which take 64 GB.
    """
    n = min(max(_LEAST_GRAMS, (available_memory() or 0) // 4 // _BYTES_PER_GRAM), _MOST_GRAMS)
    return n if shared_bytes is None else max(1, min(n, shared_bytes // _SHARED_BYTES_PER_GRAM))


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take, by the machine and by its cgroups.

    None: the system, whose files lie in `root`, does not say.
    """
    if not (root / "proc/meminfo").exists():
        return None
    found = [1024 * _number_in(root / "proc/meminfo", "MemAvailable:")]
    cgroups = root / "proc/self/cgroup"
    for line in cgroups.read_text().splitlines() if cgroups.exists() else ():
        # `0::/name` in version 2 of cgroups, `4:memory:/name` in version 1.
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        limit, usage = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if controllers
            else ("memory.max", "memory.current")
        )
        # In a container the name may be that of the host: then the mount is the container's own.
        # The limits of all groups above hold, too.
        for folder in (mount / name[1:], *(mount / name[1:]).parents):
            with suppress(OSError, ValueError):  # not there, or `max`
                free = int((folder / limit).read_text()) - int((folder / usage).read_text())
                # What was read from files counts as used, and is given up first.
                found.append(free + _number_in(folder / "memory.stat", "inactive_file"))
    return max(0, min(found))


def _number_in(path: Path, name: str) -> int:
    lines = (line.split() for line in path.read_text().splitlines())
    return int(next((line[1] for line in lines if line[0] == name), 0))


def _in_passes(
    plan: ChunkPlan, chunks: Sequence[int], windows: DistinctWindows, at_once: int
) -> Iterator[tuple[list[int], NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield windows, their grams and how many each has, of as many as are counted in one pass."""
    indices, grams, n_grams = list[int](), list[NDArray[np.uint64]](), 0
    for chunk in chunks:
        part = plan.windows_of(chunk)
        token_ids = windows.read(part.start, len(part))
        # Full windows split at one place and go together. Padded ones have lengths of their own.
        is_full = (token_ids != NO_TOKEN).all(axis=1)
        of_full = iter(grams_of_suffixes(token_ids[is_full], plan.shape.suffix_len))
        found = [
            next(of_full)
            if full
            else grams_of_suffixes(
                without_padding(window)[None], len(without_padding(window[plan.shape.prefix_len :]))
            )[0]
            for full, window in zip(is_full, token_ids, strict=True)
        ]
        indices += part
        grams += found
        n_grams += sum(map(len, found))
        if n_grams >= at_once or chunk == chunks[-1]:
            ready = indices, np.concatenate(grams), np.array([len(each) for each in grams])
            indices, grams, n_grams = [], [], 0
            yield ready
            del ready  # before the next ones are gathered
