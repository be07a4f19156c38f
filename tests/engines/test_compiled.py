"""Compiled models: the same scores, and a sentence where they cannot be compiled."""

import copy
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from support.tiny_models import (
    FAMILIES,
    make_model,
    make_windows,
    naive_kl,
    naive_log_softmax,
    naive_scores,
)

from memaudit.engines import hf
from memaudit.engines.hf import HfEngine, faster_engine
from memaudit.errors import ModelError

AGAINST_NAIVE = 1e-4

# Of torch, about parts of its own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)


@pytest.fixture(autouse=True)
def own_caches(monkeypatch, tmp_path):
    """Compiled code of another test would be found again."""
    import torch

    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    yield
    torch.compiler.reset()


@needs_compiler
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(each, marks=[pytest.mark.slow, *([pytest.mark.ci] * (each == "llama"))])
        for each in FAMILIES
    ],
)
def test_a_compiled_model_has_the_scores_of_the_naive_one(family):
    """Faster must not mean other; windows of many lengths share what is compiled once."""
    teacher, reference = make_model(family), make_model(family, seed=1)
    windows = make_windows(40)
    compiled = [copy.deepcopy(model) for model in (teacher, reference)]

    engine = HfEngine(*compiled, compiled=True, batch_tokens=256)
    found = engine.score(windows)

    assert engine.name == "hf-float32-compiled"
    for window, scores in zip(windows, found, strict=True):
        p, q = naive_log_softmax(teacher, window), naive_log_softmax(reference, window)
        for token_scores, log_softmax in ((scores.teacher, p), (scores.reference, q)):
            logprobs, is_argmax, entropy = naive_scores(log_softmax, window)
            np.testing.assert_allclose(token_scores.logprobs, logprobs, atol=AGAINST_NAIVE)
            np.testing.assert_allclose(token_scores.entropy, entropy, atol=AGAINST_NAIVE)
            np.testing.assert_array_equal(token_scores.is_argmax, is_argmax)
        np.testing.assert_allclose(scores.kl_divergence, naive_kl(p, q), atol=AGAINST_NAIVE)


@pytest.mark.slow
@pytest.mark.ci
def test_a_machine_without_a_compiler_is_told_what_to_do(monkeypatch):
    """What torch raises there is pages long."""
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))

    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be compiled here") as caught:
        HfEngine(make_model("llama"), compiled=True)

    assert "--compile" in caught.value.hint


@pytest.fixture
def costs(monkeypatch):
    """Let scoring cost what is given, one time after the other, and compiling 40 seconds."""

    def cost(*seconds):
        ticks = iter([tick for each in seconds for tick in (0.0, each)])
        clock = iter([0.0, 40.0])
        told = {"process_time": lambda: next(ticks), "monotonic": lambda: next(clock)}
        monkeypatch.setattr(hf, "time", SimpleNamespace(**told))

    return cost


@pytest.mark.parametrize(
    ("n_windows", "compiled_cost", "choice"),
    [
        (41_000, 0.9, "not compiled: scoring takes some 34 minutes"),
        (43_000, 0.9, "compiled: compiled, the models are 1.11 times as fast"),
        (43_000, 1.1, "not compiled: compiled, the models are 0.91 times as fast"),
        (43_000, 0.99, "not compiled: compiled, the models are 1.01 times as fast"),
        (430_000, 0.99, "compiled: compiled, the models are 1.01 times as fast"),
    ],
)
def test_compiling_is_chosen_where_it_saves_more_than_it_takes(
    costs, n_windows, compiled_cost, choice
):
    """A short run must not wait for it, and a long one may gain by a hundredth."""
    costs(9.0, 1.0, 9.0, *6 * (1.0, compiled_cost))
    eager, compiled = (SimpleNamespace(score=lambda windows: None) for _ in range(2))

    chosen, why = faster_engine(eager, lambda: compiled, [], str, n_windows)

    assert why.startswith(choice)
    assert chosen is (compiled if choice.startswith("compiled") else eager)


def test_a_model_that_cannot_be_compiled_is_not_compiled(costs):
    """What was to be found out is found out; the run goes on."""
    costs(1.0, 1.0)
    eager = SimpleNamespace(score=lambda windows: None)

    def fail():
        raise ModelError("no compiler", hint="")

    assert faster_engine(eager, fail, [], str, 10**6) == (
        eager,
        "not compiled: no compiler",
    )


@needs_compiler
@pytest.mark.slow
@pytest.mark.ci
def test_models_that_are_not_compiled_in_the_end_score_as_before(costs):
    """To the bit: the run says that they are not compiled."""
    model, windows = make_model("llama"), make_windows(20)
    eager = HfEngine(model)
    before = eager.score(windows)
    costs(1.0, 1.0, *13 * [1.0])

    chosen, why = faster_engine(
        eager, lambda: HfEngine(model, compiled=True), [model], lambda i: windows[i % 20], 10**6
    )

    assert (chosen, why.split(":")[0]) == (eager, "not compiled")
    for a, b in zip(eager.score(windows), before, strict=True):
        np.testing.assert_array_equal(a.teacher.logprobs, b.teacher.logprobs)
    assert not any(module._compiled_call_impl for module in model.modules())
