"""Charts as values, drawn once as SVG: inside a page, and alone for `report --plots`.

Places across are percentages and places down are pixels, so a chart is as wide as its page and
its letters keep their size. Colours come from the style sheet, by class. Everything is built as
elements, so no text can become markup.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from memaudit.text import safe_text

Point = tuple[float, float]

_LEFT, _RIGHT = 11.0, 97.0
_TOP, _FOOT = 42.0, 44.0
_PLOT_WIDTH = 720
"""Pixels of a chart that stands alone."""

_STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; color: #1c1e21; }
text { fill: #5c6168; } .name { fill: #1c1e21; } .note { fill: #b3470f; font-weight: 600; }
.grid { stroke: #dcdfe3; } .axis { stroke: #5c6168; } .diagonal { stroke: #5c6168; stroke-dasharray: 2 3; }
.mark { stroke: #b3470f; stroke-width: 1.5; stroke-dasharray: 4 3; }
.calm { fill: #33699b; } .risk { fill: #b3470f; } .band { fill: #33699b26; }
.curve { fill: none; stroke: #33699b; stroke-width: 2.25; } .dot { fill: #33699b; }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """A share beside its number: a bar, or a dot with its interval."""

    share: float
    """From 0 to 1."""
    is_risk: bool = False
    low: float | None = None
    """Lower end of the interval, from 0 to 1; None for a bar."""
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """One side of a chart."""

    name: str
    """What it measures, with its unit; a logarithmic one says so."""
    high: float
    """Its end; it starts at 0."""
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False
    """The logarithm of one more, on which 0 has a place."""

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 1."""
        if self.is_log:
            return math.log1p(max(0.0, value)) / (math.log1p(self.high) or 1.0)
        # Where nothing is expected the axis ends at 0.
        return value / (self.high or 1.0)


@dataclass(frozen=True, slots=True)
class Pillar:
    """A bar of a histogram."""

    start: float
    end: float
    height: float
    is_risk: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """A line, with the band of its interval if it has one."""

    points: tuple[Point, ...]
    upper: tuple[Point, ...] = ()
    lower: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class Dot:
    """A point with what it stands for."""

    x: float
    y: float
    label: str
    """Shown by browsers under the pointer; untrusted."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A dashed line: at a value across with its label, or at a value up."""

    across: float | None = None
    up: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What a chart shows, in words too: who cannot see it gets the description."""

    name: str
    """Of its file, and of its place in a page."""
    title: str
    description: str
    caption: str
    x: Axis
    y: Axis
    marks: tuple[Pillar | Curve | Dot | Rule, ...]
    has_diagonal: bool = False
    height: int = 270
    """Pixels."""


def counted(name: str, highest: float) -> Axis:
    """Return an even axis of counts with about four round numbers."""
    highest = max(1.0, highest)
    step = 10.0 ** math.floor(math.log10(highest))
    # A power of ten may give one tick only: halve it until there are three or more.
    while highest / step < 3:
        step /= 2
    step = max(1.0, step)
    values = [step * i for i in range(int(highest / step) + 1)]
    return Axis(name, highest, tuple((value, f"{value:,.0f}") for value in values))


def counted_log(name: str, highest: float, *, with_thirds: bool = False) -> Axis:
    """Return a logarithmic axis of counts with a tick at each power of ten."""
    decades = [10**power for power in range(len(str(int(max(1, highest)))))]
    thirds = [0, *(3 * decade for decade in decades if 3 * decade <= highest)]
    values = sorted({*decades, *(thirds if with_thirds else ())})
    ticks = tuple((float(value), f"{value:,}") for value in values)
    return Axis(f"{name} (logarithmic scale)", max(1.0, highest), ticks, is_log=True)


def shares(name: str) -> Axis:
    """Return an axis from 0 to 100 %."""
    return Axis(name, 1.0, tuple((value, f"{value:.0%}") for value in (0, 0.25, 0.5, 0.75, 1)))


def draw(chart: Chart) -> str:
    """Return a chart as an SVG element that takes its colours from the page around it."""
    return tostring(_Canvas(chart).root, encoding="unicode")


def draw_alone(chart: Chart) -> bytes:
    """Return a chart as an SVG file with colours of its own; the same chart, the same bytes."""
    root = _Canvas(chart).root
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("width", str(_PLOT_WIDTH))
    style = Element("style")
    style.text = _STYLE
    root.insert(2, style)  # after title and description, which come first
    content: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def draw_bar(bar: Bar) -> str:
    """Return a bar, or a dot with its interval, for a cell of a table."""
    # Not read aloud: the number stands beside it.
    root = Element("svg", {"class": "bar", "aria-hidden": "true", "focusable": "false"})
    share = f"{100 * min(1.0, max(0.0, bar.share)):.2f}%"
    kind = "risk" if bar.is_risk else "calm"
    if bar.low is None or bar.high is None:
        _add(root, "rect", width="100%", height="100%", rx="2", class_="rail")
        _add(root, "rect", width=share, height="100%", rx="2", class_=kind)
        return tostring(root, encoding="unicode")
    y = {"y1": "50%", "y2": "50%"}
    _add(root, "line", x1="0", x2="100%", class_="grid", **y)
    ends = {"x1": f"{100 * bar.low:.2f}%", "x2": f"{100 * bar.high:.2f}%"}
    _add(root, "line", class_=f"whisker {kind}", **ends, **y)
    _add(root, "circle", cx=share, cy="50%", r="4.5", class_=f"dot {kind}")
    return tostring(root, encoding="unicode")


class _Canvas:
    """A chart while it is drawn."""

    def __init__(self, chart: Chart) -> None:
        self.chart = chart
        self.bottom = chart.height - _FOOT
        labels = (f"{chart.name}-title", f"{chart.name}-description")
        read_as = {"class": "chart", "role": "img", "aria-labelledby": " ".join(labels)}
        self.root = Element("svg", read_as | {"width": "100%", "height": f"{chart.height}"})
        SubElement(self.root, "title", {"id": labels[0]}).text = chart.title
        SubElement(self.root, "desc", {"id": labels[1]}).text = chart.description
        self._axes()
        for mark in chart.marks:
            match mark:
                case Pillar():
                    self._pillar(mark)
                case Curve():
                    self._curve(mark)
                case Dot():
                    place = {"cx": self._across(mark.x), "cy": self._down(mark.y)}
                    dot = self._add("circle", r="5", class_="dot", **place)
                    _add(dot, "title", safe_text(mark.label))
                case Rule():
                    self._rule(mark)

    def _across(self, value: float) -> str:
        return f"{_LEFT + (_RIGHT - _LEFT) * self.chart.x.place(value):.2f}%"

    def _down(self, value: float) -> str:
        """Return the place of a value, in pixels from the top."""
        return f"{self.bottom - (self.bottom - _TOP) * self.chart.y.place(value):.1f}"

    def _add(self, tag: str, text: str | None = None, **attributes: str) -> Element:
        return _add(self.root, tag, text, **attributes)

    def _axes(self) -> None:
        chart, bottom = self.chart, f"{self.bottom}"
        ends = {"x1": f"{_LEFT}%", "x2": f"{_RIGHT}%"}
        for value, label in chart.y.ticks:
            height = self._down(value)
            self._add("line", **ends, y1=height, y2=height, class_="grid")
            self._add("text", label, x=f"{_LEFT - 1.2}%", y=height, dy="4", text_anchor="end")
        self._add("line", **ends, y1=bottom, y2=bottom, class_="axis")
        for value, label in chart.x.ticks:
            below = f"{self.bottom + 17}"
            self._add("text", label, x=self._across(value), y=below, text_anchor="middle")
        middle, foot = f"{(_LEFT + _RIGHT) / 2}%", f"{chart.height - 6}"
        self._add("text", chart.x.name, x=middle, y=foot, text_anchor="middle", class_="name")
        self._add("text", chart.y.name, x="0", y="12", class_="name")
        if chart.has_diagonal:
            start = {"x1": self._across(0), "y1": self._down(0)}
            end = {"x2": self._across(chart.x.high), "y2": self._down(chart.y.high)}
            self._add("line", **start, **end, class_="diagonal")

    def _pillar(self, pillar: Pillar) -> None:
        left, right = (float(self._across(end)[:-1]) for end in (pillar.start, pillar.end))
        top = float(self._down(pillar.height))
        # A little narrower than its bin, so that neighbours stay apart.
        start = {"x": f"{left + 0.15:.2f}%", "y": f"{top:.1f}"}
        size = {"width": f"{right - left - 0.3:.2f}%", "height": f"{self.bottom - top:.1f}"}
        kind = "risk" if pillar.is_risk else "calm"
        self._add("rect", **start, **size, rx="1.5", class_=kind)

    def _curve(self, curve: Curve) -> None:
        # A path takes no percentages, so the plot has a coordinate system of its own, which stretches.
        plot = self._add(
            "svg",
            x=f"{_LEFT}%",
            y=f"{_TOP}",
            width=f"{_RIGHT - _LEFT}%",
            height=f"{self.bottom - _TOP:.1f}",
            viewBox="0 0 1000 1000",
            preserveAspectRatio="none",
        )
        # The way back along the lower ends closes the band.
        if curve.upper:
            around = self._path((*curve.upper, *curve.lower[::-1]))
            _add(plot, "path", d=f"{around}Z", class_="band")
        # Its stroke does not scale: stretched with the plot, it would be thicker across than down.
        line = self._path(curve.points)
        _add(plot, "path", d=line, class_="curve", vector_effect="non-scaling-stroke")

    def _path(self, points: Sequence[Point]) -> str:
        x, y = self.chart.x, self.chart.y
        places = [f"{1000 * x.place(a):.1f} {1000 * (1 - y.place(b)):.1f}" for a, b in points]
        return "M" + "L".join(places)

    def _rule(self, rule: Rule) -> None:
        if rule.up is not None:
            height = self._down(rule.up)
            ends = {"x1": f"{_LEFT}%", "x2": f"{_RIGHT}%"}
            self._add("line", **ends, y1=height, y2=height, class_="mark")
        if rule.across is not None:
            place = self._across(rule.across)
            self._add("line", x1=place, x2=place, y1="26", y2=f"{self.bottom}", class_="mark")
            # A label stands on the side where there is more room.
            is_right = self.chart.x.place(rule.across) > 0.5
            side, nudge = ("end", "-6") if is_right else ("start", "6")
            self._add(
                "text", rule.label, x=place, y="33", dx=nudge, text_anchor=side, class_="note"
            )


def _add(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    """Add an element; `class_` is its class, and `_` stands for `-` in what SVG writes with it."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    element = SubElement(parent, tag, named)
    element.text = text
    return element
