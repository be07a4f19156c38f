"""A run, read back from its folder: what the summary of `predict` and all that follows stand on.

Report, gate, filter, verify, fit and the integrations read nothing else. Nothing that could have
gone stale is believed: every file is verified, and the probabilities are computed anew from the
chunks, as they were when the risk table was written. No model and no torch is needed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memaudit.errors import OutputError, UsageError
from memaudit.features import reason_in_words
from memaudit.prefilter import Prefilter
from memaudit.runs.chunks import (
    ChunkPlan,
    failure_error,
    numbers,
    positions,
    read_matrix,
    sort_chunks,
    what_is_gone,
)
from memaudit.runs.files import output_errors
from memaudit.runs.folder import ROW_SCHEMA, ROWS, RunFolder, damaged_rows
from memaudit.runs.manifest import Manifest
from memaudit.runs.reading import Outcome, RowOutcome, RowWindows
from memaudit.runs.risks import Risks, Worst, predict_risks
from memaudit.runs.sealed_parquet import DamagedFileError, open_sealed
from memaudit.sensitivity import NAMES_MODEL, RowSensitivity, SensitivitySummary, summarise
from memaudit.text import shown_path

TextOf = Callable[[int], str]
"""From the index of a distinct window to its text: text of the corpus."""

_ROWS_AT_ONCE = 4_096
_REASONS = (
    "not scored: nothing a model could say would flag it",
    "not scored: the first stage finds it unlikely to be flagged",
)


@dataclass(frozen=True)  # without slots: the rows are kept once they are asked for
class Run:
    """A run whose corpus was scored to the end. Arrays are by row, in the order of the corpus.

    Ids and addresses stay on the disk until `rows` is asked for.
    """

    folder: Path
    manifest: Manifest
    fates: pa.Table
    """(n_rows) outcome and reason, each different value once."""

    risks: Risks
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
        return self.probabilities >= self.manifest.classifier.threshold

    @property
    def is_recited(self) -> NDArray[np.bool_]:
        """(n_rows,) whether the teacher recites the suffix of the row's riskiest window."""
        return _of_all_rows(self.risks.is_recited, self.is_scored, 0)

    @property
    def outcomes(self) -> Counter[str]:
        """Rows by outcome."""
        counts = self.fates.column("outcome").value_counts().to_pylist()
        return Counter({count["values"]: count["counts"] for count in counts})

    @property
    def sensitivity_summary(self) -> SensitivitySummary | None:
        """How many scored rows hold personal data or secrets; None: it was not looked for."""
        if self.risks.sensitivity is None:
            return None
        finds_names = self.manifest.inputs.versions.get(NAMES_MODEL, "none") != "none"
        return summarise(self.risks.sensitivity, self.risks.is_flagged, finds_names=finds_names)

    @cached_property
    def rows(self) -> pa.Table:
        """(n_rows) with the columns id, row, address, outcome and reason, all in memory."""
        table = pa.Table.from_batches(self._places())
        for name in ("outcome", "reason"):
            table = table.append_column(name, self.fates.column(name).cast(pa.string()))
        return table

    def _places(self) -> Iterator[pa.RecordBatch]:
        """Read id, row and address from the disk again, some rows at a time, or from memory."""
        if "rows" in self.__dict__:  # a run without a folder of its own has nothing else
            yield from self.rows.select(["id", "row", "address"]).combine_chunks().to_batches()
            return
        run = RunFolder(self.folder, self.manifest)
        yield from _stored_rows(run, ["id", "row", "address"])

    def row(self, index: int) -> RowOutcome:
        """Return one row: its id and address are untrusted, so show them with `safe_text` only."""
        (row,) = self.rows.slice(index, 1).to_pylist()
        return RowOutcome(*row.values())

    def each_row(self) -> Iterator[RowOutcome]:
        """Yield all rows in order, from the disk: untrusted, as in `row`."""
        start = 0
        for places in self._places():
            fates = self.fates.slice(start, places.num_rows)
            columns = (column.to_pylist() for column in (*places.columns, *fates.columns))
            yield from map(RowOutcome, *columns)
            start += places.num_rows

    def _rows_at(self, indices: NDArray[np.int64]) -> list[RowOutcome]:
        """Return some rows in the order they are asked for; the others stay on the disk."""
        found, start = dict[int, RowOutcome](), 0
        for places in self._places():
            here = indices[(indices >= start) & (indices < start + places.num_rows)]
            fates = self.fates.take(positions(here))
            columns = (*places.take(positions(here - start)).columns, *fates.columns)
            rows = map(RowOutcome, *(column.to_pylist() for column in columns))
            found |= zip(here.tolist(), rows, strict=True)
            start += places.num_rows
        return [found[index] for index in indices.tolist()]

    def worst(self, n: int, text_of: TextOf | None = None) -> tuple[Worst, ...]:
        """Return at most n of the riskiest rows, as `Risks.worst_rows` orders them.

        Their texts are what `text_of` makes of their worst windows; None leaves them out.
        """
        risks, places = self.risks, np.flatnonzero(self.is_scored)
        found, worst = [], risks.worst_rows(n)
        sources = self._rows_at(places[worst]) if len(worst) else []
        for index, source in zip(worst.tolist(), sources, strict=True):
            window, features = int(risks.worst_windows[index]), risks.row_features(index)
            probability = risks.window_probabilities[window]
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

    fates: pa.Table
    windows: RowWindows
    texts: NDArray[np.int64] | None
    """(n_rows,) the first row with the same text. None: written by a version that compared windows
    alone."""

    def leave_out(self, is_out: NDArray[np.bool_], outcome: Outcome, reasons: list[str]) -> None:
        """Give another outcome to some of the rows that count as scored."""
        if not reasons:
            return

        columns = {name: self.fates.column(name).to_pylist() for name in ("outcome", "reason")}
        places = np.flatnonzero(np.array(columns["outcome"]) == "scored")[is_out]
        for place, reason in zip(places.tolist(), reasons, strict=True):
            columns["outcome"][place], columns["reason"][place] = outcome, reason
        # A few different values for millions of rows: a code takes less memory than a text.
        coded = [pa.array(values, pa.string()).dictionary_encode() for values in columns.values()]
        self.fates = pa.table(coded, names=list(columns))


def read_run(folder: Path, failures: Mapping[int, str] | None = None) -> Run:
    """Return the run in a folder, once all of it is found as it was written.

    Chunks that could not be scored, given with the reason, may be missing. None: all must be there.

    Raises:
        UsageError: there is no run, it is a shard, or it has not been scored to the end.
        OutputError: a file was changed or damaged, or cannot be read.
        ModelError: no row is left whose chunks are there.
        ClassifierError: a feature is not a finite number.
    """
    run, failures = RunFolder.read(folder), failures or {}
    _require_whole(run)
    rows, X = _read_rows(run), _read_matrix(run, failures)
    if failures:
        # A row is as risky as its worst window: one window that is unknown leaves the row unknown.
        chunks = run.plan.chunk_of(np.array(rows.windows.windows))
        places = np.flatnonzero(np.isin(chunks, list(failures)))
        failed, first = np.unique(rows.windows.rows[places], return_index=True)
        is_failed = np.zeros(len(rows.windows.n_windows), dtype=np.bool_)
        is_failed[failed] = True
        reasons = [f"chunk {chunk}: {failures[chunk]}" for chunk in chunks[places[first]].tolist()]
        rows.leave_out(is_failed, "error", reasons)
        rows.windows = rows.windows.only(~is_failed[rows.windows.rows])
        if not rows.windows.n_windows:
            raise failure_error(failures, len(failed))
    n_windows, estimates, n_screened = len(rows.windows.windows), np.empty(0), 0
    if run.plan.prefilter is not None:
        # Counted first, for what is NaN is 0 afterwards.
        n_screened = int(np.isnan(X).any(axis=1).sum())
        estimates = _leave_out_screened(rows, run.plan, run.plan.prefilter, X)
    is_scored = np.array(rows.fates.column("outcome").to_pylist()) == "scored"
    row_texts = None if rows.texts is None else rows.texts[is_scored]
    risks = predict_risks(run.manifest.classifier, run.plan.features, X, rows.windows, row_texts)
    return Run(
        folder,
        run.manifest,
        rows.fates,
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


def _leave_out_screened(
    rows: _Rows, plan: ChunkPlan, prefilter: Prefilter, X: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give the outcome `screened` to the rows none of whose windows the teacher has read.

    Of a row with several windows those that were left out are dropped: the others decide. What is
    NaN in X (n_windows, n_features), as nobody asked the teacher, is set to 0.

    Returns:
        (n_screened,) what is estimated for each of those rows.
    """
    left_out: NDArray[np.bool_] = np.logical_or.reduce(np.isnan(X), axis=1)
    names = prefilter.known_features
    known = {name: X[:, i] for i, name in enumerate(plan.features) if name in names}
    estimates = prefilter.probabilities(known)
    could_be_flagged = prefilter.could_be_flagged(known)
    # A classifier refuses NaN. No row that counts has one of these windows.
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
        kind = OutputError if damaged else UsageError
        raise kind(
            f"{shown_path(run.folder)}: {len(missing) + len(damaged)} of {run.plan.n_chunks} chunks "
            f"{what_is_gone(missing, damaged)}",
            hint="give its 'memaudit predict' command again to score them",
        ) from error


def _read_rows(run: RunFolder) -> _Rows:
    """Return what became of the rows, and their windows."""
    cuts, fates, texts = RowWindows(), list[pa.RecordBatch](), list[NDArray[np.int64]]()
    are_scored_cut = True
    for batch in _stored_rows(run, ["outcome", "reason", "windows", "text"]):
        windows = batch.column("windows")
        n_windows = np.diff(numbers(windows.offsets))
        # A comparison in pyarrow would import pandas, as `numbers` says.
        outcomes = batch.column("outcome").dictionary_encode()
        scored = [each == "scored" for each in outcomes.dictionary.to_pylist()]
        is_scored = np.array(scored, dtype=np.bool_)[numbers(outcomes.indices)]
        are_scored_cut = are_scored_cut and np.array_equal(is_scored, n_windows > 0)
        cuts.windows.frombytes(numbers(windows.flatten()).tobytes())
        cuts.n_windows.frombytes(n_windows[n_windows > 0].astype(np.int64).tobytes())
        coded = [batch.column(name).dictionary_encode() for name in ("outcome", "reason")]
        fates.append(pa.record_batch(coded, names=["outcome", "reason"]))
        if "text" in batch.schema.names:
            texts.append(numbers(batch.column("text")).copy())
    windows, inputs = np.array(cuts.windows, dtype=np.int64), run.manifest.inputs
    # Windows are numbered as they first appear: none is below 0, none skips a number.
    # Whoever can write here can seal other numbers: -1 would be looked up from the end.
    so_far = np.maximum.accumulate(np.append(-1, windows))
    in_order = (windows >= 0).all() and (windows <= so_far[:-1] + 1).all()
    sizes = sum(map(len, fates)), so_far[-1] + 1
    if not (are_scored_cut and in_order and sizes == (inputs.rows, inputs.distinct_windows)):
        raise damaged_rows(run.folder / ROWS)
    table = pa.Table.from_batches(fates).unify_dictionaries()
    return _Rows(table, cuts, np.concatenate(texts) if texts else None)


def _stored_rows(run: RunFolder, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of the rows, those that are there; some rows at a time."""
    path = run.folder / ROWS
    try:
        with (
            output_errors(path, "read"),
            open_sealed(path, {"memaudit.run": run.plan.fingerprint}) as file,
        ):
            schema = file.schema_arrow
            there = [name for name in columns if name != "text" or name in schema.names]
            if any(schema.field(name).type != ROW_SCHEMA.field(name).type for name in there):
                raise DamagedFileError
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=there, use_threads=False):
                lists = [column for column in batch.columns if pa.types.is_list(column.type)]
                # pyarrow hands no array with a null to numpy, and would raise an error of its own.
                if any(part.null_count for part in (*batch.columns, *(x.flatten() for x in lists))):
                    raise DamagedFileError
                yield batch
    except (DamagedFileError, OutputError, KeyError) as error:
        if isinstance(error.__cause__, OSError) and path.exists():
            raise  # too many open files, a broken disk: it may well be whole
        raise damaged_rows(path) from error
