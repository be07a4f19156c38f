"""Every option that a message, a hint or a page names can be typed."""

import ast
import re
from pathlib import Path

import pytest

from memaudit.cli.main import cli

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
OF_OTHER_TOOLS = {
    *("--array", "--clear", "--constraint", "--disable-pip-version-check", "--dist"),
    *("--editable", "--no-deps", "--no-warn-conflicts", "--norc", "--numprocesses", "--quiet"),
    *("--requirement", "--strict"),
    *("--jobs", "--models"),  # of `python -m study`
}
MODULES = sorted((ROOT / "memaudit").rglob("*.py"))
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("*.y*ml")),
    *sorted(ROOT.glob(".*.yaml")),
]


def existing():
    """Every option of every command, in each of its spellings."""
    options = [param for command in (cli, *cli.commands.values()) for param in command.params]
    return {name for option in options for name in (*option.opts, *option.secondary_opts)}


def strings(path):
    """Every string of a module, its docstrings too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_that_a_message_names_exists(path):
    """A hint that leads to a usage error is worse than none."""
    named = {name for text in strings(path) for name in NAMED.findall(text)}

    assert named - existing() - OF_OTHER_TOOLS <= {"--help", "--version"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_option_that_a_page_names_exists(path):
    """A reader who types it must not meet a usage error."""
    named = set(NAMED.findall(path.read_text(encoding="utf-8")))

    assert named - existing() - OF_OTHER_TOOLS <= {"--help", "--version"}
