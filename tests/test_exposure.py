"""Exposure: how often what is in a suffix stands in the rows of a corpus."""

import numpy as np
import pytest

from memaudit.exposure import (
    BETWEEN,
    GRAM_BYTES,
    GramCounts,
    exposure_of,
    gram_hashes,
    normalised,
    suffix_grams,
)

WORDS = np.array(
    [
        "the",
        "of",
        "and",
        "river",
        "stone",
        "seven",
        "lamp",
        "quiet",
        "under",
        "glass",
        "morning",
        "paper",
    ]
)


def sentence(rng, n_words=40):
    """Return words in any order, a number between them: two such have few grams in common."""
    return " ".join(f"{word} {rng.integers(10_000)}" for word in rng.choice(WORDS, n_words))


def rows_of(texts):
    """Return texts as they are counted."""
    return b"".join(normalised(text) + BETWEEN for text in texts)


def test_white_space_and_the_form_of_accents_do_not_matter_but_case_does():
    """A reprint breaks its lines elsewhere."""
    assert normalised("Cafe\u0301\n\n  au\tlait ") == "Caf\u00e9 au lait".encode()
    assert normalised("A") != normalised("a")
    assert normalised("\ufffdend of a window that was cut within a character\ufffd")[:3] == b"end"


@pytest.mark.parametrize("k", [1, 2, 3, 7, 24, 32, 33])
def test_equal_grams_have_equal_hashes_and_different_ones_have_not(k):
    """Whatever the length, and wherever they stand."""
    rng = np.random.default_rng(k)
    content = bytes(rng.integers(97, 100, 2_000, dtype=np.uint8))
    hashes = gram_hashes(content, k)
    grams = [content[i : i + k] for i in range(len(content) - k + 1)]
    assert len(hashes) == len(grams)
    assert len(set(zip(grams, hashes.tolist(), strict=True))) == len(set(grams))
    assert len(set(hashes.tolist())) == len(set(grams))


def test_counts_are_those_of_np_unique_and_those_of_parts_add_up():
    """The bitmap and the buckets are only there for speed."""
    rng = np.random.default_rng(0)
    texts = [sentence(rng) for _ in range(200)]
    texts += [texts[i][: rng.integers(30, 200)] + sentence(rng) for i in range(60)]
    texts += ["", "short", "x" * 100_000, *texts[:20]]
    by_row = [np.unique(gram_hashes(normalised(text))) for text in texts]
    known, n_rows = np.unique(np.concatenate(by_row), return_counts=True)
    asked = np.concatenate(
        [gram_hashes(normalised(text)) for text in (*texts[::3], "not there " * 9)]
    )
    asked = rng.permutation(asked)
    expected = dict(zip(known.tolist(), n_rows.tolist(), strict=True))

    whole, parts = GramCounts(asked), [GramCounts(asked), GramCounts(asked)]
    whole.add(rows_of(texts))
    parts[0].add(rows_of(texts[:100]))
    parts[1].add(rows_of(texts[100:]))

    assert whole.counts.tolist() == [expected.get(gram, 0) for gram in asked.tolist()]
    assert (whole.counts == parts[0].counts + parts[1].counts).all()
    assert whole.counts.max() >= 3


def test_a_gram_counts_once_in_a_row_and_never_across_two():
    """A row that repeats itself is still one row."""
    gram = bytes(range(65, 65 + GRAM_BYTES)).decode()
    counts = GramCounts(gram_hashes(gram.encode()))
    counts.add(rows_of([gram * 5, gram[:10], gram[10:], f"and {gram}"]))
    assert counts.counts.tolist() == [2]


def test_only_grams_that_end_in_the_suffix_are_asked_for():
    """They may begin in the prefix: a short suffix still has some."""
    text = "".join(chr(33 + i % 90) for i in range(300))
    every = gram_hashes(text.encode())
    assert suffix_grams(text, text[-9:]).tolist() == every[[-1, -5, -9]].tolist()
    assert len(suffix_grams("too short", "short")) == 0


def test_near_copies_are_seen_where_equal_windows_are_not():
    """A number in front of each copy: no two windows are equal."""
    rng = np.random.default_rng(1)
    template, others = sentence(rng), [sentence(rng) for _ in range(50)]
    copies = [f"{i}. {template}" for i in range(8)]
    windows = [(text, text[-100:]) for text in (*copies, *others)]
    found = exposure_of([*copies, *others], windows)
    assert found.median.tolist() == [8.0] * 8 + [1.0] * 50
    assert found.minimum.tolist() == [8.0] * 8 + [1.0] * 50
    assert found.share.tolist() == [1.0] * 8 + [0.0] * 50


def test_a_row_can_stand_for_several():
    """A study keeps equal windows once, with their number."""
    rng = np.random.default_rng(2)
    texts = [sentence(rng) for _ in range(3)]
    windows = [(text, text[-80:]) for text in (*texts, sentence(rng), "none")]
    found = exposure_of(texts, windows, weights=np.array([1, 5, 2]))
    assert found.median.tolist() == [1.0, 5.0, 2.0, 1.0, 1.0]
    assert found.share.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]


def test_a_suffix_that_is_partly_repeated_says_so():
    """Of a form that is filled in, the frame is repeated and the rest is not."""
    rng = np.random.default_rng(3)
    frame = sentence(rng, 20)
    texts = [f"{sentence(rng, 20)} {frame}" for _ in range(4)]
    found = exposure_of(texts, [(texts[0], texts[0][-2 * len(frame) :])])
    assert (found.minimum[0], found.median[0]) <= (1.0, 4.0)
    assert 0.3 < found.share[0] < 0.7
