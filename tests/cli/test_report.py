"""`memaudit report`: what it writes, what it refuses, and what it never shows."""

import html
import json
from pathlib import Path

import pytest
from cli.conftest import canary_row
from support.fake_run import ByteWiseEngine, audit_with
from support.imports import COMMAND, HEAVY, loaded_after
from transformers import AutoTokenizer

from memaudit.cli.main import run as memaudit
from memaudit.corpus import CorpusOptions, read_corpus

DEMO = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """A finished run of the fake rows."""
    audit_with(ByteWiseEngine(), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def canaries(tmp_path, corpus):
    """The folder of a run of the corpus of canaries, as its classifier sees it."""
    from support.fake_run import fake_options, make_fake_models
    from support.fakes import make_classifier

    from memaudit import audit
    from memaudit.runs.folder import open_folder

    options = CorpusOptions(str(corpus))
    inputs = audit.AuditInputs(
        read_corpus(options), make_fake_models(), make_classifier(), fake_options(), corpus=options
    )
    with open_folder(tmp_path / "canaries") as out:
        audit._audit(out, inputs, None, writes=True)
    return tmp_path / "canaries"


def test_it_writes_a_page_and_markdown_that_only_the_owner_can_read(folder, tmp_path, capsys):
    """They name examples of a corpus that may be secret."""
    page, markdown = tmp_path / "out" / "page.html", tmp_path / "out" / "page.md"

    code = memaudit(
        ["report", "--run", str(folder), "--html", str(page), "--markdown", str(markdown)]
    )

    assert code == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("A student distilled from fake is expected to memorize ")
    assert out[-2:] == [str(page), str(markdown)]
    assert page.read_text().startswith("<!doctype html>")
    assert markdown.read_text().startswith("# Memorization report")
    assert {path.stat().st_mode & 0o777 for path in (page, markdown)} == {0o600}


def test_what_a_killed_report_had_begun_goes(folder, tmp_path):
    """It may hold text of the corpus, and nobody looks for hidden files."""
    begun = tmp_path / ".page.html.0123abcd.tmp"
    begun.write_text("half")

    assert memaudit(["report", "--run", str(folder), "--html", str(tmp_path / "page.html")]) == 0

    assert not begun.exists()


def test_json_tells_the_numbers_and_the_files(folder, tmp_path, capsys):
    """A pipeline reads one document and nothing else."""
    page = tmp_path / "page.html"

    assert memaudit(["report", "--run", str(folder), "--html", str(page), "--json"]) == 0

    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == 95
    assert document["written"] == [str(page)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to write"),
        (["--html", "x.html", "--show-text", "9"], "--show-text and --data go together"),
        (["--html", "x.html", "--data", "c.jsonl"], "--show-text and --data go together"),
        (["--markdown", "x.md", "--show-text", "9", "--data", "c"], "only the page shows text"),
        (["--html", "x.html", "--verification", "nowhere"], "verification.parquet is missing"),
        (["--html", "x.html", "--top", "501"], "--top"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, capsys, arguments, words):
    """Before anything is written."""
    assert memaudit(["report", "--run", str(folder), *arguments]) == 2

    assert words in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    """An empty report would look like a good result."""
    assert memaudit(["report", "--run", str(tmp_path), "--html", str(tmp_path / "x.html")]) == 2

    assert "not the folder of a run" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_no_text_of_the_corpus_comes_out_unless_it_is_asked_for(canaries, corpus, tmp_path):
    """A report goes to people who may not read the corpus."""
    plain, told = tmp_path / "plain.html", tmp_path / "told.html"
    markdown = tmp_path / "plain.md"
    text = ["--show-text", "20", "--data", str(corpus)]

    assert (
        memaudit(
            ["report", "--run", str(canaries), "--html", str(plain), "--markdown", str(markdown)]
        )
        == 0
    )
    assert memaudit(["report", "--run", str(canaries), "--html", str(told), *text]) == 0

    assert "CANARY" not in plain.read_text() + markdown.read_text()
    assert canary_row(0)["text"][:20] in told.read_text()
    assert canary_row(0)["text"][:21] not in told.read_text()
    assert "This page contains corpus text." in told.read_text()
    assert told.stat().st_mode & 0o777 == 0o600


def test_with_the_tokenizer_the_suffix_is_shown(tmp_path, monkeypatch, capsys):
    """What a student would recite is what its reader must judge, not what stands before it."""
    monkeypatch.chdir(tmp_path)
    lines = (DEMO / "sample_data" / "demo.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:12]]
    teacher = str(DEMO / "models" / "demo-teacher")
    Path("corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict = ["predict", "--teacher", teacher, "--data", "corpus.jsonl", "--out", "run"]
    assert memaudit([*predict, "--quiet"]) == 0
    report = ["report", "--run", "run", "--html", "page.html", "--data", "corpus.jsonl"]

    assert memaudit([*report, "--show-text", "40", "--tokenizer", teacher]) == 0

    page = html.unescape(Path("page.html").read_text())
    assert "the start of the suffix that would be recited" in page
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    for row in rows:
        ids = tokenizer(row["text"])["input_ids"]
        if len(ids) >= 100:
            assert tokenizer.decode(ids[50:100])[:40] in page
            assert row["text"][:40] not in page
    assert memaudit([*report, "--tokenizer", teacher]) == 2
    other = [*report, "--show-text", "9", "--tokenizer", str(tmp_path / "none")]
    assert memaudit(other) == 2
    assert "no such folder" in capsys.readouterr().err


def test_text_of_another_corpus_is_refused(canaries, corpus, tmp_path, capsys):
    """Ids would stand beside texts that are not theirs."""
    corpus.write_text(corpus.read_text().replace("found again", "found agaln"))
    page = tmp_path / "page.html"
    text = ["--show-text", "20", "--data", str(corpus)]

    assert memaudit(["report", "--run", str(canaries), "--html", str(page), *text]) == 2

    assert "not the corpus that the run scored" in capsys.readouterr().err
    assert not page.exists()


def test_messages_whose_text_a_template_makes_are_refused(canaries, tmp_path, capsys):
    """Without the teacher's tokenizer their text is not known."""
    corpus = tmp_path / "chat.jsonl"
    corpus.write_text('{"messages": [{"role": "user", "content": "CANARY"}]}\n')
    text = ["--show-text", "20", "--data", str(corpus), "--html", str(tmp_path / "page.html")]

    assert memaudit(["report", "--run", str(canaries), *text]) == 2

    error = capsys.readouterr().err
    assert "chat template" in error
    assert "CANARY" not in error


def test_plots_are_drawn_twice_the_same(folder, tmp_path):
    """Figures of a paper should not change by themselves."""
    for name in ("a", "b"):
        assert memaudit(["report", "--run", str(folder), "--plots", str(tmp_path / name)]) == 0

    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("a", "b")
    )
    assert set(first) == {"risk.svg", "budget.svg"}
    assert first == second
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()} == {0o600}


def test_neither_torch_nor_sklearn_is_imported(folder, tmp_path):
    """They take seconds to import, and nothing here needs a model."""
    arguments = ["report", "--run", str(folder), "--html", str(tmp_path / "page.html")]

    code, loaded = loaded_after(COMMAND, *arguments)

    assert code == 0
    assert not loaded & HEAVY


def test_a_policy_makes_the_report_say_whether_the_run_passes(folder, tmp_path, capsys):
    """Who approves a release reads that first; without a policy nothing is promised."""
    policy = tmp_path / "memaudit.toml"
    command = ["report", "--run", str(folder), "--html", str(tmp_path / "page.html"), "--json"]

    verdicts = []
    for limit in ("0.0", "1.0"):
        policy.write_text(
            f"[gate]\nmax-rate = {limit}\nmax-bad-rows = 1\nallow-custom-classifier = true\n"
        )
        assert memaudit([*command, "--policy", str(policy)]) == 0
        verdicts.append(json.loads(capsys.readouterr().out)["gate"])
        page = (tmp_path / "page.html").read_text()
        assert ("The gate fails" in page) == (limit == "0.0")
        assert "MEM001 flagged-rate" in page
    assert verdicts == ["fail", "pass"]

    assert memaudit(command) == 0
    assert "gate" not in json.loads(capsys.readouterr().out)


def test_an_annex_says_what_was_not_tested_and_who_answers(folder, tmp_path, capsys):
    """A reviewer must not take silence for a result; what nobody has said is called so."""
    policy, page = tmp_path / "memaudit.toml", tmp_path / "annex.html"
    policy.write_text(
        "[gate]\nmax-rate = 1\nallow-custom-classifier = true\n[release]\nowner = 'A. Example'\n"
    )
    given = ["report", "--run", str(folder), "--policy", str(policy), "--annex"]

    assert memaudit([*given, str(tmp_path / "annex.md")]) == 0
    assert memaudit([*given, str(page)]) == 0

    text = (tmp_path / "annex.md").read_text()
    assert "| membership inference | not covered |" in text
    assert "`A. Example`" in text
    assert "This is evidence, not legal advice." in text
    assert "not given" in text
    assert "A. Example" in page.read_text()
    shared = tmp_path / "pyproject.toml"  # where these sections belong to a tool
    shared.write_text(policy.read_text().replace("[", "[tool.memaudit."))
    assert memaudit([*given[:-2], str(shared), "--annex", str(tmp_path / "annex.md")]) == 0
    assert "`A. Example`" in (tmp_path / "annex.md").read_text()
    policy.write_text(policy.read_text().replace("owner", "nobody"))
    assert memaudit([*given, str(page)]) == 2
    assert "personal-data" in capsys.readouterr().err
