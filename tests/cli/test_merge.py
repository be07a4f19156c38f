"""`memaudit predict --shard` and `memaudit merge`, on a tiny real model."""

import json
from dataclasses import replace

import pytest
from support.fake_run import contents, fake_audit
from support.fakes import unless_given

from memaudit.cli.main import run
from memaudit.corpus import CorpusOptions
from memaudit.corpus.reader import corpus_stamp
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

    assert "1 of 3 shards is not given: 2" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_shards_are_not_put_into_one_of_them(shards, capsys):
    """It was found in use by another process, which was the merge itself."""
    assert merge(shards, f"{shards[0]}/") == 2
    assert "is one of the shards" in capsys.readouterr().err


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


@pytest.fixture
def predict(tiny_teacher, corpus, classifier, tmp_path, monkeypatch):
    """Runs `predict` on the corpus, with more arguments."""
    monkeypatch.chdir(tmp_path)
    shape = ["--prefix-tokens", "16", "--suffix-tokens", "16", "--chunk-size", "3", "--quiet"]
    named = {"teacher": tiny_teacher, "data": corpus, "classifier": classifier}
    return lambda *more: run(["predict", *unless_given(more, **named), *shape, *map(str, more)])


def test_shards_that_share_the_reading_fit_together(predict, tmp_path, capsys):
    """And what the commands say of the tokens on the disk is true."""
    assert predict("--out", "whole") == 0
    assert [
        predict("--shard", f"{i}/2", "--out", f"part-{i}", "--prepared", "all") for i in (0, 1)
    ] == [0, 0]
    out = " ".join(capsys.readouterr().out.split())
    assert "all holds token ids of the corpus. Remove it when all shards are complete" in out
    assert (tmp_path / "all" / "windows.parquet").exists()

    assert merge([tmp_path / "part-0", tmp_path / "part-1"], tmp_path / "all") == 0

    assert contents(tmp_path / "all") == contents(tmp_path / "whole")
    capsys.readouterr()


def test_rows_with_answers_share_their_reading_too(predict, corpus, tmp_path, capsys):
    """What is counted of answers is part of what a run declares."""
    rows = [{"prompt": f"{i * 7919} asks", "completion": "answer " * (8 + i)} for i in range(9)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in (0, 1):
        assert predict("--shard", f"{i}/2", "--out", f"part-{i}", "--prepared", "all") == 0
        assert predict("--shard", f"{i}/2", "--out", f"alone-{i}") == 0
        assert contents(tmp_path / f"part-{i}") == contents(tmp_path / f"alone-{i}")
    capsys.readouterr()


def test_a_corpus_that_changed_meanwhile_is_refused(predict, corpus, tmp_path, capsys):
    """The shards would be of different runs; one that was only touched is read again."""
    share = ["--prepared", "all"]
    assert predict("--shard", "0/2", "--out", "part-0", *share) == 0
    corpus.touch()
    assert predict("--shard", "1/2", "--out", "part-1", *share) == 0
    corpus.write_text(corpus.read_text().replace("0007", "9997"))
    assert predict("--shard", "1/2", "--out", "part-2", *share) == 2
    assert "all: holds another run: texts digest was" in capsys.readouterr().err
    assert not (tmp_path / "part-2").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--out", "p"), "--prepared is for shards"),
        (("--shard", "0/2", "--out", "all"), "all: is the folder of this shard alone"),
        (("--shard", "0/2", "--data", "-"), "--prepared needs a corpus in files"),
        (("--shard", "0/2", "--data", "org/name"), "--prepared needs a corpus in files"),
        (("--shard", "0/2", "--teacher", "captured", "--tokenizer", "t"), "is not captured"),
        (("--shard", "0/2", "--data", "gone.jsonl"), "gone.jsonl: no such file"),
    ],
)
def test_what_cannot_be_shared_is_an_error(predict, more, message, tmp_path, capsys):
    """Before a model is loaded, and nothing is left."""
    assert predict("--prepared", "all", *more) == 2

    assert message in capsys.readouterr().err
    assert not (tmp_path / "all").exists()


def test_a_commit_on_the_hub_stays_what_it_is():
    """A branch may move between two shards."""
    source = CorpusOptions("org/name", revision="main")
    assert corpus_stamp(source) is None
    assert corpus_stamp(replace(source, revision="0f" * 20)) == "0f" * 20
    assert corpus_stamp(CorpusOptions("rows", rows=[{"text": "a"}])) is None
