"""`memaudit gate`: formats, files, and what a CI job sees."""

import json
import os
import threading
from xml.etree import ElementTree

import pytest
from support.gated import make_run, shipped
from support.imports import COMMAND, HEAVY, loaded_after

from memaudit.cli.main import run

CANARY = "MEMAUDIT-CANARY recited"
TEXTS = [*(f"MEMAUDIT-CANARY-{i:04}" for i in range(8)), CANARY, CANARY]


@pytest.fixture(autouse=True)
def finished(tmp_path, monkeypatch):
    """A run of canaries in the working folder."""
    make_run(tmp_path, TEXTS, recited=[CANARY])
    shipped(monkeypatch, tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def gate(*arguments, limit="1"):
    """Run the command; by default its limit is kept."""
    return run(["gate", "--run", "run", "--max-rate", limit, *arguments])


@pytest.mark.parametrize("kind", ["text", "json", "sarif", "junit", "github", "markdown"])
@pytest.mark.parametrize(("limit", "code"), [("1", 0), ("0", 1)])
def test_every_format_ends_with_the_verdict(kind, limit, code, capsys, tmp_path):
    """The same verdict whoever reads it, on standard output or in a file, without any text."""
    (tmp_path / ".memaudit-key").write_text("00" * 32)
    assert gate("--output-format", kind, limit=limit) == code
    told = capsys.readouterr()
    assert gate("--output-format", kind, "--output", "told", limit=limit) == code

    assert capsys.readouterr().out == ""
    written = tmp_path / "told"
    assert written.read_text() == told.out
    assert written.stat().st_mode & 0o777 == 0o600
    assert told.err == ""
    assert "CANARY" not in told.out


def test_the_folder_of_an_output_is_made(tmp_path):
    """As the report makes it: in CI there is no folder before the first job has written."""
    assert gate("--output", "reports/ci/told") == 0
    assert (tmp_path / "reports" / "ci" / "told").is_file()


@pytest.mark.parametrize("place", [".", "/", ".."])
def test_a_folder_is_no_place_for_an_output(place, capsys):
    """A name that is none is told, as every other place that does not fit."""
    assert gate("--output", place) == 2
    assert "internal error" not in (told := capsys.readouterr().err)
    assert f"{place}: cannot be written" in told


def test_a_pipe_needs_no_folder_that_can_be_written(tmp_path, monkeypatch):
    """/dev/stdout lies in one that only root writes in."""
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    monkeypatch.setattr("memaudit.cli.command.output_folder", lambda path: pytest.fail("tried"))

    assert gate("--output", "pipe") == 0

    reader.join(10)
    assert "The gate passes." in got[0]


def test_json_is_one_document(capsys):
    """`--json` is what every command has."""
    assert gate("--json", limit="0") == 1

    document = json.loads(capsys.readouterr().out)
    assert (document["verdict"], document["exit_code"]) == ("fail", 1)


@pytest.mark.parametrize(
    "asked", [["--json"], ["--output-format", "json"], ["--output-format=json"]]
)
def test_an_error_is_a_document_too(asked, capsys):
    """A pipeline that reads JSON must not have to read prose when something is wrong."""
    assert run(["gate", "--run", "nowhere", "--max-rate", "0", *asked]) == 2

    assert "not the folder of a run" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_sarif_has_the_same_fingerprints_again_with_a_key(capsys, tmp_path):
    """Else every push would open the same alerts anew."""
    told, key = [], tmp_path / ".memaudit-key"
    for _ in range(2):
        gate("--output-format", "sarif", "--key-file", str(key), limit="0")
        told.append(capsys.readouterr())

    assert told[0].out == told[1].out
    assert key.stat().st_mode & 0o777 == 0o600
    assert ".gitignore" in told[0].err
    assert told[1].err == ""


def test_no_key_is_made_unless_it_is_asked_for(capsys, tmp_path):
    """A secret that nobody knows of is soon committed; one that is there is used."""
    gate("--output-format", "sarif", limit="0")
    first = capsys.readouterr().out
    assert not (tmp_path / ".memaudit-key").exists()

    gate("--write-baseline", "base.json", "--output-format", "sarif", limit="0")
    told = capsys.readouterr()
    assert (tmp_path / ".memaudit-key").exists()
    assert ".gitignore" in told.err
    assert told.out != first
    gate("--output-format", "sarif", limit="0")
    assert capsys.readouterr().out == told.out


def test_junit_tells_each_rule(capsys):
    """One broken rule is one red line."""
    gate("--output-format", "junit", "--max-recited", "50", limit="0")

    (suite,) = ElementTree.fromstring(capsys.readouterr().out.encode())
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")


def test_a_job_summary_is_appended_and_bounded(capsys, tmp_path, monkeypatch):
    """Several steps share the file, and beyond 1 MiB all of it is lost."""
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))

    gate("--output-format", "github", limit="0")

    assert summary.read_text().startswith("before\n## memaudit gate: ❌ fail")
    assert "::error" not in summary.read_text()
    assert capsys.readouterr().out.startswith("::error title=memaudit gate::")
    summary.write_text("x" * 899_990)
    gate("--output-format", "github", limit="0")
    assert summary.stat().st_size < 901_000


def test_a_baseline_is_written_and_used(tmp_path):
    """Start today with what is there; fail on what comes."""
    assert gate("--write-baseline", "base.json") == 0
    assert gate("--baseline", "base.json", "--max-recited", "0", limit="0") == 0

    assert "row-" not in (tmp_path / "base.json").read_text()
    (tmp_path / ".memaudit-key").unlink()
    assert gate("--baseline", "base.json", limit="0") == 2


def test_a_statement_is_written_whatever_the_verdict(tmp_path):
    """A release job reads the verdict in it."""
    assert gate("--attest", "a.json", limit="0") == 1

    assert json.loads((tmp_path / "a.json").read_text())["predicate"]["verdict"] == "fail"
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "config",
    [
        "[tool.memaudit]\nexit_zero = true\n",
        "[tool.memaudit.gate]\nexit-zero = true\n",
        "[tool.memaudit.gate]\nmax-rate = 1.0\n",
        '[tool.memaudit.gate]\nmax-rate = 1.0\ninconclusive = "pass"\n',
    ],
)
def test_a_pull_request_cannot_weaken_the_gate(config, tmp_path, capsys):
    """Its own configuration never turns a failing gate green once the policy is pinned."""
    policy = "[tool.memaudit.gate]\nmax-rate = 0.01\n"
    (tmp_path / "pyproject.toml").write_text(policy)
    import hashlib

    pinned = ["--policy-digest", hashlib.sha256(policy.encode()).hexdigest()]
    assert run(["gate", "--run", "run", *pinned]) == 1
    (tmp_path / "pyproject.toml").write_text(config)

    assert run(["gate", "--run", "run", *pinned]) == 2
    assert run(["gate", "--run", "run", *pinned, "--max-rate", "1"]) == 2
    (tmp_path / "pyproject.toml").write_text(policy)
    assert run(["gate", "--run", "run", *pinned, "--max-rate", "1"]) == 2
    assert run(["gate", "--run", "run", *pinned, "--baseline", "run"]) == 2
    assert "the policy pins none" in capsys.readouterr().err


def test_variables_are_options_too(monkeypatch):
    """As everywhere; and a pinned policy holds against them."""
    monkeypatch.setenv("MEMAUDIT_GATE_MAX_RECITED", "0")

    assert gate() == 1


@pytest.mark.parametrize("arguments", [["--max-rate", "0"], ["--max-recited", "0", "--json"]])
def test_nothing_heavy_is_imported(arguments):
    """A commit hook must not wait for torch."""
    run = ["gate", "--run", "run", "--allow-custom-classifier"]

    code, loaded = loaded_after(COMMAND, *run, *arguments)

    assert code == 1
    assert not loaded & HEAVY


@pytest.mark.parametrize("digest", ["", "sha256:", "ab" * 31, "latest"])
def test_an_empty_digest_pins_nothing_and_is_refused(digest, capsys, tmp_path, monkeypatch):
    """It is what a variable of a CI job looks like that nobody has set."""
    (tmp_path / "memaudit.toml").write_text("[gate]\nmax-rate = 1.0\n")

    assert run(["gate", "--run", "run", "--policy-digest", digest]) == 2
    told = capsys.readouterr().err
    assert "digest" in told or "pinned" in told
    monkeypatch.setenv("MEMAUDIT_GATE_POLICY_DIGEST", digest)
    assert run(["gate", "--run", "run"]) == 2


def test_the_verdict_of_a_job_is_told_last_and_only_once_all_is_written(tmp_path, monkeypatch):
    """A job that reads `pass` from a gate that then fails would go on."""
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "outputs"))
    told = ["--output-format", "github", "--github-files"]
    (tmp_path / "file").write_text("")
    assert gate(*told, str(tmp_path / "file")) == 2
    assert not (tmp_path / "outputs").exists()

    assert gate(*told, str(tmp_path), limit="0") == 1

    assert (tmp_path / "outputs").read_text().startswith("verdict=fail\nflagged=10\n")
    assert json.loads((tmp_path / "gate.json").read_text())["verdict"] == "fail"
