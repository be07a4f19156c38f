"""The pages of `memaudit verify` and `memaudit fit`: what really happened, and what it taught."""

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from memaudit.labels import ROLES
from memaudit.reports import words
from memaudit.reports.page import (
    PATH_LEN,
    Cell,
    Column,
    Page,
    Section,
    Sentence,
    Table,
    Words,
    counts,
    facts,
    name,
)

if TYPE_CHECKING:
    from memaudit.evaluation import Comparison, Figure
    from memaudit.labels import LabelScan, VerificationResult
    from memaudit.training import FitResult, Recalibrated
    from memaudit.training.joining import JoinCounts
    from memaudit.training.result import HeldOutRun
    from memaudit.verification.estimate import Estimate

_MISSED_SHOWN = 10
_JUDGED_ON = {
    "run": "runs that the fit had not seen",
    "example": "examples that the fit had not seen",
    "calibration": "the calibration examples",
}


def verification_page(result: "VerificationResult", out: Path) -> Page:
    """Return what the student recites first, then what it is compared with.

    Args:
        result: of a verification.
        out: its folder.
    """
    return Page(
        title="Verification",
        verdict=_verdict(result),
        sections=(
            Section(blocks=(_models(result), _sets(result))),
            *_found(result),
            Section(blocks=(_settings(result, out),)),
        ),
        notes=tuple(_notes(result)),
    )


def _verdict(result: "VerificationResult") -> Sentence:
    student = result.extracted["student"]
    noun = "example" if student.of == 1 else "examples"
    teacher = PurePath(result.models["teacher"]).name or result.models["teacher"]
    return (
        Words(
            f"The student recites {student.count:,} of {student.of:,} {noun}",
            "risk" if student.count else "good",
        ),
        f" ({words.rate_range(student)}) after its distillation from ",
        name(teacher, "strong"),
        f"; the baseline recites {result.extracted['baseline'].count:,}, "
        f"the teacher {result.extracted['teacher'].count:,}.",
    )


def _found(result: "VerificationResult") -> Iterator[Section]:
    if result.label_scan is not None:
        yield Section(title="The teacher's text", blocks=(_scan(result.label_scan),))
    if result.generation is not None:
        yield Section(title="One pass against real generation", blocks=(_generation(result),))
    if result.comparison is not None:
        yield Section(title="Predicted against found", blocks=(_comparison(result.comparison),))
        if result.comparison.missed:
            yield Section(title="Missed", blocks=(_missed(result.comparison),))


def _models(result: "VerificationResult") -> Table:
    titles = ("recites", "share", "95% interval", "rows", "held-out perplexity", "held out")
    return Table(
        columns=(Column(breaks="nowhere"), *(Column(each, is_number=True) for each in titles)),
        rows=tuple(
            (
                role,
                f"{rate.count:,}",
                words.percent(rate.rate),
                words.rate_range(rate),
                f"{result.extracted_rows[role]:,}",
                words.figure(result.perplexity[role], 2),
                f"{result.held_out_extracted[role]:,} of {result.held_out:,}",
            )
            for role, rate in ((role, result.extracted[role]) for role in ROLES)
        ),
    )


def _sets(result: "VerificationResult") -> Table:
    sets, easy, inherited = result.sets, result.student_in_easy, result.inherited
    in_easy = (
        "too (the student recites nothing)"
        if easy.rate is None
        else f"too: {easy.count:,} of the {easy.of:,} that the student recites, {words.rate(easy)}"
    )
    of_teacher = (
        " (the teacher recites nothing that the baseline does not)"
        if inherited.rate is None
        else f": {inherited.count:,} of the {inherited.of:,} that the teacher recites and the "
        f"baseline does not, {words.rate(inherited)}"
    )
    return counts(
        (
            ("easy", f"{sets['easy']:,}", f"recited by teacher and baseline {in_easy}"),
            (
                "inherited",
                f"{sets['inherited']:,}",
                f"recited by teacher and student, not by the baseline{of_teacher}",
            ),
            ("new", f"{sets['new']:,}", "recited by the student alone"),
        )
    )


def _scan(scan: "LabelScan") -> Table:
    return counts(
        (
            ("texts", f"{scan.texts:,}", "written by the teacher after a real prefix"),
            ("own suffix", f"{scan.own_suffix:,}", "hold the suffix of their own window"),
            ("other suffix", f"{scan.other_suffix:,}", "hold the suffix of another window"),
            ("leaked", f"{scan.leaked_suffixes:,}", "distinct suffixes of the corpus"),
        )
    )


def _generation(result: "VerificationResult") -> Table:
    titles = ("windows", "one pass", "generated", "disagree", "of them ties")
    return Table(
        columns=(Column(breaks="nowhere"), *(Column(each, is_number=True) for each in titles)),
        rows=tuple(
            (
                role,
                f"{found.windows:,}",
                f"{found.extracted_one_pass:,}",
                f"{found.extracted_generated:,}",
                f"{found.disagreements:,}",
                f"{found.ties:,}",
            )
            for role, found in (result.generation or {}).items()
        ),
    )


def _comparison(found: "Comparison") -> Table:
    recall, precision = found.recall, found.precision
    basis = "" if found.interval_covers_level else ", chance alone"
    rows = (
        (
            "expected",
            f"{found.expected:,.1f}",
            f"{found.expected_low:,} to {found.expected_high:,}{basis}; found {found.found:,}. "
            f"In rows {found.expected_rows:,.0f} and {found.found_rows:,}",
        ),
        ("ROC-AUC", words.figure(found.roc_auc), "1 ranks perfectly, 0.5 is chance"),
        (
            "PR-AUC",
            words.figure(found.pr_auc),
            f"chance is {words.percent(found.found / found.examples)}",
        ),
        (
            "recall",
            words.percent(recall.rate),
            f"{recall.count:,} of {recall.of:,} recited are at risk from "
            f"{words.percent(found.threshold)} ({words.rate_range(recall)})",
        ),
        (
            "precision",
            words.percent(precision.rate),
            f"{precision.count:,} of {precision.of:,} at risk are recited ({words.rate_range(precision)})",
        ),
        ("lift", words.figure(found.lift), "times as often recited as a random example"),
        ("Brier", words.figure(found.brier), "mean squared error of the probabilities"),
        (
            "calibration",
            words.figure(found.calibration_error),
            "mean gap between predicted and found",
        ),
    )
    return counts(rows)


def _missed(found: "Comparison") -> Table:
    n_more = found.n_missed - _MISSED_SHOWN
    return Table(
        columns=(
            Column("id", "anywhere"),
            Column("where", "anywhere"),
            Column("probability", is_number=True),
        ),
        rows=tuple(
            (
                name(missed.id, max_len=64),
                name(missed.address),
                words.percent(missed.probability),
            )
            for missed in found.missed[:_MISSED_SHOWN]
        ),
        rest=f"and {n_more:,} more" if n_more > 0 else "",
    )


def _settings(result: "VerificationResult", out: Path) -> Table:
    settings = result.settings
    objective = str(settings["objective"])
    if objective == "soft":
        objective += f", T = {settings['temperature']:g}"
        if settings["cross_entropy_share"]:
            objective += f", {settings['cross_entropy_share']:g} cross-entropy"
        for key in ("divergence", "beta", "top_k"):
            if key in settings:
                objective += f", {key.replace('_', '-')} {settings[key]}"
        objective += " and a tail" if settings.get("tail") else ""
    outcomes = ", ".join(
        f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in result.outcomes.items()
    )
    return facts(
        {
            "objective": objective,
            "training": f"{settings['epochs']:g} epochs, learning rate "
            f"{settings['learning_rate']:g}, {settings['batch_size']} examples per step, "
            f"seed {settings['seed']}",
            "rows": f"{result.rows:,}: {outcomes}",
            "results": name(str(out), max_len=PATH_LEN),
            "took": words.clock(result.seconds),
        }
    )


def _notes(result: "VerificationResult") -> Iterator[str]:
    if "baseline" in result.models:
        yield "You gave the baseline: it may have seen what is held out here."
    yield (
        "This is one student, from one seed. Up to a third of what another student recites is "
        "different. The intervals cover the choice of examples only."
    )


def estimate_page(estimate: "Estimate") -> Page:
    """Return what a verification would cost."""
    seconds, flops = sum(estimate.seconds.values()), sum(estimate.flops.values())
    stages = Table(
        columns=(
            Column("stage", "nowhere"),
            Column("operations", is_number=True),
            Column("time", is_number=True),
        ),
        rows=tuple(
            (stage, f"{estimate.flops[stage]:.1e}", words.clock(taken))
            for stage, taken in sorted(estimate.seconds.items())
        ),
    )
    note = (
        "Operations: 6 N per token trained on, 2 N per token read or written, for N parameters. "
        "Memory: weights, gradients, AdamW's two moments, activations and logits in float32. "
        "Time: from a few examples measured just now."
    )
    return Page(
        title="Cost of a verification",
        verdict=(
            Words(f"About {words.clock(seconds)} on this machine", "strong"),
            f", {estimate.memory_bytes / 1024**3:,.1f} GiB of memory, {flops:.1e} operations. "
            "Nothing was trained.",
        ),
        sections=(Section(blocks=(_costs(estimate), stages)),),
        notes=(note,),
    )


def _costs(estimate: "Estimate") -> Table:
    examples = (
        f"distinct windows, {estimate.training_examples:,} rows; {estimate.held_out:,} held out"
    )
    rows = [
        *((role, words.short_number(n), "parameters") for role, n in estimate.parameters.items()),
        ("examples", f"{estimate.examples:,}", examples),
        ("steps", f"{estimate.steps:,}", "of each training"),
        ("tokens", f"{estimate.training_tokens:,}", "read in each training"),
    ]
    if estimate.generated_tokens:
        rows.append(("", f"{estimate.generated_tokens:,}", "written by the teacher"))
    rows.append(("", f"{estimate.scored_tokens:,}", "read by each model to decide extraction"))
    return counts(tuple(rows))


def fit_page(result: "FitResult") -> Page:
    """Return how good a fit is on what it has not seen, then why."""
    return Page(
        title="Fit of a classifier",
        verdict=fit_verdict(result),
        sections=(Section(blocks=(_runs(result), _facts(result))),),
        notes=tuple(fit_notes(result)),
    )


def fit_document(result: "FitResult") -> dict[str, Any]:
    """Return the card as one JSON document, with where the classifier is."""
    from memaudit.training.card import make_card

    return {"schema_version": 1, "folder": str(result.folder), **make_card(result)}


def fit_verdict(result: "FitResult") -> Sentence:
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


def fit_notes(result: "FitResult") -> Iterator[str]:
    """Return what a reader must know before relying on the numbers."""
    from memaudit.training.card import (
        JUDGED,
        PROMISED_RECALL,
        SPLIT_NOTES,
        positives_needed,
        recall_bound,
    )

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
            f"{result.n_not_judged:,} examples could not be judged: without their runs too few "
            "memorized ones would be left to fit on."
        )
    if result.unit == "example":
        yield SPLIT_NOTES[result.unit]
    for run in result.runs:
        if run.counts.unlabelled or run.counts.unscored or run.counts.conflicting:
            yield _left_out(run.run.name, run.counts)


def recalibration_page(result: "Recalibrated") -> Page:
    """Return what a pilot made of a classifier."""
    before, after = result.figures_before, result.figures_after
    expected = after.expected
    return Page(
        title="Recalibration of a classifier",
        verdict=(
            name(result.classifier.name, "strong"),
            " expects ",
            Words(words.figure(expected.mean, 1), "strong"),
            f" ({expected.low:,} to {expected.high:,}) of the pilot's {result.n_examples:,} examples "
            f"to be memorized; {result.n_extracted:,} were. Before: "
            f"{words.figure(before.expected.mean, 1)} ({before.expected.low:,} to "
            f"{before.expected.high:,}).",
        ),
        sections=(Section(blocks=(_shift(result),)),),
        notes=tuple(_recalibration_notes(result)),
    )


def _shift(result: "Recalibrated") -> Table:
    before, after, shift = result.figures_before, result.figures_after, result.shift
    return facts(
        {
            "from": name(f"{result.before.name}, {result.before.digest[:12]}"),
            "level": f"log-odds {shift.shift:+.2f}, slope {shift.slope:.2f}",
            "log loss": f"{words.figure(after.log_loss)}, before {words.figure(before.log_loss)}",
            "Brier": f"{words.figure(after.brier)}, before {words.figure(before.brier)}",
            "classifier": name(
                f"{result.folder}, {result.classifier.digest[:12]}", max_len=PATH_LEN
            ),
            "use": name(f"memaudit predict --classifier {result.folder}", max_len=PATH_LEN),
        }
    )


def _recalibration_notes(result: "Recalibrated") -> Iterator[str]:
    yield (
        "The figures are cross-fitted: each fifth of the pilot is judged by a shift from the "
        "other four. The order of examples has not changed."
    )
    if result.figures_after.log_loss > result.figures_before.log_loss:
        yield "On held-out fifths the shift does not help: the pilot is too small, or not needed."
    if result.counts_copies:
        yield (
            "The pilot's student was trained on a sample, and the scores count copies in the whole "
            "corpus. Put the sample in a file of its own, and predict and verify that file."
        )
    yield (
        "The level holds for the pilot's corpus and training: other epochs, learning rates or "
        "losses need another pilot."
    )


def _left_out(run: str, counts: "JoinCounts") -> str:
    return (
        f"{run}: {counts.unlabelled:,} scored rows without a label and {counts.unscored:,} labels "
        f"without a scored row are left out; {counts.conflicting:,} equal examples have both "
        "labels and count as memorized."
    )


def _runs(result: "FitResult") -> Table:
    titles = ("rows", "used", "distinct", "memorized", "expected", "flagged", "caught")
    judged = {part.name: part for part in result.held_out}
    return Table(
        columns=(Column("run", "anywhere"), *(Column(title, is_number=True) for title in titles)),
        rows=tuple(
            (
                name(run.run.name, max_len=64),
                f"{run.counts.rows:,}",
                f"{run.counts.used:,}",
                f"{run.counts.distinct:,}",
                f"{run.run.n_extracted:,}",
                *_judged(judged.get(run.run.name)),
            )
            for run in result.runs
        ),
    )


def _judged(part: "HeldOutRun | None") -> tuple[str, str, str]:
    if part is None:
        return ("–", "–", "–")
    compared = part.compared
    return (
        f"{compared.probabilities.sum():,.1f}",
        f"{int(compared.flagged.sum()):,}",
        f"{compared.n_caught:,}",
    )


def _facts(result: "FitResult") -> Table:
    classifier = result.classifier
    n_fit = sum(run.n_extracted for run in result.split.fit)
    found: dict[str, Sentence | Cell] = {
        "features": ", ".join(classifier.features),
        "split": f"by {result.unit}: {n_fit} memorized to fit, "
        f"{result.n_calibration_positives} to calibrate",
        "threshold": f"at risk from {words.percent(classifier.threshold)}",
        "classifier": name(f"{result.folder}, {classifier.digest[:12]}", max_len=PATH_LEN),
        "use": name(f"memaudit predict --classifier {result.folder}", max_len=PATH_LEN),
    }
    return facts(found)


def _number(figure: "Figure") -> str:
    if figure.value is None:
        return "unknown"
    if figure.interval is None:
        return words.figure(figure.value)
    low, high = figure.interval.low, figure.interval.high
    return f"{words.figure(figure.value)} ({words.figure(low)} to {words.figure(high)})"


def _percent(figure: "Figure") -> str:
    if figure.value is None or figure.interval is None:
        return "an unknown share"
    return f"{figure.value:.0%} ({figure.interval.low:.0%} to {figure.interval.high:.0%})"
