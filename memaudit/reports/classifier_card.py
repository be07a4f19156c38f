"""The card of a shipped classifier: how it was tested, on a page."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from memaudit.classifier import shipped_classifiers_dir
from memaudit.evaluation import Figure
from memaudit.metrics import Interval
from memaudit.reports import words
from memaudit.reports.charts import Bar, Chart, Curve, Dot, Rule, counted_log, shares
from memaudit.reports.page import (
    BARS,
    Block,
    Cell,
    Column,
    Paragraph,
    Section,
    Table,
    name,
    numbers,
)

OWN = "this classifier"
"""The name of the classifier itself among the methods of its card."""

_METRICS = {
    "pr_auc": "average precision",
    "roc_auc": "ROC-AUC",
    "equal_count_auc": "ROC-AUC among examples that occur equally often",
    "precision": "precision at the threshold",
    "recall": "recall at the threshold",
    "calibration_error": "calibration error",
}


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
    methods = {method: _figures(metrics) for method, metrics in document["test"].items()}
    own = {OWN: methods.pop(OWN)}
    by_value = sorted(methods.items(), key=lambda item: -_average_precision(item[1]))
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


def _figures(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, Figure]:
    figures = {}
    for metric, found in metrics.items():
        low, high = found.get("low"), found.get("high")
        interval = None if low is None or high is None else Interval(low, high)
        if found.get("value") is not None:
            figures[metric] = Figure(found["value"], interval)
    return figures


def _average_precision(figures: Mapping[str, Figure]) -> float:
    return (figures["pr_auc"].value or 0.0) if "pr_auc" in figures else -1.0


def classifier_section(card: Card | None, classifier: str) -> Section:
    """Return how the classifier was tested, by its card."""
    no_card = " does not come with memaudit. The card beside its file says how it was tested."
    return Section(
        "How good the classifier is",
        "classifier",
        "Classifier",
        (Paragraph(("No card is at hand: ", name(classifier), no_card)),)
        if card is None
        else tuple(_blocks(card)),
    )


def _blocks(card: Card) -> Iterator[Block]:
    tested = f"Tested on {len(card.runs)} distillations that it never saw."
    if card.prevalence is not None:
        tested += f" {words.percent(card.prevalence)} of their examples were memorized."
    yield Paragraph(tested)
    own = card.methods[OWN]
    yield Table(
        title="Figures of this classifier on those distillations",
        columns=(Column("figure"), *numbers("value", "95% interval")),
        rows=tuple(
            (label, words.figure(own[key].value), words.figure_range(own[key]) or "–")
            for key, label in _METRICS.items()
            if key in own
        ),
        style="numbers",
    )
    if card.curve:
        yield _curve_chart(card)
    yield _methods(card)
    if card.runs:
        yield _calibration_chart(card.runs)
        yield Table(
            title="Expected and found, by held-out distillation",
            columns=(Column("distillation"), *numbers("examples", "expected", "found")),
            rows=tuple(
                (run.name, run.examples, f"{run.expected:,.1f}", run.found) for run in card.runs
            ),
            is_folded=True,
            style="numbers",
        )
    if card.statistics:
        yield Paragraph(card.statistics, "quiet")


def _methods(card: Card) -> Table:
    rows: list[tuple[str | Cell, ...]] = []
    for method, figures in card.methods.items():
        if found := figures.get("pr_auc"):
            low, high = (
                (found.interval.low, found.interval.high) if found.interval else (None, None)
            )
            bar = Bar(found.value or 0.0, is_risk=not rows, low=low, high=high)
            text, detail = words.figure(found.value, 2), words.figure_range(found, 2)
            rows.append((method, Cell(bar=bar), Cell(text=text, detail=detail)))
    return Table(
        title="Average precision (area under precision and recall) of this classifier and of "
        "simpler rules, on the same distillations",
        columns=(Column("by"), BARS, Column("average precision")),
        rows=tuple(rows),
        style="ranking",
    )


def _curve_chart(card: Card) -> Chart:
    chance = [] if card.prevalence is None else [Rule(up=card.prevalence)]
    return Chart(
        name="precision-recall",
        title="Precision against recall on held-out distillations",
        description="A curve from high precision at low recall to low precision at full recall; "
        f"chance is {words.percent(card.prevalence)}.",
        caption="The dashed line is chance.",
        x=shares("recall"),
        y=shares("precision"),
        marks=(Curve(card.curve), *chance),
        height=300,
    )


def _calibration_chart(runs: tuple[StudyRun, ...]) -> Chart:
    highest = 1.2 * max(1.0, *(max(run.expected, float(run.found)) for run in runs))
    dots = [(run, f"{run.expected:,.1f} expected, {run.found:,} found") for run in runs]
    return Chart(
        name="calibration",
        title="Found against expected, by held-out distillation",
        description=f"{len(runs)} dots on logarithmic scales, close to the diagonal where as many "
        "were memorized as expected. The numbers are in the table below.",
        caption="Each dot is a distillation. Above the line more was memorized than expected.",
        x=counted_log("examples expected", highest, with_thirds=True),
        y=counted_log("examples found", highest, with_thirds=True),
        marks=tuple(Dot(run.expected, run.found, f"{run.name}: {said}") for run, said in dots),
        has_diagonal=True,
        height=300,
    )
