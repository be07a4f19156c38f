"""A run, read back from its folder: what the summary of `predict` and all that follows stand on.

Report, gate, filter, verify, fit and the integrations read nothing else. Nothing that could have
gone stale is believed: every file is verified, and the probabilities are computed anew from the
chunks, as they were when the risk table was written. No model and no torch is needed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import OutputError, UsageError
from memaudit.features import reason_in_words
from memaudit.prefilter import Prefilter
from memaudit.runs.chunks import ChunkPlan, failure_error, numbers, read_matrix, sort_chunks
from memaudit.runs.files import output_errors
from memaudit.runs.folder import MANIFEST, ROWS, RunFolder
from memaudit.runs.manifest import Manifest, chunk_ranges, read_manifest
from memaudit.runs.reading import Outcome, RowOutcome, RowWindows
from memaudit.runs.risks import Risks, Worst, predict_risks
from memaudit.runs.sealed_parquet import DamagedFileError, open_sealed
from memaudit.sensitivity import NAMES_MODEL, RowSensitivity, SensitivitySummary, summarise
from memaudit.text import shown_path

if TYPE_CHECKING:
    import pyarrow as pa

TextOf = Callable[[int], str]
"""From the index of a distinct window to its text: text of the corpus."""

_ROWS_AT_ONCE = 16_384
_REASONS = (
    "not scored: nothing a model could say would flag it",
    "not scored: the first stage finds it unlikely to be flagged",
)


@dataclass(frozen=True, slots=True)
class Run:
    """A run whose corpus was scored to the end. Arrays are by row, in the order of the corpus."""

    folder: Path
    """Of the run."""

    manifest: Manifest
    """What it was given, the classifier included."""

    rows: "pa.Table"
    """(n_rows) with the columns id, row, address, outcome and reason."""

    risks: Risks
    """By distinct window and scored row."""

    worst_windows: NDArray[np.int64]
    """(n_rows,) index of each row's riskiest window; -1 where none was scored."""

    probabilities: NDArray[np.float64]
    """(n_rows,) that the student memorizes the row; NaN where none was scored."""

    sensitivity: RowSensitivity | None = None
    """What is sensitive in each row; nothing where none was scored. None: it was not looked for."""

    estimates: Sequence[float] = ()
    """What the prefilter estimates for each row with the outcome `screened`."""

    n_windows: int = 0
    """Windows of the rows, equal ones counted each time."""

    n_screened_windows: int = 0
    """Distinct windows that the prefilter spared the teacher."""

    failures: Mapping[int, str] = field(default_factory=dict)
    """Why chunks could not be scored, by number: their rows have the outcome `error`."""

    @property
    def n_rows(self) -> int:
        """Rows in the corpus."""
        return len(self.probabilities)

    @property
    def is_scored(self) -> NDArray[np.bool_]:
        """(n_rows,) whether a row has a probability."""
        return self.worst_windows >= 0

    @property
    def is_flagged(self) -> NDArray[np.bool_]:
        """(n_rows,) whether the probability reaches the classifier's threshold."""
        flagged: NDArray[np.bool_] = self.probabilities >= self.manifest.classifier.threshold
        return flagged

    @property
    def outcomes(self) -> Counter[str]:
        """Rows by outcome."""
        counts = self.rows.column("outcome").value_counts().to_pylist()
        return Counter({count["values"]: count["counts"] for count in counts})

    @property
    def sensitivity_summary(self) -> SensitivitySummary | None:
        """How many scored rows hold personal data or secrets; None: it was not looked for."""
        if self.risks.sensitivity is None:
            return None
        finds_names = self.manifest.inputs.versions.get(NAMES_MODEL, "none") != "none"
        return summarise(self.risks.sensitivity, self.risks.is_flagged, finds_names=finds_names)

    def row(self, index: int) -> RowOutcome:
        """Return one row: its id and address are untrusted, so show them with `safe_text` only."""
        names = ("id", "row", "address", "outcome", "reason")
        return RowOutcome(*(self.rows.column(name)[index].as_py() for name in names))

    def each_row(self) -> Iterator[RowOutcome]:
        """Yield all rows in order: untrusted, as in `row`."""
        for batch in self.rows.to_batches(_ROWS_AT_ONCE):
            columns = (column.to_pylist() for column in batch.columns)
            yield from map(RowOutcome, *columns)

    def worst(self, n: int, text_of: TextOf | None = None) -> tuple[Worst, ...]:
        """Return the riskiest rows, as `Risks.worst_rows` orders them.

        Args:
            n: how many at most.
            text_of: gives the text of a window; None leaves it out.
        """
        risks, places = self.risks, np.flatnonzero(self.is_scored)
        found = []
        for index in risks.worst_rows(n).tolist():
            window, features = int(risks.worst_windows[index]), risks.row_features(index)
            source, probability = self.row(places[index]), risks.window_probabilities[window]
            found.append(
                Worst(
                    example_id=source.example_id,
                    address=source.address,
                    row=source.row,
                    probability=float(probability),
                    flagged=bool(probability >= risks.classifier.threshold),
                    occurrences=int(features["occurrences"]),
                    reason=reason_in_words(features),
                    features=features,
                    holds=() if risks.sensitivity is None else risks.sensitivity.in_words(index),
                    text=None if text_of is None else text_of(window),
                )
            )
        return tuple(found)


@dataclass(slots=True)
class _Rows:
    """The rows of a run while it is read: what became of them, and the windows that count."""

    table: "pa.Table"
    windows: RowWindows
    texts: NDArray[np.int64] | None
    """(n_rows,) the first row with the same text. None: written by a version that compared windows
    alone."""

    def leave_out(self, is_out: NDArray[np.bool_], outcome: Outcome, reasons: list[str]) -> None:
        """Give another outcome to some of the rows that count as scored."""
        if not reasons:
            return
        import pyarrow as pa

        columns = {name: self.table.column(name).to_pylist() for name in ("outcome", "reason")}
        places = np.flatnonzero(np.array(columns["outcome"]) == "scored")[is_out]
        for place, reason in zip(places.tolist(), reasons, strict=True):
            columns["outcome"][place], columns["reason"][place] = outcome, reason
        for name, values in columns.items():
            place = self.table.schema.get_field_index(name)
            column = pa.array(values, type=pa.string())
            self.table = self.table.set_column(place, name, column)


def read_run(folder: Path, failures: Mapping[int, str] | None = None) -> Run:
    """Return the run in a folder, once all of it is found as it was written.

    Args:
        folder: of the run.
        failures: chunks that could not be scored and may be missing, with the reason. None: all
            chunks must be there.

    Raises:
        UsageError: there is no run, it is a shard, or it has not been scored to the end.
        OutputError: a file was changed or damaged, or cannot be read.
        ModelError: no row is left whose chunks are there.
        ClassifierError: a feature is not a finite number.
    """
    run, failures = RunFolder(folder, read_manifest(folder / MANIFEST)), failures or {}
    _require_whole(run)
    rows, X = _read_rows(run), _read_matrix(run, failures)
    if failures:
        _leave_out_failed(rows, run.plan, failures)
    n_windows, estimates, n_screened = len(rows.windows.windows), np.empty(0), 0
    if run.plan.prefilter is not None:
        n_screened = int(np.isnan(X).any(axis=1).sum())
        estimates = _leave_out_screened(rows, run.plan, run.plan.prefilter, X)
    is_scored = np.array(rows.table.column("outcome").to_pylist()) == "scored"
    row_texts = None if rows.texts is None else rows.texts[is_scored]
    risks = predict_risks(run.manifest.classifier, run.plan.features, X, rows.windows, row_texts)
    return Run(
        folder,
        run.manifest,
        rows.table,
        risks,
        _of_all_rows(risks.worst_windows, is_scored, -1),
        _of_all_rows(risks.row_probabilities, is_scored, np.nan),
        None
        if risks.sensitivity is None
        else RowSensitivity(_of_all_rows(risks.sensitivity.values, is_scored, 0)),
        estimates=estimates.tolist(),
        n_windows=n_windows,
        n_screened_windows=n_screened,
        failures=failures,
    )


def _of_all_rows(
    of_scored: NDArray[Any], is_scored: NDArray[np.bool_], otherwise: float
) -> NDArray[Any]:
    """Return values by row from those of the scored rows."""
    values = np.full((len(is_scored), *of_scored.shape[1:]), otherwise, dtype=of_scored.dtype)
    values[is_scored] = of_scored
    return values


def _leave_out_failed(rows: _Rows, plan: ChunkPlan, failures: Mapping[int, str]) -> None:
    """Give the outcome `error` to the rows with a window in a failed chunk.

    A row is as risky as its worst window, so one window that is unknown leaves the row unknown.

    Raises:
        ModelError: no row is left.
    """
    chunks = np.array(rows.windows.windows) // plan.chunk_size
    places = np.flatnonzero(np.isin(chunks, list(failures)))
    failed, first = np.unique(rows.windows.rows[places], return_index=True)
    is_failed = np.zeros(len(rows.windows.n_windows), dtype=np.bool_)
    is_failed[failed] = True
    reasons = [f"chunk {chunk}: {failures[chunk]}" for chunk in chunks[places[first]].tolist()]
    rows.leave_out(is_failed, "error", reasons)
    rows.windows = rows.windows.only(~is_failed[rows.windows.rows])
    if not rows.windows.n_windows:
        raise failure_error(failures, len(failed))


def _leave_out_screened(
    rows: _Rows, plan: ChunkPlan, prefilter: Prefilter, X: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give the outcome `screened` to the rows none of whose windows the teacher has read.

    Of a row with several windows those that were left out are dropped: the others decide.

    Args:
        rows: of the run.
        plan: of the run.
        prefilter: of the plan.
        X: (n_windows, n_features); what is NaN in it, as nobody asked the teacher, is set to 0.

    Returns:
        (n_screened,) what is estimated for each of those rows.
    """
    left_out: NDArray[np.bool_] = np.logical_or.reduce(np.isnan(X), axis=1)
    names = prefilter.known_features
    known = {name: X[:, i] for i, name in enumerate(plan.features) if name in names}
    estimates = prefilter.probabilities(known)
    could_be_flagged = prefilter.could_be_flagged(known)
    X[left_out] = np.nan_to_num(X[left_out])
    windows = rows.windows
    is_screened = ~windows.highest(~left_out)
    reasons = [_REASONS[int(one)] for one in windows.highest(could_be_flagged)[is_screened]]
    rows.leave_out(is_screened, "screened", reasons)
    rows.windows = windows.only(~left_out[np.array(windows.windows)])
    found: NDArray[np.float64] = windows.highest(estimates)[is_screened]
    return found


def _require_whole(run: RunFolder) -> None:
    manifest, folder = run.manifest, shown_path(run.folder)
    if manifest.shard is not None:
        raise UsageError(
            f"{folder}: only shard {manifest.shard} of a run",
            hint="put all shards together with 'memaudit merge'",
        )
    if manifest.classifier.digest != manifest.inputs.classifier_digest:
        raise OutputError(
            f"{folder}: the classifier in the manifest is not the one that was declared",
            hint="start over with 'memaudit predict --restart'",
        )
    if run.plan.n_windows == 0:
        raise OutputError(f"{folder}: no window was scored", hint="run 'memaudit predict' anew")


def _read_matrix(run: RunFolder, failures: Mapping[int, str]) -> NDArray[np.float64]:
    try:
        return read_matrix(run.plan, without=failures)
    except (DamagedFileError, FileNotFoundError) as error:
        missing, damaged = sort_chunks(
            run.plan, (chunk for chunk in range(run.plan.n_chunks) if chunk not in failures)
        )
        states = [("missing", missing), ("damaged", damaged)]
        found = "; ".join(f"{state}: {chunk_ranges(gone)}" for state, gone in states if gone)
        kind = OutputError if damaged else UsageError
        raise kind(
            f"{shown_path(run.folder)}: {len(missing) + len(damaged)} of {run.plan.n_chunks} chunks "
            f"are not there ({found})",
            hint="give its 'memaudit predict' command again to score them",
        ) from error


def _read_rows(run: RunFolder) -> _Rows:
    """Return the rows without their windows, and those."""
    path = run.folder / ROWS
    try:
        with (
            output_errors(path, "read"),
            open_sealed(path, {"memaudit.run": run.plan.fingerprint}) as file,
        ):
            table = file.read()
    except (DamagedFileError, OutputError) as error:
        raise OutputError(
            f"{shown_path(path)}: missing or damaged",
            hint="give its 'memaudit predict' command again to write it anew",
        ) from error
    windows = table.column("windows").combine_chunks()
    n_windows = np.diff(numbers(windows.offsets))
    cuts = RowWindows()
    cuts.windows.frombytes(numbers(windows.flatten()).tobytes())
    cuts.n_windows.frombytes(n_windows[n_windows > 0].astype(np.int64).tobytes())
    table, texts = table.drop_columns(["windows"]), None
    if "text" in table.column_names:
        texts = numbers(table.column("text").combine_chunks())
        table = table.drop_columns(["text"])
    return _Rows(table, cuts, texts)
