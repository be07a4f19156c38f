"""Whether a suffix counts as reproduced, by each definition."""

import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memaudit.memorization import (
    approximately_extracted,
    edit_distance,
    extracted,
    extraction_probability,
    normalised_edit_distance,
    probabilistically_extracted,
    revealed_nats,
    suffix_logprob,
)
from memaudit.scores import TokenScores

texts = st.lists(st.integers(0, 3), max_size=9).map(lambda ids: np.array(ids, dtype=np.int32))
logprobs = st.floats(-60, 0)
probabilities = st.floats(1e-6, 1 - 1e-6)


def scores_of(is_argmax):
    """Return scores of which only the argmax flags matter."""
    n = len(is_argmax)
    zeros = np.zeros(n, dtype=np.float32)
    return TokenScores(zeros, np.array(is_argmax, dtype=np.bool_), zeros, zeros)


def ids(text):
    """Return the letters' codes as token ids."""
    return np.array([ord(letter) for letter in text], dtype=np.int32)


def test_all_suffix_tokens_must_be_argmax():
    """One token that greedy decoding would not choose ends the recitation."""
    assert extracted(scores_of([False, True, True]), prefix_len=2)
    assert not extracted(scores_of([True, True, False]), prefix_len=2)


@pytest.mark.parametrize("prefix_len", [1, 2, 3])
def test_what_the_model_says_about_the_prefix_does_not_matter(prefix_len):
    """The prefix is given, so the first prediction that counts is about token `prefix_len`."""
    is_argmax = [False] * (prefix_len - 1) + [True] * (4 - prefix_len)

    assert extracted(scores_of(is_argmax), prefix_len)


def test_the_log_probability_of_the_suffix_is_the_sum_of_its_tokens():
    """The prefix is given, and costs nothing."""
    logprobs_S = np.array([-9, -1, -0.5], dtype=np.float32)
    scores = TokenScores(logprobs_S, np.ones(3, np.bool_), *np.zeros((2, 3), np.float32))

    assert suffix_logprob(scores, prefix_len=2) == -1.5
    assert suffix_logprob(scores_of([True]), prefix_len=1) == 0.0


def test_rounding_makes_no_suffix_more_than_certain():
    """An engine may return a log-probability just above 0."""
    above = TokenScores(
        np.full(2, 1e-7, np.float32), np.ones(2, np.bool_), *np.zeros((2, 2), np.float32)
    )

    assert suffix_logprob(above, prefix_len=1) == 0.0


@pytest.mark.parametrize("p", [Fraction(1, 2), Fraction(1, 10**6), Fraction(999_999, 10**6)])
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_the_extraction_probability_is_the_one_of_exact_fractions(p, n):
    """A closed form: one minus the chance that all samples miss."""
    found = extraction_probability(np.array([math.log(p)]), n)

    assert found == pytest.approx([float(1 - (1 - p) ** n)], rel=1e-9)


@pytest.mark.parametrize("logprob", [-50.0, -300.0, -700.0])
def test_tiny_probabilities_are_not_rounded_to_zero(logprob):
    """1 - (1 - p)^n is 0 in floating point as soon as p is below 1e-16; n p is right there."""
    found = extraction_probability(np.array([logprob]), 1000)

    assert found == pytest.approx([1000 * math.exp(logprob)], rel=1e-9)


def test_certain_and_impossible_suffixes_need_no_special_case():
    """They occur: a model recites with p = 1 in float32, and gives others no chance at all."""
    ends = np.array([0.0, -np.inf, -1e4])

    assert extraction_probability(ends, 10).tolist() == [1.0, 0.0, 0.0]
    assert probabilistically_extracted(ends, 10, 0.5).tolist() == [True, False, False]


@given(logprob=logprobs, n=st.integers(1, 10**9), more=st.integers(0, 10**9), gain=st.floats(0, 60))
def test_more_samples_or_a_likelier_suffix_never_lower_the_probability(logprob, n, more, gain):
    """p_n grows in n and in p, and stays within [0, 1]."""
    x = np.array([logprob])

    found = extraction_probability(x, n)

    assert 0 <= found <= 1
    assert extraction_probability(x, n + more) >= found
    assert extraction_probability(np.minimum(x + gain, 0), n) >= found


@given(logprob=logprobs)
def test_one_sample_succeeds_with_the_probability_of_the_suffix(logprob):
    """What n = 1 means."""
    found = extraction_probability(np.array([logprob]), 1)

    assert found == pytest.approx([math.exp(logprob)], rel=1e-12)


@given(logprobs=st.lists(logprobs, max_size=5), n=st.integers(1, 10**6), probability=probabilities)
def test_a_window_is_extracted_when_its_probability_reaches_the_one_asked_for(
    logprobs, n, probability
):
    """The definition, for many windows at once."""
    x = np.array(logprobs, dtype=np.float64)

    found = probabilistically_extracted(x, n, probability)

    assert found.tolist() == [bool(p >= probability) for p in extraction_probability(x, n)]


def test_calls_that_make_no_sense_are_refused():
    """No samples, certainty, and probabilities above 1 are mistakes of the caller."""
    x = np.array([-1.0])
    with pytest.raises(ValueError, match="n must be at least 1"):
        extraction_probability(x, 0)
    for probability in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            probabilistically_extracted(x, 1, probability)
    for logprob in (0.1, math.nan):
        with pytest.raises(ValueError, match="at most 0"):
            extraction_probability(np.array([logprob]), 1)


@given(texts, texts)
def test_the_edit_distance_is_the_one_of_the_recursion(a, b):
    """The rows must give what the definition gives."""

    @cache
    def slow(i, j):
        if i == 0 or j == 0:
            return i + j
        replaced = slow(i - 1, j - 1) + int(a[i - 1] != b[j - 1])
        return min(replaced, slow(i - 1, j) + 1, slow(i, j - 1) + 1)

    assert edit_distance(a, b) == slow(len(a), len(b))


@given(texts, texts, texts)
def test_the_edit_distance_is_a_metric(a, b, c):
    """Zero for equals alone, the same both ways, and no detour is shorter."""
    assert (edit_distance(a, b) == 0) == np.array_equal(a, b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_the_edit_distance_is_known_on_paper():
    """The textbook's pair; and a shift by one token costs two, where a Hamming distance is all."""
    assert edit_distance(ids("kitten"), ids("sitting")) == 3
    assert edit_distance(ids("abcdefgh"), ids("xabcdefg")) == 2


def test_the_normalised_distance_is_a_share_of_the_longer_text():
    """So that it stays within [0, 1]."""
    assert normalised_edit_distance(ids("ab"), ids("abcd")) == 0.5
    assert normalised_edit_distance(ids("ab"), ids("cd")) == 1.0
    assert normalised_edit_distance(ids(""), ids("")) == 0.0


def test_one_edit_in_ten_is_still_approximately_extracted():
    """The limit itself counts, as in "up to"."""
    true = np.arange(50, dtype=np.int32)
    five, six = true.copy(), true.copy()
    five[::10] = 99
    six[::9] = 99

    assert approximately_extracted(true, true)
    assert approximately_extracted(five, true)
    assert not approximately_extracted(six, true)
    assert approximately_extracted(six, true, max_distance=0.12)


@given(texts, texts, st.floats(0, 1), st.floats(0, 1))
def test_a_looser_limit_loses_nothing_that_is_exact(generated, true, one_limit, other_limit):
    """Exact extraction implies every approximate one."""
    tight, loose = sorted((one_limit, other_limit))

    if np.array_equal(generated, true):
        assert approximately_extracted(generated, true, tight)
    if approximately_extracted(generated, true, tight):
        assert approximately_extracted(generated, true, loose)


@pytest.mark.parametrize(("n", "nats"), [(1, np.log(2)), (10, 2.7029), (1000, 7.2748)])
def test_what_samples_reveal_more_likely_than_not_costs_so_many_nats(n, nats):
    """Any less likely suffix is not counted, any likelier one is."""
    assert revealed_nats(n) == pytest.approx(nats, abs=1e-3)
    told = probabilistically_extracted(-revealed_nats(n) + np.array([1e-9, -1e-9]), n, 0.5)
    assert told.tolist() == [True, False]
