"""Merging: the chunks of several shards become one run, which ends like any other."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec

from memaudit.errors import UsageError
from memaudit.runs.chunks import read_failures, sort_chunks, what_is_gone
from memaudit.runs.files import locked
from memaudit.runs.folder import LOCK, MANIFEST, RunFolder, begin_run, copy_rows, open_folder
from memaudit.runs.manifest import Shard, chunk_ranges, differences, read_manifest
from memaudit.runs.results import AuditResult, ReportOptions, write_results
from memaudit.runs.scoring import Session
from memaudit.runs.sealed_parquet import copy_sealed
from memaudit.text import shown_path


def merge_runs(
    folders: Sequence[Path], out: Path, *, report: ReportOptions | None = None
) -> AuditResult:
    """Put shards together and write the table that a single run would have written.

    Args:
        folders: of all shards of one run, in any order.
        out: folder of the whole run, made if missing; a merge that died there is continued.
        report: how results are told.

    Raises:
        UsageError: a shard is missing, given twice or not done, or they are of different runs.
        OutputError: a file of a shard is damaged, a process is at work in one of the folders, or
            `out` cannot be written.
    """
    session = Session()
    parts = [RunFolder(folder, read_manifest(folder / MANIFEST)) for folder in folders]
    first, *others = parts
    for other in others:
        found = differences(first.manifest.inputs, other.manifest.inputs)
        if found:
            raise UsageError(
                f"{shown_path(first.folder)} and {shown_path(other.folder)} are of different runs: {'; '.join(found)}",
                hint="score all shards with the same command but for --shard and --out",
            )
    _require_all_shards(parts)
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder(out))
        for part in parts:
            stack.enter_context(locked(part.folder / LOCK))
            _require_scored(part)
        whole = msgspec.structs.replace(parts[0].manifest, shard=None)
        run = begin_run(folder, whole, restart=False)
        _copy_files(parts, run)
        session = replace(session, kept_windows=run.plan.n_windows)
        return write_results(run, session, report or ReportOptions())


def _require_all_shards(parts: Sequence[RunFolder]) -> None:
    """Refuse shards that overlap or leave a gap."""
    shards = [part.manifest.shard or Shard(0, 1) for part in parts]
    counts = {shard.count for shard in shards}
    if len(counts) > 1:
        raise UsageError(
            f"parts of {' and of '.join(map(str, sorted(counts)))} overlap",
            hint="score all shards with the same N in --shard I/N",
        )
    folders: dict[int, RunFolder] = {}
    for shard, part in zip(shards, parts, strict=True):
        if shard.index in folders:
            raise UsageError(
                f"shard {shard} is given twice: {shown_path(folders[shard.index].folder)} and {shown_path(part.folder)}",
                hint="name the folder of each shard once",
            )
        folders[shard.index] = part
    (count,) = counts
    gap = [index for index in range(count) if index not in folders]
    if gap:
        raise UsageError(
            f"{len(gap)} of {count} shards are not given: {chunk_ranges(gap)}",
            hint="name the folders of all shards",
        )


def _require_scored(part: RunFolder) -> None:
    missing, damaged = sort_chunks(part.plan, part.own_chunks)
    if missing or damaged:
        failed = [*read_failures(part.plan, missing)]
        missing = [chunk for chunk in missing if chunk not in failed]
        raise UsageError(
            f"{shown_path(part.folder)}: chunks {what_is_gone(missing, damaged, failed)}",
            hint="give its 'memaudit predict' command again to score them",
        )


def _copy_files(parts: Sequence[RunFolder], run: RunFolder) -> None:
    """Copy what the parts have and the whole run has not: equal names mean equal bytes."""
    copy_rows(parts[0].folder, run)
    for part in parts:
        missing, damaged = sort_chunks(run.plan, part.own_chunks)
        for chunk in (*missing, *damaged):
            copy_sealed(part.plan.path(chunk), run.plan.path(chunk), run.plan.metadata(chunk))
