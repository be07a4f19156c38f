"""The audit: a corpus in, a risk table out. This file shows the whole flow.

1. Every row is read, tokenised and cut into windows; equal windows are kept once and counted.
2. Every distinct window is scored by the models, and its features are computed.
3. The classifier turns features into probabilities; a row is as risky as its worst window.
4. The table is written beside its place and renamed into it.

No text is kept. A distinct window takes about 0.5 kB of memory, a row 16 bytes: the rest of it
waits on the disk.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from memaudit import __version__
from memaudit.classifier import RiskClassifier, check_zlib, find_classifier
from memaudit.corpus import BadRow, CorpusOptions, Example, read_corpus
from memaudit.engines import EngineName, choose_engine
from memaudit.engines.base import Engine
from memaudit.engines.models import ModelOptions
from memaudit.errors import CorpusError, UsageError
from memaudit.features import FEATURE_SETS, ReferenceRole
from memaudit.runs.commit import output_folder
from memaudit.runs.cutting import cut_rows
from memaudit.runs.judging import judge, out_of_range_rates, risk_rows, worst_examples
from memaudit.runs.outputs import write_outputs
from memaudit.runs.progress import Progress
from memaudit.runs.result import AuditResult, ModelNames
from memaudit.runs.risk_table import TableFormat
from memaudit.runs.scoring import Tokenizer, feature_matrix, feature_set_name
from memaudit.runs.spool import RowSpool, WindowSpool
from memaudit.windows import WindowPolicy, WindowShape

ReportProgress = Callable[[Progress], None]
"""Told now and then how far an audit has come."""


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """How a corpus is audited."""

    classifier: str | None = None
    """Name or path. None: the shipped one for the models given."""

    engine: EngineName = "auto"
    """What runs the models; `auto` is `hf`."""

    shape: WindowShape = field(default_factory=WindowShape)
    """Tokens of prefix and suffix."""

    windows: WindowPolicy = "first"
    """Which windows of a row are scored."""

    on_bad_row: Literal["error", "skip"] = "error"
    """Whether a row that cannot be used ends the audit, or is counted and left out."""

    model: ModelOptions = field(default_factory=ModelOptions)
    """How models are loaded."""

    table_format: TableFormat = "parquet"
    """How the risk table is written."""

    chunk_size: int = 128
    """Distinct windows that are scored together."""

    n_worst: int = 10
    """Examples listed in the result, at least 0."""

    show_text: int = 0
    """Characters of the listed examples that enter the result; 0: no text of the corpus does."""

    threads: int | None = None
    """CPU threads of torch in this process. None leaves them as they are."""

    def __post_init__(self) -> None:
        choose_engine(self.engine)
        if self.chunk_size < 1 or min(self.n_worst, self.show_text) < 0:
            raise ValueError("chunk_size must be at least 1, n_worst and show_text at least 0")


DEFAULT_OPTIONS = AuditOptions()
"""The paper's window, the hf engine, a table as parquet; a bad row ends the audit."""


@dataclass(frozen=True, slots=True)
class AuditModels:
    """What scores a corpus: loaded models, or a test's stand-in."""

    engine: Engine
    """Runs the teacher, and the reference if there is a role for it."""

    tokenizer: Tokenizer
    """The teacher's."""

    teacher: str
    """As given, for reports."""

    teacher_digest: str = ""
    """Of its files."""

    reference: str | None = None
    """As given, for reports."""

    reference_digest: str | None = None
    """Of its files."""

    role: ReferenceRole | None = None
    """What the reference is."""

    def names(self, classifier: RiskClassifier) -> ModelNames:
        """Return what reports call these, with the classifier that judges their scores."""
        return ModelNames(
            teacher=self.teacher,
            teacher_digest=self.teacher_digest,
            reference=self.reference,
            reference_digest=self.reference_digest,
            feature_set=feature_set_name(self.role),
            engine=self.engine.name,
            classifier=classifier.name,
            classifier_digest=classifier.digest,
            memaudit_version=__version__,
        )


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
        out: folder for `risk.<format>` and `summary.json`, made if missing. None writes nothing.
        options: everything else.
        progress: called now and then.

    Returns:
        counts, the expected number memorized, the worst examples, and where the table is.

    Raises:
        UsageError: both a student and a baseline are given.
        CorpusError: the corpus cannot be read, a row is bad, or no row can be scored.
        ModelError: a model cannot be loaded, its scores are broken, or vocabularies differ.
        ClassifierError: no classifier fits.
        OutputError: `out` cannot be written.
    """
    role = _reference_role(student, baseline)
    classifier = find_classifier(options.classifier, feature_set_name(role))
    check_zlib(classifier)
    # Models are loaded once there is a first row: a typo in a path costs no loading.
    models = cache(lambda: _load_models(teacher, student or baseline, role, options))
    rows = read_corpus(
        data if isinstance(data, CorpusOptions) else CorpusOptions(str(data)),
        render_messages=lambda messages: models().tokenizer.render_messages(messages),
    )
    folder = None if out is None else Path(out)
    with nullcontext() if folder is None else output_folder(folder):
        rows = _begun(_allowed(rows, options.on_bad_row))
        return audit_rows(
            rows, models(), classifier, out=folder, options=options, progress=progress
        )


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
        out: a folder that exists, or None.
        options: as for `audit_corpus`; how models are loaded has no effect any more.
        progress: called now and then.

    Raises:
        CorpusError, ModelError, ClassifierError, OutputError: as for `audit_corpus`.
    """
    started = time.monotonic()
    shape = options.shape
    with RowSpool(out) as row_spool, WindowSpool(shape.length, out) as windows:
        cuts = cut_rows(
            rows,
            models.tokenizer,
            (row_spool, windows),
            shape=shape,
            policy=options.windows,
            on_batch=_stage("read", None, progress),
        )
        scoring_started = time.monotonic()
        X = _score(windows, models, options, progress)
        scoring_seconds = time.monotonic() - scoring_started
        judgement = judge(classifier, FEATURE_SETS[feature_set_name(models.role)], X, cuts)
        distinct, copies = np.unique(judgement.worst_windows, return_counts=True)
        probabilities = judgement.window_probabilities[distinct]
        result = AuditResult(
            outcomes=cuts.outcomes,
            flagged=judgement.n_flagged,
            threshold=classifier.threshold,
            flagged_distinct=int((probabilities >= classifier.threshold).sum()),
            expected=classifier.expected_count(probabilities, copies),
            expected_distinct=classifier.expected_count(probabilities),
            windows=len(cuts.windows),
            distinct_windows=len(windows),
            shape=shape,
            policy=options.windows,
            names=models.names(classifier),
            worst=worst_examples(
                (row_spool, windows),
                judgement,
                models.tokenizer,
                n=options.n_worst,
                show_text=options.show_text,
            ),
            out_of_range=out_of_range_rates(judgement),
            seconds=time.monotonic() - started,
            scoring_seconds=scoring_seconds,
            table=None if out is None else out / f"risk.{options.table_format}",
        )
        if result.table is not None:
            rows_out = risk_rows(row_spool, judgement)
            write_outputs(result, result.table, options.table_format, rows_out)
    return result


def _reference_role(student: str | None, baseline: str | None) -> ReferenceRole | None:
    if student is not None and baseline is not None:
        raise UsageError(
            "both a student and a baseline are given, expected at most one reference",
            hint="leave out --student or --baseline",
        )
    if baseline is not None:
        return "baseline"
    return None if student is None else "student"


def _load_models(
    teacher: str, reference: str | None, role: ReferenceRole | None, options: AuditOptions
) -> AuditModels:
    from memaudit.engines.hf import HfEngine
    from memaudit.engines.models import check_same_vocabulary, load_model

    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    loaded = load_model(teacher, options.model)
    loaded_reference = None if reference is None else load_model(reference, options.model)
    if loaded_reference is not None:
        check_same_vocabulary(loaded, loaded_reference)
    engine = HfEngine(
        loaded.model,
        None if loaded_reference is None else loaded_reference.model,
        bos_token_id=loaded.tokenizer.bos_token_id,
    )
    return AuditModels(
        engine=engine,
        tokenizer=loaded.tokenizer,
        teacher=teacher,
        teacher_digest=loaded.digest,
        reference=reference,
        reference_digest=None if loaded_reference is None else loaded_reference.digest,
        role=role,
    )


def _allowed(
    rows: Iterator[Example | BadRow], on_bad_row: Literal["error", "skip"]
) -> Iterator[Example | BadRow]:
    """Yield rows; refuse the first bad one if the policy says so."""
    for row in rows:
        if isinstance(row, BadRow) and on_bad_row == "error":
            raise CorpusError(
                f"{row.address}: {row.reason}",
                hint="repair the row, or count and leave out bad rows with --on-bad-row skip",
            )
        yield row


def _begun(rows: Iterator[Example | BadRow]) -> Iterator[Example | BadRow]:
    """Read the first row now, so that a corpus that cannot be read says so now."""
    return chain(list(islice(rows, 1)), rows)


def _stage(
    stage: Literal["read", "score"], total: int | None, progress: ReportProgress | None
) -> Callable[[int], None]:
    """Return what turns a count into a `Progress` of a stage that begins now."""
    started = time.monotonic()

    def report(done: int) -> None:
        if progress is not None:
            progress(Progress(stage, done, total, time.monotonic() - started))

    return report


def _score(
    windows: WindowSpool,
    models: AuditModels,
    options: AuditOptions,
    progress: ReportProgress | None,
) -> NDArray[np.float64]:
    """Return (n_windows, n_features)."""
    return feature_matrix(
        windows,
        models.engine,
        models.tokenizer,
        shape=options.shape,
        role=models.role,
        chunk_size=options.chunk_size,
        on_chunk=_stage("score", len(windows), progress),
    )
