"""The evidence in a report: what a real distillation showed, and how the classifier was tested."""

from collections.abc import Iterator

from memaudit.evaluation import MissedExample, Rate
from memaudit.labels import ROLES, VerificationResult, VerifiedRows
from memaudit.reports import words
from memaudit.reports.charts import (
    Bar,
    Chart,
    Curve,
    Dot,
    Rule,
    counted_log,
    shares,
)
from memaudit.reports.page import (
    BARS,
    Block,
    Cell,
    Column,
    Figures,
    Paragraph,
    Section,
    Table,
    name,
    numbers,
)
from memaudit.reports.report import Card, Figure, HeldOutRun

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
                f"{rate.count:,}",
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
                f"{n:,}",
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
                (run.name, f"{run.examples:,}", f"{run.expected:,.1f}", f"{run.found:,}")
                for run in card.runs
            ),
            is_folded=True,
            style="numbers",
        )
    if card.statistics:
        yield Paragraph(card.statistics, "quiet")


def curve_chart(card: Card) -> Chart:
    """Return precision against recall on the distillations that the classifier never saw."""
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


def calibration_chart(runs: tuple[HeldOutRun, ...]) -> Chart:
    """Return found against expected, a dot for each distillation."""
    highest = 1.2 * max(1.0, *(max(run.expected, float(run.found)) for run in runs))
    return Chart(
        name="calibration",
        title="Found against expected, by held-out distillation",
        description=f"{len(runs)} dots on logarithmic scales, close to the diagonal where as many "
        "were memorized as expected. The numbers are in the table below.",
        caption="Each dot is a distillation. Above the line more was memorized than expected.",
        x=counted_log("examples expected", highest, with_thirds=True),
        y=counted_log("examples found", highest, with_thirds=True),
        marks=tuple(
            Dot(
                run.expected,
                run.found,
                f"{run.name}: {run.expected:,.1f} expected, {run.found:,} found",
            )
            for run in runs
        ),
        has_diagonal=True,
        height=300,
    )


def _rate(rate: Rate, what: str) -> tuple[str, str]:
    told = f"{rate.count:,} of {rate.of:,} {what} ({words.rate_range(rate)})"
    return words.percent(rate.rate), told


def _figure_range(figure: Figure, digits: int) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{words.figure(figure.low, digits)} to {words.figure(figure.high, digits)}"
