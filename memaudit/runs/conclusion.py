"""The conclusion of a run: from its manifest, its rows and its chunks to the results, and no more.

A run that was interrupted, one that was merged from shards and one that went through in one go
all end here, so they all end alike.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from memaudit.errors import OutputError
from memaudit.runs.chunks import read_matrix
from memaudit.runs.folder import Run
from memaudit.runs.judging import (
    Judgement,
    TextOf,
    judge,
    out_of_range_rates,
    risk_rows,
    summarise_run,
    worst_examples,
)
from memaudit.runs.reading import RowLog, RowWindows
from memaudit.runs.result import AuditResult
from memaudit.runs.risk_table import TableFormat, write_outputs
from memaudit.runs.screening import rows_screened, screen_cuts
from memaudit.runs.sealed_parquet import DamagedFileError
from memaudit.runs.workers import read_failures, rows_that_failed


@dataclass(frozen=True, slots=True)
class Session:
    """What one process did for a run."""

    started: float
    """By `time.monotonic`."""

    scoring_seconds: float = 0.0
    """Wall time of the scoring."""

    kept_windows: int = 0
    """Distinct windows that were scored before."""


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """How results are told; nothing of it is declared, so it may change from session to session."""

    table_format: TableFormat = "parquet"
    """How the risk table is written."""

    n_worst: int = 10
    """Examples listed, at least 0."""

    text_of: TextOf | None = None
    """Gives the text of those. None: no text of the corpus comes out."""


def conclude(
    run: Run,
    rows: RowLog,
    cuts: RowWindows,
    session: Session,
    *,
    report: ReportOptions,
    writes: bool = True,
) -> AuditResult:
    """Judge a run whose chunks are all there or marked as failed; write its table and summary.

    Args:
        run: all of it.
        rows: of the corpus, in order.
        cuts: which windows they have.
        session: for the times.
        report: how results are told.
        writes: whether there are to be files.

    Raises:
        OutputError: a chunk is missing or damaged, or the results cannot be written.
        ModelError: no row is left whose chunks are there.
        ClassifierError: a feature is not a finite number.
    """
    manifest, plan = run.manifest, run.plan
    failures = read_failures(plan, range(plan.n_chunks))
    try:
        X = read_matrix(plan, without=failures)
    except (DamagedFileError, FileNotFoundError) as error:
        raise OutputError(
            f"{run.folder}: a chunk has been removed or changed since it was scored",
            hint="give the same command again: it will be scored anew",
        ) from error
    table = run.folder / f"risk.{report.table_format}" if writes else None
    with ExitStack() as spools:
        rows, cuts = spools.enter_context(rows_that_failed(plan, rows, cuts, failures))
        screened = screen_cuts(plan, X, cuts)
        rows = spools.enter_context(rows_screened(plan, rows, screened))
        judgement = judge(manifest.classifier, plan.features, X, screened.cuts)
        result = _result(run, screened.cuts, judgement, rows, session, report, table)
        result = replace(
            result,
            windows=len(cuts.windows),
            screened_windows=screened.n_windows,
            survival=manifest.inputs.survival,
            failures=failures,
        )
        if table is not None:
            told = risk_rows(rows, judgement, screened.probabilities.tolist())
            write_outputs(result, table, judgement.feature_names, told)
    return result


def _result(
    run: Run,
    cuts: RowWindows,
    judgement: Judgement,
    rows: RowLog,
    session: Session,
    report: ReportOptions,
    table: Path | None,
) -> AuditResult:
    inputs, classifier = run.manifest.inputs, judgement.classifier
    distinct, copies = np.unique(judgement.worst_windows, return_counts=True)
    probabilities = judgement.window_probabilities[distinct]
    return AuditResult(
        outcomes=cuts.outcomes,
        flagged=judgement.n_flagged,
        threshold=classifier.threshold,
        flagged_distinct=int((probabilities >= classifier.threshold).sum()),
        expected=classifier.expected_count(probabilities, copies),
        expected_distinct=classifier.expected_count(probabilities),
        windows=len(cuts.windows),
        distinct_windows=inputs.distinct_windows,
        kept_windows=session.kept_windows,
        shape=inputs.shape,
        policy=inputs.windows,
        answers=inputs.answers,
        objective=inputs.objective,
        names=run.manifest.names,
        run=inputs.fingerprint,
        worst=worst_examples(rows, judgement, report.n_worst, report.text_of),
        out_of_range=out_of_range_rates(judgement),
        seconds=time.monotonic() - session.started,
        scoring_seconds=session.scoring_seconds,
        table=table,
        sensitivity=summarise_run(judgement, inputs.versions),
    )
