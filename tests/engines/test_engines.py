"""Choosing an engine by name."""

import importlib.util

import pytest

from memaudit import engines
from memaudit.engines import choose_engine
from memaudit.errors import MissingDependency, UsageError


@pytest.mark.parametrize("name", ["auto", "hf"])
def test_hf_is_what_auto_means(name):
    """It is the one that is always there."""
    assert choose_engine(name) == "hf"


def test_vllm_says_what_to_install(monkeypatch):
    """A missing package is a sentence with a remedy."""
    monkeypatch.setattr(engines, "find_spec", lambda name: None)

    with pytest.raises(MissingDependency, match="vllm") as caught:
        choose_engine("vllm")
    assert "pip install" in str(caught.value.hint)


def test_vllm_is_not_available_even_if_installed(monkeypatch):
    """No result may be labelled with an engine that did not run."""
    spec = importlib.util.find_spec("json")
    monkeypatch.setattr(engines, "find_spec", lambda name: spec)

    with pytest.raises(UsageError, match="not available in this release"):
        choose_engine("vllm")
