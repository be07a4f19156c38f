"""What a run becomes in tools that others made.

`RowRisks` holds its risks as plain arrays: small enough to send to every worker.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import UsageError
from memaudit.runs.run import read_run
from memaudit.text import shown_path


@dataclass(frozen=True, slots=True)
class RowRisks:
    """What a run says about its rows. Arrays are by row, in the order of the corpus."""

    folder: str
    corpus: dict[str, Any]
    """How the corpus was read, as the manifest says."""

    texts_digest: str
    """SHA-256 of its texts."""

    raw_digest: str | None
    """SHA-256 of its messages before they were rendered. None: it holds none, or the run is old."""

    ids: tuple[str, ...]
    """Of the examples; may repeat."""

    probabilities: NDArray[np.float64]
    """(n_rows,) that the student memorizes the row; NaN where none was scored."""

    is_read: NDArray[np.bool_]
    """(n_rows,) whether its text could be read; a bad row is in no digest."""

    threshold: float
    """The classifier's: at or above it a row is flagged."""

    @property
    def n_rows(self) -> int:
        """Rows of the corpus."""
        return len(self.ids)

    @property
    def id_column(self) -> str:
        """Column that ids came from, if rows had it."""
        return self.corpus.get("id_column") or "id"

    def worst_by_id(self) -> dict[str, float]:
        """Return the highest probability among the rows of each id; NaN where none was scored."""
        worst: dict[str, float] = {}
        for example_id, probability in zip(self.ids, self.probabilities.tolist(), strict=True):
            # fmax ignores NaN unless there is nothing else.
            worst[example_id] = float(np.fmax(worst.get(example_id, np.nan), probability))
        return worst


def read_row_risks(folder: str | Path) -> RowRisks:
    """Return the risks of a finished run, once all of it is verified.

    Raises:
        UsageError: there is no run in the folder, or it has not been scored to the end.
        OutputError: a file was changed or damaged.
    """
    run = read_run(Path(folder))
    inputs = run.manifest.inputs
    return RowRisks(
        folder=shown_path(folder),
        corpus=inputs.corpus,
        texts_digest=inputs.texts_digest,
        raw_digest=run.manifest.raw_digest,
        ids=tuple(run.rows.column("id").to_pylist()),
        probabilities=run.probabilities,
        is_read=run.rows.column("outcome").to_numpy() != "bad",
        threshold=run.manifest.classifier.threshold,
    )


def refuse_other_corpus(risks: RowRisks, difference: str) -> UsageError:
    """Return the error for rows that are not those of the run."""
    return UsageError(
        f"{risks.folder}: a run on another corpus: {difference}",
        hint="give the rows that 'memaudit predict' read, all of them and in that order",
    )
