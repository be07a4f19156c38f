"""The charts of a report: how risk is spread, what dropping leaves, how the classifier does."""

from memaudit.reports import words
from memaudit.reports.charts import (
    Chart,
    Curve,
    Dot,
    Pillar,
    Rule,
    counted,
    counted_log,
    shares,
)
from memaudit.reports.report import Card, HeldOutRun, Report


def histogram_chart(report: Report) -> Chart:
    """Return how many examples have which probability."""
    threshold = report.manifest.classifier.threshold
    return Chart(
        name="risk",
        title="Examples by probability of being memorized",
        description="Bars over probabilities from 0 to 100%; their heights are counts on a "
        f"logarithmic scale. {report.flagged:,} examples lie at or above "
        f"{words.percent(threshold)}, where risk begins.",
        caption="The scale is logarithmic: each step up is ten times as many examples.",
        x=shares("probability of being memorized"),
        y=counted_log("examples", max((each.rows for each in report.histogram), default=1)),
        marks=(
            *(
                Pillar(each.low, each.high, each.rows, each.flagged)
                for each in report.histogram
                if each.rows
            ),
            Rule(across=threshold, label=f"at risk from {words.percent(threshold)}"),
        ),
    )


def budget_chart(report: Report) -> Chart:
    """Return how many are expected to be memorized, by how many of the riskiest are dropped."""
    budgets = report.budgets
    first, last = budgets[0].left, budgets[-1]
    curve = Curve(
        tuple((budget.rows, budget.left.mean) for budget in budgets),
        upper=tuple((budget.rows, float(budget.left.high)) for budget in budgets),
        lower=tuple((budget.rows, float(budget.left.low)) for budget in budgets),
    )
    at_risk = Rule(across=report.flagged, label="all at risk dropped")
    return Chart(
        name="budget",
        title="Expected to be memorized, by examples dropped",
        description=f"A falling line with a band, its 95% interval: {first.mean:,.0f} with "
        f"nothing dropped, {last.left.mean:,.1f} once the {last.rows:,} riskiest are dropped.",
        caption="All copies of a text are dropped together. The band is the 95% interval.",
        x=counted("riskiest examples dropped", last.rows),
        y=counted("examples expected to be memorized", max(b.left.high for b in budgets)),
        marks=(curve, *([at_risk] if 0 < report.flagged <= last.rows else [])),
    )


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
