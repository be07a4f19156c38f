"""Generation against a naive greedy loop, and the one pass against generation."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import FAMILIES, N_TOKENS, make_model

from memaudit.engines import generation
from memaudit.engines.generation import (
    continue_prefixes,
    count_generation_disagreements,
    near_verbatim_logprobs,
)
from memaudit.engines.hf import HfEngine
from memaudit.errors import ModelError
from memaudit.memorization import edit_distance, suffix_logprob
from memaudit.objectives import LabelSampling

PREFIX_LEN = 6


def make_prefixes(n, *, lengths=(PREFIX_LEN,), seed=0):
    """Prefixes of random tokens, of the lengths in turn."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, N_TOKENS, lengths[i % len(lengths)]).astype(np.int32) for i in range(n)]


@torch.inference_mode()
def naive_continuation(model, prefix, n_tokens):
    """The argmax of all logits, appended token by token, without a cache."""
    token_ids = prefix.tolist()
    for _ in range(n_tokens):
        logits = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, -1]
        token_ids.append(int(logits.argmax()))
    return np.array(token_ids[len(prefix) :], dtype=np.int32)


def recited_windows(model, n, n_tokens, *, seed=0):
    """Windows that the model continues exactly."""
    prefixes = make_prefixes(n, seed=seed)
    found = continue_prefixes(model, prefixes, n_tokens)
    return [np.concatenate(pair) for pair in zip(prefixes, found, strict=True)]


def with_another_token(window, position):
    """The window with one token changed."""
    changed = window.copy()
    changed[position] = (changed[position] + 1) % N_TOKENS
    return changed


def assert_same_tokens(found, expected):
    """Two lists of continuations are equal, type included."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.int32
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_continuation_is_what_the_naive_loop_writes(family):
    """Caches, batches and sliding windows must not change a single token."""
    model = make_model(family)
    prefixes = make_prefixes(5, lengths=(1, 7, 20))

    found = continue_prefixes(model, prefixes, 16)

    assert_same_tokens(found, [naive_continuation(model, prefix, 16) for prefix in prefixes])


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_and_generation_agree_in_every_family(family):
    """That is why memorization is found without generating, and what the check is there to show."""
    model = make_model(family)
    recited = recited_windows(model, 12, 20)
    broken = [with_another_token(window, PREFIX_LEN + i) for i, window in enumerate(recited)]
    windows = [window for pair in zip(recited, broken, strict=True) for window in pair]

    check = count_generation_disagreements(model, windows, PREFIX_LEN)

    assert (check.n_windows, check.disagreements, check.ties) == (24, (), ())
    assert check.n_extracted_one_pass == check.n_extracted_generated == 12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_at_once", [2, 64])
def test_the_number_at_once_changes_no_continuation(family, n_at_once):
    """Prefixes of several lengths come back in the order given, whatever runs together."""
    model = make_model(family)
    prefixes = make_prefixes(6, lengths=(3, 9, 9))

    found = continue_prefixes(model, prefixes, 6, n_at_once=n_at_once)

    assert_same_tokens(found, continue_prefixes(model, prefixes, 6, n_at_once=1))


@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(1, 6), max_size=7),
    n_tokens=st.integers(1, 3),
    n_at_once=st.integers(1, 8),
)
def test_every_prefix_gets_its_own_continuation(lengths, n_tokens, n_at_once):
    """Grouping must neither lose nor mix up prefixes."""
    model = make_model("llama")
    prefixes = [np.arange(length, dtype=np.int32) * 7 + i for i, length in enumerate(lengths)]

    found = continue_prefixes(model, prefixes, n_tokens, n_at_once=n_at_once)

    assert_same_tokens(found, [naive_continuation(model, prefix, n_tokens) for prefix in prefixes])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_end_of_sequence_inside_neither_stops_nor_bends_a_continuation(family):
    """Packed text goes on behind it, and so does the suffix that must be reproduced."""
    model = make_model(family)
    (window,) = recited_windows(model, 1, 12)
    for end in (window[PREFIX_LEN], window[PREFIX_LEN + 3]):
        model.generation_config.eos_token_id = int(end)
        model.generation_config.pad_token_id = 5

        check = count_generation_disagreements(model, [window, window], PREFIX_LEN)

        assert check.n_extracted_one_pass == check.n_extracted_generated == 2


OWN_SETTINGS = [
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 1},
    {"do_sample": True, "temperature": 3.0, "top_k": 0},
    {"num_beams": 3, "length_penalty": 4.0},
    {"max_length": 3, "max_new_tokens": 2},
    {"forced_eos_token_id": 0},
    {"exponential_decay_length_penalty": (0, 50.0), "eos_token_id": 0},
    {"max_time": 0.0},
    {"stop_strings": ["a"]},
    {"return_dict_in_generate": True, "output_scores": True},
    {"num_return_sequences": 2, "do_sample": True},
    {"use_cache": False},
]


@pytest.mark.parametrize("own", OWN_SETTINGS, ids=lambda own: next(iter(own)))
def test_nothing_of_the_models_generation_config_applies(own):
    """Models ship settings that make chat pleasant; they say nothing about what is memorized."""
    from transformers import GenerationConfig

    model = make_model("qwen3")
    prefixes = make_prefixes(4)
    expected = [naive_continuation(model, prefix, 12) for prefix in prefixes]
    own_config = GenerationConfig(bos_token_id=0, pad_token_id=0, **own)
    model.generation_config = own_config

    found = continue_prefixes(model, prefixes, 12)

    assert_same_tokens(found, expected)
    assert model.generation_config is own_config


def test_suppressed_tokens_are_written_all_the_same():
    """A list of forbidden tokens hides what the model would say."""
    model = make_model("llama")
    (prefix,) = make_prefixes(1)
    expected = naive_continuation(model, prefix, 6)
    token_id = int(expected[0])
    forbidding = {
        "suppress_tokens": [token_id],
        "begin_suppress_tokens": [token_id],
        "bad_words_ids": [[token_id]],
        "sequence_bias": [[[token_id], -50.0]],
    }
    for name, value in forbidding.items():
        setattr(model.generation_config, name, value)
    plain = model.generate(
        torch.as_tensor(prefix, dtype=torch.int64)[None], max_new_tokens=6, eos_token_id=-1
    )
    assert int(plain[0, len(prefix)]) != token_id  # they do work

    assert_same_tokens(continue_prefixes(model, [prefix], 6), [expected])


def test_a_bos_token_stands_in_front_of_every_prefix():
    """Otherwise pass and generation would speak of different contexts."""
    model = make_model("gemma3")
    prefixes = make_prefixes(4, lengths=(5, 1))
    behind_bos = [np.concatenate([[2], prefix]).astype(np.int32) for prefix in prefixes]

    found = continue_prefixes(model, prefixes, 10, bos_token_id=2)

    assert_same_tokens(found, continue_prefixes(model, behind_bos, 10))
    windows = [np.concatenate(pair) for pair in zip(prefixes[::2], found[::2], strict=True)]
    check = count_generation_disagreements(model, windows, 5, bos_token_id=2)
    assert check.n_extracted_one_pass == check.n_extracted_generated == 2


def test_a_bos_token_alone_is_a_prefix():
    """What the model says first is a continuation, too."""
    model = make_model("llama")

    found = continue_prefixes(model, [np.array([], np.int32)], 4, bos_token_id=2)

    assert_same_tokens(found, [naive_continuation(model, np.array([2], np.int32), 4)])


def test_windows_of_mixed_length_are_checked_each_to_its_own_end():
    """What a model says behind a short window is nobody's suffix."""
    model = make_model("olmo2")
    recited = recited_windows(model, 4, 15)
    windows = [recited[0], recited[1][:9], with_another_token(recited[2], -1), recited[3][:7]]

    check = count_generation_disagreements(model, windows, PREFIX_LEN)

    assert check.n_extracted_one_pass == check.n_extracted_generated == 3
    assert check.disagreements == ()


def with_equal_rows(model, window):
    """A copy in which the window's last token has a twin, and the window that ends with it."""
    tied = copy.deepcopy(model)
    weights = tied.lm_head.weight
    unused = next(i for i in range(N_TOKENS) if i not in window.tolist())
    weights[unused] = weights[window[-1]]
    return tied, np.append(window[:-1], unused).astype(np.int32)


@pytest.mark.parametrize("bos_token_id", [None, 2])
def test_a_tie_is_listed_as_one(bos_token_id):
    """Of two equally probable tokens one pass takes both for the argmax, generation writes one."""
    model = make_model("llama", seed=7)
    prefixes = make_prefixes(1)
    (found,) = continue_prefixes(model, prefixes, 5, bos_token_id=bos_token_id)
    end = np.unique(found, return_index=True)[1].max() + 1  # no earlier tie: its token is new
    window = np.concatenate([prefixes[0], found[:end]])
    tied_model, twin = with_equal_rows(model, window)

    check = count_generation_disagreements(
        tied_model, [window, twin], PREFIX_LEN, bos_token_id=bos_token_id
    )

    assert (check.n_extracted_one_pass, check.n_extracted_generated) == (2, 1)
    assert len(check.disagreements) == 1
    assert check.ties == check.disagreements


def test_a_disagreement_without_a_tie_is_not_excused(monkeypatch):
    """A check that explains everything away would show nothing."""
    model = make_model("llama")
    windows = recited_windows(model, 3, 5)
    wrong = [window[PREFIX_LEN:] for window in windows]
    wrong[1] = with_another_token(wrong[1], 2)
    monkeypatch.setattr(generation, "continue_prefixes", lambda *args, **kwargs: wrong)

    check = count_generation_disagreements(model, windows, PREFIX_LEN)

    assert (check.n_extracted_one_pass, check.n_extracted_generated) == (3, 2)
    assert (check.disagreements, check.ties) == ((1,), ())


@pytest.mark.parametrize("is_tie", [False, True])
def test_a_window_that_only_generation_extracts_is_a_disagreement(monkeypatch, is_tie):
    """The pass may err on this side as well; the token it misses is where to look for a tie."""
    model = make_model("llama", seed=7)
    (window,) = recited_windows(model, 1, 5)
    if is_tie:
        tied_model, twin = with_equal_rows(model, window)
        model = tied_model
        if not np.array_equal(continue_prefixes(model, [window[:6]], 5)[0], window[6:]):
            window = twin
    score = HfEngine.score

    def misses_the_last_token(engine, windows):
        scores = score(engine, windows)
        for one in scores:
            one.teacher.is_argmax[-1] = False
        return scores

    monkeypatch.setattr(HfEngine, "score", misses_the_last_token)

    check = count_generation_disagreements(model, [window], PREFIX_LEN)

    assert (check.n_extracted_one_pass, check.n_extracted_generated) == (0, 1)
    assert check.disagreements == (0,)
    assert check.ties == ((0,) if is_tie else ())


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(monkeypatch, fails):
    """A check in the middle of a training must not switch its dropout off."""
    model = make_model("qwen3").train()
    own_config = model.generation_config
    if fails:
        monkeypatch.setattr(model, "generate", _out_of_memory)
        with pytest.raises(ModelError, match="memory on cpu to continue 2 prefixes") as caught:
            continue_prefixes(model, make_prefixes(2), 3)
        assert "--device" in caught.value.hint
    else:
        continue_prefixes(model, make_prefixes(2), 3)

    assert model.training
    assert model.generation_config is own_config


def _out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError


def test_dropout_is_off_while_generating():
    """A continuation with dropout on would differ from call to call."""
    model = make_model("gpt_neox")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    prefixes = make_prefixes(3)
    expected = continue_prefixes(model, prefixes, 8)

    assert_same_tokens(continue_prefixes(model.train(), prefixes, 8), expected)


def test_what_the_model_cannot_read_is_an_error_before_it_runs():
    """Positions beyond a table, and ids without a row, crash or give nonsense."""
    model = make_model("gpt_neox", positions=16)

    assert continue_prefixes(model, make_prefixes(1, lengths=(10,)), 6)[0].shape == (6,)
    with pytest.raises(ModelError, match="have 17 tokens, GPTNeoXForCausalLM reads at most 16"):
        continue_prefixes(model, make_prefixes(1, lengths=(10,)), 6, bos_token_id=0)
    with pytest.raises(ModelError, match=r"run from 5 to 320, .* rows for 0 to 319"):
        continue_prefixes(model, [np.array([5, 320], np.int32)], 1)


def test_calls_that_make_no_sense_are_refused():
    """They are mistakes of the caller."""
    model = make_model("llama")
    with pytest.raises(ValueError, match="got 0 and 16"):
        continue_prefixes(model, make_prefixes(1), 0)
    with pytest.raises(ValueError, match="got 3 and 0"):
        continue_prefixes(model, make_prefixes(1), 3, n_at_once=0)
    with pytest.raises(ValueError, match="at least 1 token"):
        continue_prefixes(model, [np.array([], np.int32)], 3)
    for windows, prefix_len in (([], 3), (make_prefixes(2), 6), (make_prefixes(2), 0)):
        with pytest.raises(ValueError, match="longer than a prefix_len"):
            count_generation_disagreements(model, windows, prefix_len)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6)])
def test_sampled_tokens_have_the_probabilities_of_the_formula(temperature, top_p):
    """Softmax at the temperature, cut to the nucleus and scaled up again."""
    model = make_model("llama")
    model.get_output_embeddings().weight.data *= 20  # so that tokens differ in probability
    n, prefix = 3000, make_prefixes(1)[0]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prefix.tolist()])).logits[0, -1].double()
    p = (logits / temperature).softmax(dim=-1).sort(descending=True)
    kept = p.values.cumsum(0) - p.values < top_p
    expected = np.zeros(len(logits))
    expected[p.indices[kept].numpy()] = (p.values[kept] / p.values[kept].sum()).numpy()
    sampling = LabelSampling(temperature, top_p)
    state = torch.get_rng_state()

    found = continue_prefixes(model, [prefix] * n, 1, n_at_once=n, sampling=sampling, seed=3)

    counts = np.bincount(np.concatenate(found), minlength=len(logits))
    assert not counts[expected == 0].any()
    error = np.sqrt(n * expected * (1 - expected)) + 1
    assert (np.abs(counts - n * expected) < 5 * error).all()
    assert torch.equal(torch.get_rng_state(), state)
    again = continue_prefixes(model, [prefix] * n, 1, n_at_once=n, sampling=sampling, seed=3)
    assert_same_tokens(again, found)


@torch.inference_mode()
def all_suffixes(model, prefix, n_tokens, vocab_size):
    """Every suffix of so many tokens, and its log-probability, without a cache or a beam."""
    suffixes = np.array(list(product(range(vocab_size), repeat=n_tokens)), dtype=np.int32)
    token_ids = torch.tensor(np.concatenate([np.tile(prefix, (len(suffixes), 1)), suffixes], 1))
    logits = model(input_ids=token_ids.long(), use_cache=False).logits[:, len(prefix) - 1 : -1]
    logprobs = logits.double().log_softmax(-1).gather(2, token_ids[:, len(prefix) :, None].long())
    return suffixes, logprobs.sum((1, 2)).numpy()


@pytest.mark.parametrize("family", ["llama", "gemma3_soft_cap"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.8])
def test_the_near_mass_lies_between_that_of_the_suffix_and_all_that_is_near(family, share):
    """Four tokens, five places: all 1,024 texts are counted. A wide enough beam finds all of them."""
    model, prefix = make_model(family, vocab_size=4), np.array([1, 2, 3], np.int32)
    suffixes, logprobs = all_suffixes(model, prefix, 5, 4)
    for true in ([0, 1, 1, 2, 3], suffixes[logprobs.argmax()], [2, 2, 2, 2, 2]):
        distances = np.array([edit_distance(suffix, np.array(true)) for suffix in suffixes])
        exact, window = logprobs[distances == 0][0], np.array([*prefix, *true], np.int32)
        near = np.logaddexp.reduce(logprobs[distances <= 5 * share])

        found = [
            near_verbatim_logprobs(model, [window], [3], max_distance=share, width=width)[0]
            for width in (1, 4, 16, 1024)
        ]

        assert exact - 1e-5 <= min(found)
        assert max(found) <= near + 1e-5
        assert found[-1] == pytest.approx(near, abs=1e-5)
        assert found[0] <= found[1] + 1e-5  # the true suffix and the likeliest next to it


@pytest.mark.parametrize("family", FAMILIES)
def test_without_edits_the_near_mass_is_that_of_the_suffix(family):
    """The beam's cache must say what the one pass says, in every family."""
    model = make_model(family)
    windows = make_prefixes(4, lengths=(9, 14, 9, 12), seed=3)
    scores = HfEngine(model, bos_token_id=2).score(windows)
    expected = [
        suffix_logprob(score.teacher, n) for score, n in zip(scores, (4, 6, 4, 6), strict=True)
    ]

    found = near_verbatim_logprobs(
        model, windows, [4, 6, 4, 6], max_distance=0.0, width=3, bos_token_id=2
    )

    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_soft_cap"])
def test_a_beam_finds_the_same_whatever_else_is_in_its_batch(family, monkeypatch):
    """Texts of other windows, lengths and prefixes must not be mixed up."""
    model, done = make_model(family), []
    windows = make_prefixes(7, lengths=(16, 12, 16), seed=5)
    prefix_lens = [6, 4, 8, 6, 4, 6, 6]
    alone = [
        near_verbatim_logprobs(model, [window], [n], max_distance=0.3)[0]
        for window, n in zip(windows, prefix_lens, strict=True)
    ]
    assert near_verbatim_logprobs(
        model, windows, prefix_lens, max_distance=0.3, on_windows=done.append
    ) == pytest.approx(alone, rel=1e-5)
    monkeypatch.setitem(generation._LOGITS_AT_ONCE, "cpu", 1)

    found = near_verbatim_logprobs(model, windows, prefix_lens, max_distance=0.3)

    assert found == pytest.approx(alone, rel=1e-5)
    assert done[-1] == 7


def test_a_model_without_a_cache_cannot_be_searched(monkeypatch):
    """Reading every text anew for each token would take fifty times as long."""
    model = make_model("llama")
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: forward(**{**given, "use_cache": False}))

    with pytest.raises(ModelError, match="LlamaForCausalLM keeps no cache"):
        near_verbatim_logprobs(model, make_prefixes(1), [2], max_distance=0.1)
