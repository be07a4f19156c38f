"""Labels: what `memaudit verify` found, and the rows of a run that it was found about.

This is the one reader of a verification: gate, report and verify itself come here. A fit also
takes tables of one's own, which `tables` reads.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from memaudit.errors import OutputError, UsageError
from memaudit.evaluation import Comparison, FoundRows, Rate, RowPredictions, compare
from memaudit.files import open_regular, read_small
from memaudit.runs.run import Run
from memaudit.text import shown_path
from memaudit.windows import MIN_SUFFIX_LEN

DOCUMENT_NAME = "verification.json"
TABLE_NAME = "verification.parquet"
PARTS = (DOCUMENT_NAME, TABLE_NAME)
"""All that is signed of a verification."""

SCHEMA_VERSION = 1
"""Of both; goes up when a reader of the old one would misread."""

_MAX_DOCUMENT_BYTES = 64 << 20

ROLES = ("teacher", "baseline", "student")
"""The models whose extraction is looked at, in the order of reports."""

ROW_COLUMNS = ("id", "row", "address", "outcome")
"""Of the table: what a row is called, and what became of it. None has an empty value."""

TABLE_SCHEMA = pa.schema(
    [
        *zip(ROW_COLUMNS, (pa.string(), pa.int64(), pa.string(), pa.string()), strict=True),
        *((f"extracted_by_{role}", pa.bool_()) for role in ROLES),
        *(("set", pa.string()), ("example", pa.int64())),
    ],
    metadata={"memaudit.verification_schema": str(SCHEMA_VERSION)},
)
"""Of the table. Predictions follow if there are any."""

ExtractionSet = Literal[
    "easy", "inherited", "new", "baseline_and_student", "teacher_only", "baseline_only", "none"
]
"""Where an example belongs, T, B, S being what teacher, baseline and student recite: easy T∩B
(whether in S or not), inherited (T∩S)\\B, new S\\T\\B, baseline_and_student (B∩S)\\T, teacher_only
T\\B\\S, baseline_only B\\T\\S. Source: Borkar et al. 2026 (arXiv:2601.15394), section 4."""


@dataclass(frozen=True, slots=True)
class LabelScan:
    """Verbatim suffixes of the corpus in the text that the teacher wrote for its student."""

    texts: int
    """Distinct texts written, each a real prefix and its continuation."""

    own_suffix: int
    """Texts that hold the very suffix that follows their prefix in the corpus."""

    other_suffix: int
    """Texts that hold the suffix of another window, at any place that touches the continuation."""

    leaked_suffixes: int
    """Distinct suffixes of the corpus that occur so."""


@dataclass(frozen=True, slots=True)
class GenerationCounts:
    """Real generation against the one pass, on a choice of windows."""

    windows: int
    extracted_one_pass: int
    """Windows that the one pass says are recited."""

    extracted_generated: int
    """Windows that `generate` really recites."""

    disagreements: int
    ties: int
    """Disagreements that a tie of two logits explains."""

    nearly_generated: int | None = None
    """Windows whose suffix `generate` recites but for a tenth of its tokens, exact ones among
    them. None: an older memaudit."""


@dataclass(frozen=True, slots=True)
class NearVerbatim:
    """What sampling reveals but for a few edits, at temperature 1 from the whole vocabulary.

    Lower bounds: of the texts that are near, a search adds up the likeliest.
    """

    sampled: dict[str, int]
    """By number n of samples: examples that at least one of n samples nearly is, with a probability
    of at least one half."""

    expected_exact: float
    """Examples that one sample of each is on average: the probabilities added up. No bound."""

    expected_near: float
    """Examples that one sample of each nearly is, likewise; at least `expected_exact`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationResult:
    """What a verification found. An example is a distinct window unless rows are named."""

    settings: dict[str, Any]
    """All that decides the numbers: digests, versions, options. The same again gives the same."""

    models: dict[str, str]
    """As given, by role; no baseline where it was made here."""

    outcomes: dict[str, int]
    """Rows of the corpus by outcome; they add up to its rows."""

    examples: int
    """Distinct windows that baseline and student were trained on."""

    held_out: int
    """Distinct windows that they were not trained on."""

    extracted: dict[str, Rate]
    extracted_rows: dict[str, int]
    """By role, equal windows counted each time."""

    sets: dict[ExtractionSet, int]
    """Examples by set; they add up."""

    student_in_easy: Rate
    """Of what the student recites, the share that teacher and baseline recite, too."""

    inherited: Rate
    """Of what the teacher recites and the baseline does not, the share that the student does."""

    perplexity: dict[str, float | None]
    """By role, on the held-out windows; None without any. The teacher has seen them."""

    held_out_extracted: dict[str, int]
    """By role, among the held-out windows: a control."""

    label_scan: LabelScan | None
    """For hard labels only."""

    generation: dict[str, GenerationCounts] | None
    """By role, if it was asked for."""

    sampled: dict[str, dict[str, int]] | None = None
    """By role and number n of samples: examples whose suffix at least one of n samples is, with a
    probability of at least one half; at temperature 1, from the whole vocabulary. None: an older
    memaudit. Source: Hayes et al. 2024 (arXiv:2410.19482), (n, p)-discoverable extraction."""

    near_verbatim: dict[str, NearVerbatim] | None = None
    """By role, if it was asked for; the edits allowed stand in the settings. Source: Cooper et al.
    2026 (arXiv:2603.24917)."""

    comparison: Comparison | None
    labels_digest: str
    """SHA-256 of the labels in the table, hexadecimal."""

    seconds: float
    """Wall time of the process that finished it."""

    @property
    def rows(self) -> int:
        """Rows in the corpus: every one has exactly one outcome."""
        return sum(self.outcomes.values())

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document; keys are never renamed within a version."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return {"schema_version": SCHEMA_VERSION, **plain, "rows": self.rows}


def read_verification(folder: Path) -> tuple[VerificationResult, pa.Table]:
    """Return the document and the table of a verification.

    Raises:
        OutputError: one is missing or damaged, or the two do not belong together.
    """
    shown = shown_path(folder)
    try:
        document = json.loads(read_small(folder / DOCUMENT_NAME, _MAX_DOCUMENT_BYTES))
        result = msgspec.convert(document, VerificationResult)
        # The result has no such field; what it does not know is let pass.
        version = document.get("schema_version")
        with open_regular(folder / TABLE_NAME) as stream:
            table = pq.read_table(stream, page_checksum_verification=True)
        for field in TABLE_SCHEMA:
            column = table[field.name]
            # Where nothing is known of a model, its column has the type of nothing.
            has_type = column.type in (field.type, pa.null())
            if not has_type or (column.null_count and field.name in ROW_COLUMNS):
                raise ValueError(field.name)
        digest = labels_digest(table)
    except (
        # Deep JSON recurses, a column may be missing, and a damaged length may ask for all memory.
        *(OSError, ValueError, AttributeError, RecursionError, KeyError, MemoryError),
        *(msgspec.ValidationError, pa.ArrowException),
    ) as error:
        raise OutputError(
            f"{shown}: {DOCUMENT_NAME} or {TABLE_NAME} is missing or damaged "
            f"({type(error).__name__})",
            hint="give the folder that --out of 'memaudit verify' named",
        ) from error
    # A kill between the two files, or a copy of one of them, leaves labels of another corpus.
    if version != SCHEMA_VERSION or digest != result.labels_digest:
        raise OutputError(
            f"{shown}: {DOCUMENT_NAME} and {TABLE_NAME} do not belong together",
            hint="remove both and run 'memaudit verify' anew",
        )
    return result, table


def labels_digest(table: pa.Table) -> str:
    """Return sha256 over rows and labels, whatever predictions stand beside them."""
    digest = hashlib.sha256()
    for name in TABLE_SCHEMA.names:
        # Of the values, not of the bytes: each version of pyarrow writes the same table
        # differently.
        digest.update(repr((name, table[name].to_pylist())).encode())
    return digest.hexdigest()


def found_rows(table: pa.Table) -> FoundRows:
    """Return what a verification's table says of the student."""
    looked_at = table["outcome"].to_numpy() == "scored"
    return FoundRows(
        ids=table["id"].to_pylist(),
        rows=table["row"].to_pylist(),
        addresses=table["address"].to_pylist(),
        looked_at=looked_at,
        example=table["example"].fill_null(-1).to_numpy().astype(np.int64),
        # Held-out rows may be recited as well. They are the control: training did not do that.
        recites=_recites(table, "student") & looked_at,
    )


def _recites(table: pa.Table, role: str) -> NDArray[np.bool_]:
    recites: NDArray[np.bool_] = (
        table[f"extracted_by_{role}"].fill_null(False).to_numpy().astype(np.bool_)
    )
    return recites


@dataclass(frozen=True, slots=True)
class VerifiedRows:
    """What really happened to the rows of a run, beside what it predicted of them."""

    result: VerificationResult
    recited_by: dict[str, NDArray[np.bool_]]
    """(n_rows,) by role, whether that model recites the row."""

    looked_at: NDArray[np.bool_]
    """(n_rows,) whether the models were asked for it."""

    comparison: Comparison
    """This run's own probabilities against what was found."""

    @property
    def recited(self) -> NDArray[np.bool_]:
        """(n_rows,) whether the student was trained on the row and recites it."""
        return self.recited_by["student"] & self.looked_at

    @property
    def is_sample(self) -> bool:
        """Whether only some of the corpus was trained on."""
        return self.result.settings.get("sample") is not None


def read_verified_rows(folder: Path, run: Run) -> VerifiedRows:
    """Return what a verification of the run's corpus, teacher and objective found.

    Raises:
        UsageError: it is of another corpus, teacher, objective or window.
        OutputError: it is missing, damaged, or its files do not belong together.
    """
    result, table = read_verification(folder)
    inputs, where = run.manifest.inputs, shown_path(folder)
    expected = {
        "teacher_digest": inputs.teacher_digest,
        **inputs.shape.settings,
        **inputs.objective.predicted_settings,
    }
    # A student that was distilled elsewhere is known after its training alone.
    if inputs.role == "student" and "distilled" not in result.settings:
        expected["student_digest"] = inputs.reference_digest
    # Settings name the windows, turns and shortest suffix only where they decide anything.
    settings = {"windows": "first"} | result.settings
    expected["windows"] = inputs.windows
    if inputs.windows != "first" and (answers := inputs.answers) is not None:
        expected |= {"turns": answers.turns, "min_suffix_tokens": answers.min_suffix_tokens}
        settings = {"turns": answers.turns, "min_suffix_tokens": MIN_SUFFIX_LEN} | settings
    differing = [name for name, value in expected.items() if settings.get(name) != value]
    if differing:
        names = ", ".join(name.replace("_", " ") for name in differing)
        raise UsageError(
            f"{where}: a verification of something else than the run, they differ in {names}",
            hint="give predict and verify the same models, objective and windows",
        )
    _require_same_rows(table, run, where)
    return match_run(result, table, run)


def match_run(result: VerificationResult, table: pa.Table, run: Run) -> VerifiedRows:
    """Compare a run with the labels of its rows, which must be those of the table."""
    found, classifier = found_rows(table), run.manifest.classifier
    predicted = RowPredictions(
        shown=shown_path(run.folder),
        # No table was read: what the run was given says as much.
        digest=run.manifest.inputs.fingerprint,
        classifier=classifier.name,
        threshold=classifier.threshold,
        count_log_sd=classifier.count_log_sd,
        probabilities=run.probabilities,
        flagged=run.is_flagged,
    )
    recited_by = {role: _recites(table, role) for role in ROLES}
    return VerifiedRows(result, recited_by, found.looked_at, compare(found, predicted, n_missed=20))


def _require_same_rows(table: pa.Table, run: Run, where: str) -> None:
    """Refuse another corpus: other rows, or other texts equal to each other."""
    rows = run.rows
    is_same = table.num_rows == rows.num_rows and all(
        table[name].to_pylist() == rows.column(name).to_pylist() for name in ("id", "row")
    )
    if is_same:
        # The file may have been named by another path; its lines are the same.
        places = [
            [address.rpartition(":")[2] for address in column.to_pylist()]
            for column in (table["address"], rows.column("address"))
        ]
        unscored = {"too_short", "bad"}
        is_scored = np.array([outcome not in unscored for outcome in table["outcome"].to_pylist()])
        is_same = places[0] == places[1] and bool((is_scored == run.is_scored).all())
    if is_same:
        # Ids and lines survive an edit of the text. Which rows are equal to each other seldom does.
        looked_at = table["outcome"].to_numpy() == "scored"
        # Rows that were not looked at have no example: NaN here, left out before the cast.
        examples = table["example"].to_numpy(zero_copy_only=False)[looked_at].astype(np.int64)
        windows = run.worst_windows[looked_at]
        # No more pairs than examples: then all rows of an example have one window in the run.
        pairs = len(np.unique(np.stack([examples, windows]), axis=1).T)
        is_same = pairs == len(np.unique(examples))
        if run.n_windows == run.is_scored.sum():  # else different rows may share their worst window
            is_same = is_same and pairs == len(np.unique(windows))
    if not is_same:
        raise UsageError(
            f"{where}: a verification of another corpus than the run's",
            hint="run 'memaudit verify' on the corpus that was predicted",
        )
