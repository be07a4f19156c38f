"""What plots share: colours, type and files of which the same figure gives the same bytes."""

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memaudit.errors import MissingDependency
from memaudit.runs.files import committed_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, GREY = "#CC79A7", "#555555"

STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "hatch.linewidth": 0.8,
    "svg.hashsalt": "memaudit",
    "savefig.dpi": 150,
}
"""Of matplotlib; the salt makes ids in SVG files reproducible."""

_FORMATS: dict[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": None}},
    "svg": {"metadata": {"Date": None, "Creator": None}},
}


def require_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency("matplotlib", needed_for="drawing plots", extra="plots")


def save_figure(figure: "Figure", path: Path) -> list[Path]:
    """Write a figure in every format, each whole or not at all."""
    written = []
    for ending, options in _FORMATS.items():
        image = io.BytesIO()
        figure.savefig(image, format=ending, **options)
        target = path.with_suffix(f".{ending}")
        with committed_file(target) as stream:
            stream.write(image.getvalue())
        written.append(target)
    return written


def reach(figures: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """Return how far intervals reach below and above their values."""
    below = [max(0.0, value - low) for value, low, _ in figures]
    above = [max(0.0, high - value) for value, _, high in figures]
    return [below, above]
