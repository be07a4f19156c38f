"""What README.md says can be done."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from memaudit.cli.main import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_option_named_is_an_option():
    """A reader who types it must not meet a usage error."""
    helps = "".join(CliRunner().invoke(cli, [name, "--help"]).output for name in cli.commands)
    ours = set(re.findall(r"--[a-z][a-z-]+", README))
    of_other_tools = {"--constraint", "--editable", "--quiet", "--numprocesses"}

    assert ours - of_other_tools <= set(re.findall(r"--[a-z][a-z-]+", helps))


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
