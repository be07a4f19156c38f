"""A report of a run as plain values: what it shows, counted once, and its classifier's card."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import msgspec

from memaudit.classifier import shipped_classifiers_dir
from memaudit.corpus import Conversation, CorpusOptions, Example, Rendered, read_corpus
from memaudit.errors import UsageError
from memaudit.metrics import ExpectedCount
from memaudit.reports.report_numbers import (
    MAX_WORST,
    Bin,
    Budget,
    ReasonCount,
    budgets,
    histogram,
    main_features,
    n_recited,
    reason_counts,
)
from memaudit.runs.manifest import Manifest
from memaudit.runs.risks import OUT_OF_RANGE_LIMIT, Worst
from memaudit.sensitivity import SensitivitySummary
from memaudit.text import shown_path

if TYPE_CHECKING:
    from memaudit.gate.result import GateResult
    from memaudit.labels import VerifiedRows
    from memaudit.runs.run import Run

SCHEMA_VERSION = 1
"""Of the numbers inside a report; goes up when a reader of the old ones would misread."""

OWN = "this classifier"
"""The name of the classifier itself among the methods of its card."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval, where the card has one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class HeldOutRun:
    """A run of the study that the classifier never saw."""

    name: str
    """As in the card."""

    examples: int

    expected: float
    """To be memorized, by the classifier."""

    found: int
    """That the student really memorized."""


@dataclass(frozen=True, slots=True)
class Card:
    """Figures at natural prevalence, on held-out runs."""

    methods: Mapping[str, Mapping[str, Figure]]
    """By method, the classifier first, then by metric."""

    runs: tuple[HeldOutRun, ...]
    """Each distilled for real; the smallest expectation first."""

    statistics: str
    """How the figures were computed."""

    limits: str
    """What they do not say."""

    curve: tuple[tuple[float, float], ...]
    """Recall and precision at falling thresholds; empty if the card has none."""

    @property
    def own(self) -> Mapping[str, Figure]:
        """Figures of the classifier itself, by metric."""
        return self.methods[OWN]

    @property
    def prevalence(self) -> float | None:
        """Share of memorized examples over all held-out runs."""
        n_examples = sum(run.examples for run in self.runs)
        return sum(run.found for run in self.runs) / n_examples if n_examples else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a report shows. Counts are of rows unless they say otherwise."""

    manifest: Manifest

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

    worst: tuple[Worst, ...]
    """The riskiest first."""

    out_of_range: Mapping[str, float]
    """For each feature of the classifier, the share of rows beyond its training range."""

    card: Card | None
    """Of the classifier, if it is a shipped one."""

    verified: "VerifiedRows | None" = None
    """What a real distillation showed, if it is at hand."""

    sensitivity: SensitivitySummary | None = None
    """How many rows hold personal data or secrets, if it was looked for."""

    gate: "GateResult | None" = None
    """What the gate says under a policy, if one was given."""

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
        """Name of the teacher, without the folders it lies in; untrusted."""
        given = self.manifest.names.teacher
        return PurePath(given).name or given

    @property
    def unfamiliar(self) -> dict[str, float]:
        """Features for which too many rows lie beyond what the classifier has seen."""
        return {name: rate for name, rate in self.out_of_range.items() if rate > OUT_OF_RANGE_LIMIT}

    @property
    def budgets_listed(self) -> list[Budget]:
        """About eight of them for a table, the one that drops all at risk among them."""
        budgets, steps = self.budgets, max(1, (len(self.budgets) - 1) // 6)
        chosen = {0, len(budgets) - 1, *range(0, len(budgets), steps)}
        exact = [i for i, budget in enumerate(budgets) if budget.rows == self.flagged]
        return [budgets[i] for i in sorted(chosen | set(exact))]

    def document(self) -> dict[str, Any]:
        """Return the numbers as one JSON document: no id, no address and no text of the corpus."""
        inputs, expected, texts = self.manifest.inputs, self.expected, self.expected_texts
        gate = {} if self.gate is None else {"gate": self.gate.verdict}
        return gate | {
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
            "verified": None
            if self.verified is None
            else self.verified.result.extracted["student"].count,
            "classifier_digest": inputs.classifier_digest,
            "teacher_digest": inputs.teacher_digest,
            "texts_digest": inputs.texts_digest,
        }


def make_report(
    run: "Run",
    *,
    n_worst: int = 200,
    verified: "VerifiedRows | None" = None,
) -> Report:
    """Count what a report shows.

    Args:
        run: finished.
        n_worst: examples listed, at most 500.
        verified: what a real distillation showed.
    """
    risks, texts = run.risks, run.risks.texts.riskiest_first()
    return Report(
        manifest=run.manifest,
        outcomes=run.outcomes,
        flagged=risks.n_flagged,
        flagged_texts=risks.n_flagged_texts,
        texts=len(texts.windows),
        expected=risks.expected,
        expected_texts=risks.expected_texts,
        recited=n_recited(run, texts),
        histogram=histogram(run),
        budgets=budgets(run, texts),
        reasons=reason_counts(run, texts),
        features=main_features(run),
        worst=run.worst(min(n_worst, MAX_WORST)),
        out_of_range=risks.out_of_range,
        card=find_card(risks.classifier.name, run.manifest.inputs.classifier_digest),
        verified=verified,
        sensitivity=run.sensitivity_summary,
    )


def find_card(name: str, digest: str) -> Card | None:
    """Return the card of a shipped classifier.

    Args:
        name: of the classifier.
        digest: of its content: a classifier of the same name may be another.

    Returns:
        None if no shipped classifier is that one.
    """
    path = shipped_classifiers_dir() / name / "card.json"
    return read_card(path, digest) if path.is_file() else None


def read_card(path: Path, digest: str) -> Card | None:
    """Return a card if it is of the classifier with that digest and says how that was tested."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("digest") != digest or OWN not in document.get("test", {}):
        return None
    methods = {name: _figures(metrics) for name, metrics in document["test"].items()}
    own = {OWN: methods.pop(OWN)}
    by_value = sorted(methods.items(), key=lambda item: -_value(item[1], "pr_auc"))
    curve = document.get("curves", {}).get("precision_recall", [])
    return Card(
        methods=own | dict(by_value),
        runs=_runs(document.get("test_by_run", {})),
        statistics=str(document.get("statistics", "")),
        limits=str(document.get("limits", "")),
        curve=tuple((float(recall), float(precision)) for recall, precision in curve),
    )


def _figures(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, Figure]:
    return {
        name: Figure(value, figure.get("low"), figure.get("high"))
        for name, figure in metrics.items()
        if (value := figure.get("value")) is not None
    }


def _value(figures: Mapping[str, Figure], metric: str) -> float:
    return figures[metric].value if metric in figures else -1.0


def _runs(by_name: Mapping[str, Mapping[str, Any]]) -> tuple[HeldOutRun, ...]:
    runs = [
        HeldOutRun(
            name.removeprefix("as shipped: "), run["examples"], float(run["expected"]), run["found"]
        )
        for name, run in by_name.items()
        if run.get("expected") is not None and run.get("found") is not None
    ]
    return tuple(sorted(runs, key=lambda run: (run.expected, run.name)))


def read_row_texts(
    manifest: "Manifest", source: str, rows: Collection[int], n_characters: int
) -> dict[int, str]:
    """Return the start of the texts of some rows, once the corpus is found to be the run's.

    Args:
        manifest: of the run: says how its corpus is read.
        source: where the corpus is now.
        rows: ordinals.
        n_characters: of each text.

    Raises:
        UsageError: it is another corpus, or its texts come of a chat template.
        CorpusError: it cannot be read.
    """
    declared = {name: value for name, value in manifest.inputs.corpus.items() if name != "source"}
    options = CorpusOptions(source, **declared)
    wanted, texts, digest = set(rows), {}, hashlib.sha256()
    for row in read_corpus(options, render_messages=_refuse_messages):
        if isinstance(row, Example):
            digest.update(msgspec.json.encode(row.text))
            if row.row in wanted:
                texts[row.row] = row.text[:n_characters]
    if digest.hexdigest() != manifest.inputs.texts_digest:
        raise UsageError(
            f"{shown_path(source)}: its texts are not those that were scored in the run",
            hint="give the very corpus of the run with --data, or leave out --show-text",
        )
    return texts


def _refuse_messages(conversation: Conversation) -> Rendered:
    raise UsageError(
        "the corpus holds messages, and only the teacher's chat template makes text of them",
        hint="leave out --show-text",
    )
