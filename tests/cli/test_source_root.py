"""Where findings are shown: paths from the top of the repository, wherever predict and gate ran."""

import json

import pytest
from support.finished_runs import finish_run
from support.gated import RECITED, shipped, write_jsonl

from memaudit.cli.main import run

TEXTS = [*(f"{i:04} is nothing special" for i in range(8)), RECITED, RECITED]


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository with a corpus in a package, predicted in the folder of the package."""
    shipped(monkeypatch, tmp_path / "shipped")
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "repo"
    (folder / ".git").mkdir(parents=True)
    (folder / "pkg" / "data").mkdir(parents=True)
    write_jsonl(folder / "pkg" / "data" / "corpus.jsonl", TEXTS)
    monkeypatch.chdir(folder / "pkg")
    finish_run("data/corpus.jsonl", folder / "pkg" / "run", recited=[RECITED])
    return folder


def places(capsys, *arguments, kind="sarif"):
    """Return the paths that the gate points to."""
    capsys.readouterr()
    assert run(["gate", "--run", "run", "--output-format", kind, *arguments]) == 1
    found = json.loads(capsys.readouterr().out)["runs"][0]["results"]
    return {
        one["ruleId"]: one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for one in found
    }


CORPUS = "pkg/data/corpus.jsonl"


def test_paths_are_taken_from_the_top_of_the_repository(repo, capsys):
    """Code scanning drops a finding that belongs to no file it knows."""
    (repo / "pkg" / "memaudit.toml").write_text("[gate]\nmax-rate = 0.1\n")

    assert places(capsys) == {"MEM000": "pkg/memaudit.toml", "MEM001": CORPUS}


def test_without_a_policy_file_the_summary_points_to_the_corpus(repo, capsys):
    """A file that need not exist is no place for a finding."""
    assert places(capsys, "--max-rate", "0.1") == {"MEM000": CORPUS, "MEM001": CORPUS}


@pytest.mark.parametrize("where", [".", "pkg", "elsewhere"])
@pytest.mark.parametrize("with_data", [True, False])
def test_predict_and_gate_may_run_in_different_folders(where, with_data, repo, capsys, monkeypatch):
    """The run was made in the package; the gate runs where the job is."""
    (repo / "elsewhere").mkdir()
    monkeypatch.chdir(repo / where)
    data = ["--data", str(repo / CORPUS)] if with_data else []

    found = places(capsys, "--max-rate", "0.1", "--run", str(repo / "pkg" / "run"), *data)

    assert found["MEM001"] == CORPUS


def test_a_job_says_where_the_top_is(repo, capsys, monkeypatch, tmp_path):
    """The action works outside the checkout, and so do other pipelines."""
    monkeypatch.chdir(tmp_path)
    given = ["--max-rate", "0.1", "--run", str(repo / "pkg" / "run")]
    monkeypatch.setenv("GITHUB_WORKSPACE", str(repo))
    assert places(capsys, *given)["MEM001"] == CORPUS
    monkeypatch.delenv("GITHUB_WORKSPACE")

    assert (
        places(capsys, *given, "--source-root", str(repo / "pkg"))["MEM001"] == "data/corpus.jsonl"
    )


def test_a_run_of_another_machine_finds_its_files_here(repo, capsys, monkeypatch):
    """There the repository lay in another folder."""
    monkeypatch.chdir(repo)
    finish_run(repo / "pkg" / "data" / "corpus.jsonl", repo / "far", recited=[RECITED])
    moved = repo.rename(repo.with_name("moved"))
    monkeypatch.chdir(moved)

    assert places(capsys, "--max-rate", "0.1", "--run", "far")["MEM001"] == CORPUS


def test_annotations_are_taken_from_there_too(repo, capsys):
    """They stand beside the line of the file in a pull request."""
    assert run(["gate", "--run", "run", "--max-rate", "0.1", "--output-format", "github"]) == 1

    assert f"::error file={CORPUS},line=" in capsys.readouterr().out


def test_git_itself_is_not_asked(repo, capsys, monkeypatch, tmp_path):
    """The settings of a hostile checkout can make git run a program."""
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    places(capsys, "--max-rate", "0.1")

    assert not (tmp_path / "asked").exists()
