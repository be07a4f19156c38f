"""The `hf` engine against a naive reference: one sequence at a time, all logits, float64 sums."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import (
    FAMILIES,
    N_TOKENS,
    make_model,
    make_windows,
    naive_kl,
    naive_log_softmax,
    naive_margin,
    naive_scores,
    save_model,
)
from torch.utils._python_dispatch import TorchDispatchMode

from memaudit.engines.generation import continue_prefixes
from memaudit.engines.hf import HfEngine
from memaudit.engines.models import ModelOptions, load_model
from memaudit.errors import ModelError
from memaudit.memorization import extracted

ACROSS_BATCHES = 1e-5
AGAINST_NAIVE = 1e-4


def assert_token_scores(found, log_softmax, window, tolerance=AGAINST_NAIVE):
    """One model's scores of a window are those of the naive log-softmax."""
    logprobs, is_argmax, entropy = naive_scores(log_softmax, window)
    np.testing.assert_allclose(found.logprobs, logprobs, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found.is_argmax, is_argmax)
    np.testing.assert_allclose(found.entropy, entropy, rtol=0, atol=tolerance)
    margin = naive_margin(log_softmax, window)
    np.testing.assert_allclose(found.margin, margin, rtol=0, atol=tolerance)


def assert_same(found, expected, tolerance=ACROSS_BATCHES):
    """Two runs over the same windows gave the same."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for x, y in ((a.teacher, b.teacher), (a.reference, b.reference)):
            np.testing.assert_allclose(x.logprobs, y.logprobs, rtol=0, atol=tolerance)
            np.testing.assert_array_equal(x.is_argmax, y.is_argmax)
            np.testing.assert_allclose(x.entropy, y.entropy, rtol=0, atol=tolerance)
            np.testing.assert_allclose(x.margin, y.margin, rtol=0, atol=2 * tolerance)
        np.testing.assert_allclose(a.kl_divergence, b.kl_divergence, rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_naive_ones_in_every_family(family):
    """The fast road must give the numbers that the definitions give."""
    teacher, reference = make_model(family), make_model(family, seed=1)
    windows = make_windows(200)

    found = HfEngine(teacher, reference).score(windows)

    for window, scores in zip(windows, found, strict=True):
        p, q = naive_log_softmax(teacher, window), naive_log_softmax(reference, window)
        assert_token_scores(scores.teacher, p, window)
        assert_token_scores(scores.reference, q, window)
        np.testing.assert_allclose(scores.kl_divergence, naive_kl(p, q), rtol=0, atol=AGAINST_NAIVE)


@pytest.mark.parametrize("family", ["cohere", "granite"])
def test_a_scale_on_the_logits_is_applied(family):
    """Families that scale their logits would otherwise get wrong probabilities in silence."""
    model = make_model(family)
    windows = make_windows(5)

    found = HfEngine(model).score(windows)

    for window, scores in zip(windows, found, strict=True):
        assert_token_scores(scores.teacher, naive_log_softmax(model, window), window)


def test_the_reference_can_be_asked_alone():
    """A cascade asks the small one first."""
    teacher, reference = make_model("llama"), make_model("llama", seed=1)
    engine, windows = HfEngine(teacher, reference, bos_token_id=257), make_windows(20)

    alone = engine.reference_alone.score(windows)

    for a, b in zip(alone, engine.score(windows), strict=True):
        np.testing.assert_allclose(a.teacher.logprobs, b.reference.logprobs, atol=ACROSS_BATCHES)
        np.testing.assert_allclose(a.teacher.entropy, b.reference.entropy, atol=ACROSS_BATCHES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_order_and_batch_size_change_nothing(family, batch_size):
    """A window's risk must not depend on which windows are scored beside it."""
    engine = HfEngine(make_model(family), make_model(family, seed=1))
    windows = make_windows(32)
    order = np.random.default_rng(1).permutation(len(windows))
    expected = engine.score(windows)

    found = []
    for start in range(0, len(order), batch_size):  # each call is one batch of mixed lengths
        found += engine.score([windows[i] for i in order[start : start + batch_size]])

    assert_same(found, [expected[i] for i in order])


def test_vocabularies_of_several_tiles_equal_the_naive_ones():
    """Real vocabularies are, and the reference may have more rows than the teacher."""
    teacher = make_model("qwen3", vocab_size=9000)
    reference = make_model("qwen3", seed=1, vocab_size=9100)
    rng = np.random.default_rng(0)
    windows = [rng.integers(0, 9000, n).astype(np.int32) for n in rng.integers(2, 41, 10)]

    found = HfEngine(teacher, reference).score(windows)

    for window, scores in zip(windows, found, strict=True):
        p, q = naive_log_softmax(teacher, window), naive_log_softmax(reference, window)
        assert_token_scores(scores.teacher, p, window)
        assert_token_scores(scores.reference, q, window)
        common_q = q[:, :9000] - np.log(np.exp(q[:, :9000]).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(
            scores.kl_divergence, naive_kl(p, common_q), rtol=0, atol=AGAINST_NAIVE
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix_len", [1, 20])
def test_one_pass_finds_what_greedy_decoding_writes(family, suffix_len):
    """This equivalence is why no text is ever generated to find out what is memorized."""
    model = make_model(family)
    prefixes = [window[:6] for window in make_windows(8) if len(window) >= 6]

    windows = [greedy_continuation(model, prefix, suffix_len) for prefix in prefixes]
    changed = [window.copy() for window in windows]
    for window in changed:
        window[-1] = (window[-1] + 1) % N_TOKENS

    engine = HfEngine(model)
    assert all(extracted(scores.teacher, 6) for scores in engine.score(windows))
    assert not any(extracted(scores.teacher, 6) for scores in engine.score(changed))


def greedy_continuation(model, prefix, suffix_len):
    """The prefix, and what `generate` adds to it."""
    token_ids = torch.as_tensor(prefix, dtype=torch.int64)[None]
    generated = model.generate(
        token_ids,
        attention_mask=torch.ones_like(token_ids),
        do_sample=False,
        max_new_tokens=suffix_len,
        eos_token_id=-1,  # no token ends it early
    )
    assert generated.shape[1] == len(prefix) + suffix_len
    return generated[0].numpy().astype(np.int32)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=8), batch_tokens=st.integers(1, 60)
)
def test_every_window_gets_one_score_a_prediction(lengths, batch_tokens):
    """Batching must neither lose nor mix up windows, whatever their lengths."""
    windows = [np.arange(length, dtype=np.int32) + length for length in lengths]
    model = make_model("llama")

    found = HfEngine(model, batch_tokens=batch_tokens).score(windows)

    assert [len(scores.teacher.logprobs) for scores in found] == [n - 1 for n in lengths]
    for window, scores in zip(windows, found, strict=True):
        assert_token_scores(scores.teacher, naive_log_softmax(model, window), window)


def test_a_tie_counts_as_the_argmax():
    """A token that is as probable as any other is one that greedy decoding may choose."""
    model = make_model("llama", seed=7)
    window = make_windows(1, longest=30)[0]
    best = naive_log_softmax(model, window).argmax(axis=1)
    weights = model.lm_head.weight
    kept = weights.clone()
    unused = next(i for i in range(N_TOKENS) if i not in {*best.tolist(), *window.tolist()})
    weights[unused] = weights[best[-1]]
    try:
        tied = np.append(window[:-1], unused).astype(np.int32)
        scores = HfEngine(model).score([tied])[0]
    finally:
        weights.copy_(kept)

    assert bool(scores.teacher.is_argmax[-1])


def test_a_token_behind_the_best_is_not_the_argmax():
    """What counts as recited is decided by this."""
    model = make_model("llama")
    window = make_windows(1, longest=30)[0]
    second = naive_log_softmax(model, window)[-1].argsort()[-2]

    scores = HfEngine(model).score([np.append(window[:-1], second).astype(np.int32)])[0]

    assert not scores.teacher.is_argmax[-1]


def test_two_tokens_are_the_shortest_window():
    """The first token has no prediction, so two give one."""
    scores = HfEngine(make_model("gpt_neox")).score([np.array([5, 6], np.int32)])

    assert scores[0].teacher.logprobs.shape == (1,)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        HfEngine(make_model("gpt_neox")).score([np.array([5], np.int32)])


def test_no_windows_give_no_scores():
    """An empty chunk is not an error."""
    assert HfEngine(make_model("gpt_neox")).score([]) == []


def test_a_bos_token_is_context_and_not_scored():
    """Models trained with a BOS in front misjudge every text without it."""
    model = make_model("gemma3")
    windows = make_windows(20)

    found = HfEngine(model, bos_token_id=2, batch_tokens=100).score(windows)

    for window, scores in zip(windows, found, strict=True):
        assert_token_scores(scores.teacher, naive_log_softmax(model, window, 2), window)


def test_a_model_has_no_divergence_from_itself():
    """KL(P ‖ P) is 0, and rounding must not make it negative."""
    model = make_model("olmo2")

    found = HfEngine(model, model).score(make_windows(20))

    for scores in found:
        assert (scores.kl_divergence >= 0).all()
        np.testing.assert_allclose(scores.kl_divergence, 0, atol=1e-6)


@pytest.mark.parametrize(("teacher_rows", "reference_rows"), [(320, 352), (352, 320)])
def test_rows_that_one_model_lacks_are_left_out_of_the_divergence_alone(
    teacher_rows, reference_rows
):
    """Embeddings are padded differently within one family; no token uses the extra rows."""
    teacher = make_model("qwen3", vocab_size=teacher_rows)
    reference = make_model("qwen3", seed=1, vocab_size=reference_rows)
    windows = make_windows(20)

    found = HfEngine(teacher, reference).score(windows)

    for window, scores in zip(windows, found, strict=True):
        p, q = naive_log_softmax(teacher, window), naive_log_softmax(reference, window)
        assert_token_scores(scores.teacher, p, window)
        assert_token_scores(scores.reference, q, window)
        common_p = p[:, :320] - np.log(np.exp(p[:, :320]).sum(axis=1, keepdims=True))
        common_q = q[:, :320] - np.log(np.exp(q[:, :320]).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(
            scores.kl_divergence, naive_kl(common_p, common_q), rtol=0, atol=AGAINST_NAIVE
        )


def test_models_of_different_width_can_be_compared():
    """A student is smaller than its teacher."""
    teacher, reference = make_model("llama"), make_model("gpt_neox", seed=3)
    window = make_windows(1)[0]

    scores = HfEngine(teacher, reference).score([window])[0]

    p, q = naive_log_softmax(teacher, window), naive_log_softmax(reference, window)
    np.testing.assert_allclose(scores.kl_divergence, naive_kl(p, q), rtol=0, atol=AGAINST_NAIVE)


def test_scoring_never_holds_the_logits_of_a_batch(monkeypatch):
    """Batch x length x vocabulary is what does not fit into memory."""
    teacher, reference = (make_model("llama", seed=seed, vocab_size=9000) for seed in (0, 1))
    windows = [np.arange(32, dtype=np.int32) + i for i in range(32)]
    n_logits = 32 * 32 * 9000
    with _LargestTensor() as of_the_model:
        teacher(input_ids=torch.as_tensor(np.stack(windows), dtype=torch.int64))
    assert of_the_model.n_elements == n_logits  # such a tensor would be seen
    engine = HfEngine(teacher, reference)
    for model in (teacher, reference):
        monkeypatch.setattr(model.lm_head, "forward", _must_not_run)
        monkeypatch.setattr(model, "forward", _must_not_run)

    with _LargestTensor() as of_the_engine:
        engine.score(windows)

    assert 0 < of_the_engine.n_elements <= 512 * 4096 < n_logits / 4


def _must_not_run(*args, **kwargs):
    raise AssertionError("the model's own head ran")


class _LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.n_elements = max(self.n_elements, tensor.numel())
        return result


def test_bfloat16_runs_the_body_in_half_precision_and_stays_close():
    """bfloat16 halves the time; its error is that of the body alone."""
    full = make_model("llama", seed=11)
    half = copy.deepcopy(full).bfloat16()
    windows = make_windows(10)

    engine = HfEngine(half)
    found = engine.score(windows)
    expected = HfEngine(full).score(windows)

    assert engine.name == "hf-bfloat16"
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a.teacher.logprobs - b.teacher.logprobs).mean() < 0.5
        assert not np.array_equal(a.teacher.logprobs, b.teacher.logprobs)


def test_dropout_is_off_while_scoring_and_back_on_after():
    """An engine may be used in the middle of a training."""
    model = make_model("gpt_neox", seed=5)
    model.train()
    dropped = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    for module in dropped:
        module.p = 0.9
    windows = make_windows(3)

    engine = HfEngine(model)
    first, second = engine.score(windows), engine.score(windows)

    assert dropped
    assert model.training
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.teacher.logprobs, b.teacher.logprobs)


def test_a_head_that_is_not_linear_is_refused():
    """Scores from a head that is misread look like scores."""

    class Odd(torch.nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden).sin()

    model = make_model("llama", seed=13)
    odd = Odd(48, 320, bias=False)
    odd.weight = model.lm_head.weight
    model.lm_head = odd

    with pytest.raises(ModelError, match="not a plain linear map"):
        HfEngine(model)


def test_a_model_that_looks_ahead_is_refused():
    """Its probabilities are no predictions, and padding would change them."""
    model = make_model("llama", seed=17)
    body = model.model
    original = type(body).forward

    class Ahead(type(body)):
        def forward(self, **kwargs):
            output = original(self, **kwargs)
            output.last_hidden_state = output[0] + output[0].mean(dim=1, keepdim=True)
            return output

    body.__class__ = Ahead

    with pytest.raises(ModelError, match="not causal"):
        HfEngine(model)


def test_a_score_that_is_no_number_is_refused():
    """NaN would pass for "not memorized"."""
    model = make_model("llama", seed=19)
    engine = HfEngine(model)
    model.model.norm.weight.fill_(float("nan"))

    with pytest.raises(ModelError, match="not a finite number"):
        engine.score(make_windows(2))


@pytest.mark.parametrize("token_id", [-1, 320])
def test_ids_without_a_row_are_refused(token_id):
    """On a GPU they would end the process, and a negative id would pick another row."""
    with pytest.raises(ModelError, match="rows for 0 to 319"):
        HfEngine(make_model("llama")).score([np.array([1, token_id], np.int32)])


def test_a_bos_token_without_a_row_is_refused():
    """It is an id like any other, and comes from the tokenizer."""
    engine = HfEngine(make_model("llama"), bos_token_id=320)

    with pytest.raises(ModelError, match="from 1 to 320"):
        engine.score([np.array([1, 2], np.int32)])


def test_a_window_longer_than_the_context_is_refused():
    """Beyond it predictions are worthless, and nothing else would say so."""
    engine = HfEngine(make_model("llama"), bos_token_id=0)

    with pytest.raises(ModelError, match="257 tokens, LlamaForCausalLM reads at most 256"):
        engine.score([np.zeros(256, np.int32)])


def test_a_batch_too_large_for_memory_is_halved(monkeypatch):
    """Running out of memory must cost time, not the run."""
    engine = HfEngine(make_model("llama"))
    windows = make_windows(9)
    expected = engine.score(windows)
    run, sizes = engine._run, []

    def run_at_most_two(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return run(batch)

    monkeypatch.setattr(engine, "_run", run_at_most_two)
    found = engine.score(windows)

    assert max(sizes) > 2
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            a.teacher.logprobs, b.teacher.logprobs, rtol=0, atol=ACROSS_BATCHES
        )


def test_a_single_window_too_large_for_memory_is_an_error(monkeypatch):
    """Halving must end."""
    engine = HfEngine(make_model("llama"))

    def run(batch):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine, "_run", run)

    with pytest.raises(ModelError, match="not enough memory"):
        engine.score(make_windows(2))


@pytest.mark.gpu
def test_a_gpu_gives_the_numbers_of_the_cpu():
    """The same code runs on both."""
    model = make_model("llama", seed=23)
    windows = make_windows(50)
    expected = HfEngine(model).score(windows)

    found = HfEngine(model.cuda()).score(windows)

    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            a.teacher.logprobs, b.teacher.logprobs, rtol=0, atol=AGAINST_NAIVE
        )


@pytest.fixture
def split(tmp_path, monkeypatch):
    """Save a model, and return it beside itself spread as told."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained

    def load(family, *on_disk):
        folder = save_model(tmp_path / family, family=family)
        places = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"]
        places += ["model.rotary_emb", "lm_head"]
        device_map = {each: "disk" if each in on_disk else "cpu" for each in places}

        def spread(*args, **given):
            assert given["device_map"] == "auto"
            return whole(*args, **given | {"device_map": device_map})

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spread)
        return make_model(family), load_model(folder, ModelOptions(device="split")).model

    return load


@pytest.mark.parametrize(
    ("family", "on_disk"),
    [
        ("llama", ["model.layers.1"]),
        ("llama", ["model.layers.0", "model.layers.1", "model.norm", "lm_head"]),
        ("gemma3", ["model.layers.0", "model.norm"]),
    ],
)
def test_a_model_that_is_split_has_the_same_scores(split, family, on_disk):
    """Layers, norm and head that lie elsewhere are brought where they are needed, bit by bit."""
    model, parted = split(family, *on_disk)
    windows = make_windows(9)

    assert any(parameter.is_meta for parameter in parted.parameters())
    for reference in (None, "same"):
        second = (None, None) if reference is None else (model, parted)
        expected = HfEngine(model, second[0], bos_token_id=2).score(windows)
        found = HfEngine(parted, second[1], bos_token_id=2).score(windows)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.teacher.logprobs, other.teacher.logprobs)
            np.testing.assert_array_equal(one.teacher.entropy, other.teacher.entropy)
    found, expected = (continue_prefixes(each, windows, 5) for each in (parted, model))
    np.testing.assert_array_equal(found, expected)


def test_a_model_whose_first_layer_finds_no_room_is_refused(split):
    """There would be no device to begin on."""
    with pytest.raises(ModelError, match="no room for its first layer"):
        split("llama", "model.embed_tokens")


def test_a_model_that_fits_one_device_is_not_split(tmp_path):
    """What is asked for is room, and there is enough."""
    folder = save_model(tmp_path / "model")
    found = HfEngine(load_model(folder, ModelOptions(device="split")).model).score(make_windows(3))
    expected = HfEngine(make_model("llama")).score(make_windows(3))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.teacher.logprobs, other.teacher.logprobs)
