"""The audit: a corpus in, a risk table out. This file shows the whole flow.

1. Every row is read, tokenised and cut into windows; equal windows are kept once and counted.
2. What the run was given is written down, or compared with what is written down already.
3. Where the classifier looks at exposure, the rows' tokens are streamed past the windows.
4. Every chunk of distinct windows that is not there yet is scored, and its features committed.
5. The run is read back as report, gate and filter will read it: from the chunks, the classifier
   makes probabilities, and a row is as risky as its worst window.
6. Table and summary are written from that, beside their place, and renamed into it.

Shards may share steps 1 to 3: the first one leaves what they found in a folder of all shards.

No text is kept: for step 3 its tokens wait in a file without a name. A distinct window takes about
0.5 kB of memory and a row some 40 bytes; the rest waits on the disk, ids and addresses too.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path

from memaudit.corpus.reader import corpus_stamp
from memaudit.errors import UsageError
from memaudit.progress import ReportProgress, tell
from memaudit.runs.captured import CapturedScores
from memaudit.runs.counting import RowTokens, count_exposure, count_missing
from memaudit.runs.files import is_remote, lock_holder, scratch_folder
from memaudit.runs.folder import (
    LOCK,
    MANIFEST,
    ROWS,
    RunFolder,
    begin_run,
    copy_rows,
    keep_rows,
    open_folder,
)
from memaudit.runs.manifest import Shard, read_manifest, refuse_differences
from memaudit.runs.opening import (
    AuditInputs,
    AuditRequest,
    declare,
    finished_before,
    just_read,
    open_inputs,
    open_request,
    read_before,
)
from memaudit.runs.options import DEFAULT_OPTIONS, AuditOptions
from memaudit.runs.reading import DistinctWindows, RowLog, cut_rows
from memaudit.runs.results import AuditResult, ReportOptions, write_results
from memaudit.runs.scoring import Session, score_missing
from memaudit.runs.sealed_parquet import DamagedFileError, is_whole
from memaudit.runs.shards import (
    KeptWindows,
    keep_windows,
    open_windows,
    prepared_meant,
)
from memaudit.runs.status import RunStatus, run_status
from memaudit.text import shown_path


def audit_corpus(
    teacher: str | PathLike[str],
    data: object,
    *,
    student: str | PathLike[str] | None = None,
    baseline: str | PathLike[str] | None = None,
    out: Path | str | None = None,
    options: AuditOptions = DEFAULT_OPTIONS,
    progress: ReportProgress | None = None,
) -> AuditResult:
    """Predict which examples of a corpus a student would memorize in a distillation.

    Args:
        teacher: the model that was trained on the corpus: folder or hub id.
        data: the corpus: file, folder, glob, hub id or `-`; or rows in memory: a `datasets` data
            set, a pandas frame, a table of pyarrow or polars, an iterable of dicts; or
            `CorpusOptions`, which say how either is read.
        student: the student before training; sharpens the prediction.
        baseline: a model of the student's size that was trained on the corpus, as in the paper.
            Instead of a student.
        out: folder of the run, made if missing, or a place such as `s3://bucket/run`; a run that was
            interrupted there is continued, and one that is finished is read again without a model.
            In the end it has `risk.<format>` and `summary.json`. None writes nothing.
        options: everything else.
        progress: called now and then.

    Raises:
        UsageError: both a student and a baseline are given, or the folder holds another run.
        CorpusError: the corpus cannot be read, a row is bad, or no row can be scored.
        ModelError: a model cannot be loaded, its scores are broken, or vocabularies differ.
        ClassifierError: no classifier fits.
        OutputError: `out` cannot be written, or another process is at work in it.
    """
    request = open_request(teacher, data, student, baseline, options)
    with open_folder(out) as folder:
        run = finished_before(folder, request)
        if run is not None:
            session = Session(kept_windows=run.plan.n_windows)
            return write_results(run, session, ReportOptions(options.table_format, options.n_worst))
        return _audit(folder, open_inputs(request), progress, writes=out is not None)


def score_shard(  # noqa: PLR0913  # audit_corpus with a part of the work
    teacher: str | PathLike[str],
    data: object,
    shard: Shard,
    *,
    student: str | PathLike[str] | None = None,
    baseline: str | PathLike[str] | None = None,
    out: Path | str,
    prepared: Path | None = None,
    options: AuditOptions = DEFAULT_OPTIONS,
    progress: ReportProgress | None = None,
) -> RunStatus:
    """Score one of several parts of a corpus; `memaudit.runs.shards` puts them together.

    All but `shard` is as for `audit_corpus`, errors too, and is the same for every part; `out` is
    the folder of this part alone. `prepared` is a folder that all parts share: the first one that
    comes reads the corpus and leaves its windows there, as token ids.
    """
    request = open_request(teacher, data, student, baseline, options)
    with open_folder(out) as folder:
        finished_before(folder, request, shard)  # refuses another run before models are loaded
        if prepared is not None:
            stamp = _check_prepared(prepared, folder, request)
            _score_prepared(folder, open_inputs(request), shard, (prepared, stamp), progress)
        else:
            with DistinctWindows(options.shape.length, scratch_folder(folder)) as windows:
                _score(folder, open_inputs(request), windows, progress, shard)
    return run_status(folder)  # not before it is let go: it would say that this process is at work


def _check_prepared(place: Path, folder: Path, request: AuditRequest) -> str:
    """Refuse a folder that all parts cannot share, before models are loaded; return the stamp."""
    stamp = corpus_stamp(request.corpus)
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


def _score_prepared(
    folder: Path,
    inputs: AuditInputs,
    shard: Shard,
    prepared: tuple[Path, str],
    progress: ReportProgress | None,
) -> None:
    """Score what is missing of a part, by windows that lie in a folder that all parts share."""
    with _prepared(*prepared, inputs, progress) as (whole, windows):
        manifest = declare(inputs, read_before(whole.manifest), shard)
        run = begin_run(folder, manifest, restart=inputs.options.restart)
        copy_rows(whole.folder, run)
        score_missing(run, windows, inputs.models.score, Session(), progress)


@contextmanager
def _prepared(
    place: Path, stamp: str, inputs: AuditInputs, progress: ReportProgress | None
) -> Iterator[tuple[RunFolder, KeptWindows]]:
    """Give the run in the folder that all parts share, and its windows: made now, or found there."""
    if lock_holder(place / LOCK) is not None:
        tell(f"wait for {shown_path(place)}")
    with ExitStack() as stack:
        with prepared_meant(), open_folder(place, waits=True) as folder:
            try:
                run = _prepared_run(folder, inputs)
                windows = stack.enter_context(open_windows(run, stamp))
            except (DamagedFileError, FileNotFoundError):
                run = _prepare(folder, inputs, stamp, progress)
                windows = stack.enter_context(open_windows(run, stamp))
        yield run, windows


def _prepared_run(folder: Path, inputs: AuditInputs) -> RunFolder:
    """Return the run in the folder that all parts share, which must be a part's but for its chunks.

    Raises:
        FileNotFoundError: it is not there, or not whole.
        UsageError: another run is there.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(path)
    run = RunFolder(folder, read_manifest(path))
    refuse_differences(folder, run.manifest, declare(inputs, read_before(run.manifest), None))
    if not is_whole(folder / ROWS, {"memaudit.run": run.plan.fingerprint}):
        raise FileNotFoundError(folder / ROWS)
    return run


def _prepare(
    folder: Path, inputs: AuditInputs, stamp: str, progress: ReportProgress | None
) -> RunFolder:
    """Read the corpus, and leave in a folder what a shard needs of it; the windows last."""
    inputs = replace(inputs, options=replace(inputs.options, restart=False))
    with (
        DistinctWindows(inputs.options.shape.length, scratch_folder(folder)) as windows,
        _read(folder, inputs, windows, progress) as (run, tokens),
    ):
        if run.plan.epochs is not None:
            count_exposure(run.plan, range(run.plan.n_chunks), windows, tokens, progress)
        keep_windows(run, windows, stamp)
    return run


def _audit(
    folder: Path, inputs: AuditInputs, progress: ReportProgress | None, *, writes: bool
) -> AuditResult:
    """Score what is not scored yet, and write the results."""
    options = inputs.options
    with DistinctWindows(options.shape.length, scratch_folder(folder)) as windows:
        run, session = _score(folder, inputs, windows, progress)

        def text_of(window: int) -> str:
            token_ids = windows.window(window).tolist()
            return inputs.models.tokenizer.decode([token_ids])[0][: options.show_text]

        shown = text_of if options.show_text else None
        report = ReportOptions(options.table_format, options.n_worst, shown)
        return write_results(run, session, report, writes=writes)


def _score(
    folder: Path,
    inputs: AuditInputs,
    windows: DistinctWindows,
    progress: ReportProgress | None,
    shard: Shard | None = None,
) -> tuple[RunFolder, Session]:
    """Read the corpus, begin or continue the run, and score what is missing."""
    session = Session()
    with _read(folder, inputs, windows, progress, shard) as (run, tokens):
        count_missing(run, windows, tokens, progress)
        return run, score_missing(run, windows, inputs.models.score, session, progress)


@contextmanager
def _read(
    folder: Path,
    inputs: AuditInputs,
    windows: DistinctWindows,
    progress: ReportProgress | None,
    shard: Shard | None = None,
) -> Iterator[tuple[RunFolder, RowTokens]]:
    """Read the corpus, and begin or continue its run; give that, and the tokens of the rows."""
    place, models, choice = scratch_folder(folder), inputs.models, inputs.options.window_choice
    with (
        RowLog(place) as rows,
        RowTokens(place) as tokens,
        CapturedScores(choice, place) as captured,
    ):
        windows.captured = captured if models.is_captured else None
        cuts = cut_rows(
            inputs.rows,
            models.tokenizer,
            (rows, windows),
            choice=choice,
            progress=progress,
            keep_tokens=tokens.append if inputs.asks_exposure else None,
        )
        # Only now is known what the run is: the manifest pins the texts that were read. An earlier
        # session's chunks count if its manifest says the same, so the corpus is read at each start.
        inputs = replace(inputs, models=models.told_by(windows.captured))
        manifest = declare(inputs, just_read(cuts, windows, inputs.seen), shard)
        run = begin_run(folder, manifest, restart=inputs.options.restart)
        # Before the chunks: a folder with all its chunks can then be read without the corpus.
        keep_rows(run, rows, cuts)
        yield run, tokens
