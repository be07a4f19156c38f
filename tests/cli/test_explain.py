"""`memaudit explain`: the numbers add up, a row is found by its name, and no text is shown."""

import json
import math

import numpy as np
import pytest
from support.fake_run import ByteWiseEngine, audit_with, load_fakes

from memaudit.cli.main import run as memaudit
from memaudit.corpus import CorpusOptions, read_corpus
from memaudit.gate import rescore
from memaudit.reports.explain import explain_row
from memaudit.runs.run import read_run

CANARY = "MEMAUDIT-CANARY"


@pytest.fixture
def folder(tmp_path):
    """A finished run of a corpus with copies, the corpus beside it."""
    texts = [f"{i * 7919 % 100_003:06} {CANARY} {i}" for i in range(20)]
    rows = [{"id": f"doc-{i}", "text": text} for i, text in enumerate([*texts, *texts[:3]])]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in (*rows, {"id": "x", "text": "s"})))
    audit_with(ByteWiseEngine(), tmp_path / "run", rows=read_corpus(CorpusOptions(str(corpus))))
    return tmp_path / "run"


def test_contributions_add_up_to_the_log_odds(folder):
    """What is shown is the model itself, not a story about it."""
    run = read_run(folder)
    for row in np.flatnonzero(run.is_scored).tolist():
        found = explain_row(run, run.row(row).address)

        p = float(run.probabilities[row])
        total = found.start + sum(one.log_odds for one in found.contributions)
        assert total == pytest.approx(math.log(p) - math.log1p(-p), abs=1e-9)
        assert found.row == row


def test_it_names_equals_and_what_would_help(folder, capsys):
    """Fewer copies never raise what a change is said to lead to."""
    assert memaudit(["explain", "--run", str(folder), "doc-0", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["example_id"] == "doc-0"
    assert found["same_window"] == found["same_text"] == 2
    assert [one[0] for one in found["equals"]] == ["doc-20"]
    assert all(one["probability"] < found["probability"] for one in found["remedies"])
    changes = [one["change"] for one in found["remedies"]]
    assert len({*changes}) == len(changes)  # half of two copies is one copy


def test_what_is_there_once_is_told_so(folder, capsys):
    """One row more, and a window that occurs one time."""
    assert memaudit(["explain", "--run", str(folder), "doc-0"]) == 0
    assert "  1 other row\n" in capsys.readouterr().out

    assert memaudit(["explain", "--run", str(folder), "doc-9"]) == 0
    assert "occurs 1 time; it is the riskiest of 1 row\n" in capsys.readouterr().out


def test_no_text_is_shown_unless_it_is_asked_for(folder, tmp_path, capsys):
    """Not on the terminal, and not on the page."""
    page, data = tmp_path / "page.html", str(tmp_path / "corpus.jsonl")
    assert memaudit(["explain", "--run", str(folder), "doc-1", "--html", str(page)]) == 0
    assert memaudit(["explain", "--run", str(folder), "doc-1"]) == 0
    assert CANARY not in capsys.readouterr().out + page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600

    asked = ["explain", "--run", str(folder), "doc-1", "--data", data, "--show-text", "40"]
    assert memaudit(asked) == 0
    assert CANARY in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "why"), [("nobody", "no row of the run"), ("x", "was not scored: too short")]
)
def test_a_row_that_cannot_be_explained_is_an_error(folder, row, why, capsys):
    """A row without a probability is not a safe row."""
    assert memaudit(["explain", "--run", str(folder), row]) == 2
    assert why in capsys.readouterr().err


def test_a_row_is_found_by_its_id_as_it_is_shown(tmp_path, capsys):
    """What is copied from a page has its control characters written out."""
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"id": f"\x1b[31m{n}", "text": f"{n} is a text of its own"} for n in range(3)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    audit_with(ByteWiseEngine(), tmp_path / "run", rows=read_corpus(CorpusOptions(str(corpus))))

    assert memaudit(["explain", "--run", str(tmp_path / "run"), r"\u001b[31m1"]) == 0
    assert capsys.readouterr().out.startswith(r"\u001b[31m1 is ")


def test_rows_with_the_same_id_are_told_apart_by_their_address(tmp_path, capsys):
    """Ids of a corpus need not be unique."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": "a", "text": f"some text {i}"}) + "\n" for i in "12")
    )
    audit_with(ByteWiseEngine(), tmp_path / "run", rows=read_corpus(CorpusOptions(str(corpus))))

    assert memaudit(["explain", "--run", str(tmp_path / "run"), "a"]) == 2
    assert "2 rows are called so" in capsys.readouterr().err
    assert memaudit(["explain", "--run", str(tmp_path / "run"), "corpus.jsonl:2"]) == 0


def test_tokens_are_scored_again_as_the_run_scored_them(folder, tmp_path, monkeypatch, capsys):
    """The strip is about the very window that the run looked at, and has no text of its own."""
    monkeypatch.setattr(rescore, "load_scorer", lambda sources, worker: load_fakes(0, worker))
    data, page = str(tmp_path / "corpus.jsonl"), tmp_path / "page.html"
    asked = ["explain", "--run", str(folder), "doc-1", "--teacher", "fake", "--data", data]
    assert memaudit([*asked, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    suffix = [token for token in found["tokens"] if token["is_suffix"]]
    assert len(suffix) == 4
    assert all(token["text"] is None for token in found["tokens"])
    mean = sum(math.log(token["teacher"]) for token in suffix) / 4
    assert mean == pytest.approx(found["features"]["teacher_suffix_mean_logprob"], abs=1e-5)
    first = sum(token["is_first"] for token in suffix) / 4
    assert first == found["features"]["teacher_suffix_argmax_rate"]

    assert memaudit([*asked, "--html", str(page)]) == 0
    capsys.readouterr()  # the path of the page, as long as it is
    assert memaudit(asked) == 0
    shown = capsys.readouterr().out
    assert "Token by token" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert CANARY not in shown + page.read_text()


def test_the_text_of_tokens_is_shown_on_request_alone(folder, tmp_path, monkeypatch, capsys):
    """One option asks for all text of the corpus."""
    monkeypatch.setattr(rescore, "load_scorer", lambda sources, worker: load_fakes(0, worker))
    data = str(tmp_path / "corpus.jsonl")
    asked = ["explain", "--run", str(folder), "doc-1", "--teacher", "fake", "--data", data]
    assert memaudit([*asked, "--show-text", "5", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert "".join(token["text"] for token in found["tokens"]) == "07919 M"


def test_a_notebook_shows_the_page(folder):
    """In a frame, so that its style stays its own."""
    shown = explain_row(read_run(folder), "doc-1")._repr_html_()

    assert shown.startswith("<iframe srcdoc=")
    assert "doc-1" in shown
    assert CANARY not in shown


@pytest.mark.parametrize("given", [["--teacher", "fake"], ["--show-text", "9"], ["--data", "x"]])
def test_what_needs_the_corpus_says_so(folder, given, capsys):
    """And the corpus alone does nothing."""
    assert memaudit(["explain", "--run", str(folder), "doc-1", *given]) == 2
    assert "--data" in capsys.readouterr().err
