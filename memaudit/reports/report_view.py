"""A report as plain values: what each of its formats shows, counted once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from memaudit.metrics import ExpectedCount
from memaudit.objectives import Objective
from memaudit.reports.report_card import Card, find_card
from memaudit.reports.report_numbers import (
    Bin,
    Budget,
    ReasonCount,
    WorstRow,
    budgets,
    distinct_texts,
    histogram,
    main_features,
    n_recited,
    reason_counts,
    worst_rows,
)
from memaudit.runs.judging import out_of_range_rates, summarise_run
from memaudit.runs.manifest import Manifest
from memaudit.runs.result import OUT_OF_RANGE_LIMIT
from memaudit.sensitivity import SensitivitySummary
from memaudit.text import safe_text

if TYPE_CHECKING:
    from memaudit.reports.report_verified import Verified
    from memaudit.runs.finished import FinishedRun

SCHEMA_VERSION = 1
"""Of the numbers inside a report; goes up when a reader of the old ones would misread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a report shows. Counts are of rows unless they say otherwise."""

    manifest: Manifest
    """Of the run."""

    outcomes: Mapping[str, int]
    """Rows by outcome."""

    flagged: int
    """At risk: the probability reaches the threshold."""

    flagged_texts: int
    """Distinct texts among them."""

    texts: int
    """Distinct texts among the scored: rows with equal worst windows count once."""

    expected: ExpectedCount
    """To be memorized."""

    expected_texts: ExpectedCount
    """Distinct texts to be memorized."""

    recited: int
    """Whose worst window the teacher recites."""

    histogram: tuple[Bin, ...]
    """By probability."""

    budgets: tuple[Budget, ...]
    """From none dropped to nearly no risk left."""

    reasons: tuple[ReasonCount, ...]
    """Among the texts at risk."""

    features: tuple[str, ...]
    """Names of the features of the worst examples."""

    worst: tuple[WorstRow, ...]
    """The riskiest first."""

    out_of_range: Mapping[str, float]
    """For each feature of the classifier, the share of rows beyond its training range."""

    card: Card | None
    """Of the classifier, if it is a shipped one."""

    verified: "Verified | None" = None
    """What a real distillation showed, if it is at hand."""

    sensitivity: SensitivitySummary | None = None
    """How many rows hold personal data or secrets, if it was looked for."""

    row_texts: Mapping[int, str] | None = None
    """Start of the worst examples, by row, if they were asked for: text of the corpus."""

    @property
    def rows(self) -> int:
        """In the corpus."""
        return sum(self.outcomes.values())

    @property
    def scored(self) -> int:
        """With a probability."""
        return self.outcomes.get("scored", 0)

    @property
    def teacher(self) -> str:
        """Name of the teacher, safe to show."""
        given = self.manifest.names.teacher
        return safe_text(PurePath(given).name or given)

    @property
    def unfamiliar(self) -> dict[str, float]:
        """Features for which too many rows lie beyond what the classifier has seen."""
        return {name: rate for name, rate in self.out_of_range.items() if rate > OUT_OF_RANGE_LIMIT}

    def document(self) -> dict[str, Any]:
        """Return the numbers as one JSON document: no id, no address and no text of the corpus."""
        inputs, expected, texts = self.manifest.inputs, self.expected, self.expected_texts
        return {
            "schema_version": SCHEMA_VERSION,
            "run": inputs.fingerprint,
            "rows": self.rows,
            "outcomes": dict(sorted(self.outcomes.items())),
            "flagged": self.flagged,
            "flagged_distinct": self.flagged_texts,
            "threshold": self.manifest.classifier.threshold,
            "expected_memorized": expected.mean,
            "expected_memorized_interval": [expected.low, expected.high],
            "expected_memorized_distinct": texts.mean,
            "expected_memorized_distinct_interval": [texts.low, texts.high],
            "recited_by_teacher": self.recited,
            "sensitivity": None if self.sensitivity is None else asdict(self.sensitivity),
            "out_of_range": dict(self.out_of_range),
            "verified": None if self.verified is None else self.verified.found.count,
            "classifier_digest": inputs.classifier_digest,
            "teacher_digest": inputs.teacher_digest,
            "texts_digest": inputs.texts_digest,
        }


def make_report(
    run: "FinishedRun",
    *,
    n_worst: int = 200,
    verified: "Verified | None" = None,
) -> Report:
    """Count what a report shows.

    Args:
        run: finished.
        n_worst: examples listed, at most 500.
        verified: what a real distillation showed.
    """
    texts, classifier = distinct_texts(run), run.judgement.classifier
    return Report(
        manifest=run.manifest,
        outcomes=run.outcomes,
        flagged=run.judgement.n_flagged,
        flagged_texts=int((texts.probabilities >= classifier.threshold).sum()),
        texts=len(texts.windows),
        expected=classifier.expected_count(texts.probabilities, texts.copies),
        expected_texts=classifier.expected_count(texts.probabilities),
        recited=n_recited(run, texts),
        histogram=histogram(run),
        budgets=budgets(run, texts),
        reasons=reason_counts(run, texts),
        features=main_features(run),
        worst=worst_rows(run, texts, n_worst),
        out_of_range=out_of_range_rates(run.judgement),
        card=find_card(classifier.name, run.manifest.inputs.classifier_digest),
        verified=verified,
        sensitivity=summarise_run(run.judgement, run.manifest.inputs.versions),
    )


def objective_in_words(objective: Objective) -> str:
    """Return what the student learns from, such as "soft labels at T = 2"."""
    share = f" with {objective.cross_entropy_share:.0%} cross-entropy"
    words = {
        "soft": f"soft labels at T = {objective.temperature:g}",
        "hard": "hard labels",
        "cross-entropy": "cross-entropy on the corpus",
    }[objective.kind]
    return words + (share if objective.kind == "soft" and objective.cross_entropy_share else "")


def approximately(count: float) -> str:
    """Return an expected number: a decimal only where it matters."""
    return f"{count:,.1f}" if count < 10 else f"{count:,.0f}"


def verdict(report: Report) -> str:
    """Return what the report comes to, in one sentence."""
    expected = report.expected
    noun = "example" if report.rows == 1 else "examples"
    return (
        f"A student distilled from {report.teacher} is expected to memorize "
        f"{approximately(expected.mean)} of {report.rows:,} {noun} "
        f"({expected.low:,} to {expected.high:,})."
    )


def risk_in_words(probability: float) -> str:
    """Return a probability in percent; what is not certain never reads as certain."""
    if 0 < probability < 0.001:
        return "<0.1%"
    if 0.999 < probability < 1:
        return ">99.9%"
    return f"{probability:.1%}"


def budget_rows(report: Report) -> list[Budget]:
    """Return about eight budgets for a table, the one that drops all at risk among them."""
    budgets = report.budgets
    steps = max(1, (len(budgets) - 1) // 6)
    chosen = {0, len(budgets) - 1, *range(0, len(budgets), steps)}
    exact = [i for i, budget in enumerate(budgets) if budget.rows == report.flagged]
    return [budgets[i] for i in sorted(chosen | set(exact))]
