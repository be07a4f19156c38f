"""A finished run that cases spoil."""

import shutil

import pytest
from support.gated import make_run, shipped
from support.situations import Situation


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A corpus and its run."""
    folder = tmp_path_factory.mktemp("gate") / "made"
    folder.mkdir()
    make_run(folder)
    return folder


@pytest.fixture
def situation(made_once, tmp_path, monkeypatch):
    """A copy of them to spoil."""
    folder = shutil.copytree(made_once, tmp_path / "here")
    shipped(monkeypatch, tmp_path / "shipped")
    monkeypatch.chdir(folder)
    return Situation(folder, monkeypatch)
