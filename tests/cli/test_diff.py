"""`memaudit diff`: a run against itself, against a cleaned corpus, and against what it cannot be."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.fake_run import ByteWiseEngine, audit_with

from memaudit.cli.main import run as memaudit
from memaudit.corpus import CorpusOptions, read_corpus
from memaudit.reports.diff import compare_runs, difference_page
from memaudit.reports.page import Words
from memaudit.runs.run import read_run

CANARY = "MEMAUDIT-CANARY"


def predict(corpus, folder):
    """Make a finished run of a corpus with the fake engine."""
    audit_with(ByteWiseEngine(), folder, rows=read_corpus(CorpusOptions(str(corpus))))
    return str(folder)


def write(path, ids):
    """Write rows with ids; those with the same tens digit have the same text."""
    rows = [{"id": f"doc-{i}", "text": f"{i % 10 * 7919:06} {CANARY} {i % 10}"} for i in ids]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def first(tmp_path):
    """A run of thirty rows with ten texts."""
    return predict(write(tmp_path / "corpus.jsonl", range(30)), tmp_path / "first")


def test_a_run_does_not_differ_from_itself(first, capsys):
    """Or every difference would be in doubt."""
    assert compare_runs(read_run(Path(first)), read_run(Path(first))).is_empty
    assert memaudit(["diff", first, first]) == 0
    assert capsys.readouterr().out.startswith("The runs do not differ.")


def test_a_cleaned_corpus_names_exactly_what_was_removed(first, tmp_path, capsys):
    """Row by row, by id, in the order of the corpus."""
    cleaned = tmp_path / "cleaned.jsonl"
    asked = ["--out", str(cleaned), "--top", "4", "--strategy", "deduplicate"]
    data = str(tmp_path / "corpus.jsonl")
    assert memaudit(["filter", "--run", first, "--data", data, *asked]) == 0
    removed = pq.read_table(f"{cleaned}.removed.parquet").column("id").to_pylist()
    second = predict(cleaned, tmp_path / "second")
    capsys.readouterr()

    assert memaudit(["diff", first, second, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert removed
    assert found["gone"] == removed
    assert found["come"] == []
    assert found["before"]["rows"] - found["after"]["rows"] == len(removed)
    assert not found["empty"]


def test_new_rows_and_markdown(first, tmp_path, capsys):
    """What came is listed, up to a number, and the file is for a pull request."""
    second = predict(write(tmp_path / "more.jsonl", range(5, 60)), tmp_path / "second")
    page = tmp_path / "diff.md"

    assert memaudit(["diff", first, second, "--top", "2", "--markdown", str(page)]) == 0

    text = page.read_text()
    assert text.startswith("## What differs between two runs")
    assert "Rows that are new: 30" in text
    assert "and 28 more" in text
    assert "Rows that are gone: 5" in text
    assert CANARY not in text + capsys.readouterr().out


def test_with_none_listed_the_numbers_stay(first, tmp_path, capsys):
    """`--top 0` is for who may see counts and no ids."""
    second = predict(write(tmp_path / "more.jsonl", range(5, 60)), tmp_path / "second")

    assert memaudit(["diff", first, second, "--top", "0"]) == 0

    said = capsys.readouterr().out
    assert "Rows that are new: 30" in said
    assert "doc-" not in said


def test_runs_that_do_not_differ_are_no_alarm(first):
    """Rounding may move the expected number by less than any row that is listed."""
    found = compare_runs(read_run(Path(first)), read_run(Path(first)))
    expected = replace(found.after.expected, mean=found.after.expected.mean + 1e-9)

    page = difference_page(replace(found, after=replace(found.after, expected=expected)))

    assert page.verdict == Words("The runs do not differ.", "good")


def test_runs_of_other_windows_are_refused(first, tmp_path, capsys):
    """Their probabilities are of different things."""
    from memaudit.windows import WindowShape

    corpus = tmp_path / "corpus.jsonl"
    audit_with(
        ByteWiseEngine(),
        tmp_path / "second",
        rows=read_corpus(CorpusOptions(str(corpus))),
        shape=WindowShape(5, 5),
    )

    assert memaudit(["diff", first, str(tmp_path / "second")]) == 2
    assert "they differ in prefix tokens, suffix tokens" in capsys.readouterr().err


def test_rows_that_only_have_places_are_not_told_apart(tmp_path, capsys):
    """After a filter the third row of a file is another one."""
    runs = []
    for n in (20, 21):
        corpus = tmp_path / f"plain-{n}.jsonl"
        corpus.write_text(
            "".join(json.dumps({"text": f"{i * 7919:06} {i}"}) + "\n" for i in range(n))
        )
        runs.append(predict(corpus, tmp_path / f"run-{n}"))

    assert memaudit(["diff", *runs]) == 2
    assert "no ids, only places" in capsys.readouterr().err
