"""The first word on a terminal of the commands that read a run: soon, and gone when they are done."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from support.fake_run import fake_audit

from memaudit.cli.command import Shown
from memaudit.cli.main import run as memaudit

COMMANDS = {
    "status": ["run"],
    "gate": ["--run", "run", "--max-rate", "1"],
    "report": ["--run", "run", "--html", "report.html"],
    "explain": ["--run", "run", "0"],
    "filter": ["--run", "run", "--data", "run", "--dry-run"],
    "predict": ["--teacher", "teacher", "--data", "run"],
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A finished run in the working folder, by its short name; nothing is set about terminals."""
    for name in ("CI", "NO_COLOR", "TERM", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    fake_audit(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return Path("run")


def shown_on(stream, monkeypatch, run, *, quiet=False):
    """What is shown while a run is read."""
    monkeypatch.setattr(sys, "stderr", stream)
    with Shown(as_json=False, color="never", quiet=quiet).reading(run):
        pass
    return stream.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_it_comes_before_anything_heavy(command):
    """They take most of a second, in which the screen would be empty."""
    program = (
        "import sys\n"
        "from memaudit.cli.command import Shown\n"
        "from memaudit.cli.main import run\n"
        "def working(shown, what):\n"
        "    import memaudit.reports.terminal\n"
        "    print(what, sorted({'torch', 'pyarrow', 'msgspec', 'jinja2'} & {*sys.modules}))\n"
        "    raise KeyboardInterrupt\n"
        "Shown.working = working\n"
        "run(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command, *COMMANDS[command]], capture_output=True, text=True
    )

    word = "load memaudit" if command == "predict" else "reading run (95 rows)"
    assert done.stdout == f"{word} []\n", done.stderr


def test_it_is_gone_when_the_result_is_there(here, monkeypatch):
    """What stays on the screen is the result."""
    shown = shown_on(Terminal(), monkeypatch, here)

    assert "run (95 rows)" in shown
    assert shown.endswith("\x1b[2K")


def test_a_run_that_does_not_say_its_rows_is_named_without(here, monkeypatch):
    """What is wrong with it is said by what reads it."""
    (here / "manifest.json").write_text("[[[")
    shown = shown_on(Terminal(), monkeypatch, here)

    assert "reading" in shown
    assert "rows" not in shown


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO(), False), (Terminal(), True)])
def test_logs_and_who_wants_quiet_get_nothing(here, monkeypatch, stream, quiet):
    """A log of a CI job holds the verdict alone."""
    assert shown_on(stream, monkeypatch, here, quiet=quiet) == ""


def test_a_warning_meanwhile_gets_a_line_of_its_own(here, monkeypatch):
    """Behind the bar it would be half of a line that stays."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    (here / "risk.jsonl").write_text("{}\n")
    assert memaudit(["report", "--run", "run", "--html", "report.html", "--color", "never"]) == 0

    assert "\x1b[2Kwarning: risk.jsonl was changed" in stream.getvalue()
