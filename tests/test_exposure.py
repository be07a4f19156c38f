"""Exposure: how often what is in a suffix stands in the rows of a corpus."""

import numpy as np
import pytest

from memaudit import exposure
from memaudit.exposure import (
    BETWEEN,
    GRAM_TOKENS,
    GramCounts,
    gram_hashes,
    grams_of_suffixes,
)
from study.exposure import exposure_of


def text(rng, n_tokens=120):
    """Return tokens in any order: two such have no gram in common."""
    return rng.integers(50_000, size=n_tokens).astype(np.int32)


def stream(rows):
    """Return rows as they are counted."""
    ends = np.full(1, BETWEEN, dtype=np.int32)
    return np.concatenate([part for row in rows for part in (row, ends)])


@pytest.mark.parametrize("n_tokens", [0, 7, 8, 9, 2_000])
def test_equal_grams_have_equal_hashes_and_different_ones_have_not(n_tokens):
    """Wherever they stand; and a text that is too short has none."""
    tokens = np.random.default_rng(8).integers(3, size=n_tokens).astype(np.int32)
    hashes = gram_hashes(tokens)
    grams = [tokens[i : i + 8].tobytes() for i in range(len(tokens) - 7)]
    assert len(hashes) == len(grams)
    assert len(set(zip(grams, hashes.tolist(), strict=True))) == len(set(grams))
    assert len(set(hashes.tolist())) == len(set(grams))


@pytest.mark.parametrize("at_once", [100, 1 << 20])
def test_counts_are_those_of_np_unique_and_those_of_parts_add_up(monkeypatch, at_once):
    """The bitmap and the buckets are only there for speed, and arranged part by part for memory."""
    monkeypatch.setattr(exposure, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    rows = [text(rng) for _ in range(200)]
    rows += [np.concatenate([rows[i][: rng.integers(5, 90)], text(rng)]) for i in range(60)]
    rows += [text(rng, 0), text(rng, 3), np.full(100_000, 7, np.int32), *rows[:20]]
    by_row = [np.unique(gram_hashes(row)) for row in rows]
    known, n_rows = np.unique(np.concatenate(by_row), return_counts=True)
    asked = rng.permutation(np.concatenate([gram_hashes(row) for row in (*rows[::3], text(rng))]))
    expected = dict(zip(known.tolist(), n_rows.tolist(), strict=True))

    whole, parts = GramCounts(asked), [GramCounts(asked), GramCounts(asked)]
    whole.add(stream(rows))
    parts[0].add(stream(rows[:100]))
    parts[1].add(stream(rows[100:]))

    assert whole.counts.tolist() == [expected.get(gram, 0) for gram in asked.tolist()]
    assert (whole.counts == parts[0].counts + parts[1].counts).all()
    assert whole.counts.max() >= 3


def test_a_gram_counts_once_in_a_row_and_never_across_two():
    """A row that repeats itself is still one row."""
    gram = np.arange(GRAM_TOKENS, dtype=np.int32)
    counts = GramCounts(gram_hashes(gram))
    counts.add(stream([np.tile(gram, 5), gram[:4], gram[4:], np.append(np.int32(99), gram)]))
    assert counts.counts.tolist() == [2]


def test_only_grams_that_end_in_the_suffix_are_asked_for():
    """They may begin in the prefix: a short suffix still has some."""
    window = np.arange(30, dtype=np.int32)
    assert grams_of_suffixes(window[None], 3).tolist() == [gram_hashes(window)[-3:].tolist()]
    assert grams_of_suffixes(window[None], 30).tolist() == [gram_hashes(window).tolist()]
    assert grams_of_suffixes(window[None, :7], 5).tolist() == [[]]


@pytest.mark.parametrize(
    ("n", "length", "n_suffix"), [(3, 30, 9), (1, 12, 12), (4, 7, 3), (0, 9, 4)]
)
def test_suffixes_taken_at_once_have_the_grams_of_each(n, length, n_suffix):
    """The fast way against the plain one, also where no gram fits."""
    windows = np.random.default_rng(0).integers(0, 9, (n, length), dtype=np.int32)
    found = grams_of_suffixes(windows, n_suffix)
    assert len(found) == n
    ends = [window[max(0, length - n_suffix - GRAM_TOKENS + 1) :] for window in windows]
    assert found.tolist() == [gram_hashes(end).tolist() for end in ends]


@pytest.mark.parametrize("at_once", [60, 1 << 20])
def test_near_copies_are_seen_where_equal_windows_are_not(monkeypatch, at_once):
    """A number in front of each copy: no two windows are equal. However few are summed up at once."""
    monkeypatch.setattr(exposure, "_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    template, others = text(rng), [text(rng) for _ in range(50)]
    copies = [np.append(np.int32(i), template) for i in range(8)]
    found = exposure_of([*copies, *others], [*copies, *others], prefix_len=60)
    assert found.median.tolist() == [8.0] * 8 + [1.0] * 50
    assert found.share.tolist() == [1.0] * 8 + [0.0] * 50


def test_a_row_can_stand_for_several():
    """A study keeps equal windows once, with their number."""
    rng = np.random.default_rng(2)
    rows = [text(rng) for _ in range(3)]
    windows = [*rows, text(rng), text(rng, 4)]
    found = exposure_of(rows, windows, prefix_len=2, weights=np.array([1, 5, 2]))
    assert found.median.tolist() == [1.0, 5.0, 2.0, 1.0, 1.0]
    assert found.share.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]


def test_a_suffix_that_is_partly_repeated_says_so():
    """Of a form that is filled in, the frame is repeated and the rest is not."""
    rng = np.random.default_rng(3)
    frame = text(rng, 40)
    rows = [np.concatenate([text(rng, 40), frame]) for _ in range(4)]
    found = exposure_of(rows, rows[:1], prefix_len=10)
    assert 0.4 < found.share[0] < 0.6
