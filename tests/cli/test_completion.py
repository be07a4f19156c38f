"""Completion: what a shell is told, and that it understands it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memaudit.cli.main import VARIABLE, run

COMPLETE = r"""
source /dev/stdin <<< "$SCRIPT"
COMP_WORDS=({words}) COMP_CWORD={place}
_memaudit_completion memaudit
printf '%s\n' "${{COMPREPLY[@]}}"
"""


def script_of(shell, capsys):
    """The script that `memaudit completion` prints."""
    assert run(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.fixture
def path_with_memaudit(tmp_path):
    """A PATH on which `memaudit` is this code."""
    program = tmp_path / "memaudit"
    code = "import sys; from memaudit.__main__ import main; sys.exit(main())"
    root = Path(__file__).parents[2]
    program.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -c "{code}" "$@"\n')
    program.chmod(0o755)
    return f"{tmp_path}:/usr/bin:/bin"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["memaudit", "pre"], ["predict"]),
        (["memaudit", "predict", "--tea"], ["--teacher"]),
        (["memaudit", "predict", "--objective", "s"], ["soft", "sampled"]),
        (["memaudit", "completion", "f"], ["fish"]),
    ],
)
def test_bash_sources_the_script_and_completes(words, found, path_with_memaudit, capsys):
    """A script that a shell chokes on would break every new terminal of its user."""
    script = COMPLETE.format(words=" ".join(words), place=len(words) - 1)

    done = subprocess.run(
        ["bash", "--norc", "-euc", script],
        env={"PATH": path_with_memaudit, "SCRIPT": script_of("bash", capsys)},
        capture_output=True,
        text=True,
    )

    assert (done.stdout.split(), done.stderr, done.returncode) == (found, "", 0)


@pytest.mark.parametrize(("shell", "start"), [("zsh", "#compdef memaudit"), ("fish", "function ")])
def test_other_shells_get_scripts_of_their_own(shell, start, capsys):
    """They share nothing but the variable that asks."""
    script = script_of(shell, capsys)

    assert script.startswith(start)
    assert VARIABLE in script


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_understand_their_scripts(shell, capsys):
    """Where they are installed."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")

    done = subprocess.run(
        [shell, "--no-execute"], input=script_of(shell, capsys), capture_output=True, text=True
    )

    assert (done.stderr, done.returncode) == ("", 0)


def test_what_could_come_next_is_no_failure(monkeypatch, capsys):
    """Click leaves by SystemExit then, which is its answer to a closed pipe as well."""
    monkeypatch.setenv(VARIABLE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "memaudit stat")
    monkeypatch.setenv("COMP_CWORD", "1")

    assert run([]) == 0
    assert capsys.readouterr() == ("plain,status\n", "")


def test_a_shell_that_is_not_known_is_a_usage_error(capsys):
    """Exit code 2, and nothing that a shell might source."""
    assert run(["completion", "cmd"]) == 2
    assert capsys.readouterr().out == ""
