"""`memaudit study`: what it prints, writes, costs and refuses to pretend."""

import json
from pathlib import Path

import pytest
from support.study_documents import make_document

from memaudit.cli.main import run
from memaudit.study.cost import StudyCost, Work

RECIPES = Path(__file__).parents[2] / "models" / "recipes"
PAPER = str(RECIPES / "paper-pythia-fineweb.toml")
CPU = str(RECIPES / "cpu.toml")


@pytest.fixture
def calls(monkeypatch):
    """Make the study one that ends at once; gives the arguments it was called with."""
    seen = []

    def conduct(recipe, sample_data, out, **settings):
        seen.append((recipe, sample_data, out, settings))
        return make_document()

    monkeypatch.setattr("memaudit.study.workflow.conduct_study", conduct)
    return seen


def test_a_study_prints_its_main_tables(calls, tmp_path, capsys, monkeypatch):
    """One command gives the main table; where the rest is stands below it."""
    monkeypatch.setenv("COLUMNS", "200")

    assert run(["study", CPU, "--out", str(tmp_path), "--jobs", "2"]) == 0
    output = capsys.readouterr().out
    assert "Memorized by family and corpus" in output
    assert f"results  {tmp_path / 'results.json'}" in output
    assert calls[0][2:] == (tmp_path, {"models": None, "n_jobs": 2})


def test_json_is_the_document_and_nothing_else(calls, tmp_path, capsys):
    """Scripts read standard output."""
    assert run(["study", CPU, "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(make_document()))


def test_markdown_holds_all_tables(calls, tmp_path, capsys):
    """For a page of the documentation, which others may read."""
    path = tmp_path / "tables.md"

    assert run(["study", CPU, "--out", str(tmp_path), "--markdown", str(path)]) == 0
    assert "### Transfer" in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o644
    assert str(path) in capsys.readouterr().out.replace("\n", "")


@pytest.mark.slow
def test_plots_go_into_a_folder_of_the_study(calls, tmp_path):
    """Beside what they are made from."""
    pytest.importorskip("matplotlib")

    assert run(["study", CPU, "--out", str(tmp_path), "--plots"]) == 0
    assert (tmp_path / "plots" / "rates.svg").exists()


def test_missing_matplotlib_is_told_before_the_study_runs(calls, tmp_path, capsys, monkeypatch):
    """Hours later would be too late."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert run(["study", CPU, "--out", str(tmp_path), "--plots"]) == 2
    assert "memaudit-distill[plots]" in capsys.readouterr().err
    assert calls == []


def test_a_paper_recipe_is_never_taken_for_run(calls, capsys):
    """Exit code 0 would say that there are results."""
    assert run(["study", PAPER]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing was run" in captured.err
    assert "--dry-run" in captured.err
    assert calls == []


def test_a_paper_recipe_is_costed_with_the_commands_that_run_it(capsys, monkeypatch):
    """Hours, memory, and lines that can be copied."""
    monkeypatch.setenv("COLUMNS", "80")

    assert run(["study", PAPER, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("About 763 A100-hours or 241 H100-hours")
    assert "Nothing was run" in " ".join(output.split())
    commands = [line for line in output.splitlines() if line.startswith("memaudit verify ")]
    assert len(commands) == 6
    assert all(line.endswith("--keep-models") for line in commands)


def test_the_cost_of_a_paper_recipe_as_json(capsys):
    """The same, for scripts."""
    assert run(["study", PAPER, "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dry_run"] is True
    assert document["flops"]["teacher"] > 1e20


def test_a_study_of_miniatures_is_costed_without_being_run(calls, tmp_path, capsys, monkeypatch):
    """How long until it is done, before it is begun."""
    cost = StudyCost(60, 12, 3, {"teachers": Work(1_000_000, 500, 2e13)}, {"teachers": 600.0})
    monkeypatch.setattr("memaudit.study.cost.study_cost", lambda *arguments: cost)

    assert run(["study", CPU, "--dry-run", "--out", str(tmp_path)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert output.startswith("About 10 core-minutes on this machine: 48 of 60 cells and 3 bases")
    assert "teachers 1,000,000 500 2.0e+13 10:00" in output
    assert run(["study", CPU, "--dry-run", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["teachers"]["core_seconds"] == 600.0
    assert calls == []


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_missing_recipe_is_an_error(arguments, tmp_path, capsys):
    """A typo in its name."""
    assert run(["study", str(tmp_path / "no.toml"), *arguments]) == 2
    assert "no.toml" in capsys.readouterr().err
