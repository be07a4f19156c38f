"""A study's plots, as PNG and SVG: the same document gives the same bytes.

Every series differs in shape or hatching too, so that colour is never needed to tell it.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memaudit.metrics import clopper_pearson
from memaudit.reports.plot_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    STYLE,
    reach,
    require_matplotlib,
    save_figure,
)
from memaudit.reports.study_findings import is_plain_soft
from memaudit.runs.files import output_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Document = Mapping[str, Any]
"""What `memaudit.study.workflow.conduct_study` returns."""

_MODELS = {
    "teacher": (GREY, "s"),
    "baseline": (BLUE, "o"),
    "soft": (ORANGE, "^"),
    "hard": (RED, "D"),
}
"""Colour and marker of each model."""

_METHODS = {
    "teacher": (GREY, "-"),
    "teacher+student": (BLUE, "--"),
    "teacher+baseline": (RED, "-."),
    "the paper's four": (GREEN, ":"),
    "students of two other seeds": (PURPLE, (0, (1, 3))),
}
"""Colour and line of each method that has curves."""


def write_plots(document: Document, folder: Path) -> list[Path]:
    """Draw every plot that the document has the numbers for.

    Args:
        document: of a study.
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
            figure = Figure(layout="constrained")
            FigureCanvasAgg(figure)
            if draw(document, figure):
                written += save_figure(figure, folder / name)
    return written


def draw_rates(document: Document, figure: "Figure") -> bool:
    """Draw what each model memorizes, by family and corpus."""
    groups = document["rates"]["family and corpus"]
    if not groups:
        return False
    figure.set_size_inches(8, 1.6 + 0.55 * len(groups))
    axes = figure.subplots()
    names = list(groups)
    highest: list[float] = []
    for offset, (model, (color, marker)) in enumerate(_MODELS.items()):
        points = [
            (row + 0.18 * (offset - 1.5), figures)
            for row, name in enumerate(names)
            if (figures := _percent(groups[name]["figures"].get(f"{model}_rate"))) is not None
        ]
        highest += [figures[2] for _, figures in points]
        _draw_intervals(axes, points, label=model, color=color, marker=marker)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    # Rates span two orders of magnitude, and an interval may reach down to zero.
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    ticks = [0, 1, 2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes.set_xlim(-0.05, max([1.0, *highest]) * 1.1)
    axes.set_xlabel("memorized examples (%), with 95 % intervals; linear below 1")
    figure.legend(loc="outside upper center", ncols=4)
    return True


def _percent(figure: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    """Return value, low and high in percent."""
    if figure is None or figure["value"] is None:
        return None
    value = 100 * figure["value"]
    low, high = (figure[key] for key in ("low", "high"))
    return value, value if low is None else 100 * low, value if high is None else 100 * high


def _draw_intervals(
    axes: "Axes",
    points: Sequence[tuple[float, tuple[float, float, float]]],
    *,
    label: str,
    color: str,
    marker: str,
) -> None:
    """Draw points at heights, with horizontal lines from low to high."""
    if not points:
        return
    figures = [each for _, each in points]
    axes.errorbar(
        [value for value, _, _ in figures],
        [height for height, _ in points],
        xerr=reach(figures),
        linestyle="none",
        label=label,
        color=color,
        marker=marker,
        markersize=7,
        elinewidth=1.5,
    )


_PARTS = {
    "in T∩B: easy to memorize": ("in_easy", BLUE, ""),
    "in T only: inherited": ("inherited", ORANGE, "///"),
    "in neither: new": ("new", "#dddddd", "..."),
}


def draw_overlaps(document: Document, figure: "Figure") -> bool:
    """Draw of what the sets of soft and hard students consist."""
    bars = [
        (f"{setting}, {student}", entry["counts"], student)
        for setting, entry in document["rates"]["family and corpus"].items()
        for student in ("soft", "hard")
        if entry["counts"].get(student)
    ]
    if not bars:
        return False
    figure.set_size_inches(8, 1.8 + 0.38 * len(bars))
    axes = figure.subplots()
    labels = [f"{label} ({counts[student]:,})" for label, counts, student in bars]
    lefts = [0.0] * len(bars)
    parts = [
        (label, [100 * counts[f"{of}_{key}"] / counts[of] for _, counts, of in bars], color, hatch)
        for label, (key, color, hatch) in _PARTS.items()
    ]
    rest = [100 - sum(widths) for widths in zip(*(part[1] for part in parts), strict=True)]
    if any(width > 0 for width in rest):
        parts.append(("in B only", rest, GREY, "\\\\\\"))
    for label, widths, color, hatch in parts:
        axes.barh(
            labels, widths, left=lefts, label=label, color=color, hatch=hatch, edgecolor="white"
        )
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.01)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of what the student memorizes (%)")
    figure.legend(loc="outside upper center", ncols=2)
    return True


def draw_temperature(document: Document, figure: "Figure") -> bool:
    """Draw what students memorize against the baseline, by the temperature of soft labels."""
    entries = document["objectives"]
    pairs = [
        (entry["objective"]["temperature"], entry["figures"]["against_baseline"])
        for entry in entries.values()
        if "objective" in entry and is_plain_soft(entry["objective"])
    ]
    soft = sorted((pair for pair in pairs if pair[1]["value"] is not None), key=itemgetter(0))
    if len(soft) < 2:
        return False
    figure.set_size_inches(6.5, 4.5)
    axes = figure.subplots()
    ratios = [(ratio["value"], ratio["low"], ratio["high"]) for _, ratio in soft]
    color, marker = _MODELS["soft"]
    axes.errorbar(
        [temperature for temperature, _ in soft],
        [value for value, _, _ in ratios],
        yerr=reach(ratios),
        color=color,
        marker=marker,
        markersize=8,
        label="soft labels",
    )
    axes.axhline(1, color=BLUE, linestyle="-", label="baseline")
    hard = entries.get("hard", {}).get("figures", {}).get("against_baseline", {}).get("value")
    if hard is not None:
        axes.axhline(hard, color=RED, linestyle="--", label="hard labels")
    axes.set_ylim(bottom=0)
    axes.set_xticks([temperature for temperature, _ in soft])
    axes.set_xlabel("temperature T")
    axes.set_ylabel("memorized, baseline = 1")
    figure.legend(loc="outside upper center", ncols=3)
    return True


def draw_precision_recall(document: Document, figure: "Figure") -> bool:
    """Draw precision against recall of each method on all test cells together."""
    curves = _curves(document, "precision_recall")
    if not curves:
        return False
    figure.set_size_inches(6.5, 5)
    axes = figure.subplots()
    for method, curve in curves.items():
        color, line = _METHODS[method]
        recalls, precisions = zip(*curve, strict=True)
        axes.plot(recalls, precisions, color=color, linestyle=line, label=method)
    prevalence = _prevalence(document)
    if prevalence is not None:
        axes.axhline(prevalence, color="black", linewidth=1, label="chance")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("recall: share of the memorized that is flagged")
    axes.set_ylabel("precision: share of the flagged that is memorized")
    figure.legend(loc="outside upper center", ncols=2)
    return True


def draw_calibration(document: Document, figure: "Figure") -> bool:
    """Draw observed rates against predicted probabilities of each method."""
    # What other students recite is a share of two, not a probability.
    curves = _curves(document, "calibration")
    curves.pop("students of two other seeds", None)
    if not curves:
        return False
    n_columns = min(2, len(curves))
    n_rows = -(-len(curves) // n_columns)
    figure.set_size_inches(3.8 * n_columns, 3.6 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    panels = list(grid.flat)
    for axes, (method, bins) in zip(panels, curves.items(), strict=False):
        _draw_bins(axes, bins, color=_METHODS[method][0])
        axes.set_title(method, fontsize=12)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("predicted probability", fontsize=12)
    figure.supylabel("memorized share, with 95 % intervals", fontsize=12)
    return True


def _draw_bins(axes: "Axes", bins: Sequence[Sequence[float]], *, color: str) -> None:
    """Draw bins of mean prediction, observed rate and number, each with its interval."""
    filled = [(predicted, rate, round(n)) for predicted, rate, n in bins if n]
    intervals = [clopper_pearson(round(rate * n), n) for _, rate, n in filled]
    rates = [
        (rate, interval.low, interval.high)
        for (_, rate, _), interval in zip(filled, intervals, strict=True)
    ]
    axes.plot([0, 1], [0, 1], color="black", linewidth=1)
    axes.errorbar(
        [predicted for predicted, _, _ in filled],
        [rate for rate, _, _ in rates],
        yerr=reach(rates),
        color=color,
        marker="o",
        linestyle="none",
        elinewidth=1.5,
    )
    # Most examples are all but certain not to be memorized: a linear axis would hide them.
    ticks = [0, 0.01, 0.1, 1]
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(-0.001, 1.2)
    axes.set_ylim(-0.001, 1.2)


def _curves(document: Document, name: str) -> dict[str, list[list[float]]]:
    """Return the curves of that name, by method."""
    found = {}
    for method in _METHODS:
        table = document["classifiers"].get(method, {}).get("as shipped", {})
        if curve := table.get("curves", {}).get(name):
            found[method] = curve
    return found


def _prevalence(document: Document) -> float | None:
    """Return the share of memorized examples over all test cells."""
    shipped = document["classifiers"].get("teacher", {}).get("as shipped", {})
    runs = shipped.get("by_run", {}).values()
    n_examples = sum(run["examples"] for run in runs)
    return sum(run["found"] for run in runs) / n_examples if n_examples else None


PLOTS: dict[str, Callable[[Document, "Figure"], bool]] = {
    "rates": draw_rates,
    "overlaps": draw_overlaps,
    "temperature": draw_temperature,
    "precision-recall": draw_precision_recall,
    "calibration": draw_calibration,
}
"""What draws each file; False where the document lacks the numbers."""
