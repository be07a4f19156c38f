"""`memaudit predict --shard` and `memaudit merge`, on a tiny real model."""

import json

import pytest
from support.fake_run import contents, fake_audit

from memaudit.cli.main import run
from memaudit.runs.manifest import Shard


@pytest.fixture
def shards(tmp_path):
    """The folders of three fake shards, scored."""
    folders = [tmp_path / f"shard-{index}" for index in range(3)]
    for index, folder in enumerate(folders):
        fake_audit(folder, shard=Shard(index, 3))
    return folders


def merge(folders, out, *arguments):
    """Run the command."""
    return run(["merge", *map(str, folders), "--out", str(out), *arguments])


def test_shards_merged_equal_a_run_that_was_not_split(shards, tmp_path, capsys):
    """Byte for byte, and the summary is the same too."""
    fake_audit(tmp_path / "whole")

    assert merge(shards, tmp_path / "merged", "--json") == 0

    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    document = json.loads(capsys.readouterr().out)
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    same = {key for key in whole if document.get(key) == whole[key]}
    assert set(whole) - same <= {
        "date",
        "seconds",
        "scoring_seconds",
        "tokens_per_second",
        "table",
    } | {key for key in whole if key.startswith(("kept", "scored_windows", "resumed"))}


def test_shards_that_do_not_fit_are_an_error(shards, tmp_path, capsys):
    """Exit code 2, and nothing is made."""
    assert merge(shards[:2], tmp_path / "merged") == 2

    assert "1 of 3 shards are not given: 2" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_the_commands_fit_together(tiny_teacher, corpus, classifier, tmp_path, capsys, monkeypatch):
    """As a job array would: two shards and a merge give the table of one predict."""
    monkeypatch.chdir(tmp_path)
    given = ["--teacher", tiny_teacher, "--data", corpus, "--classifier", classifier]
    shape = ["--prefix-tokens", "16", "--suffix-tokens", "16", "--chunk-size", "3", "--quiet"]
    predict = ["predict", *map(str, given), *shape]

    assert run(predict) == 0
    assert [run([*predict, "--shard", f"{index}/2"]) for index in (0, 1)] == [0, 0]
    assert "This shard is complete." in " ".join(capsys.readouterr().out.split())
    parts = [tmp_path / "runs" / f"corpus-{index}-of-2" for index in (0, 1)]
    assert merge(parts, tmp_path / "merged") == 0

    assert contents(tmp_path / "merged") == contents(tmp_path / "runs" / "corpus")
    capsys.readouterr()


def test_a_shard_that_is_none_is_an_error(corpus, capsys):
    """Before a model is loaded."""
    assert run(["predict", "--teacher", "t", "--data", str(corpus), "--shard", "3/3"]) == 2

    assert "a shard is i/N with i from 0 to N - 1, got 3/3" in capsys.readouterr().err
