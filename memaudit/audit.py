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

from os import PathLike
from pathlib import Path

from memaudit.progress import ReportProgress
from memaudit.runs.counting import count_missing
from memaudit.runs.files import scratch_folder
from memaudit.runs.folder import RunFolder, begin_run, keep_rows, open_folder
from memaudit.runs.manifest import Shard
from memaudit.runs.opening import (
    AuditInputs,
    declare,
    finished_before,
    open_inputs,
    open_request,
    read_rows,
)
from memaudit.runs.options import DEFAULT_OPTIONS, AuditOptions, refuse_to_time
from memaudit.runs.reading import DistinctWindows
from memaudit.runs.results import AuditResult, write_results
from memaudit.runs.scoring import Session, score_missing
from memaudit.runs.shards import check_prepared, score_prepared
from memaudit.runs.status import RunStatus, run_status


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
        request = request.as_begun(folder)
        run = finished_before(folder, request)
        if run is not None:
            session = Session(kept_windows=run.plan.n_windows)
            return write_results(run, session, options)
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
    refuse_to_time(options, is_shard=True)
    with open_folder(out) as folder:
        finished_before(folder, request, shard)  # refuses another run before models are loaded
        if prepared is not None:
            stamp = check_prepared(prepared, folder, request.corpus)
            score_prepared(folder, open_inputs(request), shard, (prepared, stamp), progress)
        else:
            with DistinctWindows(options.shape.length, scratch_folder(folder)) as windows:
                _score(folder, open_inputs(request), windows, progress, shard)
    return run_status(folder)  # not before it is let go: it would say that this process is at work


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
        return write_results(run, session, options, text_of=shown, writes=writes)


def _score(
    folder: Path,
    inputs: AuditInputs,
    windows: DistinctWindows,
    progress: ReportProgress | None,
    shard: Shard | None = None,
) -> tuple[RunFolder, Session]:
    """Read the corpus, begin or continue the run, and score what is missing."""
    session = Session()
    with read_rows(inputs, windows, folder, progress) as read:
        # Only now is known what the run is: its manifest pins the texts that were read, and whether
        # compiling pays. Chunks of an earlier session count if that manifest is the same.
        read = read.settled()
        manifest = declare(read.inputs, read.corpus, shard)
        run = begin_run(folder, manifest, restart=inputs.options.restart)
        # Before the chunks: a folder with all its chunks can then be read without the corpus.
        keep_rows(run, read.rows, read.cuts)
        count_missing(run, windows, read.tokens, progress)
        return run, score_missing(run, windows, read.inputs.models.score, session, progress)
