"""The audit: a corpus in, a risk table out. This file shows the whole flow.

1. Every row is read, tokenised and cut into windows; equal windows are kept once and counted.
2. What the run was given is written down, or compared with what is written down already.
3. Every chunk of distinct windows that is not there yet is scored, and its features committed.
4. The run is read back as report, gate and filter will read it: from the chunks, the classifier
   makes probabilities, and a row is as risky as its worst window.
5. Table and summary are written from that, beside their place, and renamed into it.

No text is kept. While windows are scored, a distinct one takes about 0.5 kB of memory and a row 16
bytes; the rest waits on the disk. At the end ids and addresses of all rows are in memory.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memaudit.classifier import RiskClassifier
from memaudit.corpus import BadRow, CorpusOptions, Example
from memaudit.runs.files import output_errors, remove_halves, scratch_folder
from memaudit.runs.folder import RunFolder, begin_run, keep_rows, open_folder, unscored_chunks
from memaudit.runs.manifest import Manifest, Shard
from memaudit.runs.models import AuditModels
from memaudit.runs.opening import AuditInputs, chosen_prefilter, declare, open_inputs
from memaudit.runs.options import DEFAULT_OPTIONS, AuditOptions
from memaudit.runs.reading import DistinctWindows, RowLog, cut_rows
from memaudit.runs.results import AuditResult, ReportOptions, Session, write_results
from memaudit.runs.scoring import chunks_to_score
from memaudit.runs.status import RunStatus, run_status


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run."""

    stage: str
    """Rows are read first (`read`), then windows are scored (`score`)."""

    done: int
    """Rows read, or distinct windows scored."""

    total: int | None
    """How many there are; None while that is not known."""

    seconds: float
    """Since the stage began."""

    @property
    def unit(self) -> str:
        """What is counted."""
        return "rows" if self.stage == "read" else "windows"

    @property
    def rate(self) -> float:
        """Done per second; 0 at the start."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left at this rate; None while that cannot be told."""
        if self.total is None or self.rate == 0:
            return None
        return (self.total - self.done) / self.rate


ReportProgress = Callable[[Progress], None]
"""Told now and then how far an audit has come."""


def audit_corpus(
    teacher: str,
    data: str | Path | CorpusOptions,
    *,
    student: str | None = None,
    baseline: str | None = None,
    out: Path | str | None = None,
    options: AuditOptions = DEFAULT_OPTIONS,
    progress: ReportProgress | None = None,
) -> AuditResult:
    """Predict which examples of a corpus a student would memorize in a distillation.

    Args:
        teacher: the model that was trained on the corpus: folder or hub id.
        data: the corpus: file, folder, glob, hub id or `-`; or that with options.
        student: the student before training; sharpens the prediction.
        baseline: a model of the student's size that was trained on the corpus, as in the paper.
            Instead of a student.
        out: folder of the run, made if missing, or a place such as `s3://bucket/run`; a run that
            was interrupted there is continued. In the end it has `risk.<format>` and `summary.json`. None writes nothing.
        options: everything else.
        progress: called now and then.

    Returns:
        counts, the expected number memorized, the worst examples, and where the table is.

    Raises:
        UsageError: both a student and a baseline are given, or the folder holds another run.
        CorpusError: the corpus cannot be read, a row is bad, or no row can be scored.
        ModelError: a model cannot be loaded, its scores are broken, or vocabularies differ.
        ClassifierError: no classifier fits.
        OutputError: `out` cannot be written, or another process is at work in it.
    """
    with open_folder(out) as folder:
        inputs = open_inputs(teacher, data, student, baseline, options)
        return _audit(folder, inputs, options, progress, writes=out is not None)


def score_shard(  # noqa: PLR0913  # audit_corpus with a part of the work
    teacher: str,
    data: str | Path | CorpusOptions,
    shard: Shard,
    *,
    student: str | None = None,
    baseline: str | None = None,
    out: Path | str,
    options: AuditOptions = DEFAULT_OPTIONS,
    progress: ReportProgress | None = None,
) -> RunStatus:
    """Score one of several parts of a corpus; `memaudit.runs.merging` puts them together.

    Args:
        teacher: as for `audit_corpus`, like all that is not explained; the same for every part.
        data: the corpus.
        shard: which part.
        student: a reference.
        baseline: another reference.
        out: folder of this part alone.
        options: everything else.
        progress: called now and then.

    Raises:
        UsageError, CorpusError, ModelError, ClassifierError, OutputError: as for `audit_corpus`.
    """
    with open_folder(out) as folder:
        inputs = open_inputs(teacher, data, student, baseline, options)
        with _scored(folder, inputs, options, progress, shard=shard):
            pass
    return run_status(folder)


def audit_rows(
    rows: Iterable[Example | BadRow],
    models: AuditModels,
    classifier: RiskClassifier,
    *,
    out: Path | None = None,
    options: AuditOptions = DEFAULT_OPTIONS,
    progress: ReportProgress | None = None,
) -> AuditResult:
    """Audit rows with models that are loaded already.

    Args:
        rows: every row of the corpus, in order.
        models: score the windows.
        classifier: its features are among those of the models' feature set.
        out: as for `audit_corpus`.
        options: as for `audit_corpus`; how models are loaded has no effect any more.
        progress: called now and then.

    Raises:
        UsageError, CorpusError, ModelError, ClassifierError, OutputError: as for `audit_corpus`.
    """
    with open_folder(out) as folder:
        inputs = AuditInputs(rows, models, classifier, chosen_prefilter(classifier, options))
        return _audit(folder, inputs, options, progress, writes=out is not None)


def _audit(
    folder: Path,
    inputs: AuditInputs,
    options: AuditOptions,
    progress: ReportProgress | None,
    *,
    writes: bool,
) -> AuditResult:
    """Score what is not scored yet, and write the results."""
    with _scored(folder, inputs, options, progress) as done:

        def text_of(window: int) -> str:
            token_ids = done.windows.window(window).tolist()
            return inputs.models.tokenizer.decode([token_ids])[0][: options.show_text]

        report = ReportOptions(
            options.table_format, options.n_worst, text_of if options.show_text else None
        )
        return write_results(done.run, done.session, report, writes=writes)


@dataclass(frozen=True, slots=True)
class _Scored:
    """A run all of whose own chunks are there."""

    run: RunFolder
    windows: DistinctWindows
    session: Session


@contextmanager
def _scored(
    folder: Path,
    inputs: AuditInputs,
    options: AuditOptions,
    progress: ReportProgress | None,
    shard: Shard | None = None,
) -> Iterator[_Scored]:
    """Read the corpus, begin or continue the run, and score what is missing."""
    started = time.monotonic()
    place = scratch_folder(folder)
    with RowLog(place) as rows, DistinctWindows(options.shape.length, place) as windows:
        cuts = cut_rows(
            inputs.rows,
            inputs.models.tokenizer,
            (rows, windows),
            choice=options.window_choice,
            on_batch=_stage("read", None, progress),
        )
        manifest = Manifest(
            inputs=declare(inputs, options, cuts, len(windows)),
            names=inputs.models.names(inputs.classifier),
            classifier=inputs.classifier,
            prefilter=inputs.prefilter,
            shard=shard,
            raw_digest=cuts.raw.value,
            corpus_read=inputs.seen.in_words,
        )
        # Only now is known what the run is: the manifest pins the texts that were read. An earlier
        # session's chunks count if its manifest says the same, so the corpus is read at each start.
        run = begin_run(folder, manifest, restart=options.restart)
        # Before the chunks: a folder with all its chunks can then be read without the corpus.
        keep_rows(run, rows, cuts)
        session = _score_missing(run, windows, inputs.models, started, progress)
        yield _Scored(run, windows, session)


def _score_missing(
    run: RunFolder,
    windows: DistinctWindows,
    models: AuditModels,
    started: float,
    progress: ReportProgress | None,
) -> Session:
    """Score the chunks that are not there yet."""
    plan, missing = run.plan, unscored_chunks(run)
    n_missing = sum(len(plan.windows_of(chunk)) for chunk in missing)
    scoring_started, done = time.monotonic(), 0
    report = _stage("score", n_missing, progress)
    report(done)
    for chunk in models.score(plan, chunks_to_score(plan, windows, missing)):
        done += len(plan.windows_of(chunk))
        report(done)
    with output_errors(plan.folder):
        remove_halves(plan.folder)  # of workers that were killed at a commit
    return Session(
        started=started,
        scoring_seconds=time.monotonic() - scoring_started,
        kept_windows=plan.n_windows - n_missing,
    )


def _stage(
    stage: Literal["read", "score"], total: int | None, progress: ReportProgress | None
) -> Callable[[int], None]:
    """Return what turns a count into a `Progress` of a stage that begins now."""
    started = time.monotonic()

    def report(done: int) -> None:
        if progress is not None:
            progress(Progress(stage, done, total, time.monotonic() - started))

    return report
