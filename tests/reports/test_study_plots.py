"""Plots are drawn from what a study's document holds, and the same each time."""

import importlib.util
import xml.etree.ElementTree as ET

import pytest
from support.study_documents import make_document

from memaudit.errors import MissingDependency
from memaudit.reports.study_plots import PLOTS, write_plots

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is an extra"
)


def names(paths):
    """Their names, sorted."""
    return sorted(path.name for path in paths)


@needs_matplotlib
@pytest.mark.slow
def test_every_plot_is_written_as_png_and_svg_the_same_each_time(tmp_path):
    """A date or a random id in the file would make every commit of it a change."""
    first = write_plots(make_document(), tmp_path / "first")
    second = write_plots(make_document(), tmp_path / "second")

    assert names(first) == sorted(f"{name}.{kind}" for name in PLOTS for kind in ("png", "svg"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    for path in (tmp_path / "first").glob("*.svg"):
        assert ET.parse(path).getroot().tag.endswith("svg")
    for path in (tmp_path / "first").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


@needs_matplotlib
def test_a_plot_without_numbers_is_left_out(tmp_path):
    """An older document has no curves and does not say what students learnt from."""
    document = make_document()
    document["rates"]["family and corpus"] = {}
    document["objectives"] = {}
    for groups in document["classifiers"].values():
        groups["as shipped"].pop("curves", None)

    assert write_plots(document, tmp_path / "plots") == []


@needs_matplotlib
def test_a_rate_of_zero_can_be_drawn(tmp_path, monkeypatch):
    """A logarithmic axis has no place for it."""
    monkeypatch.setattr(
        "memaudit.reports.study_plots.PLOTS",
        {"rates": PLOTS["rates"], "overlaps": PLOTS["overlaps"]},
    )
    nothing = {name: 0 for name in ("soft", "soft_in_easy", "soft_inherited")}

    written = write_plots(make_document({"olmo2 / wiki": nothing}), tmp_path)
    assert names(written) == ["overlaps.png", "overlaps.svg", "rates.png", "rates.svg"]


def test_a_missing_matplotlib_is_told_with_the_remedy(tmp_path, monkeypatch):
    """Plots are an extra."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingDependency, match="matplotlib") as error:
        write_plots(make_document(), tmp_path)
    assert error.value.hint == "pip install 'memaudit-distill[plots]'"
