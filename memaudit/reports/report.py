"""What a report of a run shows beyond the run's own counts, and the texts that it may show."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from memaudit.classifier import shipped_classifiers_dir
from memaudit.corpus import Conversation, Example, Rendered
from memaudit.errors import UsageError
from memaudit.evaluation import Figure
from memaudit.filtering.selection import with_fewer_copies
from memaudit.gate.check import GateInputs, check_gate
from memaudit.gate.policy import effective_policy
from memaudit.gate.result import GateResult
from memaudit.labels import VerifiedRows, read_verified_rows
from memaudit.metrics import ExpectedCount, Interval
from memaudit.reports.tokens import suffix_texts
from memaudit.runs.risks import Risks, Worst
from memaudit.runs.run import Run, read_run
from memaudit.runs.unchanged import changed_tables, reread_corpus

SCHEMA_VERSION = 1
"""Of the numbers inside a report; goes up when a reader of the old ones would misread."""

MAX_WORST = 500
"""Examples that a report lists at most: it stays a page, whatever the size of the corpus."""

REASONS_OF = 10_000
"""Distinct texts whose reasons are counted at most, the riskiest first."""

OWN = "this classifier"
"""The name of the classifier itself among the methods of its card."""

_N_BINS = 20
_N_BUDGETS = 64
# The curve of what is dropped ends where this share of the risk is left: beyond it is flat.
_REST_SHARE = 0.02
_COUNTED = re.compile(r"occurs \d+ times")


@dataclass(frozen=True, slots=True)
class Bin:
    """Examples whose probability is at least `low` and below `high`; the last bin includes 1."""

    low: float
    high: float
    rows: int
    flagged: bool
    """Whether they are at risk; the threshold is the end of a bin."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left when the riskiest examples are dropped."""

    rows: int
    """Dropped, all copies of a text together."""
    left: ExpectedCount
    """Rows expected to be memorized among the others."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A way to lower the risk."""

    name: str
    option: str
    """Of the command that does it; empty for what needs none."""
    rows: int
    """Examples that are left."""
    texts: ExpectedCount
    """Distinct texts expected to be memorized then."""


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """How many distinct texts have a reason, and how many rows, their copies included."""

    reason: str
    texts: int
    rows: int


@dataclass(frozen=True, slots=True)
class StudyRun:
    """A run of the study that the classifier never saw, distilled for real."""

    name: str
    examples: int
    expected: float
    """To be memorized, by the classifier."""
    found: int
    """That the student really memorized."""


@dataclass(frozen=True, slots=True)
class Card:
    """Figures at natural prevalence, on held-out runs."""

    methods: Mapping[str, Mapping[str, Figure]]
    """By method, the classifier first, then by metric; a metric without a value is left out."""
    runs: tuple[StudyRun, ...]
    """The smallest expectation first."""
    statistics: str
    limits: str
    curve: tuple[tuple[float, float], ...]
    """Recall and precision at falling thresholds; empty if the card has none."""

    @property
    def prevalence(self) -> float | None:
        """Share of memorized examples over all held-out runs; None without any."""
        n_examples = sum(run.examples for run in self.runs)
        return sum(run.found for run in self.runs) / n_examples if n_examples else None


def find_card(name: str, digest: str) -> Card | None:
    """Return the card of a shipped classifier; None if none is that one.

    Args:
        name: of the classifier.
        digest: of its content: a classifier of the same name may be another.
    """
    path = shipped_classifiers_dir() / name / "card.json"
    return read_card(path, digest) if path.is_file() else None


def read_card(path: Path, digest: str) -> Card | None:
    """Return a card if it is of the classifier with that digest and says how that was tested."""
    document = json.loads(path.read_text(encoding="utf-8"))
    # Figures of a classifier with the same name would lend trust that this one has not earned.
    if document.get("digest") != digest or OWN not in document.get("test", {}):
        return None
    methods: dict[str, dict[str, Figure]] = {method: {} for method in document["test"]}
    for method, metrics in document["test"].items():
        for metric, found in metrics.items():
            low, high = found.get("low"), found.get("high")
            interval = None if low is None or high is None else Interval(low, high)
            if found.get("value") is not None:
                methods[method][metric] = Figure(found["value"], interval)
    own = {OWN: methods.pop(OWN)}
    # A method without this figure comes last.
    none = Figure(-1.0, None)
    by_value = sorted(methods.items(), key=lambda item: -(item[1].get("pr_auc", none).value or 0.0))
    runs = [
        StudyRun(
            name.removeprefix("as shipped: "), run["examples"], float(run["expected"]), run["found"]
        )
        for name, run in document.get("test_by_run", {}).items()
        if run.get("expected") is not None and run.get("found") is not None
    ]
    curve = document.get("curves", {}).get("precision_recall", [])
    return Card(
        methods=own | dict(by_value),
        runs=tuple(sorted(runs, key=lambda run: (run.expected, run.name))),
        statistics=str(document.get("statistics", "")),
        limits=str(document.get("limits", "")),
        curve=tuple((float(recall), float(precision)) for recall, precision in curve),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run with what a report adds to it."""

    run: Run
    reasons: tuple[ReasonCount, ...]
    """Among the texts at risk, the most frequent first."""
    worst: tuple[Worst, ...]
    """The riskiest first."""
    card: Card | None
    """Of the classifier, if it is a shipped one."""
    verified: VerifiedRows | None = None
    """What a real distillation showed, if it is at hand."""
    gate: GateResult | None = None
    """What the gate says under a policy, if one was given."""
    row_texts: Mapping[int, str] | None = None
    """Of the worst examples, by row, if it was asked for: text of the corpus."""
    has_suffixes: bool = False
    """Whether it is the start of what would be recited. Otherwise: of the row."""
    warnings: tuple[str, ...] = ()
    """What beside the run must not be relied on."""

    def document(self) -> dict[str, Any]:
        """Return the numbers as one JSON document: no id, no address and no text of the corpus."""
        run, risks, inputs = self.run, self.run.risks, self.run.manifest.inputs
        expected, texts, sensitivity = risks.expected, risks.expected_texts, run.sensitivity_summary
        found = None if self.verified is None else self.verified.result.extracted["student"]
        gate = {} if self.gate is None else {"gate": self.gate.verdict}
        return gate | {
            "schema_version": SCHEMA_VERSION,
            "run": inputs.fingerprint,
            "rows": run.n_rows,
            "outcomes": dict(sorted(run.outcomes.items())),
            "flagged": risks.n_flagged,
            "flagged_distinct": risks.n_flagged_texts,
            "threshold": run.manifest.classifier.threshold,
            "expected_memorized": expected.mean,
            "expected_memorized_interval": [expected.low, expected.high],
            "expected_memorized_distinct": texts.mean,
            "expected_memorized_distinct_interval": [texts.low, texts.high],
            "expected_generic_distinct": risks.expected_generic_texts,
            "expected_if_sampled": risks.sampled_document(),
            "recited_by_teacher": risks.n_recited,
            "sensitivity": None if sensitivity is None else asdict(sensitivity),
            "out_of_range": dict(risks.out_of_range),
            "verified": None if found is None else found.count,
            "classifier_digest": inputs.classifier_digest,
            "teacher_digest": inputs.teacher_digest,
            "texts_digest": inputs.texts_digest,
        }


def make_report(run: Run, *, n_worst: int = 200, verified: VerifiedRows | None = None) -> Report:
    """Return the report of a finished run, with at most 500 of its worst examples."""
    risks, n_texts, n_rows = run.risks, Counter[str](), Counter[str]()
    windows = risks.riskiest_texts.windows[: min(risks.n_flagged_texts, REASONS_OF)].tolist()
    for window, copies in zip(windows, risks.riskiest_texts.copies.tolist(), strict=False):
        # "occurs 2 times" and "occurs 3 times" are one reason.
        for reason in _COUNTED.sub("occurs more than once", risks.reason(window)).split(", "):
            n_texts[reason] += 1
            n_rows[reason] += copies
    return Report(
        run=run,
        reasons=tuple(
            ReasonCount(reason, n, n_rows[reason]) for reason, n in n_texts.most_common()
        ),
        worst=run.worst(min(n_worst, MAX_WORST)),
        card=find_card(risks.classifier.name, run.manifest.inputs.classifier_digest),
        verified=verified,
    )


def read_report(  # noqa: PLR0913  one for each option of the command
    folder: Path,
    n_worst: int,
    verification: Path | None,
    policy: Path | None,
    data: str | None,
    tokenizer: str | None,
    n_characters: int,
    *,
    warn: Callable[[str], None],
) -> Report:
    """Read a finished run, and return its report.

    Args:
        folder: of the run.
        n_worst: examples that are listed.
        verification: folder that verify wrote for the same corpus.
        policy: file with limits to hold the run to.
        data: the corpus, for the start of the texts of the worst examples.
        tokenizer: of the teacher: then it is the start of their suffixes.
        n_characters: how much of them.
        warn: told what must not be relied on, at once.

    Raises:
        MemauditError: as `read_run`, `read_verified_rows`, `check_gate` and `read_row_texts` do.
    """
    run = read_run(folder)
    warnings = tuple(
        f"{table} was changed after the run was made; nothing here was read from it."
        for table in changed_tables(run)
    )
    for warning in warnings:
        warn(warning)
    verified = read_verified_rows(verification, run) if verification else None
    report = replace(make_report(run, n_worst=n_worst, verified=verified), warnings=warnings)
    if policy:
        inputs = GateInputs(verification=verification, data=data)
        # The page lists the worst itself: of the gate it shows verdict and rules alone.
        gate = check_gate(run, effective_policy(policy, {}), inputs, n_worst=0)
        report = replace(report, gate=gate)
    if data:
        rows = [worst.row for worst in report.worst]
        if tokenizer is None:
            texts = read_row_texts(run, data, rows, n_characters)
        else:
            texts = suffix_texts(run, rows, data, tokenizer, n_characters)
        report = replace(report, row_texts=texts, has_suffixes=tokenizer is not None)
    return report


def histogram(risks: Risks) -> tuple[Bin, ...]:
    """Return the scored rows by probability, in about twenty bins from 0 to 1."""
    threshold = risks.classifier.threshold
    # At least one bin on either side, wherever the threshold is.
    n_below = min(max(1, round(_N_BINS * threshold)), _N_BINS - 1)
    # The threshold is an edge between bins, so no bar is half at risk.
    below = np.linspace(0, threshold, n_below + 1)
    edges = np.concatenate([below[:-1], np.linspace(threshold, 1, _N_BINS - n_below + 1)])
    counts, _ = np.histogram(risks.row_probabilities, edges)
    bins = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
    return tuple(
        Bin(low, high, rows, flagged=i >= n_below) for i, (low, high, rows) in enumerate(bins)
    )


def budgets(risks: Risks) -> tuple[Budget, ...]:
    """Return what is left for about sixty numbers of dropped texts, from none to nearly all risk.

    One of them drops all at risk. The interval is the classifier's, for the texts that are left.
    """
    texts, classifier = risks.riskiest_texts, risks.classifier
    risk = texts.copies * texts.probabilities
    left = risk.sum() - np.cumsum(risk)
    last = min(int(np.searchsorted(-left, -_REST_SHARE * risk.sum())) + 1, len(risk))
    # Half of the numbers even, for the curve; half close to none, where most risk goes.
    even = np.linspace(0, last, _N_BUDGETS // 2)
    steep = np.geomspace(1, max(1, last), _N_BUDGETS // 2)
    n_dropped = np.concatenate([even, steep, [risks.n_flagged_texts]]).round().astype(np.int64)
    n_dropped = np.unique(n_dropped[n_dropped <= len(risk)])
    rows = np.concatenate([[0], np.cumsum(texts.copies)])
    return tuple(
        Budget(
            int(rows[n]),
            # With none dropped, to the last digit what the headline says.
            classifier.expected_count(texts.probabilities[n:], texts.copies[n:])
            if n
            else risks.expected,
        )
        for n in n_dropped.tolist()
    )


def remedies(run: Run) -> tuple[Remedy, ...]:
    """Return what the ways to lower the risk would leave, beside what is expected as it is.

    The teacher's scores stay those of a teacher that saw every example. What is left of an example
    without its risky part has not been scored, so nothing is expected of it.
    """
    risks, texts = run.risks, run.risks.texts
    is_flagged = texts.probabilities >= risks.classifier.threshold
    n_copies = np.zeros(len(risks.X), dtype=np.int64)
    # Not `+=`: it would count a window once that several texts share.
    np.add.at(n_copies, texts.windows[is_flagged], texts.copies[is_flagged] - 1)
    gone = np.flatnonzero(n_copies)
    windows, n_texts = np.unique(texts.windows, return_counts=True)
    kept, n_kept = np.unique(texts.windows[~is_flagged], return_counts=True)
    once, _ = with_fewer_copies(risks, windows, gone, n_copies[gone])
    count = risks.classifier.expected_count
    without, n_flagged = count(risks.window_probabilities[kept], n_kept), risks.n_flagged
    found = [
        Remedy("do nothing", "", run.n_rows, risks.expected_texts),
        Remedy(
            "keep one copy of each text at risk",
            "filter --strategy deduplicate",
            run.n_rows - int(n_copies.sum()),
            count(once, n_texts),
        ),
        Remedy("cut the risky part out", "filter --strategy excise", run.n_rows, without),
        Remedy("drop all examples at risk", "filter", run.n_rows - n_flagged, without),
    ]
    objective = run.manifest.inputs.objective
    # A higher temperature makes labels softer: less is memorized, and no example goes.
    warmer = replace(objective, temperature=2 * objective.temperature)
    if objective.kind == "soft" and (expected := risks.expected_if(warmer)) is not None:
        t = f"{warmer.temperature:g}"
        found.append(Remedy(f"distil at T = {t}", f"--temperature {t}", run.n_rows, expected))
    return tuple(found)


def read_row_texts(
    run: Run, source: str, rows: Collection[int], n_characters: int
) -> dict[int, str]:
    """Return the start of the texts of some rows, once the corpus is found to be the run's.

    Raises:
        UsageError: it is another corpus, or its texts come of a chat template.
        CorpusError: it cannot be read.
    """
    wanted = set(rows)
    return {
        row.row: row.text[:n_characters]
        for row in reread_corpus(run, source, _refuse_messages)
        if isinstance(row, Example) and row.row in wanted
    }


def _refuse_messages(conversation: Conversation) -> Rendered:
    raise UsageError(
        "the corpus holds messages, and only the teacher's chat template makes text of them",
        hint="leave out --show-text, or show the suffixes: memaudit report --tokenizer MODEL",
    )
