"""The status of a run: how far it is, how fast, and what is missing; told from its files alone."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from memaudit.runs.chunks import read_failures, sort_chunks
from memaudit.runs.files import lock_holder
from memaudit.runs.folder import LOCK, RunFolder, read_summary
from memaudit.runs.manifest import chunk_ranges

_RECENT = 20
"""Chunks whose times tell the rate: the last ones, so that a pause long ago does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How far a run is."""

    folder: Path
    run: str
    """Fingerprint of what it was given."""

    shard: str | None
    """The part of the chunks that is scored here, such as `0/3`; None: all."""

    process: int | None
    """Id of the process that is at work in it; None: none is."""

    has_results: bool
    """Whether table and summary are there and made from these chunks."""

    rows: int
    windows: int
    """Distinct windows to be scored here."""

    windows_done: int
    """Of them, those in chunks that are there and whole."""

    chunks: int
    """Chunks to be scored here."""

    missing: tuple[int, ...]
    """Numbers of those that are not there, the failed ones left out."""

    failures: Mapping[int, str]
    """Why chunks could not be scored, by number; the next session will try again."""

    damaged: tuple[int, ...]
    """Numbers of those that are there and not as they were written; they will be scored again."""

    rate: float | None
    """Windows per second, lately; None if that cannot be told."""

    @property
    def is_scored(self) -> bool:
        """Whether no chunk is left to be scored here."""
        return not (self.missing or self.failures or self.damaged)

    @property
    def state(self) -> Literal["running", "finished", "scored", "stopped"]:
        """`scored`: all chunks are there, no results; of a shard, that is its end."""
        if self.process is not None:
            return "running"
        if not self.is_scored:
            return "stopped"
        return "finished" if self.has_results else "scored"

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left at this rate, of a run that is running."""
        if not self.rate or self.process is None:
            return None
        return (self.windows - self.windows_done) / self.rate

    def document(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        return {
            **asdict(self),
            "folder": str(self.folder),
            "state": self.state,
            "eta_seconds": self.eta_seconds,
            "missing_ranges": chunk_ranges(list(self.missing)),
            "failed_ranges": chunk_ranges(list(self.failures)),
            "schema_version": 1,
        }


def run_status(folder: Path) -> RunStatus:
    """Return how far a run is, whether or not it is running.

    Raises:
        UsageError: there is no run.
        OutputError: its manifest is damaged, or something cannot be read.
    """
    # No lock is needed: each file is there as a whole or not at all.
    run = RunFolder.read(folder)
    plan, own = run.plan, run.own_chunks
    missing, damaged = sort_chunks(plan, own)
    failures = read_failures(plan, missing)
    gone = {*missing, *damaged}
    n_windows = {chunk: len(plan.windows_of(chunk)) for chunk in own}
    done = [chunk for chunk in own if chunk not in gone]
    times = sorted((plan.path(chunk).stat().st_mtime, chunk) for chunk in done)[-_RECENT:]
    rate = None
    # Files that were copied may all have one time.
    if times and (seconds := times[-1][0] - times[0][0]) > 0:
        # The first one's time is when the counting starts: its own windows were before that.
        rate = sum(n_windows[chunk] for _, chunk in times[1:]) / seconds
    shard, results = run.manifest.shard, None
    with suppress(OSError, ValueError):  # none yet, or damaged
        results = read_summary(folder).get("run")
    return RunStatus(
        folder=folder,
        run=plan.fingerprint,
        shard=None if shard is None else str(shard),
        process=lock_holder(folder / LOCK),
        has_results=results == plan.fingerprint,
        rows=run.manifest.inputs.rows,
        windows=sum(n_windows.values()),
        windows_done=sum(n_windows[chunk] for chunk in done),
        chunks=len(own),
        missing=tuple(chunk for chunk in missing if chunk not in failures),
        failures=failures,
        damaged=tuple(damaged),
        rate=rate,
    )
