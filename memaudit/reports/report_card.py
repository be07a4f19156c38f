"""What the card of a shipped classifier says: how it did on runs that it never saw."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memaudit.classifier import shipped_classifiers_dir

OWN = "this classifier"
"""The name of the classifier itself among the methods of its card."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval, where the card has one."""

    value: float
    """Itself."""

    low: float | None
    """Lower end."""

    high: float | None
    """Upper end."""


@dataclass(frozen=True, slots=True)
class HeldOutRun:
    """A run of the study that the classifier never saw."""

    name: str
    """As in the card."""

    examples: int
    """In it."""

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
    """How the figures came about."""

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
