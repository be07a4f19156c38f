"""What a verification found: rates with intervals, the sets, and predicted against found."""

from dataclasses import dataclass
from typing import Any, Literal, Self

import msgspec

from memaudit.metrics import clopper_pearson

SCHEMA_VERSION = 1
"""Of `verification.json` and its table; goes up when a reader of the old one would misread."""

ROLES = ("teacher", "baseline", "student")
"""The models whose extraction is looked at, in the order of reports."""

ExtractionSet = Literal[
    "easy", "inherited", "new", "baseline_and_student", "teacher_only", "baseline_only", "none"
]
"""Where an example belongs, T, B, S being what teacher, baseline and student recite: easy T∩B
(whether in S or not), inherited (T∩S)\\B, new S\\T\\B, baseline_and_student (B∩S)\\T, teacher_only
T\\B\\S, baseline_only B\\T\\S. Source: Borkar et al. 2026 (arXiv:2601.15394), section 4."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of something counted, with its exact 95 % interval (Clopper-Pearson)."""

    count: int
    """How many."""

    of: int
    """Out of how many."""

    rate: float | None
    """The share; None out of none."""

    low: float
    """Lower end, in [0, 1]."""

    high: float
    """Upper end, in [0, 1]."""

    @classmethod
    def of_counts(cls, count: int, of: int) -> Self:
        """Return the rate of counts, of which the second may be 0."""
        interval = clopper_pearson(count, of)
        return cls(count, of, count / of if of else None, interval.low, interval.high)


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
    """Compared."""

    extracted_one_pass: int
    """By the one pass."""

    extracted_generated: int
    """By `generate`."""

    disagreements: int
    """Windows on which they differ."""

    ties: int
    """Disagreements that a tie of two logits explains."""


@dataclass(frozen=True, slots=True)
class MissedExample:
    """An example that the student recites and the prediction did not flag."""

    id: str
    """As in the corpus: untrusted, so show it with `safe_text` only."""

    row: int
    """Ordinal in the corpus, from 0."""

    address: str
    """`<file>:<line or row>`."""

    probability: float
    """What was predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Predicted against found. Equal windows count once, but for the numbers of rows."""

    predictions: str
    """The folder as given."""

    predictions_digest: str
    """Sha256 of its table."""

    classifier: str
    """Whose predictions they are."""

    threshold: float
    """From which it flags."""

    examples: int
    """Distinct examples with prediction and label."""

    roc_auc: float | None
    """None without a positive or a negative."""

    pr_auc: float | None
    """Average precision; None without a positive."""

    brier: float | None
    """Mean squared error of the probabilities."""

    calibration_error: float | None
    """Mean gap of predicted and found share, over ten bins of equal size."""

    precision: Rate
    """Extracted among the flagged."""

    recall: Rate
    """Flagged among the extracted."""

    lift: float | None
    """Precision over prevalence: how much more often the flagged are extracted than all."""

    expected: float
    """Distinct examples expected to be memorized."""

    expected_low: int
    """Of its 95 % interval."""

    expected_high: int
    """Of its 95 % interval."""

    interval_covers_level: bool
    """Whether that interval allows for the level of all probabilities being off; chance alone
    where the classifier is not at hand."""

    found: int
    """Distinct examples that the student recites."""

    expected_rows: float
    """Rows expected to be memorized, equal ones counted each time."""

    found_rows: int
    """Rows that the student recites."""

    missed: tuple[MissedExample, ...]
    """Extracted and not flagged, the least probable first; at most 100 of them."""

    @property
    def n_missed(self) -> int:
        """All of them."""
        return self.recall.of - self.recall.count


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationResult:
    """What a verification found. An example is a distinct window unless rows are named."""

    settings: dict[str, Any]
    """All that decides the numbers: digests, versions, options. The same again gives the same."""

    models: dict[str, str]
    """As given, by role; no baseline where it was made here."""

    outcomes: dict[str, int]
    """Rows of the corpus by outcome."""

    examples: int
    """Distinct windows that baseline and student were trained on."""

    held_out: int
    """Distinct windows that they were not trained on."""

    extracted: dict[str, Rate]
    """By role, among the examples."""

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

    comparison: Comparison | None
    """If predictions were given."""

    labels_digest: str
    """Sha256 of the labels in the table."""

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


def read_document(document: dict[str, Any]) -> VerificationResult:
    """Return the result that `document` made this of.

    Raises:
        msgspec.ValidationError: it is none.
    """
    return msgspec.convert(document, VerificationResult)
