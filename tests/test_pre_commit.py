"""The pre-commit hooks: what they look at, and a commit that they stop."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from support.composite_action import install_here
from support.fake_run import ByteWiseEngine, audit_with

from memaudit.classifier import load_classifier
from memaudit.cli.main import cli
from memaudit.corpus import CorpusOptions, read_corpus

ROOT = Path(__file__).parents[1]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_runs_a_command_that_exists_and_scores_nothing(hook):
    """A commit must not wait for a model."""
    program, command = hook["entry"].split()

    assert program == "memaudit"
    assert command == "gate"
    assert command in cli.commands
    assert hook["pass_filenames"] is False
    assert hook["require_serial"] is True


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
@pytest.mark.parametrize(
    ("path", "is_looked_at"),
    [
        ("data/corpus.jsonl", False),
        ("package.json", False),
        ("requirements.txt", False),
        ("memaudit.toml", True),
        ("pyproject.toml", False),
        ("src/main.py", False),
        ("notes.md", False),
        ("notmemaudit.toml", False),
        ("corpus.jsonl.bak", False),
    ],
)
def test_it_runs_on_the_policy_and_on_what_a_project_declares(hook, path, is_looked_at):
    """Not on each JSON file of a repository: `files` of the project says which are its corpus."""
    assert bool(re.search(hook["files"], path)) is is_looked_at


class Checkout:
    """A repository with a corpus, a run on it and the hook."""

    def __init__(self, folder, temporary):
        install_here(temporary)
        self.folder = folder
        self._environment = {
            "PATH": f"{temporary / 'memaudit-venv' / 'bin'}:{os.environ['PATH']}",
            "HOME": str(temporary),
            "PRE_COMMIT_HOME": str(temporary / "pre-commit"),
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    def git(self, *arguments):
        """Run git."""
        names = ["-c", "user.name=T", "-c", "user.email=t@example.com"]
        command = ["git", *names, *arguments]
        subprocess.run(command, cwd=self.folder, env=self._environment, check=True)

    def run_hooks(self):
        """Run the hooks on what is staged, as a commit does."""
        command = [sys.executable, "-m", "pre_commit", "run"]
        return subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True
        )


@pytest.fixture
def checkout(tmp_path):
    """Everything committed, with a limit that holds."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    rows = [{"id": f"doc-{i}", "text": f"{i * 7919 % 100_003:06} is row {i}"} for i in range(40)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    audit_with(
        ByteWiseEngine(),
        folder / "run",
        rows=read_corpus(CorpusOptions(str(folder / "corpus.jsonl"))),
        classifier=load_classifier(ROOT / "models" / "teacher"),
    )
    (folder / "memaudit.toml").write_text("[gate]\nmax-rate = 1.0\n")
    (hook,) = [hook for hook in HOOKS if hook["language"] == "system"]
    files = r"^(corpus\.jsonl|run/.*|memaudit\.toml)$"
    hook = {**hook, "files": files, "args": ["--run", "run", "--data", "corpus.jsonl"]}
    config = {"repos": [{"repo": "local", "hooks": [hook]}]}
    (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    checkout = Checkout(folder, tmp_path / "temporary")
    checkout.git("init", "--quiet")
    checkout.git("add", "--all")
    checkout.git("commit", "--quiet", "--message", "start", "--no-verify")
    return checkout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pre_commit") is None, reason="pre-commit is not installed")
def test_a_commit_with_a_stale_run_is_stopped(checkout):
    """Whoever changes the corpus has to predict again."""
    with (checkout.folder / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"id": "new", "text": "a row that was never scored"}\n')
    checkout.git("add", "corpus.jsonl")

    done = checkout.run_hooks()

    assert done.returncode == 1
    assert "- exit code: 2" in done.stdout
    assert "not the corpus that the run scored" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pre_commit") is None, reason="pre-commit is not installed")
def test_a_commit_within_the_limits_passes_and_one_beyond_does_not(checkout):
    """The hook says what the gate says."""
    policy = checkout.folder / "memaudit.toml"
    policy.write_text("[gate]\nmax-rate = 1.0\nmax-expected = 1000\nexpected-bound = 'mean'\n")
    checkout.git("add", "memaudit.toml")
    assert checkout.run_hooks().returncode == 0

    policy.write_text("[gate]\nmax-expected = 0\nexpected-bound = 'mean'\n")
    checkout.git("add", "memaudit.toml")
    done = checkout.run_hooks()
    assert done.returncode == 1
    assert "- exit code: 1" in done.stdout
