"""The tiled head on numbers known on paper, over several tiles."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.tiny_models import make_model, make_windows

from memaudit import engines
from memaudit.engines import head as heads
from memaudit.engines.head import (
    Head,
    SoftmaxKernelWarning,
    is_fused,
    read_head,
    score_heads,
    sums_in_float32,
    take_in,
    take_in_on,
)
from memaudit.engines.hf import HfEngine
from memaudit.errors import ModelError


def head(weight, **settings):
    """A head that is a plain product unless told otherwise."""
    return Head(weight=weight, **{"bias": None, "scale": 1.0, "soft_cap": None, **settings})


def test_a_uniform_prediction_has_the_entropy_of_its_rows():
    """Ln V is the one entropy that everybody knows; 10,000 rows are three tiles."""
    scores = score_heads([head(torch.zeros(10_000, 4))], [torch.ones(600, 4)], torch.arange(600))

    assert scores.shape == (4, 600)
    np.testing.assert_allclose(scores[0], -np.log(10_000), atol=1e-6)
    np.testing.assert_array_equal(scores[1], 1)  # all are tied for the best
    np.testing.assert_allclose(scores[2], np.log(10_000), atol=1e-6)
    np.testing.assert_array_equal(scores[3], 0)  # a tie leaves no room


def test_large_logits_neither_overflow_nor_lose_the_entropy():
    """A model that is sure has logits of hundreds, and an entropy near 0."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9000, 32, generator=generator) * 60
    hidden = torch.randn(40, 32, generator=generator)
    targets = torch.randint(0, 9000, (40,), generator=generator)

    found = score_heads([head(weight)], [hidden], targets).numpy()

    log_softmax = (hidden @ weight.T).double().log_softmax(dim=1)
    entropy = -(log_softmax.exp() * log_softmax).sum(dim=1)
    expected = log_softmax.gather(1, targets[:, None])[:, 0]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    np.testing.assert_allclose(found[2], entropy, atol=1e-5)
    assert (found[2] >= 0).all()


def test_a_divergence_over_several_tiles_is_exact():
    """The largest logits of the two models lie in different tiles."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, 16, generator=generator) for n in (13_000, 12_500)]
    weights[0][12_400] *= 5
    weights[1][10] *= 5
    hidden = torch.randn(20, 16, generator=generator)
    targets = torch.arange(20)

    found = score_heads((head(weights[0]), head(weights[1])), (hidden, hidden), targets)

    p, q = ((hidden @ w[:12_500].T).double().log_softmax(dim=1) for w in weights)
    np.testing.assert_allclose(found[8], (p.exp() * (p - q)).sum(dim=1), atol=1e-5)


@pytest.mark.parametrize("n_rows", [2, 200, 3000])
def test_the_margin_is_the_gap_to_the_best_other_row(n_rows):
    """The target may lie in any tile, and its best rival in the same one or in another."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_rows, 8, generator=generator)
    hidden = torch.randn(500, 8, generator=generator) * 3
    logits = hidden @ weight.T
    targets = torch.where(
        torch.arange(500) % 2 == 0, logits.argmax(dim=1), torch.arange(500) % n_rows
    )

    single = score_heads([head(weight)], [hidden], targets).numpy()
    pair = score_heads((head(weight), head(-weight)), (hidden, hidden), targets).numpy()

    for found, of_model in ((single, logits), (pair[:4], logits), (pair[4:8], -logits)):
        own = of_model.gather(1, targets[:, None])[:, 0]
        others = of_model.scatter(1, targets[:, None], -torch.inf)
        np.testing.assert_allclose(found[3], own - others.amax(dim=1), atol=1e-4)
        np.testing.assert_array_equal(found[3] >= 0, found[1] == 1)


def test_bias_scale_and_soft_cap_come_in_this_order():
    """Each family applies them so; another order gives other probabilities."""
    weight, bias = torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, -0.5])
    full = head(weight, bias=bias, scale=2.0, soft_cap=3.0)

    logits = full.logits(torch.tensor([[1.0]]), 0, 2)

    np.testing.assert_allclose(logits, 3 * np.tanh(np.array([[3.0, 3.0]]) / 3), rtol=1e-6)


def test_a_model_without_an_output_layer_is_refused():
    """An encoder has none; the user named the wrong kind of model."""

    class Encoder:
        config = None

        def get_output_embeddings(self):
            return None

    with pytest.raises(ModelError, match="Encoder has no linear output layer"):
        read_head(Encoder())


@pytest.mark.parametrize("is_rounded", [True, False])
def test_fast_products_are_used_only_where_they_lose_nothing(is_rounded):
    """Units for bfloat16 round what they multiply: numbers that are of bfloat16 do not change."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9000, 64, generator=generator).bfloat16().float()
    hidden = torch.randn(40, 64, generator=generator)
    hidden = hidden.bfloat16() if is_rounded else hidden
    targets = torch.randint(0, 9000, (40,), generator=generator)
    before = torch.backends.mkldnn.matmul.fp32_precision

    found = score_heads([head(weight, is_bfloat16=True)], [hidden], targets)
    pair = (head(weight, is_bfloat16=True), head(weight, is_bfloat16=True))
    same = score_heads(pair, (hidden, hidden), targets)

    expected = (hidden.double() @ weight.double().T).log_softmax(dim=1)
    expected = expected.gather(1, targets[:, None])[:, 0]
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(same[0], expected, rtol=0, atol=2e-5)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_products_of_bfloat16_are_numbers_of_float32():
    """So a head in bfloat16 loses nothing where sums are float32: 8 bits by 8 are 16 of 24."""
    every = torch.arange(2**7, dtype=torch.int16) | 0x3F80  # all that lie in [1, 2)
    numbers = every.view(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    scaled = (torch.randn(4096, generator=generator) * 1e3).bfloat16()

    for a in (numbers, scaled):
        in_float32 = a.float()[:, None] * a.float()

        assert torch.equal(in_float32.double(), a.double()[:, None] * a.double())


class Cuda(str):
    """The CPU, which says that it is a GPU."""

    __slots__ = ()
    type = "cuda"


@pytest.fixture
def mm_in_float32(monkeypatch):
    """Let matrices of bfloat16 be multiplied on the CPU as PyTorch does it on CUDA."""
    mm = torch.mm

    def stand_in(a, b, out_dtype):
        assert (a.dtype, b.dtype, out_dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        return mm(a.float(), b.float())

    sums_in_float32.cache_clear()
    monkeypatch.setattr(torch, "mm", stand_in)
    yield
    sums_in_float32.cache_clear()


@pytest.mark.usefixtures("mm_in_float32")
def test_a_head_in_bfloat16_is_not_copied_where_sums_are_float32(monkeypatch):
    """The copy takes twice the memory of the head; scores are the same without."""
    models = [make_model("llama", seed=seed).bfloat16() for seed in (1, 2)]
    windows = make_windows(30)
    expected = HfEngine(*models).score(windows)
    assert read_head(models[0]).weight.dtype == torch.float32
    assert sums_in_float32(Cuda("cpu"))
    monkeypatch.setattr(heads, "sums_in_float32", lambda device: True)

    found = HfEngine(*models).score(windows)

    assert read_head(models[0]).weight.data_ptr() == models[0].lm_head.weight.data_ptr()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.teacher.logprobs, b.teacher.logprobs)
        np.testing.assert_array_equal(a.kl_divergence, b.kl_divergence)


@pytest.mark.usefixtures("mm_in_float32")
def test_hidden_states_that_bfloat16_does_not_hold_are_multiplied_in_float32():
    """Some families normalise in float32 at the end: rounding that would change scores."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3000, 64, generator=generator).bfloat16()
    hidden, targets = torch.randn(40, 64, generator=generator), torch.arange(40)

    found = score_heads([head(weight, is_bfloat16=True)], [hidden], targets)

    expected = score_heads([head(weight.float(), is_bfloat16=True)], [hidden], targets)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mm", ["refuses", "rounds"])
def test_a_device_that_cannot_sum_in_float32_has_a_copy(monkeypatch, mm):
    """PyTorch refuses on the CPU; another build might give rounded sums."""
    original = torch.mm
    if mm == "rounds":
        monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: original(a, b).to(out_dtype))
    sums_in_float32.cache_clear()

    assert not sums_in_float32(Cuda("cpu"))

    sums_in_float32.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpu_has_the_scores_of_the_float32_head_without_its_copy(dtype):
    """At the sizes of a run, of one model and of two, for hidden states of either format."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, 576, generator=generator) / 24 for n in (20_001, 19_000)]
    weights = [weight.bfloat16().cuda() for weight in weights]
    hidden = torch.randn(4099, 576, generator=generator).to("cuda", dtype)
    targets = torch.randint(0, 19_000, (4099,), generator=generator).cuda()
    assert sums_in_float32(hidden.device)

    found, expected = (
        score_heads(tuple(head(w, is_bfloat16=True) for w in ws), (hidden, hidden), targets)
        for ws in (weights, [weight.float() for weight in weights])
    )

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    few = score_heads([head(weights[0], is_bfloat16=True)], [hidden[:100]], targets[:100])
    torch.testing.assert_close(few, found[:4, :100], rtol=0, atol=1e-4)  # in any batch


@pytest.fixture
def coarse_products():
    """Let this process round what it multiplies, as a training loop might."""
    backend = torch.backends.mkldnn.matmul
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    yield
    backend.fp32_precision = before


@pytest.mark.usefixtures("coarse_products")
def test_float32_stays_float32_whatever_the_process_has_chosen():
    """Exact is exact, also beside a loop that has asked for fast and coarse products."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5000, 64, generator=generator)
    hidden = torch.randn(40, 64, generator=generator)

    found = score_heads([head(weight)], [hidden], torch.arange(40))

    expected = (hidden.double() @ weight.double().T).log_softmax(dim=1)[:, :40].diagonal()
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=2e-5)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


@pytest.fixture
def on_gpu(monkeypatch):
    """Return a device that has a kernel, which is checked on the CPU."""
    check = heads._largest_gap
    monkeypatch.setattr(heads, "is_installed", lambda package: True)
    monkeypatch.setattr(heads, "_largest_gap", lambda by, device: check(by, torch.device("cpu")))

    def with_kernel(kernel):
        monkeypatch.setattr(
            engines, "softmax_kernel", SimpleNamespace(take_in=kernel), raising=False
        )
        return torch.device("cuda")

    take_in_on.cache_clear()
    yield with_kernel
    take_in_on.cache_clear()


def off_by(gap, row):
    """A kernel whose sums are wrong in one row of the statistics."""

    def by_kernel(before, target_ids, logits, start):
        after = take_in(before, target_ids, logits, start)
        after[min(row, len(after) - 1)] *= 1 + gap
        return after

    return by_kernel


def test_a_kernel_that_only_rounds_otherwise_is_used(on_gpu):
    """And the engine's name is another one: a run must not go on without it."""
    kernel = off_by(1e-8, 3)
    device = on_gpu(kernel)

    assert take_in_on(device) is kernel
    assert is_fused(device)


@pytest.mark.parametrize(("row", "gap"), [(3, 1e-3), (4, 1e-3), (10, 1e-3), (1, 1e-4), (3, np.nan)])
def test_a_kernel_that_is_wrong_is_never_used(on_gpu, row, gap):
    """It has met few devices; scores that are a little wrong would go unnoticed."""
    device = on_gpu(off_by(gap, row))

    with pytest.warns(SoftmaxKernelWarning, match="not used on cuda: it is .* nats off"):
        assert take_in_on(device) is take_in
    assert not is_fused(device)


class CompilationError(Exception):
    """Triton's own errors are plain Exceptions, too."""


@pytest.mark.parametrize("kind", [RuntimeError, OSError, CompilationError])
def test_a_kernel_that_does_not_compile_is_told_once_and_not_used(on_gpu, kind):
    """Triton needs a C compiler; a run must not end for the want of one."""

    def fail(*_):
        raise kind("a secret of the corpus")

    device = on_gpu(fail)
    with pytest.warns(SoftmaxKernelWarning, match=f"fails with {kind.__name__}. Scores") as told:
        assert not is_fused(device)
    assert "secret" not in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert take_in_on(device) is take_in


def test_a_cpu_has_the_tiled_code_and_so_has_a_gpu_without_triton(on_gpu, monkeypatch):
    """Neither is a reason to warn."""
    device = on_gpu(off_by(0, 3))
    monkeypatch.setattr(heads, "is_installed", lambda package: False)

    assert not is_fused(device)
    assert not is_fused(torch.device("cpu"))
