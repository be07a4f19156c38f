"""Charts as inline SVG, drawn by hand.

Places across are percentages and places down are pixels, so a chart is as wide as its page and
its letters keep their size. Colours come from the style sheet, by class. Everything is built as
elements, so no text can become markup.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from memaudit.reports.report_card import HeldOutRun
from memaudit.reports.report_numbers import Bin, Budget
from memaudit.text import safe_text

Scale = Callable[[float], float]
"""From a value to its place between 0 and 1."""

_LEFT, _RIGHT = 11.0, 97.0
_TOP, _FOOT = 26.0, 44.0


@dataclass(frozen=True, slots=True)
class Frame:
    """Where values go in a chart."""

    root: Element
    """The chart."""

    height: float
    """Pixels."""

    x: Scale
    """Across."""

    y: Scale
    """Up."""

    @property
    def bottom(self) -> float:
        """Pixels from the top to the axis."""
        return self.height - _FOOT

    def across(self, value: float) -> str:
        """Return the place of a value across."""
        return f"{_LEFT + (_RIGHT - _LEFT) * self.x(value):.2f}%"

    def down(self, value: float) -> str:
        """Return the place of a value, from the top."""
        return f"{self.bottom - (self.bottom - _TOP) * self.y(value):.1f}"

    def add(self, tag: str, text: str | None = None, **attributes: str) -> Element:
        """Add an element to the chart; `class_` is its class."""
        return _add(self.root, tag, text, **attributes)


def linear(low: float, high: float) -> Scale:
    """Return an even scale."""
    return lambda value: (value - low) / ((high - low) or 1.0)


def log_count(highest: float) -> Scale:
    """Return a scale for counts on which 0 has a place: the logarithm of one more."""
    return lambda value: math.log1p(max(0.0, value)) / (math.log1p(highest) or 1.0)


def histogram_chart(bins: Sequence[Bin], threshold: float) -> Markup:
    """Return how many examples have which probability, on a logarithmic scale of counts."""
    highest = max((each.rows for each in bins), default=1)
    n_flagged = sum(each.rows for each in bins if each.flagged)
    frame = _frame(
        "histogram",
        "Examples by probability of being memorized",
        f"Bars over probabilities from 0 to 100 %; their heights are counts on a logarithmic "
        f"scale. {n_flagged:,} examples lie at or above {threshold:.1%}, where risk begins.",
        height=270,
        scales=(linear(0, 1), log_count(max(1, highest))),
    )
    _count_ticks(frame, _decades(highest))
    _ticks_across(frame, [(value, f"{value:.0%}") for value in (0, 0.25, 0.5, 0.75, 1)])
    for each in bins:
        if each.rows:
            left, right = (float(frame.across(end)[:-1]) for end in (each.low, each.high))
            top = float(frame.down(each.rows))
            frame.add(
                "rect",
                x=f"{left + 0.15:.2f}%",
                y=f"{top:.1f}",
                width=f"{right - left - 0.3:.2f}%",
                height=f"{frame.bottom - top:.1f}",
                rx="1.5",
                class_="risk" if each.flagged else "calm",
            )
    place = frame.across(threshold)
    frame.add("line", x1=place, x2=place, y1="16", y2=f"{frame.bottom}", class_="mark")
    side = "end" if threshold > 0.5 else "start"
    nudge = "-6" if threshold > 0.5 else "6"
    label = f"at risk from {threshold:.1%}"
    frame.add("text", label, x=place, y="22", dx=nudge, text_anchor=side, class_="note")
    _names(frame, "probability of being memorized", "examples")
    return _markup(frame)


def budget_chart(budgets: Sequence[Budget], flagged: int) -> Markup:
    """Return how many are expected to be memorized, by how many of the riskiest are dropped."""
    last, highest = budgets[-1].rows, max(1.0, *(budget.left.high for budget in budgets))
    first, end = budgets[0].left, budgets[-1].left
    frame = _frame(
        "budget",
        "Expected to be memorized, by examples dropped",
        f"A falling line with a band, its 95 % interval: {first.mean:,.0f} with nothing dropped, "
        f"{end.mean:,.1f} once the {last:,} riskiest are dropped.",
        height=270,
        scales=(linear(0, max(1, last)), linear(0, highest)),
    )
    _ticks_up(frame, _round_ticks(highest))
    _ticks_across(frame, [(value, f"{value:,.0f}") for value in _round_ticks(last)])
    plot = frame.add(
        "svg",
        x=f"{_LEFT}%",
        y=f"{_TOP}",
        width=f"{_RIGHT - _LEFT}%",
        height=f"{frame.bottom - _TOP:.1f}",
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
    )
    upper = [(budget.rows, float(budget.left.high)) for budget in budgets]
    lower = [(budget.rows, float(budget.left.low)) for budget in budgets]
    middle = [(budget.rows, budget.left.mean) for budget in budgets]
    _add(plot, "path", d=f"{_path(frame, [*upper, *lower[::-1]])}Z", class_="band")
    _add(plot, "path", d=_path(frame, middle), class_="curve", vector_effect="non-scaling-stroke")
    if 0 < flagged <= last:
        place = frame.across(flagged)
        frame.add("line", x1=place, x2=place, y1="16", y2=f"{frame.bottom}", class_="mark")
        is_right = frame.x(flagged) > 0.5
        side, nudge = ("end", "-6") if is_right else ("start", "6")
        frame.add(
            "text",
            "all at risk dropped",
            x=place,
            y="22",
            dx=nudge,
            text_anchor=side,
            class_="note",
        )
    _names(frame, "riskiest examples dropped", "expected memorized")
    return _markup(frame)


def calibration_chart(runs: Sequence[HeldOutRun]) -> Markup:
    """Return found against expected, a dot for each held-out run."""
    highest = max(1.0, *(max(run.expected, float(run.found)) for run in runs)) * 1.2
    frame = _frame(
        "calibration",
        "Found against expected, by held-out run",
        f"{len(runs)} dots on logarithmic scales, close to the diagonal where as many were "
        "memorized as expected. The numbers are in the table below.",
        height=300,
        scales=(log_count(highest), log_count(highest)),
    )
    decades = _decades(highest)
    ticks = [0, *decades, *(3 * decade for decade in decades if 3 * decade <= highest)]
    _count_ticks(frame, ticks)
    _ticks_across(frame, [(value, f"{value:,}") for value in ticks])
    frame.add(
        "line",
        x1=frame.across(0),
        y1=frame.down(0),
        x2=frame.across(highest),
        y2=frame.down(highest),
        class_="diagonal",
    )
    for run in runs:
        dot = frame.add(
            "circle", cx=frame.across(run.expected), cy=frame.down(run.found), r="5", class_="dot"
        )
        name = safe_text(run.name)
        _add(dot, "title", f"{name}: {run.expected:,.1f} expected, {run.found:,} found")
    _names(frame, "expected by the classifier", "found")
    return _markup(frame)


def curve_chart(curve: Sequence[tuple[float, float]], prevalence: float | None) -> Markup:
    """Return precision against recall on held-out runs."""
    frame = _frame(
        "precision-recall",
        "Precision against recall on held-out runs",
        "A curve from high precision at low recall to low precision at full recall"
        + (f"; chance is {prevalence:.1%}." if prevalence is not None else "."),
        height=300,
        scales=(linear(0, 1), linear(0, 1)),
    )
    shares = [(value, f"{value:.0%}") for value in (0, 0.25, 0.5, 0.75, 1)]
    _labelled_up(frame, shares)
    _ticks_across(frame, shares)
    if prevalence is not None:
        height = frame.down(prevalence)
        frame.add("line", x1=f"{_LEFT}%", x2=f"{_RIGHT}%", y1=height, y2=height, class_="mark")
    plot = frame.add(
        "svg",
        x=f"{_LEFT}%",
        y=f"{_TOP}",
        width=f"{_RIGHT - _LEFT}%",
        height=f"{frame.bottom - _TOP:.1f}",
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
    )
    _add(plot, "path", d=_path(frame, curve), class_="curve", vector_effect="non-scaling-stroke")
    _names(frame, "recall", "precision")
    return _markup(frame)


def bar(share: float, kind: str = "calm") -> Markup:
    """Return a bar for a cell of a table; the cell beside it has the number."""
    root = Element("svg", {"class": "bar", "aria-hidden": "true", "focusable": "false"})
    _add(root, "rect", width="100%", height="100%", rx="2", class_="rail")
    width = f"{100 * min(1.0, max(0.0, share)):.2f}%"
    _add(root, "rect", width=width, height="100%", rx="2", class_=kind)
    return _text_of(root)


def interval_bar(value: float, low: float, high: float, kind: str = "calm") -> Markup:
    """Return a dot with its interval on a rail from 0 to 1, for a cell of a table."""
    root = Element("svg", {"class": "bar", "aria-hidden": "true", "focusable": "false"})
    middle = "50%"
    _add(root, "line", x1="0", x2="100%", y1=middle, y2=middle, class_="grid")
    ends = (f"{100 * low:.2f}%", f"{100 * high:.2f}%")
    _add(root, "line", x1=ends[0], x2=ends[1], y1=middle, y2=middle, class_=f"whisker {kind}")
    _add(root, "circle", cx=f"{100 * value:.2f}%", cy=middle, r="4.5", class_=f"dot {kind}")
    return _text_of(root)


def _frame(
    name: str, title: str, description: str, *, height: float, scales: tuple[Scale, Scale]
) -> Frame:
    labels = (f"{name}-title", f"{name}-description")
    root = Element(
        "svg",
        {
            "class": "chart",
            "role": "img",
            "aria-labelledby": " ".join(labels),
            "width": "100%",
            "height": f"{height:.0f}",
        },
    )
    SubElement(root, "title", {"id": labels[0]}).text = title
    SubElement(root, "desc", {"id": labels[1]}).text = description
    return Frame(root, height, *scales)


def _ticks_up(frame: Frame, values: Sequence[float]) -> None:
    _labelled_up(frame, [(value, f"{value:,.0f}") for value in values])


def _count_ticks(frame: Frame, values: Sequence[int]) -> None:
    _labelled_up(frame, [(value, f"{value:,}") for value in values])


def _labelled_up(frame: Frame, ticks: Sequence[tuple[float, str]]) -> None:
    for value, label in ticks:
        height = frame.down(value)
        frame.add("line", x1=f"{_LEFT}%", x2=f"{_RIGHT}%", y1=height, y2=height, class_="grid")
        frame.add("text", label, x=f"{_LEFT - 1.2}%", y=height, dy="4", text_anchor="end")


def _ticks_across(frame: Frame, ticks: Sequence[tuple[float, str]]) -> None:
    bottom = f"{frame.bottom}"
    frame.add("line", x1=f"{_LEFT}%", x2=f"{_RIGHT}%", y1=bottom, y2=bottom, class_="axis")
    for value, label in ticks:
        place = frame.across(value)
        frame.add("text", label, x=place, y=f"{frame.bottom + 17}", text_anchor="middle")


def _names(frame: Frame, across: str, up: str) -> None:
    middle = f"{(_LEFT + _RIGHT) / 2}%"
    frame.add(
        "text", across, x=middle, y=f"{frame.height - 6}", text_anchor="middle", class_="name"
    )
    frame.add("text", up, x="0", y="12", class_="name")


def _path(frame: Frame, points: Sequence[tuple[float, float]]) -> str:
    """Return a path in a plot of 1000 by 1000."""
    places = [f"{1000 * frame.x(x):.1f} {1000 * (1 - frame.y(y)):.1f}" for x, y in points]
    return "M" + "L".join(places)


def _decades(highest: float) -> list[int]:
    return [10**power for power in range(len(str(int(max(1, highest)))))]


def _round_ticks(highest: float) -> list[float]:
    """Return about four round numbers from 0 up."""
    highest = max(1.0, highest)
    step = 10.0 ** math.floor(math.log10(highest))
    while highest / step < 3:
        step /= 2
    step = max(1.0, step)
    return [step * i for i in range(int(highest / step) + 1)]


def _add(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    names = {"class_": "class"}
    named = {
        names.get(
            key, key if key in ("viewBox", "preserveAspectRatio") else key.replace("_", "-")
        ): value
        for key, value in attributes.items()
    }
    element = SubElement(parent, tag, named)
    element.text = text
    return element


def _markup(frame: Frame) -> Markup:
    return _text_of(frame.root)


def _text_of(root: Element) -> Markup:
    return Markup(tostring(root, encoding="unicode"))
