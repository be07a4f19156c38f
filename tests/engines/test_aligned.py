"""A second model with another tokenizer: what it says, told by the teacher's tokens."""

import numpy as np
import pytest
from support.tiny_models import save_model, save_tokenizer

from memaudit.engines.aligned import aligned_reference, carried_over
from memaudit.engines.hf import HfEngine
from memaudit.engines.models import ModelOptions, cuts_alike, load_model
from memaudit.engines.tokenizer import load_tokenizer
from memaudit.scores import TokenScores

TEXT = "the abbey, naïve café – 日本語 🙂👍🏽 abab\n\tx  y"
MERGES = [("a", "b"), ("t", "h"), ("th", "e"), ("Ġ", "a"), ("Ġa", "b"), ("Ã", "¯")]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model whose tokenizer knows longer words than the one of the windows."""
    return load_model(str(save_model(tmp_path_factory.mktemp("other"), merges=MERGES)))


def windows_of(tokenizer, n=12):
    """Windows that begin and end anywhere, in the midst of characters too."""
    ids = tokenizer.encode([TEXT * 3])[0]
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(ids) - 40, n)
    return [np.array(ids[i : i + int(rng.integers(2, 40))], dtype=np.int32) for i in starts]


def test_a_model_with_the_same_tokenizer_says_the_same(tmp_path):
    """Token by token; the tokens of one character share what is said about it."""
    loaded = load_model(str(save_model(tmp_path)))
    tokenizer = loaded.tokenizer
    windows = [np.array(ids, dtype=np.int32) for ids in tokenizer.encode([TEXT, "abab, a b."])]

    found = aligned_reference(loaded, tokenizer).score(windows)

    for window, a, b in zip(windows, found, HfEngine(loaded.model).score(windows), strict=True):
        one, other = a.teacher, b.teacher
        np.testing.assert_allclose(one.logprobs.sum(), other.logprobs.sum(), rtol=1e-5)
        is_whole = np.array([t.isascii() for t in tokenizer.decode([[i] for i in window[1:]])])
        assert is_whole.sum() >= 7
        for name in ("logprobs", "is_argmax", "margin"):
            np.testing.assert_array_equal(
                getattr(one, name)[is_whole], getattr(other, name)[is_whole]
            )
        assert one.entropy is None


def test_ids_that_mean_other_things_are_no_matter(tmp_path):
    """Of plain letters, the same model under other numbers says the same to the bit."""
    import torch

    one = load_model(str(save_model(tmp_path / "one", merges=())))
    save_model(tmp_path / "two", merges=(), swap=(60, 70))
    two = load_model(str(tmp_path / "two"))
    order = np.arange(320)
    order[[60, 70]] = [70, 60]
    with torch.no_grad():
        for layer in (two.model.get_input_embeddings(), two.model.get_output_embeddings()):
            layer.weight.copy_(layer.weight[torch.tensor(order)].clone())
    ids = one.tokenizer.encode(["plain letters of one byte each, again and again"])[0]
    windows = [np.array(ids[i : i + 20], dtype=np.int32) for i in range(0, 25, 5)]

    found = aligned_reference(two, one.tokenizer).score(windows)

    for a, b in zip(found, HfEngine(one.model).score(windows), strict=True):
        for name in ("logprobs", "is_argmax", "margin"):
            np.testing.assert_allclose(
                getattr(a.teacher, name), getattr(b.teacher, name), rtol=1e-5
            )


def by_bytes(scores, own_ends, ends, text):
    """The same, byte by byte, slowly: for pieces that end with characters."""
    before = [len(text[:i].encode()) for i in range(len(text) + 1)]
    owner = np.repeat(np.arange(len(own_ends)), np.diff([0, *(before[e] for e in own_ends)]))
    found, start = [], 0
    for end in (before[e] for e in ends):
        mine = owner[start:end]
        nats = sum(scores.logprobs[o - 1] / (owner == o).sum() for o in mine if o > 0)
        first = all(scores.is_argmax[o - 1] for o in mine if o > 0)
        margin = min((scores.margin[o - 1] for o in mine if o > 0), default=scores.margin.max())
        found.append((nats, first, margin))
        start = end
    return [np.array(column) for column in zip(*found[1:], strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_carried_over_byte_by_byte(seed):
    """Against the slow way, on pieces cut at random."""
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list("ab é文🙂"), 30))

    def cut():
        return [*sorted(rng.choice(np.arange(1, 30), int(rng.integers(1, 25)), replace=False)), 30]

    own_ends, ends = cut(), cut()
    n = len(own_ends) - 1
    logprobs, margin = -rng.exponential(2.0, n), rng.normal(0, 2, n)
    scores = TokenScores(logprobs.astype(np.float32), margin > 0, None, margin.astype(np.float32))

    found = carried_over(scores, own_ends, ends, text)

    nats, is_first, margins = by_bytes(scores, own_ends, ends, text)
    np.testing.assert_allclose(found.logprobs, nats, atol=1e-5)
    np.testing.assert_array_equal(found.is_argmax, is_first)
    np.testing.assert_allclose(found.margin, np.minimum(margins, scores.margin.max()), atol=1e-6)


def test_the_nats_of_a_text_are_kept(other, tmp_path):
    """Whatever the tokens are that it is counted in, characters that are cut in two included."""
    save_tokenizer(tmp_path)
    teacher = load_tokenizer(tmp_path, {"local_files_only": True})
    windows = windows_of(teacher)

    found = aligned_reference(other, teacher).score(windows)

    texts = teacher.decode([window.tolist() for window in windows])
    for window, text, scores in zip(windows, texts, found, strict=True):
        own = np.array(other.tokenizer.encode([text])[0], dtype=np.int32)
        assert len(scores.teacher.logprobs) == len(window) - 1
        if len(own) < 2:
            assert not scores.teacher.is_argmax.any()
            continue
        (alone,) = HfEngine(other.model).score([own])
        # What the teacher's first token shares with the second of the other model is not told.
        total = alone.teacher.logprobs.sum()
        assert total - 1e-3 <= scores.teacher.logprobs.sum() <= 0
        if other.tokenizer.token_spans(text)[0][1] >= 1 and text.isascii():
            np.testing.assert_allclose(scores.teacher.logprobs.sum(), total, rtol=1e-4)


def test_tokenizers_are_compared_by_what_they_do(tmp_path):
    """Whatever the models are, and wherever a token stands in front of every text."""
    one, same, longer, front = (
        str(save_model(tmp_path / name, **settings))
        for name, settings in [
            ("one", {}),
            ("same", {"family": "gpt_neox"}),
            ("longer", {"merges": MERGES}),
            ("front", {"bos": True}),
        ]
    )

    assert cuts_alike(one, same, ModelOptions())
    assert not cuts_alike(one, longer, ModelOptions())
    assert not cuts_alike(one, front, ModelOptions())
