"""The pages of `memaudit fit`: how good a classifier is on what it has not seen, and why."""

from collections.abc import Iterator
from typing import Any

from memaudit.evaluation import Figure
from memaudit.reports import words
from memaudit.reports.page import (
    Column,
    Page,
    Section,
    Sentence,
    Table,
    Words,
    facts,
    name,
    numbers,
    path_name,
)
from memaudit.text import number_of
from memaudit.training.recalibration import Recalibrated
from memaudit.training.result import (
    JUDGED,
    PROMISED_RECALL,
    SPLIT_NOTES,
    FitResult,
    make_card,
    positives_needed,
    recall_bound,
)

_JUDGED_ON = {
    "run": "runs that the fit had not seen",
    "example": "examples that the fit had not seen",
    "calibration": "the calibration examples",
}
_CROSS_FITTED = (
    "The figures are cross-fitted: each fifth of the pilot is judged by a shift from the other "
    "four. The order of examples has not changed."
)
_COUNTS_COPIES = (
    "The pilot's student was trained on a sample, and the scores count copies in the whole corpus. "
    "Put the sample in a file of its own, and predict and verify that file."
)
_FOR_THIS_TRAINING = (
    "The level holds for the pilot's corpus and training: other epochs, learning rates or losses "
    "need another pilot."
)


def fit_page(result: FitResult) -> Page:
    """Return how good a fit is on what it has not seen, then why."""
    judged = {part.name: part.compared for part in result.held_out}
    rows: list[tuple[Sentence, ...]] = []
    for run in result.runs:
        found: tuple[Sentence, ...] = ("–", "–", "–")
        if (compared := judged.get(run.run.name)) is not None:
            expected = f"{compared.probabilities.sum():,.1f}"
            found = (expected, int(compared.flagged.sum()), compared.n_caught)
        counts = (run.counts.rows, run.counts.used, run.counts.distinct, run.run.n_extracted)
        rows.append((name(run.run.name, max_len=64), *counts, *found))
    titles = ("rows", "used", "distinct", "memorized", "expected", "flagged", "caught")
    table = Table(columns=(Column("run", "anywhere"), *numbers(*titles)), rows=tuple(rows))
    classifier = result.classifier
    n_fit = sum(run.n_extracted for run in result.split.fit)
    settings = facts(
        {
            "features": ", ".join(classifier.features),
            "split": f"by {result.unit}: {n_fit} memorized to fit, "
            f"{result.n_calibration_positives} to calibrate",
            "threshold": f"at risk from {words.percent(classifier.threshold)}",
            "classifier": path_name(f"{result.folder}, {classifier.digest[:12]}"),
            "use": path_name(f"memaudit predict --classifier {result.folder}"),
        }
    )
    return Page(
        title="Fit of a classifier",
        verdict=fit_verdict(result),
        sections=(Section(blocks=(table, settings)),),
        notes=tuple(fit_notes(result)),
    )


def fit_document(result: FitResult) -> dict[str, Any]:
    """Return the card as one JSON document, with where the classifier is."""
    return {"schema_version": 1, "folder": str(result.folder), **make_card(result)}


def fit_verdict(result: FitResult) -> Sentence:
    """Return how well such a fit does on examples that it has not seen."""
    found = result.figures
    threshold = shipped = ""
    if "recall" in found:
        threshold = (
            f" At its threshold it flags {_percent(found['recall'])} of what is memorized, and "
            f"{_percent(found['precision'])} of what it flags is memorized."
        )
    if result.shipped_figures:
        shipped = (
            " The shipped classifier on the same examples: PR-AUC "
            f"{_number(result.shipped_figures['pr_auc'])}."
        )
    return (
        name(result.classifier.name, "strong"),
        f" ranks {_JUDGED_ON[result.held_out_kind]} with a PR-AUC of ",
        Words(_number(found["pr_auc"]), "strong"),
        f" (chance {found['prevalence'].value or 0:.3f}) and a ROC-AUC of "
        f"{_number(found['roc_auc'])}.{threshold}{shipped}",
    )


def fit_notes(result: FitResult) -> Iterator[str]:
    """Return what a reader must know before relying on the numbers."""
    n_positives = result.n_calibration_positives
    yield (
        f"{n_positives} memorized examples calibrate it. If it misses none of them, its recall is "
        f"at least {recall_bound(n_positives):.1%} with 95% confidence; a bound of "
        f"{PROMISED_RECALL:.0%} needs {positives_needed(PROMISED_RECALL)}."
    )
    if result.held_out_kind != "run":
        yield JUDGED[result.held_out_kind]
    elif result.n_not_judged:
        yield (
            f"{number_of(result.n_not_judged, 'example')} could not be judged: without their runs too few "
            "memorized ones would be left to fit on."
        )
    if result.unit == "example":
        yield SPLIT_NOTES[result.unit]
    for run in result.runs:
        counts = run.counts
        conflicting = (
            "example has both labels and counts",
            "equal examples have both labels and count",
        )
        if counts.unlabelled or counts.unscored or counts.conflicting:
            yield (
                f"{run.run.name}: {number_of(counts.unlabelled, 'scored row')} without a label and "
                f"{number_of(counts.unscored, 'label')} without a scored row are left out; "
                f"{number_of(counts.conflicting, *conflicting)} as memorized."
            )


def recalibration_page(result: Recalibrated) -> Page:
    """Return what a pilot made of a classifier."""
    before, after, shift = result.figures_before, result.figures_after, result.shift
    table = facts(
        {
            "from": name(f"{result.before.name}, {result.before.digest[:12]}"),
            "level": f"log-odds {shift.shift:+.2f}, slope {shift.slope:.2f}",
            "log loss": f"{words.figure(after.log_loss)}, before {words.figure(before.log_loss)}",
            "Brier": f"{words.figure(after.brier)}, before {words.figure(before.brier)}",
            "classifier": path_name(f"{result.folder}, {result.classifier.digest[:12]}"),
            "use": path_name(f"memaudit predict --classifier {result.folder}"),
        }
    )
    notes = [_CROSS_FITTED]
    if after.log_loss > before.log_loss:
        notes.append(
            "On held-out fifths the shift does not help: the pilot is too small, or not needed."
        )
    if result.counts_copies:
        notes.append(_COUNTS_COPIES)
    return Page(
        title="Recalibration of a classifier",
        verdict=(
            name(result.classifier.name, "strong"),
            " expects ",
            Words(words.figure(after.expected.mean, 1), "strong"),
            f" ({words.interval(after.expected)}) of the pilot's {result.n_examples:,} examples "
            f"to be memorized; {result.n_extracted:,} were. Before: "
            f"{words.figure(before.expected.mean, 1)} ({words.interval(before.expected)}).",
        ),
        sections=(Section(blocks=(table,)),),
        notes=(*notes, _FOR_THIS_TRAINING),
    )


def _number(figure: Figure) -> str:
    if figure.value is None:
        return "unknown"
    if figure.interval is None:
        return words.figure(figure.value)
    return f"{words.figure(figure.value)} ({words.figure_range(figure)})"


def _percent(figure: Figure) -> str:
    if figure.value is None or figure.interval is None:
        return "an unknown share"
    return f"{figure.value:.0%} ({figure.interval.low:.0%} to {figure.interval.high:.0%})"
