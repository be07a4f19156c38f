"""`python -m study.heavy`: what it prints and writes."""

import sys
from pathlib import Path

import pytest
from support.study_documents import make_document

from study.heavy.__main__ import main

RECIPE = Path(__file__).parents[3] / "study" / "recipes" / "heavy.toml"


@pytest.fixture
def calls(monkeypatch):
    """Make the study one that ends at once; gives the arguments it was called with."""
    seen = []

    def conduct(recipe, sample_data, out, **settings):
        seen.append((recipe, sample_data, out, settings))
        return make_document()

    monkeypatch.setattr("study.heavy.__main__.conduct_study", conduct)
    return seen


def run(monkeypatch, *arguments):
    """Return the exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["study.heavy", *map(str, arguments)])
    return main()


def test_a_study_prints_its_tables_and_writes_them(calls, tmp_path, capsys, monkeypatch):
    """For a page of the documentation, which others may read."""
    path = tmp_path / "tables.md"

    code = run(monkeypatch, RECIPE, "--out", tmp_path, "--jobs", 2, "--markdown", path)
    assert code == 0
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")
    assert "### Memorized by family and corpus" in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o644
    assert calls[0][2:] == (tmp_path, {"models": None, "n_jobs": 2})


def test_a_missing_recipe_is_an_error(calls, tmp_path, capsys, monkeypatch):
    """A typo in its name must not start hours of work on another one."""
    assert run(monkeypatch, tmp_path / "no.toml") == 2
    assert "no.toml" in capsys.readouterr().err
    assert calls == []
