"""`memaudit predict --cascade` and `--dry-run`: fewer tokens, or none, and the user is told."""

import json

import pyarrow.parquet as pq
import pytest

from memaudit.cli.main import run

SHAPE = ["--prefix-tokens", "16", "--suffix-tokens", "16", "--threads", "1", "-q"]


@pytest.fixture
def predict(tiny_teacher, corpus, tmp_path, capsys, monkeypatch):
    """Run the command with the shipped classifier; return the code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run_predict(*arguments):
        given = ["--teacher", tiny_teacher, "--data", corpus]
        code = run(["predict", *map(str, given), *SHAPE, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run_predict


def test_a_cascade_says_how_many_teacher_tokens_it_saved(predict, tmp_path):
    """Nine of the ten distinct texts occur once, and at T = 2 cannot be flagged."""
    code, out, _ = predict("--cascade", "--out", tmp_path / "out")

    words = " ".join(out.split())
    rows = pq.read_table(tmp_path / "out" / "risk.parquet").to_pylist()
    assert code == 0
    assert "cascade 288 teacher tokens saved, 90.0%" in words
    assert "screened 9 skipped: the teacher did not read them" in words
    assert "the expected number does not count them" in words
    assert [row["row"] for row in rows if row["outcome"] == "scored"] == [3, 10]
    assert all(row["probability"] > 0 for row in rows if row["outcome"] == "screened")


def test_a_baseline_is_asked_before_the_teacher(predict, tiny_student, tmp_path):
    """It costs a fraction of the teacher, and tells more than the corpus alone."""
    given = ("--cascade", "--baseline", tiny_student)
    code, out, err = predict(*given, "--out", tmp_path / "with")
    whole = predict(*given[1:], "--out", tmp_path / "without")[0]

    assert (code, whole, err) == (0, 0, "")
    tables = [
        pq.read_table(tmp_path / name / "risk.parquet").to_pylist() for name in ("with", "without")
    ]
    for row, expected in zip(*tables, strict=True):
        assert row["outcome"] == "screened" or row == expected
    code, out, _ = predict(*given, "--dry-run")
    assert code == 0
    assert "by repeat counts; the baseline will spare the teacher more" in " ".join(out.split())


def test_there_is_no_cascade_unless_it_is_asked_for(predict, tmp_path):
    """Off by default: every row is scored."""
    _, out, _ = predict("--json", "--out", tmp_path / "out")

    document = json.loads(out)
    assert (document["scored"], document["screened"], document["survival"]) == (11, 0, None)
    assert document["tokens_saved"] == 0


def test_shards_of_a_cascade_merge_to_the_table_of_one_run(predict, tmp_path, capsys):
    """What is left out depends on the corpus, not on who scored which part."""
    predict("--cascade", "--survival", 1, "--chunk-size", 4, "--out", tmp_path / "one")
    for i in range(2):
        predict(
            "--cascade", "--survival", 1, "--chunk-size", 4,
            "--shard", f"{i}/2", "--out", tmp_path / f"part-{i}",
        )  # fmt: skip
    parts = [str(tmp_path / f"part-{i}") for i in range(2)]

    assert run(["merge", *parts, "--out", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    tables = [(tmp_path / name / "risk.parquet").read_bytes() for name in ("one", "merged")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--survival", "0.99"], "add --cascade"),
        (["--cascade", "--survival", "0"], "--survival"),
        (["--cascade", "--survival", "0.99999"], "can vouch for a survival of 0.99"),
    ],
)
def test_a_survival_that_makes_no_sense_ends_with_2(predict, arguments, told):
    """Before a model is loaded."""
    code, _, err = predict(*arguments)

    assert code == 2
    assert told in err


def test_a_dry_run_writes_nothing(predict, tmp_path):
    """Not even the folder."""
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = predict("--dry-run", "--out", tmp_path / "out")

    assert code == 0
    assert out.startswith("Nothing was written: this is a plan.")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_gives_one_document_for_scripts(predict):
    """Rows by outcome add up, and there is a time for this machine."""
    code, out, _ = predict("--dry-run", "--json", "--cascade")

    document = json.loads(out)
    assert code == 0
    assert document["rows"] == document["scored"] + document["too_short"] + document["bad"] == 12
    assert (document["distinct_windows"], document["screened_windows"]) == (10, 9)
    assert document["tokens"] == 32
    assert document["estimated_seconds"] > 0
    assert [gpu["name"] for gpu in document["gpus"]] == ["T4", "L4", "A100-80", "H100"]
