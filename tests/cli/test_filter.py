"""`memaudit filter`: from a run and its corpus to a smaller one."""

import json
import os

import pytest
from support.gated import RECITED, TEXTS, make_run
from support.imports import COMMAND, HEAVY, loaded_after

from memaudit.cli.main import run


@pytest.fixture(autouse=True)
def finished(tmp_path, monkeypatch):
    """A corpus and its run in the working folder."""
    make_run(tmp_path, [*TEXTS, *TEXTS[:3]])
    monkeypatch.chdir(tmp_path)


def filter_(*arguments):
    """Run the command."""
    return run(["filter", "--run", "run", "--data", "run.jsonl", *arguments])


def test_what_is_risky_is_gone(tmp_path, capsys):
    """And it is said what that is worth, and what it costs."""
    assert filter_("--out", "out.jsonl") == 0

    told = capsys.readouterr()
    assert told.out.startswith("2 of 24 rows removed: expect 0.1 (0 to 1) to be memorized")
    assert "before 2.1 (1 to 4)" in " ".join(told.out.split())
    assert RECITED not in (tmp_path / "out.jsonl").read_text()
    assert RECITED not in told.out + told.err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 22


def test_copies_go_and_one_stays(tmp_path, capsys):
    """The estimate is called one."""
    arguments = ["--strategy", "deduplicate", "--max-probability", "0"]

    assert filter_("--out", "out.jsonl", *arguments, "--json") == 0

    document = json.loads(capsys.readouterr().out)
    assert (document["removed"], document["removed_copies"]) == (4, 4)
    assert document["after"]["is_estimate"] is True
    assert document["schema_version"] == 1
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert sorted(texts) == sorted(set(TEXTS))


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    """Look before you leap."""
    before = sorted(path.name for path in tmp_path.iterdir())

    assert filter_("--dry-run", "--expected-at-most", "1") == 0

    assert "would be removed" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no --out is given"),
        (["--out", "out.csv"], "ends in .jsonl"),
        (["--out", "run.jsonl"], "is the corpus itself"),
        (["--out", "o.jsonl", "--top", "1", "--max-probability", "1"], "more than one limit"),
        (["--out", "o.jsonl", "--public"], "--public goes with --push-to-hub"),
        (["--dry-run", "--push-to-hub", "a/b"], "does not go with --dry-run"),
        (["--out", "o.jsonl", "--near-duplicates", "0.5"], "goes with --strategy deduplicate"),
        (["--out", "o.jsonl", "--expected-at-most", "nan"], "not a finite number"),
        (["--out", "missing/../run.jsonl"], "is the corpus itself"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, said, capsys, tmp_path):
    """Before anything is written."""
    before = sorted(path.name for path in tmp_path.iterdir())

    assert filter_(*arguments) == 2

    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_changed_corpus_is_refused(tmp_path, capsys):
    """Stale predictions must not choose what goes."""
    path = tmp_path / "run.jsonl"
    path.write_text(path.read_text().replace("0003", "0004"))

    assert filter_("--out", "out.jsonl") == 2
    assert "not the corpus that the run scored" in capsys.readouterr().err


def test_near_duplicates_have_a_default(tmp_path):
    """The flag alone is enough."""
    pytest.importorskip("rensa")

    assert filter_("--out", "out.jsonl", "--strategy", "deduplicate", "--near-duplicates") == 0


def test_messages_need_the_chat_template(tmp_path, capsys):
    """What was scored is the rendered text, so that is what is compared."""
    from support.finished_runs import finish_run

    answer = {"role": "assistant", "content": "what you have"}
    row = {"messages": [{"role": "user", "content": "what is it that you want"}, answer]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row) + "\n")
    finish_run(tmp_path / "chat.jsonl", tmp_path / "chat")

    assert run(["filter", "--run", "chat", "--data", "chat.jsonl", "--dry-run"]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_nothing_heavy_is_imported():
    """A cleaning of a gigabyte should not begin with a minute of imports."""
    arguments = ["--run", "run", "--data", "run.jsonl", "--out", "o.jsonl"]

    code, loaded = loaded_after(COMMAND, "filter", *arguments)

    assert code == 0
    assert not loaded & HEAVY


def test_a_file_that_is_there_is_replaced_only_by_force(capsys, tmp_path):
    """It may be the only copy of something."""
    (tmp_path / "o.jsonl").write_text("precious")

    assert filter_("--out", "o.jsonl", "--top", "1") == 2
    assert (tmp_path / "o.jsonl").read_text() == "precious"
    assert "--force" in capsys.readouterr().err

    assert filter_("--out", "o.jsonl", "--top", "1", "--force") == 0
    assert "precious" not in (tmp_path / "o.jsonl").read_text()


def test_a_pipe_is_no_place_for_a_corpus(capsys, tmp_path):
    """What was written is read back for its digest, and a pipe would be waited for."""
    os.mkfifo(tmp_path / "o.jsonl")

    assert filter_("--out", "o.jsonl", "--top", "1", "--force") == 2
    assert "neither a file nor a folder" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_told(capsys, tmp_path):
    """What failed is said, and not that nothing of it can be removed."""
    (tmp_path / "file").write_text("")

    assert filter_("--out", "file/o.jsonl", "--top", "1") == 2
    assert "error: file: cannot be written: File exists" in capsys.readouterr().err
