"""What README.md says can be done."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(monkeypatch, capsys):
    """It is the first thing a programmer copies."""
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(ROOT)

    exec(block, {})

    assert re.fullmatch(r"\d+ of \d+ expected: [\d.]+\n", capsys.readouterr().out)


@pytest.mark.parametrize("path", re.findall(r"\b(?:models|sample_data|tests)/[\w./-]*\w", README))
def test_every_path_named_exists(path):
    """The tree of a project moves; its description must move with it."""
    assert list(ROOT.glob(path + "*"))


def test_no_gap_is_left():
    """Figures are filled in from the cards."""
    assert "@@" not in README


def test_the_gate_example_sets_a_limit_that_the_demo_could_break():
    """A limit above the number of rows passes whatever the corpus holds."""
    rows = len((ROOT / "sample_data" / "demo.jsonl").read_text(encoding="utf-8").splitlines())

    (rate,) = re.findall(r"memaudit gate --run runs/demo --max-rate ([\d.]+)", README)

    assert float(rate) < 1
    assert all(int(limit) < rows for limit in re.findall(r"--max-expected (\d+)", README))
