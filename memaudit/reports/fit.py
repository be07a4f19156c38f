"""The summary of a fit on a terminal: how good it is on what it has not seen, then why."""

import sys
from typing import Any

from rich.table import Table
from rich.text import Text

from memaudit.evaluation import Figure
from memaudit.reports.style import make_console, untrusted
from memaudit.training import FitResult
from memaudit.training.card import (
    JUDGED,
    PROMISED_RECALL,
    SPLIT_NOTES,
    make_card,
    positives_needed,
    recall_bound,
)
from memaudit.training.joining import JoinCounts
from memaudit.training.result import HeldOutRun

_JUDGED_ON = {
    "run": "runs that the fit had not seen",
    "example": "examples that the fit had not seen",
    "calibration": "the calibration examples",
}


def print_fit(result: FitResult, *, color: str = "auto") -> None:
    """Print the summary on standard output.

    Args:
        result: of a fit.
        color: `auto`, `always` or `never`.
    """
    console = make_console(sys.stdout, color)
    console.print(verdict(result))
    console.print()
    console.print(_runs_table(result))
    console.print()
    console.print(_facts(result))
    for note in notes(result):
        console.print()
        console.print(Text(note, style="dim"))


def fit_document(result: FitResult) -> dict[str, Any]:
    """Return the card as one JSON document, with where the classifier is."""
    return {"schema_version": 1, "folder": str(result.folder), **make_card(result)}


def verdict(result: FitResult) -> Text:
    """Return how well such a fit does on examples that it has not seen."""
    found = result.figures
    text = Text.assemble(
        untrusted(result.classifier.name, "bold"),
        f" ranks {_JUDGED_ON[result.held_out_kind]} with a PR-AUC of ",
        (_number(found["pr_auc"]), "bold"),
        f" (chance {found['prevalence'].value or 0:.3f}) and a ROC-AUC of {_number(found['roc_auc'])}.",
    )
    if "recall" in found:
        text.append(
            f" At its threshold it flags {_percent(found['recall'])} of what is memorized, and "
            f"{_percent(found['precision'])} of what it flags is memorized."
        )
    if result.shipped_figures:
        text.append(
            " The shipped classifier on the same examples: PR-AUC "
            f"{_number(result.shipped_figures['pr_auc'])}."
        )
    return text


def notes(result: FitResult) -> list[str]:
    """Return what a reader must know before relying on the numbers."""
    n_positives = result.n_calibration_positives
    found = [
        f"{n_positives} memorized examples calibrate it: with none of them missed they could "
        f"vouch for a recall of {recall_bound(n_positives):.1%} at 95% confidence; "
        f"{PROMISED_RECALL:.0%} needs {positives_needed(PROMISED_RECALL)}."
    ]
    if result.held_out_kind != "run":
        found.append(JUDGED[result.held_out_kind])
    elif result.n_not_judged:
        found.append(
            f"{result.n_not_judged:,} examples could not be judged: without their runs too few "
            "memorized ones would be left to fit on."
        )
    if result.unit == "example":
        found.append(SPLIT_NOTES[result.unit])
    for run in result.runs:
        if run.counts.unlabelled or run.counts.unscored or run.counts.conflicting:
            found.append(_left_out(run.run.name, run.counts))
    return found


def _left_out(name: str, counts: JoinCounts) -> str:
    return (
        f"{name}: {counts.unlabelled:,} scored rows without a label and {counts.unscored:,} labels "
        f"without a scored row are left out; {counts.conflicting:,} equal examples have both "
        "labels and count as memorized."
    )


def _runs_table(result: FitResult) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("run", overflow="fold", max_width=32)
    for title in ("rows", "used", "distinct", "memorized", "expected", "flagged", "caught"):
        table.add_column(title, justify="right", no_wrap=True)
    judged = {part.name: part for part in result.held_out}
    for run in result.runs:
        counts = run.counts
        numbers = (counts.rows, counts.used, counts.distinct, run.run.n_extracted)
        table.add_row(
            untrusted(run.run.name, max_len=64),
            *(f"{number:,}" for number in numbers),
            *_judged_cells(judged.get(run.run.name)),
        )
    return table


def _judged_cells(part: HeldOutRun | None) -> tuple[str, str, str]:
    if part is None:
        return ("–", "–", "–")
    compared = part.compared
    return (
        f"{compared.probabilities.sum():,.1f}",
        f"{int(compared.flagged.sum()):,}",
        f"{compared.n_caught:,}",
    )


def _facts(result: FitResult) -> Table:
    classifier, split = result.classifier, result.split
    n_fit = sum(run.n_extracted for run in split.fit)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=10)
    table.add_column(overflow="fold")
    table.add_row("features", Text(", ".join(classifier.features)))
    table.add_row(
        "split",
        Text(
            f"by {result.unit}: {n_fit} memorized to fit, "
            f"{result.n_calibration_positives} to calibrate"
        ),
    )
    table.add_row("threshold", Text(f"at risk from {classifier.threshold:.1%}"))
    table.add_row(
        "classifier", untrusted(f"{result.folder}, {classifier.digest[:12]}", max_len=4096)
    )
    table.add_row("use", untrusted(f"memaudit predict --classifier {result.folder}", max_len=4096))
    return table


def _number(figure: Figure) -> str:
    if figure.value is None:
        return "unknown"
    if figure.interval is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.interval.low:.3f} to {figure.interval.high:.3f})"


def _percent(figure: Figure) -> str:
    if figure.value is None or figure.interval is None:
        return "an unknown share"
    return f"{figure.value:.0%} ({figure.interval.low:.0%} to {figure.interval.high:.0%})"
