"""The results of a run: what `predict` and `merge` say, and what they leave in the folder.

Everything is made from the manifest, the rows and the chunks, and from nothing else. So a run that
was interrupted, one that was merged from shards and one that went through in one go end alike.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from memaudit.errors import OutputError, UsageError
from memaudit.features import reason_in_words
from memaudit.files import TABLE_FORMATS, TableFormat
from memaudit.metrics import ExpectedCount
from memaudit.objectives import Objective
from memaudit.runs.chunks import read_failures
from memaudit.runs.files import committed_file, output_errors
from memaudit.runs.folder import SUMMARY, WINDOWS, RunFolder, read_summary
from memaudit.runs.manifest import AnswersRead, ModelNames
from memaudit.runs.options import AuditOptions
from memaudit.runs.risk_table import read_risk_table, write_risk_table
from memaudit.runs.risks import Worst
from memaudit.runs.run import Run, TextOf, read_run
from memaudit.runs.scoring import Session
from memaudit.sensitivity import SensitivitySummary
from memaudit.text import safe_text, shown_path
from memaudit.windows import WindowPolicy, WindowShape

SCHEMA_VERSION = 1
"""Of the risk table and the summary; goes up when a reader of the old one would misread."""


@dataclass(frozen=True, slots=True, repr=False)
class AuditResult:
    """What an audit found: a view of its run. Counts are of rows unless they say otherwise."""

    finished: Run
    """All rows and their probabilities."""

    worst: tuple[Worst, ...]
    """The riskiest first."""

    seconds: float
    """Wall time of this session of the audit, without the loading of models."""

    scoring_seconds: float
    """Wall time of the scoring pass in this session."""

    kept_windows: int
    """Distinct windows that an earlier session scored."""

    table_path: Path | None = None
    """Where the risk table is. None: none was written."""

    def __repr__(self) -> str:
        where = "" if self.table_path is None else f", table {shown_path(self.table_path)}"
        return f"<AuditResult: {self._sentence}{where}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: one sentence and the worst examples, without their texts."""
        cells = [
            # What is not certain must not read as 100.0 %.
            (each.example_id, f"{min(each.probability, 0.999):.1%}", each.reason)
            for each in self.worst
        ]
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(safe_text(cell, 100))}</td>' for cell in row)}</tr>"
            for row in cells
        )
        head = "<tr><th>id</th><th>probability</th><th>reason</th></tr>" if rows else ""
        return f"<p>{escape(self._sentence)}</p><table>{head}{rows}</table>"

    @property
    def _sentence(self) -> str:
        low, high = round(self.expected.low), round(self.expected.high)
        return (
            f"{self.flagged:,} of {self.rows:,} examples are at risk, "
            f"expect {round(self.expected.mean):,} ({low:,} to {high:,}) to be memorized"
        )

    @property
    def table(self) -> pa.Table:
        """The risk table, one row per example in the order of the corpus."""
        return read_risk_table(_risk_rows(self.finished), self.finished.risks.table_columns)

    def to_pandas(self) -> Any:
        """Return the risk table as a frame of pandas, which comes with `datasets`."""
        return self.table.to_pandas()

    @property
    def run(self) -> str:
        """Fingerprint of what the run was given: equal ones have equal tables."""
        return self.finished.manifest.inputs.fingerprint

    @property
    def names(self) -> ModelNames:
        """Models, engine and classifier."""
        return self.finished.manifest.names

    @property
    def shape(self) -> WindowShape:
        """Tokens of prefix and suffix."""
        return self.finished.manifest.inputs.shape

    @property
    def policy(self) -> WindowPolicy:
        """Which windows of a row were cut."""
        return self.finished.manifest.inputs.windows

    @property
    def objective(self) -> Objective:
        """What the student was taken to learn from."""
        return self.finished.manifest.inputs.objective

    @property
    def corpus_read(self) -> str | None:
        """How many files the corpus had, and in which layout: in words. None: not told."""
        return self.finished.manifest.corpus_read

    @property
    def answers(self) -> AnswersRead | None:
        """Which part of what is trained on was looked at. None: rows are trained on as a whole."""
        return self.finished.manifest.inputs.answers

    @property
    def outcomes(self) -> Mapping[str, int]:
        """Rows by outcome; what is not named has none."""
        return self.finished.outcomes

    @property
    def failures(self) -> Mapping[int, str]:
        """Why chunks could not be scored, by number: their rows have the outcome `error`."""
        return self.finished.failures

    @property
    def threshold(self) -> float:
        """The classifier's: at or above it a row is flagged."""
        return self.finished.manifest.classifier.threshold

    @property
    def flagged(self) -> int:
        """Scored rows whose probability reaches the threshold."""
        return self.finished.risks.n_flagged

    @property
    def flagged_distinct(self) -> int:
        """Distinct texts among the flagged rows: equal texts count once."""
        return self.finished.risks.n_flagged_texts

    @property
    def flagged_windows(self) -> int:
        """Distinct worst windows of the flagged rows; different texts may share one."""
        return self.finished.risks.n_flagged_windows

    @property
    def expected(self) -> ExpectedCount:
        """Scored rows expected to be memorized: the sum of their probabilities."""
        return self.finished.risks.expected

    @property
    def expected_distinct(self) -> ExpectedCount:
        """Distinct texts expected to be memorized."""
        return self.finished.risks.expected_texts

    @property
    def out_of_range(self) -> dict[str, float]:
        """For each feature of the classifier, the share of scored rows beyond its training range."""
        return self.finished.risks.out_of_range

    @property
    def unfamiliar(self) -> dict[str, float]:
        """Those for which too many rows lie beyond it."""
        return self.finished.risks.unfamiliar

    @property
    def sensitivity(self) -> SensitivitySummary | None:
        """How many rows hold personal data or secrets. None: it was not looked for."""
        return self.finished.sensitivity_summary

    @property
    def windows(self) -> int:
        """Windows cut, equal ones counted each time."""
        return self.finished.n_windows

    @property
    def distinct_windows(self) -> int:
        """Equal ones counted once: what is scored, but for what the prefilter leaves out."""
        return self.finished.manifest.inputs.distinct_windows

    @property
    def screened_windows(self) -> int:
        """Distinct windows that the prefilter left out, of all of them."""
        return self.finished.n_screened_windows

    @property
    def survival(self) -> float | None:
        """Share of what would be flagged that survives the prefilter; None: there was none."""
        return self.finished.manifest.inputs.survival

    @property
    def scored(self) -> int:
        """Rows that got a probability."""
        return self.outcomes.get("scored", 0)

    @property
    def too_short(self) -> int:
        """Rows without a single window: they cannot be extracted under the definition."""
        return self.outcomes.get("too_short", 0)

    @property
    def bad(self) -> int:
        """Rows that could not be used."""
        return self.outcomes.get("bad", 0)

    @property
    def screened(self) -> int:
        """Rows that a prefilter left out; the expected numbers do not count them."""
        return self.outcomes.get("screened", 0)

    @property
    def errors(self) -> int:
        """Rows that could not be scored, now; another session may succeed."""
        return self.outcomes.get("error", 0)

    @property
    def rows(self) -> int:
        """Rows in the corpus: every one has exactly one outcome."""
        return self.scored + self.screened + self.too_short + self.bad + self.errors

    @property
    def tokens(self) -> int:
        """Of distinct windows that were scored, each once, however many models looked at it."""
        return (self.distinct_windows - self.screened_windows) * self.shape.length

    @property
    def tokens_saved(self) -> int:
        """Of distinct windows that a prefilter spared the teacher."""
        return self.screened_windows * self.shape.length

    @property
    def tokens_per_second(self) -> float:
        """Of the scoring pass, for what was scored in this session.

        What a prefilter left out is taken to be spread evenly over the sessions.
        """
        share = 1 - self.kept_windows / max(1, self.distinct_windows)
        scored = self.tokens * share
        return scored / self.scoring_seconds if self.scoring_seconds > 0 else 0.0

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document; keys are never renamed within a version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "rows": self.rows,
            "scored": self.scored,
            "screened": self.screened,
            "too_short": self.too_short,
            "bad": self.bad,
            "errors": self.errors,
            "failed_chunks": sorted(self.failures),
            "flagged": self.flagged,
            "threshold": self.threshold,
            "expected_memorized": self.expected.mean,
            "expected_memorized_interval": [self.expected.low, self.expected.high],
            "flagged_distinct": self.flagged_distinct,
            "flagged_windows": self.flagged_windows,
            "expected_memorized_distinct": self.expected_distinct.mean,
            "expected_memorized_distinct_interval": [
                self.expected_distinct.low,
                self.expected_distinct.high,
            ],
            "expected_generic_distinct": self.finished.risks.expected_generic_texts,
            "expected_if_sampled": self.finished.risks.sampled_document(),
            "windows": self.windows,
            "distinct_windows": self.distinct_windows,
            "kept_windows": self.kept_windows,
            "screened_windows": self.screened_windows,
            "survival": self.survival,
            "sensitivity": None if self.sensitivity is None else asdict(self.sensitivity),
            "window_policy": self.policy,
            **self.objective.settings,
            "epochs": None
            if (counted := self.finished.manifest.inputs.exposure) is None
            else counted.epochs,
            "corpus_read": self.corpus_read,
            "unused_weights": self.finished.manifest.unused_weights,
            "compile_choice": self.finished.manifest.compile_choice,
            "answers": None if self.answers is None else msgspec.to_builtins(self.answers),
            **self.shape.settings,
            **asdict(self.names),
            "run": self.run,
            "worst": [example.document() for example in self.worst],
            "out_of_range": self.out_of_range,
            "tokens": self.tokens,
            "tokens_saved": self.tokens_saved,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "table": None if self.table_path is None else str(self.table_path),
        }

    def metadata(self) -> dict[str, str]:
        """Return what the table says of itself, where its format has a place for that."""
        shape = self.shape
        values = {
            "schema": str(SCHEMA_VERSION),
            **self.names.metadata,
            "run": self.run,
            "windows": f"{self.policy} {shape.prefix_len}+{shape.suffix_len}",
        }
        return {f"memaudit.{key}": value for key, value in values.items() if value is not None}


def write_results(
    run: RunFolder,
    session: Session,
    options: AuditOptions,
    *,
    text_of: TextOf | None = None,
    writes: bool = True,
) -> AuditResult:
    """Read back a run whose chunks are all there or marked as failed; write its table and summary.

    Of the options only those have an effect that no run declares: they may change from session to
    session.

    Raises:
        OutputError: a chunk is missing or damaged, or the results cannot be written.
        ModelError: no row is left whose chunks are there.
        ClassifierError: a feature is not a finite number.
    """
    try:
        found = read_run(run.folder, read_failures(run.plan, range(run.plan.n_chunks)))
    except UsageError as error:  # nobody has used it wrongly: all chunks were there a moment ago
        raise OutputError(
            f"{shown_path(run.folder)}: a chunk has been removed or changed since it was scored",
            hint="give the same command again: it will be scored anew",
        ) from error
    result = AuditResult(
        found,
        worst=found.worst(options.n_worst, text_of),
        seconds=time.monotonic() - session.started,
        scoring_seconds=session.scoring_seconds,
        kept_windows=session.kept_windows,
        table_path=run.folder / f"risk.{options.table_format}" if writes else None,
    )
    if result.table_path is None:
        _ = found.rows  # the folder vanishes, and `AuditResult.table` needs them
    else:
        _write_outputs(result, result.table_path, options.table_format)
        tokens = run.folder / WINDOWS  # of the corpus: nobody needs them any more
        if tokens.exists():
            with output_errors(tokens):
                tokens.unlink()
    return result


def _write_outputs(result: AuditResult, table: Path, table_format: TableFormat) -> None:
    """Write the table and, beside it, the summary; neither takes its name before both are whole.

    A table in another format stays if it is of the same run.
    """
    path = table.with_name(SUMMARY)
    was_another = False
    # Asked now: the summary that tells whose tables lie here is replaced below.
    if path.exists():
        with suppress(ValueError), output_errors(path, "read"):
            was_another = read_summary(path.parent).get("run", result.run) != result.run
    # The inner one takes its name first: where there is a summary, there is its table.
    with committed_file(path) as summary, committed_file(table) as file:
        dated = result.document() | {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        # Python would write NaN, which is no JSON: other readers refuse all of it.
        document = json.dumps(dated, sort_keys=True, indent=2, allow_nan=False)
        summary.write(document.encode() + b"\n")
        write_risk_table(
            file,
            table_format,
            _risk_rows(result.finished),
            features=result.finished.risks.table_columns,
            metadata=result.metadata(),
        )
    # Only now: had the writing failed, the results of before would still be all there.
    for kind in TABLE_FORMATS if was_another else ():
        stale = table.with_name(f"risk.{kind}")
        if stale != table and stale.exists():
            with output_errors(stale):
                stale.unlink()


def _risk_rows(run: Run) -> Iterator[tuple[object, ...]]:
    """Yield the rows of the risk table, in the order of the corpus."""
    # All of them are in the order of the corpus, so each keeps pace with its rows.
    scored, estimates, risks = iter(range(run.n_rows)), iter(run.estimates), run.risks
    specific, nothing = risks.row_specific_probabilities, [None] * len(risks.table_columns)
    for source in run.each_row():
        place = (source.example_id, source.row, source.address, source.outcome)
        if source.outcome != "scored":
            # A screened row has the first stage's probability, and no worst window.
            estimate = next(estimates) if source.outcome == "screened" else None
            yield *place, estimate, False, source.reason, *nothing
            continue
        index = next(scored)
        features = risks.row_features(index)
        if specific is not None:
            features["specific"] = float(specific[index])
        probability = float(risks.window_probabilities[risks.worst_windows[index]])
        flagged = probability >= risks.classifier.threshold
        yield *place, probability, flagged, reason_in_words(features), *features.values()
