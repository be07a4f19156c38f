"""A report's charts as PNG and SVG: the same report gives the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.labels import ROLES
from memaudit.reports.plot_style import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    STYLE,
    reach,
    require_matplotlib,
    save_figure,
)
from memaudit.reports.report_view import Report
from memaudit.runs.files import output_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_report_plots(report: Report, folder: Path) -> list[Path]:
    """Draw every chart that the report has the numbers for.

    Args:
        report: of a run.
        folder: is made if it is missing.

    Returns:
        the files written.

    Raises:
        MissingDependency: matplotlib is not installed.
        OutputError: they cannot be written.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    with mpl.rc_context(STYLE), output_folder(folder):
        for name, draw in PLOTS.items():
            figure = Figure(figsize=(7.5, 4.5), layout="constrained")
            FigureCanvasAgg(figure)
            if draw(report, figure):
                written += save_figure(figure, folder / name)
    return written


def draw_risk(report: Report, figure: "Figure") -> bool:
    """Draw how many examples have which probability."""
    axes = figure.subplots()
    for flagged, color, hatch, label in (
        (False, BLUE, "", "not at risk"),
        (True, RED, "///", "at risk"),
    ):
        bins = [each for each in report.histogram if each.flagged == flagged]
        axes.bar(
            [each.low for each in bins],
            [each.rows for each in bins],
            [each.high - each.low for each in bins],
            align="edge",
            color=color,
            hatch=hatch,
            edgecolor="white",
            label=label,
        )
    axes.axvline(report.manifest.classifier.threshold, color="black", linestyle="--", linewidth=1)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability of being memorized")
    axes.set_ylabel("examples")
    figure.legend(loc="outside upper center", ncols=2)
    return True


def draw_budget(report: Report, figure: "Figure") -> bool:
    """Draw how many are expected to be memorized, by how many of the riskiest are dropped."""
    axes = figure.subplots()
    dropped = [budget.rows for budget in report.budgets]
    axes.fill_between(
        dropped,
        [budget.left.low for budget in report.budgets],
        [budget.left.high for budget in report.budgets],
        color=BLUE,
        alpha=0.2,
        linewidth=0,
        label="95 % interval",
    )
    axes.plot(
        dropped, [budget.left.mean for budget in report.budgets], color=BLUE, label="expected"
    )
    if 0 < report.flagged <= dropped[-1]:
        axes.axvline(
            report.flagged, color=RED, linestyle="--", linewidth=1.5, label="all at risk dropped"
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("riskiest examples dropped")
    axes.set_ylabel("expected to be memorized")
    figure.legend(loc="outside upper center", ncols=3)
    return True


def draw_calibration(report: Report, figure: "Figure") -> bool:
    """Draw found against expected, a dot for each run that the classifier never saw."""
    if report.card is None or not report.card.runs:
        return False
    axes = figure.subplots()
    runs = report.card.runs
    highest = max(1.0, *(max(run.expected, run.found) for run in runs)) * 1.2
    axes.plot([0, highest], [0, highest], color="black", linewidth=1)
    axes.scatter([run.expected for run in runs], [run.found for run in runs], color=BLUE, zorder=3)
    for set_scale in (axes.set_xscale, axes.set_yscale):
        set_scale("symlog", linthresh=1)
    axes.set_xlim(0, highest)
    axes.set_ylim(0, highest)
    axes.set_xlabel("expected by the classifier")
    axes.set_ylabel("found on held-out runs")
    return True


def draw_methods(report: Report, figure: "Figure") -> bool:
    """Draw the average precision of the classifier and of other ways to tell."""
    if report.card is None:
        return False
    named = {
        name: figures["pr_auc"]
        for name, figures in report.card.methods.items()
        if "pr_auc" in figures
    }
    axes = figure.subplots()
    for height, figure_ in enumerate(named.values()):
        low = figure_.value if figure_.low is None else figure_.low
        high = figure_.value if figure_.high is None else figure_.high
        axes.errorbar(
            [figure_.value],
            [height],
            xerr=reach([(figure_.value, low, high)]),
            color=RED if height == 0 else BLUE,
            marker="D" if height == 0 else "o",
        )
    _name_rows(axes, list(named))
    axes.set_xlim(0, 1)
    axes.set_xlabel("average precision on held-out runs, with 95 % intervals")
    return True


def draw_sets(report: Report, figure: "Figure") -> bool:
    """Draw how many examples which models recite."""
    if report.verified is None:
        return False
    axes = figure.subplots()
    sets = report.verified.sets
    colors = [ORANGE if "student" in each.recited_by else GREY for each in sets]
    hatches = ["///" if "student" in each.recited_by else "" for each in sets]
    bars = axes.barh(
        range(len(sets)),
        [each.examples for each in sets],
        color=colors,
        hatch=hatches,
        edgecolor="white",
    )
    axes.bar_label(bars, padding=4)
    _name_rows(
        axes, [" + ".join(role for role in ROLES if role in each.recited_by) for each in sets]
    )
    axes.set_xlabel("distinct examples that exactly these models recite")
    return True


def _name_rows(axes: "Axes", names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


PLOTS: dict[str, Callable[[Report, "Figure"], bool]] = {
    "risk": draw_risk,
    "budget": draw_budget,
    "calibration": draw_calibration,
    "methods": draw_methods,
    "sets": draw_sets,
}
"""What draws each file; False where the report lacks the numbers."""
