"""Choosing an engine, before any model is known."""

from importlib.util import find_spec

import pytest

from memaudit import engines
from memaudit.engines import VllmOptions, engine_to_try
from memaudit.errors import MissingDependency, UsageError, is_installed
from memaudit.runs.options import AuditOptions

ONE = VllmOptions()
TWO = VllmOptions(tensor_parallel=2)


@pytest.fixture(params=[True, False], ids=["vllm is there", "vllm is not there"])
def vllm_is_there(request, monkeypatch):
    """Pretend that vLLM is installed, or is not."""
    monkeypatch.setattr(engines, "is_installed", lambda name: request.param)
    return request.param


def test_a_folder_with_the_name_of_a_package_is_no_package(tmp_path, monkeypatch):
    """Python takes it for one; trackers leave such folders where they were used."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "really").mkdir()
    (tmp_path / "really" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    assert find_spec("wandb") is not None
    assert not is_installed("wandb")
    assert is_installed("really")


def test_auto_considers_vllm_where_it_is_installed(vllm_is_there):
    """Nobody should have to ask for the faster engine."""
    assert engine_to_try("auto", ONE, elsewhere=False) == ("auto" if vllm_is_there else "hf")
    assert engine_to_try("auto", ONE, elsewhere=True) == "hf"
    assert engine_to_try("hf", ONE, elsewhere=False) == "hf"


@pytest.mark.parametrize(("name", "options"), [("vllm", ONE), ("vllm", TWO), ("auto", TWO)])
def test_vllm_is_taken_or_missed_when_it_is_asked_for(vllm_is_there, name, options):
    """Better than to run another engine than the one asked for."""
    if vllm_is_there:
        assert engine_to_try(name, options, elsewhere=False) == "vllm"
        return
    with pytest.raises(MissingDependency, match="vllm") as caught:
        engine_to_try(name, options, elsewhere=False)
    assert "memaudit-distill[vllm]" in caught.value.hint


@pytest.mark.usefixtures("vllm_is_there")
@pytest.mark.parametrize(
    ("name", "options", "elsewhere"), [("hf", TWO, False), ("vllm", ONE, True), ("auto", TWO, True)]
)
def test_options_that_do_not_go_together_are_refused(name, options, elsewhere):
    """Before a model is loaded."""
    with pytest.raises(UsageError) as caught:
        engine_to_try(name, options, elsewhere=elsewhere)

    assert caught.value.hint
    with pytest.raises(UsageError):
        AuditOptions(engine=name, vllm=options, workers=2 if elsewhere else 1)


@pytest.mark.parametrize(("n_gpus", "share"), [(0, 0.5), (1, 0.0), (1, 1.0), (1, float("nan"))])
def test_settings_that_make_no_sense_are_refused(n_gpus, share):
    """By the caller's mistake, not deep in vLLM."""
    with pytest.raises(ValueError, match="tensor_parallel"):
        VllmOptions(n_gpus, share)
