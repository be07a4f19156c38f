"""The tables of a study's classifiers: on test cells, and on what they were not fitted on."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from memaudit.classifier import shipped_name
from memaudit.features import SHARED_SETS
from memaudit.objectives import ObjectiveKind
from study.tables import StudyTable, decimal, in_order, with_interval

Document = Mapping[str, Any]
"""What `study.heavy.workflow.conduct_study` returns."""

_OTHER_KINDS: tuple[ObjectiveKind, ...] = ("hard", "cross-entropy")
_FIRST_METHODS = (*SHARED_SETS, "the paper's four", "students of two other seeds")
_FIRST_GROUPS = ("as shipped", "within family and corpus")
_OTHERS = {shipped_name(name, kind) for name in SHARED_SETS for kind in _OTHER_KINDS}
_MIN_FOUND = 5
"""Below so many memorized examples, a ratio to an expected number says nothing."""

GOOD_FACTOR = 1.25
"""Within which an expected number should lie of what is found."""

CLASSIFIER_FIGURES = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "equal_count_auc": "equal-\ncount AUC",
    "precision": "precision",
    "recall": "recall",
    "brier": "Brier",
    "calibration_error": "calibration\nerror",
}


def classifiers_table(document: Document) -> StudyTable:
    """Return classifiers, rules and other seeds' students on the test cells."""
    return StudyTable(
        "classifiers",
        "Predicting the soft student on test cells, at natural prevalence",
        ("method", *CLASSIFIER_FIGURES.values()),
        _judged_rows(document, [name for name in _methods(document) if name not in _OTHERS]),
        (
            "Intervals (95 %) resample runs, then their examples. ROC-AUC, PR-AUC and the AUC "
            "among examples that occur equally often are means over runs; the rest pools runs.",
        ),
    )


def other_objectives_table(document: Document) -> StudyTable:
    """Return the classifiers of hard labels and cross-entropy on students of their own."""
    return StudyTable(
        "other objectives",
        "Predicting students of hard labels and of cross-entropy on test cells",
        ("method", *CLASSIFIER_FIGURES.values()),
        _judged_rows(document, [name for name in _methods(document) if name in _OTHERS]),
    )


def _judged_rows(document: Document, methods: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    figures = {
        method: document["classifiers"][method].get("as shipped", {}).get("figures")
        for method in methods
    }
    return tuple(
        (method, *(with_interval(found.get(name)) for name in CLASSIFIER_FIGURES))
        for method, found in figures.items()
        if found
    )


def _methods(document: Document) -> list[str]:
    return in_order(document["classifiers"], _FIRST_METHODS)


def transfer_table(document: Document) -> StudyTable:
    """Return each classifier on what it was not fitted on."""
    rows, failed = [], []
    for method in _methods(document):
        groups = document["classifiers"][method]
        if len(groups) == 1:
            continue
        for group in in_order(groups, _FIRST_GROUPS):
            entry = groups[group]
            failed += [f"{method}: {name}" for name in entry["not_fitted"]]
            if entry["figures"]:
                figures = (entry["figures"][name] for name in ("roc_auc", "pr_auc", "recall"))
                rows.append(
                    (
                        method,
                        group,
                        f"{len(entry['by_run'])}",
                        *map(with_interval, figures),
                        *_expected_cells(list(entry["by_run"].values())),
                    )
                )
    notes = [
        "Expected against found: over runs with at least "
        f"{_MIN_FOUND} memorized examples, 1 is exact; worst is the farthest from it."
    ]
    if failed:
        notes.append(f"Too few memorized examples to fit on: {', '.join(sorted(set(failed)))}.")
    return StudyTable(
        "transfer",
        "Transfer: classifiers on what they were not fitted on",
        (
            "method",
            "fitted and judged",
            "runs",
            "ROC-AUC",
            "PR-AUC",
            "recall",
            "expected\n/ found",
            "worst",
            f"within\n{GOOD_FACTOR}",
        ),
        tuple(rows),
        tuple(notes),
        n_labels=2,
    )


def expected_against_found(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return expected over found for the runs in which enough was found."""
    return [run["expected"] / run["found"] for run in runs if run["found"] >= _MIN_FOUND]


def _expected_cells(runs: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """Return the median ratio, the worst one, and how many are good."""
    ratios = expected_against_found(runs)
    if not ratios:
        return "–", "–", "–"
    factors = {ratio: max(ratio, 1 / ratio) if ratio else math.inf for ratio in ratios}
    n_good = sum(factors[ratio] <= GOOD_FACTOR for ratio in ratios)
    worst = max(ratios, key=lambda ratio: factors[ratio])
    return decimal(median(ratios), 2), decimal(worst, 2), f"{n_good} of {len(ratios)}"
