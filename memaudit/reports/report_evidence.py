"""What a report rests on: a real distillation, the classifier's tests, and what none of it says."""

from collections.abc import Iterator

from memaudit.evaluation import MissedExample, Rate
from memaudit.labels import ROLES, VerificationResult, VerifiedRows
from memaudit.reports import words
from memaudit.reports.charts import (
    Bar,
)
from memaudit.reports.page import (
    BARS,
    Block,
    Bullets,
    Cell,
    Column,
    Figures,
    Paragraph,
    Section,
    Table,
    name,
    numbers,
)
from memaudit.reports.report import Card, Figure, Report
from memaudit.reports.report_charts import calibration_chart, curve_chart

_METRICS = {
    "pr_auc": "average precision",
    "roc_auc": "ROC-AUC",
    "equal_count_auc": "ROC-AUC among examples that occur equally often",
    "precision": "precision at the threshold",
    "recall": "recall at the threshold",
    "calibration_error": "calibration error",
}
_MISSED_SHOWN = 20


def verified_section(verified: VerifiedRows) -> Section:
    """Return what a real distillation showed, beside what was predicted of it."""
    result, found = verified.result, verified.comparison
    student = result.extracted["student"]
    chance = f"chance is {words.percent(student.rate)}"
    figures = Figures(
        (
            ("Precision", *_rate(found.precision, "at risk are recited")),
            ("Recall", *_rate(found.recall, "recited are at risk")),
            ("ROC-AUC", words.figure(found.roc_auc), "0.5 is chance, 1 is perfect"),
            ("Average precision", words.figure(found.pr_auc), chance),
        )
    )
    text = (
        f"Of {student.of:,} distinct examples that were tested, "
        f"{words.expected(found.expected_count)} were expected to be memorized. The student "
        f"recites {student.count:,} of {student.of:,}."
    )
    missed = [_missed(found.missed[:_MISSED_SHOWN])] if found.missed else []
    return Section(
        title="What a real distillation showed",
        anchor="verified",
        nav="Verified",
        blocks=(Paragraph(text), figures, _models(result), _sets(result), *missed),
    )


def _models(result: VerificationResult) -> Table:
    rates = [(role, result.extracted[role]) for role in ROLES]
    perplexity = numbers("held-out perplexity")
    return Table(
        title="What each model recites",
        columns=(Column("model"), *numbers("recites"), BARS, Column("share"), *perplexity),
        rows=tuple(
            (
                role,
                rate.count,
                Cell(bar=Bar(rate.rate or 0, is_risk=role == "student")),
                Cell(text=words.percent(rate.rate), detail=words.rate_range(rate)),
                words.figure(result.perplexity[role], 1),
            )
            for role, rate in rates
        ),
        style="bars",
    )


def reciters_of(verified: VerifiedRows, row: int) -> tuple[str, ...] | None:
    """Return the roles of the models that recite a row; None if they were not asked."""
    if not verified.looked_at[row]:
        return None
    return tuple(role for role in ROLES if verified.recited_by[role][row])


def extraction_sets(result: VerificationResult) -> list[tuple[str, tuple[str, ...], int]]:
    """Return the names, the reciting models and the sizes of sets that have nothing in common."""
    found, in_all = result.sets, result.student_in_easy.count
    return [
        ("easy, and the student's", ROLES, in_all),
        ("easy, but not the student's", ("teacher", "baseline"), found["easy"] - in_all),
        ("inherited", ("teacher", "student"), found["inherited"]),
        ("new", ("student",), found["new"]),
        ("baseline and student", ("baseline", "student"), found["baseline_and_student"]),
        ("teacher only", ("teacher",), found["teacher_only"]),
        ("baseline only", ("baseline",), found["baseline_only"]),
        ("nobody", (), found["none"]),
    ]


def _sets(result: VerificationResult) -> Table:
    sets = extraction_sets(result)
    most = max(1, *(n for _, roles, n in sets if roles))
    return Table(
        title="Which models recite the same examples",
        columns=(Column("set"), *map(Column, ROLES), *numbers("examples"), BARS),
        rows=tuple(
            (
                label,
                *("recites" if role in roles else "–" for role in ROLES),
                n,
                Cell(bar=Bar(n / most, is_risk="student" in roles) if roles else None),
            )
            for label, roles, n in sets
        ),
        style="sets",
    )


def _missed(missed: tuple[MissedExample, ...]) -> Table:
    return Table(
        title="Recited, but not at risk",
        columns=(Column("example", "anywhere"), *numbers("predicted probability")),
        rows=tuple(
            (Cell(text=name(row.id), detail=name(row.address)), words.percent(row.probability))
            for row in missed
        ),
        style="numbers",
    )


def classifier_section(card: Card | None, classifier: str) -> Section:
    """Return how the classifier was tested, by its card."""
    return Section(
        title="How good the classifier is",
        anchor="classifier",
        nav="Classifier",
        blocks=(_no_card(classifier),) if card is None else tuple(_card(card)),
    )


def _no_card(classifier: str) -> Paragraph:
    no_card = " does not come with memaudit. The card beside its file says how it was tested."
    return Paragraph(("No card is at hand: ", name(classifier), no_card))


def _card(card: Card) -> Iterator[Block]:
    tested = f"Tested on {len(card.runs)} distillations that it never saw."
    if card.prevalence is not None:
        tested += f" {words.percent(card.prevalence)} of their examples were memorized."
    yield Paragraph(tested)
    yield Table(
        title="Figures of this classifier on those distillations",
        columns=(Column("figure"), *numbers("value", "95% interval")),
        rows=tuple(
            (label, words.figure(card.own[key].value), _figure_range(card.own[key], 3) or "–")
            for key, label in _METRICS.items()
            if key in card.own
        ),
        style="numbers",
    )
    if card.curve:
        yield curve_chart(card)
    yield _methods(card)
    if card.runs:
        yield calibration_chart(card.runs)
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
    figures = [
        (method, each["pr_auc"]) for method, each in card.methods.items() if "pr_auc" in each
    ]
    return Table(
        title="Average precision (area under precision and recall) of this classifier and of "
        "simpler rules, on the same distillations",
        columns=(Column("by"), BARS, Column("average precision")),
        rows=tuple(
            (
                method,
                Cell(bar=Bar(found.value, is_risk=i == 0, low=found.low, high=found.high)),
                Cell(text=words.figure(found.value, 2), detail=_figure_range(found, 2)),
            )
            for i, (method, found) in enumerate(figures)
        ),
        style="ranking",
    )


def limits_section(report: Report) -> Section:
    """Return what the numbers mean, and what they do not."""
    inputs = report.manifest.inputs
    items = [
        words.not_a_guarantee(inputs.prefix_tokens, inputs.suffix_tokens),
        "The expected number is the sum of the probabilities. It depends on training length, "
        "which memaudit does not know: the interval covers chance and a common factor by which "
        "all probabilities may be too low or too high.",
        "All copies of a text are memorized or none are, so the example count moves in jumps. "
        "Distinct texts is the steadier number.",
        'The "dropped" numbers assume the same training on the remaining examples. '
        "Near-duplicates of dropped texts can still be memorized.",
    ]
    if inputs.windows == "first":
        items.append("Only the first window of each example was scored.")
    if report.sensitivity is not None:
        names = "" if report.sensitivity.finds_names else " People’s names were not looked for."
        items.append(
            "Personal data and secrets are found by their form, in one window at a time. What the "
            f"edge of a window cuts in two, or what looks like ordinary text, is missed.{names}"
        )
    if report.unfamiliar:
        found = words.percent_by_name(report.unfamiliar)
        items.append(
            f"Some rows are unlike those the classifier was trained on ({found}): "
            "their order is more reliable than their probabilities."
        )
    if report.card is not None and report.card.limits:
        items.append(report.card.limits)
    items.append("Only a real distillation can confirm the numbers: run 'memaudit verify'.")
    return Section(
        title="What the numbers mean, and what they do not",
        anchor="limits",
        nav="Limits",
        blocks=(Bullets(tuple(items)),),
    )


def _rate(rate: Rate, what: str) -> tuple[str, str]:
    told = f"{rate.count:,} of {rate.of:,} {what} ({words.rate_range(rate)})"
    return words.percent(rate.rate), told


def _figure_range(figure: Figure, digits: int) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{words.figure(figure.low, digits)} to {words.figure(figure.high, digits)}"
