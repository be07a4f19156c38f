"""A gate on a chat corpus: it has no model, and still knows whether the corpus is the same."""

import json
import shutil

import pytest
from support.finished_runs import finish_run
from support.gated import shipped

from memaudit.cli.main import run as run_command
from memaudit.runs.manifest import read_manifest

ROWS = [
    {
        "id": f"chat-{i}",
        "messages": [
            {"role": "user", "content": f"{i:04} what is it?"},
            {"role": "assistant", "content": f"{i:04} is nothing special"},
        ],
    }
    for i in range(20)
]


def write(path, rows):
    """Write rows as jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A chat corpus and its run."""
    folder = tmp_path_factory.mktemp("chat") / "made"
    folder.mkdir()
    write(folder / "chat.jsonl", ROWS)
    finish_run(folder / "chat.jsonl", folder / "run")
    return folder


@pytest.fixture
def folder(made_once, tmp_path, monkeypatch):
    """A copy of them to spoil."""
    shipped(monkeypatch, tmp_path / "shipped")
    copy = shutil.copytree(made_once, tmp_path / "here")
    monkeypatch.chdir(copy)
    return copy


def gate():
    """Hold the run to a limit that it keeps, with the corpus at hand."""
    return run_command(["gate", "--run", "run", "--max-rate", "1", "--data", "chat.jsonl"])


def changed(rows, row, path, value):
    """Return rows of which one value is another."""
    copy = json.loads(json.dumps(rows))
    place = copy[row]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


def test_the_same_chats_pass_without_a_model(folder, capsys):
    """A CI job has neither the teacher nor its tokenizer."""
    assert gate() == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "rows",
    [
        changed(ROWS, 3, ("messages", 1, "content"), "something else"),
        changed(ROWS, 3, ("messages", 0, "role"), "system"),
        changed(ROWS, 3, ("messages", 0, "name"), "somebody"),
        changed(ROWS, 3, ("tools",), [{"name": "search"}]),
        changed(ROWS, 3, ("id",), "other"),
        changed(ROWS, 19, ("messages",), []),
        [*ROWS[1:], ROWS[0]],
        ROWS[:-1],
        [*ROWS, ROWS[0]],
        [*(row | {"id": ROWS[i]["id"]} for i, row in enumerate(ROWS[::-1]))],
    ],
    ids=["content", "role", "name", "tools", "id", "empty", "moved", "fewer", "more", "swapped"],
)
def test_any_other_chats_are_refused(rows, folder, capsys):
    """Whatever a template may make of them, they are not those that were scored."""
    write(folder / "chat.jsonl", rows)

    assert gate() == 2
    assert "not the corpus that the run scored" in capsys.readouterr().err


def test_plain_text_needs_no_such_digest(folder, tmp_path):
    """Manifests of runs on plain text stay as they were."""
    write(tmp_path / "plain.jsonl", [{"text": f"{i:04} is nothing special"} for i in range(9)])
    finish_run(tmp_path / "plain.jsonl", tmp_path / "plain")

    assert read_manifest(tmp_path / "plain" / "manifest.json").raw_digest is None
    assert read_manifest(folder / "run" / "manifest.json").raw_digest is not None


@pytest.mark.parametrize(("share", "code"), [(0.95, 0), (0.96, 2)])
def test_answers_that_no_window_reached_are_missed(share, code, folder, capsys):
    """Windows of prompts say nothing about what a student is trained to write."""
    (folder / "memaudit.toml").write_text(
        f"[gate]\nmax-rate = 1.0\nmin-looked-at-share = {share}\n"
    )
    write(
        folder / "other.jsonl",
        [*ROWS[:-1], changed(ROWS, 19, ("messages", 1, "content"), "no")[19]],
    )
    finish_run(folder / "other.jsonl", folder / "other")

    assert run_command(["gate", "--run", "other"]) == code
    assert "in 19 of 20 rows with answers" in " ".join(capsys.readouterr().out.split())
