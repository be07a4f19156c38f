"""Compiled models: the same scores, and a sentence where they cannot be compiled."""

import copy
import shutil

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

from memaudit.engines.hf import HfEngine
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
        HfEngine(copy.deepcopy(make_model("llama")), compiled=True)

    assert "--compile" in caught.value.hint
