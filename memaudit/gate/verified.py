"""What `memaudit verify` found, matched with the rows of a run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.errors import OutputError, UsageError
from memaudit.runs.finished import FinishedRun
from memaudit.text import shown_path
from memaudit.verification.result import SCHEMA_VERSION, VerificationResult, read_document
from memaudit.verification.table import labels_digest, read_table

if TYPE_CHECKING:
    import pyarrow as pa

_DOCUMENT, _TABLE = "verification.json", "verification.parquet"


@dataclass(frozen=True, slots=True)
class VerifiedRows:
    """What a distilled student recites, by row of a run."""

    recited: NDArray[np.bool_]
    """(n_rows,) whether the student recites the row."""

    looked_at: NDArray[np.bool_]
    """(n_rows,) whether it was trained on and asked."""

    is_sample: bool
    """Whether only some of the corpus was trained on."""

    labels_digest: str
    """Sha256 of the labels."""


def read_verification(folder: Path, run: FinishedRun) -> VerifiedRows:
    """Return what a verification of the same corpus, teacher and objective found.

    Raises:
        UsageError: it is of another corpus, teacher, objective or window.
        OutputError: it is missing, damaged, or its files do not belong together.
    """
    where = shown_path(folder)
    result, table = _read(folder, where)
    _require_same_settings(result, run, where)
    _require_same_rows(table, run, where)
    recited = table["extracted_by_student"].fill_null(False).to_numpy().astype(np.bool_)
    looked_at = table["outcome"].to_numpy() == "scored"
    return VerifiedRows(
        recited & looked_at,
        looked_at,
        result.settings.get("sample") is not None,
        result.labels_digest,
    )


def _read(folder: Path, where: str) -> "tuple[VerificationResult, pa.Table]":
    try:
        document = json.loads((folder / _DOCUMENT).read_text(encoding="utf-8"))
        result = read_document(document)
        is_ours = document.get("schema_version") == SCHEMA_VERSION
    except (OSError, ValueError, AttributeError, RecursionError, msgspec.ValidationError) as error:
        raise OutputError(
            f"{where}: {_DOCUMENT} is missing or damaged ({type(error).__name__})",
            hint="give the folder that --out of 'memaudit verify' named",
        ) from error
    table = read_table(folder / _TABLE)
    try:
        is_whole = labels_digest(table) == result.labels_digest
    except KeyError:
        is_whole = False
    if not (is_ours and is_whole):
        raise OutputError(
            f"{where}: {_DOCUMENT} and {_TABLE} do not belong together",
            hint="run 'memaudit verify' anew",
        )
    return result, table


def _require_same_settings(result: VerificationResult, run: FinishedRun, where: str) -> None:
    inputs, settings = run.manifest.inputs, result.settings
    expected = {
        "teacher_digest": inputs.teacher_digest,
        "prefix_tokens": inputs.prefix_tokens,
        "suffix_tokens": inputs.suffix_tokens,
        "objective": inputs.objective.kind,
        "temperature": inputs.objective.temperature,
        "cross_entropy_share": inputs.objective.cross_entropy_share,
    }
    if inputs.feature_set == "teacher+student":
        expected["student_digest"] = inputs.reference_digest
    found = [name for name, value in expected.items() if settings.get(name) != value]
    if inputs.windows != "first":
        found.append("windows")
    if found:
        names = ", ".join(name.replace("_", " ") for name in found)
        raise UsageError(
            f"{where}: a verification of something else than the run, they differ in {names}",
            hint="give predict and verify the same models, objective and windows",
        )


def _require_same_rows(table: "pa.Table", run: FinishedRun, where: str) -> None:
    """Refuse another corpus: other rows, or other texts equal to each other."""
    rows = run.rows
    is_same = table.num_rows == rows.num_rows and all(
        table[name].to_pylist() == rows.column(name).to_pylist() for name in ("id", "row")
    )
    if is_same:
        places = [
            [address.rpartition(":")[2] for address in column.to_pylist()]
            for column in (table["address"], rows.column("address"))
        ]
        unscored = {"too_short", "bad"}
        is_scored = np.array([outcome not in unscored for outcome in table["outcome"].to_pylist()])
        is_same = places[0] == places[1] and bool((is_scored == run.is_scored).all())
    if is_same:
        looked_at = table["outcome"].to_numpy() == "scored"
        examples = table["example"].to_numpy(zero_copy_only=False)[looked_at].astype(np.int64)
        windows = run.worst_windows[looked_at]
        pairs = len(np.unique(np.stack([examples, windows]), axis=1).T)
        is_same = pairs == len(np.unique(examples)) == len(np.unique(windows))
    if not is_same:
        raise UsageError(
            f"{where}: a verification of another corpus than the run's",
            hint="run 'memaudit verify' on the corpus that was predicted",
        )
