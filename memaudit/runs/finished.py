"""A finished run, read back for what is done about it: filter, gate, report.

Nothing that could have gone stale is believed: every file is verified, and the probabilities are
computed anew from the chunks, as they were when the risk table was written. No model, no torch.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import OutputError, UsageError
from memaudit.runs.chunks import ChunkPlan, sort_chunks
from memaudit.runs.files import output_errors
from memaudit.runs.folder import MANIFEST, ROWS, Run
from memaudit.runs.judging import Judgement, judge
from memaudit.runs.manifest import Manifest, chunk_ranges, read_manifest
from memaudit.runs.reading import RowOutcome, RowWindows
from memaudit.runs.screening import Screened, screen_cuts
from memaudit.runs.sealed_parquet import DamagedFileError, open_sealed
from memaudit.sensitivity import RowSensitivity
from memaudit.text import shown_path

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run whose corpus was scored to the end. Arrays are by row, in the order of the corpus."""

    folder: Path
    """Of the run."""

    manifest: Manifest
    """What it was given, the classifier included."""

    rows: "pa.Table"
    """(n_rows) with the columns id, row, address, outcome and reason."""

    judgement: Judgement
    """By distinct window and scored row."""

    worst_windows: NDArray[np.int64]
    """(n_rows,) index of each row's riskiest window; -1 where none was scored."""

    probabilities: NDArray[np.float64]
    """(n_rows,) that the student memorizes the row; NaN where none was scored."""

    sensitivity: RowSensitivity | None = None
    """What is sensitive in each row; nothing where none was scored. None: it was not looked for."""

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

    def row(self, index: int) -> RowOutcome:
        """Return one row: its id and address are untrusted, so show them with `safe_text` only."""
        names = ("id", "row", "address", "outcome", "reason")
        return RowOutcome(*(self.rows.column(name)[index].as_py() for name in names))


def read_finished_run(folder: Path) -> FinishedRun:
    """Return the run in a folder, once all of it is found as it was written.

    Raises:
        UsageError: there is no run, it is a shard, or it has not been scored to the end.
        OutputError: a file was changed or damaged, or cannot be read.
        ClassifierError: a feature is not a finite number.
    """
    manifest = read_manifest(folder / MANIFEST)
    run = Run(folder, manifest)
    _require_whole(run)
    rows, cuts = _read_rows(run)
    X = _read_matrix(run)
    screened = screen_cuts(run.plan, X, cuts)
    rows = _with_screened(rows, screened)
    judgement = judge(manifest.classifier, run.plan.features, X, screened.cuts)
    worst_windows = np.full(len(rows), -1, dtype=np.int64)
    worst_windows[np.array(rows.column("outcome").to_pylist()) == "scored"] = (
        judgement.worst_windows
    )
    probabilities = np.full(len(rows), np.nan)
    probabilities[worst_windows >= 0] = judgement.row_probabilities
    return FinishedRun(
        folder,
        manifest,
        rows,
        judgement,
        worst_windows,
        probabilities,
        _of_all_rows(judgement.sensitivity, worst_windows >= 0),
    )


def _of_all_rows(
    scored: RowSensitivity | None, is_scored: NDArray[np.bool_]
) -> RowSensitivity | None:
    if scored is None:
        return None
    values = np.zeros((len(is_scored), scored.values.shape[1]))
    values[is_scored] = scored.values
    return RowSensitivity(values)


def _with_screened(rows: "pa.Table", screened: Screened) -> "pa.Table":
    """Return the rows with the outcome `screened` where a cascade left all windows out."""
    if not screened.is_screened.any():
        return rows
    import pyarrow as pa

    columns = {name: rows.column(name).to_numpy().copy() for name in ("outcome", "reason")}
    places = np.flatnonzero(columns["outcome"] == "scored")[screened.is_screened]
    columns["outcome"][places] = "screened"
    columns["reason"][places] = screened.reasons
    for name, values in columns.items():
        column = pa.array(values.tolist(), type=pa.string())
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def _require_whole(run: Run) -> None:
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


def _read_matrix(run: Run) -> NDArray[np.float64]:
    try:
        return _read_chunks(run.plan)
    except (DamagedFileError, FileNotFoundError) as error:
        missing, damaged = sort_chunks(run.plan, range(run.plan.n_chunks))
        states = [("missing", missing), ("damaged", damaged)]
        found = "; ".join(f"{state}: {chunk_ranges(gone)}" for state, gone in states if gone)
        kind = OutputError if damaged else UsageError
        raise kind(
            f"{shown_path(run.folder)}: {len(missing) + len(damaged)} of {run.plan.n_chunks} chunks "
            f"are not there ({found})",
            hint="give its 'memaudit predict' command again to score them",
        ) from error


def _read_chunks(plan: ChunkPlan) -> NDArray[np.float64]:
    """Return (n_windows, n_features); each chunk is verified and read in one go."""
    import pyarrow as pa

    tables = []
    for chunk in range(plan.n_chunks):
        path = plan.path(chunk)
        if not path.exists():
            raise FileNotFoundError(path)
        with output_errors(path, "read"), open_sealed(path, plan.metadata(chunk)) as file:
            # Chunks are small: handing them out to threads takes longer than reading them.
            tables.append(file.read(use_threads=False))
    # Column by column over all chunks: a thousand chunks of twenty columns are many small arrays.
    table = pa.concat_tables(tables)
    if len(table) != plan.n_windows:
        raise DamagedFileError("another number of windows")
    X = np.empty((plan.n_windows, len(plan.features)))
    for column, name in enumerate(plan.features):
        X[:, column] = _numbers(table.column(name).combine_chunks())
    return X


def _read_rows(run: Run) -> tuple["pa.Table", RowWindows]:
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
    n_windows = np.diff(_numbers(windows.offsets))
    cuts = RowWindows()
    cuts.windows.frombytes(_numbers(windows.flatten()).tobytes())
    cuts.n_windows.frombytes(n_windows[n_windows > 0].astype(np.int64).tobytes())
    return table.drop_columns(["windows"]), cuts


def _numbers(array: "pa.Array") -> NDArray[Any]:
    """Return the numbers in an array. Its own `to_numpy` would import pandas: half a second."""
    return np.from_dlpack(array)
