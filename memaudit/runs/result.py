"""What an audit found: counts, an expectation, the worst examples; and how it was found."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from memaudit.metrics import ExpectedCount
from memaudit.objectives import Objective
from memaudit.runs.manifest import AnswersRead, ModelNames
from memaudit.runs.reading import Outcome
from memaudit.sensitivity import SensitivitySummary
from memaudit.windows import WindowPolicy, WindowShape

SCHEMA_VERSION = 1
"""Of the risk table and the summary; goes up when a reader of the old one would misread."""

OUT_OF_RANGE_LIMIT = 0.05
"""Share of rows beyond a feature's range in training from which a summary says so."""


@dataclass(frozen=True, slots=True)
class WorstExample:
    """One of the riskiest examples; of examples with equal windows, the first."""

    example_id: str
    """As in the corpus: untrusted, so show it with `safe_text` only."""

    address: str
    """`<file>:<line or row>`."""

    row: int
    """Ordinal in the corpus, from 0."""

    probability: float
    """That the student memorizes it."""

    occurrences: int
    """How many times its worst window occurs in the corpus."""

    reason: str
    """In words, such as "occurs 16 times"."""

    text: str | None = None
    """Start of its worst window, if it was asked for: text of the corpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit found. Counts are of rows unless they say otherwise."""

    outcomes: Mapping[Outcome, int]
    """Rows by outcome; what is not named has none."""

    flagged: int
    """Scored rows whose probability reaches the threshold."""

    threshold: float
    """The classifier's."""

    expected: ExpectedCount
    """Scored rows expected to be memorized: the sum of their probabilities, with an interval."""

    flagged_distinct: int
    """Distinct texts among the flagged: rows with equal worst windows count once."""

    expected_distinct: ExpectedCount
    """Distinct texts expected to be memorized."""

    windows: int
    """Windows cut, equal ones counted each time."""

    distinct_windows: int
    """Equal ones counted once: what is scored, but for what a cascade leaves out."""

    shape: WindowShape
    """Of the windows."""

    policy: WindowPolicy
    """Which windows of a row were cut."""

    objective: Objective
    """What the student was taken to learn from."""

    answers: AnswersRead | None = None
    """Which part of what is trained on was looked at. None: rows are trained on as a whole."""

    names: ModelNames
    """Models, engine and classifier."""

    worst: tuple[WorstExample, ...]
    """The riskiest first."""

    out_of_range: dict[str, float]
    """For each feature of the classifier, the share of scored rows beyond its training range."""

    seconds: float
    """Wall time of this session of the audit, without the loading of models."""

    scoring_seconds: float
    """Wall time of the scoring pass."""

    table: Path | None = None
    """The risk table, if one was written."""

    run: str = ""
    """Fingerprint of what the run was given: equal ones have equal tables."""

    kept_windows: int = 0
    """Distinct windows whose features an earlier session, or another machine, left."""

    screened_windows: int = 0
    """Distinct windows that a cascade left out, of all of them."""

    survival: float | None = None
    """Of what would be flagged, in the cascade; 1: only what cannot be flagged was left out.

    None: there was no cascade.
    """

    sensitivity: SensitivitySummary | None = None
    """How many rows hold personal data or secrets. None: it was not looked for."""

    failures: Mapping[int, str] = field(default_factory=dict)
    """Why chunks could not be scored, by number: their rows have the outcome `error`."""

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
        """Rows that a cascade left out; the expected numbers do not count them."""
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
        """Of distinct windows that a cascade spared the teacher."""
        return self.screened_windows * self.shape.length

    @property
    def tokens_per_second(self) -> float:
        """Of the scoring pass, for what was scored in this session.

        What a cascade left out is taken to be spread evenly over the sessions.
        """
        share = 1 - self.kept_windows / max(1, self.distinct_windows)
        scored = self.tokens * share
        return scored / self.scoring_seconds if self.scoring_seconds > 0 else 0.0

    @property
    def unfamiliar(self) -> dict[str, float]:
        """Features for which too many rows lie beyond what the classifier has seen."""
        return {name: rate for name, rate in self.out_of_range.items() if rate > OUT_OF_RANGE_LIMIT}

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
            "expected_memorized_distinct": self.expected_distinct.mean,
            "expected_memorized_distinct_interval": [
                self.expected_distinct.low,
                self.expected_distinct.high,
            ],
            "windows": self.windows,
            "distinct_windows": self.distinct_windows,
            "kept_windows": self.kept_windows,
            "screened_windows": self.screened_windows,
            "survival": self.survival,
            "sensitivity": None if self.sensitivity is None else asdict(self.sensitivity),
            "window_policy": self.policy,
            "objective": self.objective.kind,
            "temperature": self.objective.temperature,
            "cross_entropy_share": self.objective.cross_entropy_share,
            "answers": None if self.answers is None else msgspec.to_builtins(self.answers),
            "prefix_tokens": self.shape.prefix_len,
            "suffix_tokens": self.shape.suffix_len,
            **asdict(self.names),
            "run": self.run,
            "worst": [_worst_document(example) for example in self.worst],
            "out_of_range": self.out_of_range,
            "tokens": self.tokens,
            "tokens_saved": self.tokens_saved,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "table": None if self.table is None else str(self.table),
        }


def _worst_document(example: WorstExample) -> dict[str, Any]:
    document = asdict(example)
    document["id"] = document.pop("example_id")
    if example.text is None:
        del document["text"]
    return document
