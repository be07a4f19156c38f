"""A finished run to make others of."""

import pytest
from support.finished_runs import finish_run, write_jsonl

from memaudit.runs.run import read_run


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Any finished run."""
    folder = tmp_path_factory.mktemp("template")
    corpus = write_jsonl(folder / "corpus.jsonl", ["some text that is read", "another one of them"])
    finish_run(corpus, folder / "run")
    return read_run(folder / "run")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A thousand corpora are a thousand times four waits, and no test here pulls a plug."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
