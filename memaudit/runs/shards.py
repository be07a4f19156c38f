"""Shards: the windows that they share, so that only one of them reads the corpus, and their merging.

The windows lie in the folder of a run that has no chunks, beside its manifest and rows. Whoever comes
first reads the corpus and commits them, the others wait for that and open the file. It is bound to the
manifest and to names, sizes and times of the files; whatever does not match is made anew, and then
the manifest refuses what was read if it is another corpus.

The chunks of all shards, put together, are one run, which ends like any other.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from memaudit.corpus import CorpusOptions
from memaudit.corpus.reader import corpus_stamp
from memaudit.errors import OutputError, UsageError
from memaudit.files import TableFormat
from memaudit.progress import ReportProgress, tell
from memaudit.runs.chunks import ChunkPlan, numbers, read_failures, sort_chunks, what_is_gone
from memaudit.runs.counting import count_exposure
from memaudit.runs.files import is_remote, lock_holder, locked, output_errors, scratch_folder
from memaudit.runs.folder import (
    LOCK,
    MANIFEST,
    ROWS,
    WINDOWS,
    RunFolder,
    begin_run,
    copy_rows,
    keep_rows,
    open_folder,
)
from memaudit.runs.manifest import Manifest, Shard, chunk_ranges, differences, refuse_differences
from memaudit.runs.opening import AuditInputs, CorpusRead, declare, read_rows
from memaudit.runs.options import AuditOptions
from memaudit.runs.reading import AnswerCounts, DistinctWindows
from memaudit.runs.results import AuditResult, write_results
from memaudit.runs.scoring import TOKEN, KeptWindows, Session, chunks_to_score, score_missing
from memaudit.runs.sealed_parquet import (
    DamagedFileError,
    copy_sealed,
    is_whole,
    open_sealed,
    sealed_writer,
)
from memaudit.text import number_of, shown_path


def check_prepared(place: Path, folder: Path, corpus: CorpusOptions) -> str:
    """Refuse a folder that all parts cannot share, before models are loaded; return the stamp.

    Raises:
        UsageError: it is the folder of this part, or the corpus may change unseen.
    """
    stamp = corpus_stamp(corpus)
    if stamp is None:
        raise UsageError(
            "--prepared needs a corpus in files, or on the hub at a commit, and a teacher that is "
            "not captured",
            hint="leave it out, or name the commit with --revision",
        )
    if not is_remote(place) and place.exists() and place.samefile(folder):
        raise UsageError(
            f"{shown_path(place)}: is the folder of this shard alone",
            hint="give another folder with --prepared, the same one to all shards",
        )
    return stamp


def score_prepared(
    folder: Path,
    inputs: AuditInputs,
    shard: Shard,
    prepared: tuple[Path, str],
    progress: ReportProgress | None,
) -> None:
    """Score what is missing of a part, by windows that lie in a folder that all parts share.

    Raises:
        MemauditError: as for `memaudit.audit.score_shard`.
    """
    place, stamp = prepared
    if lock_holder(place / LOCK) is not None:
        tell(f"wait for {shown_path(place)}")
    with ExitStack() as stack:
        with _prepared_meant(), open_folder(place, waits=True) as shared:
            try:
                whole = _prepared_run(shared, inputs)
                # Opened while the lock is held, read when it is not: an open file stays as it was,
                # even if another process replaces it.
                windows = stack.enter_context(_open_windows(whole, stamp))
            except (DamagedFileError, FileNotFoundError):
                # Made anew while the others wait for the lock: they will find it.
                whole = _prepare(shared, inputs, stamp, progress)
                windows = stack.enter_context(_open_windows(whole, stamp))
        manifest = declare(inputs, _read_before(whole.manifest), shard)
        run = begin_run(folder, manifest, restart=inputs.options.restart)
        copy_rows(whole.folder, run)
        score_missing(run, windows, inputs.models.score, Session(), progress)


@contextmanager
def _prepared_meant() -> Iterator[None]:
    """Let the hints of errors speak of the folder that shards share, where they speak of a run's."""
    try:
        yield
    except (OutputError, UsageError) as error:
        told = (error.hint or "").replace("start over with --restart", "remove that folder")
        error.hint = told.replace("--out", "--prepared") or None
        raise


def _prepared_run(folder: Path, inputs: AuditInputs) -> RunFolder:
    """Return the run in the folder that all parts share, which must be a part's but for its chunks.

    Raises:
        FileNotFoundError: it is not there, or not whole.
        UsageError: another run is there.
    """
    if not (folder / MANIFEST).exists():
        raise FileNotFoundError(folder / MANIFEST)
    run = RunFolder.read(folder)
    refuse_differences(folder, run.manifest, declare(inputs, _read_before(run.manifest), None))
    if not is_whole(folder / ROWS, {"memaudit.run": run.plan.fingerprint}):
        raise FileNotFoundError(folder / ROWS)
    return run


def _read_before(was: Manifest) -> CorpusRead:
    """Return what is known of a corpus that the process read which wrote a manifest."""
    inputs, answers = was.inputs, was.inputs.answers or AnswerCounts()
    return CorpusRead(
        inputs.rows,
        inputs.rows_digest,
        inputs.texts_digest,
        inputs.distinct_windows,
        AnswerCounts(answers.rows, answers.windows, answers.all_windows, answers.unseen_rows),
        was.raw_digest,
        was.corpus_read,
    )


def _prepare(
    folder: Path, inputs: AuditInputs, stamp: str, progress: ReportProgress | None
) -> RunFolder:
    """Read the corpus, and leave in a folder what a shard needs of it; the windows last."""
    with (
        DistinctWindows(inputs.options.shape.length, scratch_folder(folder)) as windows,
        read_rows(inputs, windows, folder, progress) as read,
    ):
        run = begin_run(folder, declare(read.inputs, read.corpus, None), restart=False)
        keep_rows(run, read.rows, read.cuts)
        plan = run.plan
        if plan.epochs is not None:
            count_exposure(plan, range(plan.n_chunks), windows, read.tokens, progress)
        # The windows come last: whoever finds none knows that the reading was not finished.
        schema = _schema(plan)
        with sealed_writer(run.folder / WINDOWS, schema, _metadata(run, stamp)) as writer:
            for work in chunks_to_score(plan, windows, range(plan.n_chunks)):
                content = pa.py_buffer(work.windows.astype(TOKEN).tobytes())
                tokens = pa.Array.from_buffers(schema.types[0], len(work.windows), [None, content])
                exposure = [] if work.exposure is None else list(work.exposure.T)
                writer.write_table(pa.table([tokens, work.occurrences, *exposure], schema=schema))
    return run


@contextmanager
def _open_windows(run: RunFolder, stamp: str) -> Iterator[KeptWindows]:
    """Open the windows of a run, once every bit of them is found as it was written.

    Raises:
        FileNotFoundError: they are not there.
        DamagedFileError: they are damaged, of another run, or of files as they were before.
        OutputError: they cannot be read.
    """
    path, plan = run.folder / WINDOWS, run.plan
    if not path.exists():
        raise FileNotFoundError(path)
    # Only the opening is within `output_errors`: what fails in the work is not about this file.
    with ExitStack() as stack:
        with output_errors(path, "read"):
            file = stack.enter_context(open_sealed(path, _metadata(run, stamp)))
            if (
                not file.schema_arrow.equals(_schema(plan))
                or file.metadata.num_rows != plan.n_windows
            ):
                raise DamagedFileError("other columns, or another number of windows")
            try:
                counts = file.read(_schema(plan).names[1:])
            except pa.ArrowException as error:
                raise DamagedFileError("cannot be read") from error
        occurrences, *exposure = (numbers(column.combine_chunks()) for column in counts.columns)
        yield KeptWindows(plan, file, occurrences, np.column_stack(exposure) if exposure else None)


def _schema(plan: ChunkPlan) -> pa.Schema:
    fields = [("tokens", pa.binary(plan.shape.length * 4)), ("occurrences", pa.int64())]
    exposure = () if plan.epochs is None else ("median", "share")
    return pa.schema(fields + [(name, pa.float64()) for name in exposure])


def _metadata(run: RunFolder, stamp: str) -> dict[str, str]:
    return {"memaudit.run": run.plan.fingerprint, "memaudit.corpus": stamp}


def merge_runs(
    folders: Sequence[Path], out: Path, *, table_format: TableFormat = "parquet", n_worst: int = 10
) -> AuditResult:
    """Put shards together and write the table that a single run would have written.

    The folders are of all shards of one run, in any order. `out` is that of the whole run, made if
    missing; a merge that died there is continued.

    Raises:
        UsageError: a shard is missing, given twice or not done, or they are of different runs.
        OutputError: a file of a shard is damaged, a process is at work in one of the folders, or
            `out` cannot be written.
    """
    session = Session()
    if os.path.realpath(str(out)) in [os.path.realpath(str(folder)) for folder in folders]:
        # Else it would be found in use, by this very process.
        raise UsageError(
            f"{shown_path(out)}: is one of the shards", hint="choose another folder with --out"
        )
    parts = [RunFolder.read(folder) for folder in folders]
    _require_all_shards(parts)
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder(out))
        for part in parts:
            # Held to the end: nobody may start a part over while it is copied.
            stack.enter_context(locked(part.folder / LOCK))
            missing, damaged = sort_chunks(part.plan, part.own_chunks)
            if missing or damaged:
                failed = [*read_failures(part.plan, missing)]
                missing = [chunk for chunk in missing if chunk not in failed]
                raise UsageError(
                    f"{shown_path(part.folder)}: chunks {what_is_gone(missing, damaged, failed)}",
                    hint="give its 'memaudit predict' command again to score them",
                )
        whole = msgspec.structs.replace(parts[0].manifest, shard=None)
        run = begin_run(folder, whole, restart=False)
        copy_rows(parts[0].folder, run)
        # What the parts have and the whole run has not: equal names mean equal bytes.
        for part in parts:
            for chunk in chain(*sort_chunks(run.plan, part.own_chunks)):
                copy_sealed(part.plan.path(chunk), run.plan.path(chunk), run.plan.metadata(chunk))
        session = replace(session, kept_windows=run.plan.n_windows)
        options = AuditOptions(table_format=table_format, n_worst=n_worst)
        return write_results(run, session, options)


def _require_all_shards(parts: Sequence[RunFolder]) -> None:
    """Refuse shards that are of different runs, overlap or leave a gap."""
    first, *others = parts
    for other in others:
        found = differences(first.manifest.inputs, other.manifest.inputs)
        if found:
            raise UsageError(
                f"{shown_path(first.folder)} and {shown_path(other.folder)} are of different runs: {'; '.join(found)}",
                hint="score all shards with the same command but for --shard and --out",
            )
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
            f"{len(gap)} of {number_of(count, 'shard')} {'is' if len(gap) == 1 else 'are'} not given: "
            f"{chunk_ranges(gap)}",
            hint="name the folders of all shards",
        )
