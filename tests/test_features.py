"""Features are formulas: each has a value known on paper."""

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memaudit.features import (
    FEATURE_SETS,
    corpus_features,
    is_aligned,
    mean,
    min_k_logprob,
    model_columns,
    model_features,
    perplexity,
    reason_in_words,
    suffix,
    zlib_entropy,
)
from memaudit.scores import TokenScores, WindowScores, stack_scores

PREFIX_LEN, SUFFIX_LEN = 3, 4
N_PREDICTED = PREFIX_LEN + SUFFIX_LEN - 1


def make_scores(logprobs, is_argmax=False, entropy=0.0, margin=0.0):
    """Scores from plain numbers, one for all tokens or one each."""
    return TokenScores(
        logprobs=np.broadcast_to(np.float32(logprobs), N_PREDICTED),
        is_argmax=np.broadcast_to(np.bool_(is_argmax), N_PREDICTED),
        entropy=np.broadcast_to(np.float32(entropy), N_PREDICTED),
        margin=np.broadcast_to(np.float32(margin), N_PREDICTED),
    )


def features_of(scores, role=None, occurrences=1):
    """Features of a window whose text does not matter."""
    known = corpus_features("some text that ends", "ends", occurrences)
    return known | model_features(scores, prefix_len=PREFIX_LEN, role=role)


@pytest.mark.parametrize(
    ("feature_set", "role"),
    [
        ("teacher", None),
        ("teacher+student", "student"),
        ("teacher+baseline", "baseline"),
        ("teacher+aligned_student", "aligned_student"),
    ],
)
def test_every_feature_of_the_set_comes_out_in_its_order_and_finite(feature_set, role):
    """A classifier names its columns; a run computes exactly what its models allow."""
    kl_divergence = None if role is None else np.full(N_PREDICTED, 0.5, dtype=np.float32)
    reference = None if role is None else make_scores(-2.0)
    if is_aligned(role or ""):
        assert reference is not None
        reference, kl_divergence = replace(reference, entropy=None), None
    scores = WindowScores(make_scores(-1.0), reference, kl_divergence)

    features = features_of(scores, role)

    assert tuple(features) == FEATURE_SETS[feature_set]
    assert all(math.isfinite(value) and type(value) is float for value in features.values())


def test_margins_tell_a_recitation_with_room_from_one_by_a_hair():
    """The smallest margin of the suffix decides; those of the prefix do not count."""
    margins = [-9.0, -9.0, 3.0, 0.5, 2.0, 4.0]

    features = features_of(WindowScores(make_scores(-1.0, margin=margins)))

    assert features["teacher_suffix_min_margin"] == 0.5
    expected = -sum(math.log1p(math.exp(-margin)) for margin in margins[2:])
    assert features["teacher_suffix_margin_log_odds"] == pytest.approx(expected)


def test_feature_names_are_unique_and_those_of_the_teacher_are_in_every_set():
    """A name has one meaning, so a teacher's classifier runs whatever else was scored."""
    for names in FEATURE_SETS.values():
        assert len(set(names)) == len(names)
        assert set(FEATURE_SETS["teacher"]) <= set(names)
    assert {"zlib_entropy", "teacher_perplexity", "baseline_perplexity", "kl_divergence"} <= set(
        FEATURE_SETS["teacher+baseline"]
    )


@pytest.mark.parametrize("vocabulary_size", [2, 50, 50_304])
def test_a_uniform_prediction_has_the_perplexity_of_its_vocabulary(vocabulary_size):
    """The meaning of perplexity: as unsure as among so many equal choices."""
    logprobs = np.full(99, -np.log(vocabulary_size), dtype=np.float32)

    assert perplexity(logprobs) == pytest.approx(vocabulary_size, rel=1e-5)


def test_perplexity_is_the_inverse_geometric_mean_of_probabilities():
    """One half, one quarter and one eighth have the geometric mean of one quarter."""
    assert perplexity(np.log([0.5, 0.25, 0.125])) == pytest.approx(4.0, rel=1e-12)
    assert perplexity(np.zeros(5, dtype=np.float32)) == 1.0


def test_an_absurd_perplexity_stays_finite():
    """A broken reference model must not turn a whole table into infinities."""
    assert perplexity(np.full(3, -1e30)) == pytest.approx(math.exp(80))


def test_the_suffix_starts_at_the_prediction_of_its_first_token():
    """Off by one: entry s is about token s + 1, so token 3 is entry 2."""
    about_token = np.arange(1, PREFIX_LEN + SUFFIX_LEN)

    assert suffix(about_token, PREFIX_LEN).tolist() == [3, 4, 5, 6]
    assert suffix(about_token, 1).tolist() == about_token.tolist()


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 50))
def test_a_suffix_has_as_many_entries_as_tokens(prefix_len, suffix_len):
    """Every token of the suffix is predicted, its first one from the prefix."""
    n_predicted = prefix_len + suffix_len - 1

    assert len(suffix(np.zeros(n_predicted), prefix_len)) == suffix_len


def test_model_features_are_those_of_the_formulas():
    """Entries 0 and 1 are about the prefix, 2 to 5 about the suffix."""
    teacher = make_scores(
        logprobs=[-8.0, -4.0, -1.0, -3.0, -2.0, -6.0],
        is_argmax=[0, 0, 1, 0, 1, 1],
        entropy=[3.0, 3.0, 0.5, 1.5, 1.0, 3.0],
    )

    features = features_of(WindowScores(teacher), occurrences=16)

    expected = {
        "teacher_perplexity": math.exp(4),
        "teacher_suffix_perplexity": math.exp(3),
        "teacher_suffix_logprob": -12.0,
        "teacher_suffix_mean_logprob": -3.0,
        "teacher_suffix_min_logprob": -6.0,
        "teacher_suffix_argmax_rate": 0.75,
        "teacher_entropy": 2.0,
        "teacher_suffix_entropy": 1.5,
        "teacher_suffix_max_entropy": 3.0,
        "teacher_min_k_logprob": -6.0,
        "occurrences": 16.0,
        "log_occurrences": math.log(16),
    }
    assert {name: features[name] for name in expected} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("role", "kl_name", "suffix_kl_name"),
    [
        ("baseline", "kl_divergence", "suffix_kl_divergence"),
        ("student", "student_kl_divergence", "student_suffix_kl_divergence"),
    ],
)
def test_a_reference_adds_divergence_and_log_ratio(role, kl_name, suffix_kl_name):
    """The divergence from the baseline bears the paper's name, that from the student its own."""
    kl_divergence = np.array([4.0, 2.0, 0.0, 0.0, 1.0, 5.0], dtype=np.float32)
    reference = make_scores([0.0, 0.0, -2.0, -4.0, -6.0, -8.0])
    scores = WindowScores(make_scores(-1.5), reference, kl_divergence)

    features = features_of(scores, role)

    assert features[kl_name] == 2.0
    assert features[suffix_kl_name] == 1.5
    assert features[f"{role}_suffix_log_ratio"] == 3.5
    assert features[f"{role}_suffix_mean_logprob"] == -5.0


@pytest.mark.parametrize(("n_tokens", "prefix_len"), [(2, 1), (37, 1), (100, 50), (700, 600)])
def test_many_windows_at_once_give_the_bits_of_one_after_the_other(n_tokens, prefix_len):
    """A chunk is the same file whatever stands beside a window."""
    rng = np.random.default_rng(0)
    shape = (300, n_tokens - 1)

    def some_scores():
        return [
            TokenScores(*columns)
            for columns in zip(
                -rng.gamma(1, 2, shape).astype(np.float32),
                rng.random(shape) < 0.5,
                rng.gamma(2, 1, shape).astype(np.float32),
                rng.normal(0, 5, shape).astype(np.float32),
                strict=True,
            )
        ]

    divergences = rng.gamma(1, 1, shape).astype(np.float32)
    scores = list(map(WindowScores, some_scores(), some_scores(), divergences))
    given = {"prefix_len": prefix_len, "role": "baseline"}
    columns = model_columns(stack_scores(scores), **given)
    for i, each in enumerate(scores):
        alone = model_features(each, **given)
        assert alone == {name: float(column[i]) for name, column in columns.items()}


def test_means_are_summed_in_double_precision():
    """A float32 sum over many tokens would drift with their number."""
    logprobs = np.full(3_000_001, 0.1, dtype=np.float32)

    assert mean(logprobs) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize(("n_tokens", "n_taken"), [(1, 1), (4, 1), (5, 1), (10, 2), (50, 10)])
def test_min_k_is_the_mean_of_the_least_probable_fifth(n_tokens, n_taken):
    """At least one token, wherever in the suffix the least probable ones stand."""
    logprobs = np.random.default_rng(0).permutation(-np.arange(n_tokens, dtype=np.float32))

    expected = -np.arange(n_tokens - n_taken, n_tokens).mean()
    assert min_k_logprob(logprobs) == pytest.approx(expected, rel=1e-12)


def test_zlib_entropy_counts_bytes_with_header_and_checksum():
    """Known lengths: 8 bytes for nothing, 9 for a letter; 2 bytes of UTF-8 for an umlaut."""
    assert zlib_entropy("") == 8.0
    assert zlib_entropy("a") == 9.0
    assert zlib_entropy("ü") == 10.0


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_zlib_entropy_is_defined_for_any_text(text):
    """Decoded windows may cut a character in two; lone surrogates are text as well."""
    compressed = zlib.compress(text.encode("utf-8", errors="surrogatepass"), level=6)

    assert zlib_entropy(text) == len(compressed)
    assert 0 < zlib_ratio(text) < 10


def zlib_ratio(text):
    """Return the feature of that name."""
    return corpus_features(text, text, 1)["zlib_ratio"]


def test_the_zlib_ratio_measures_repetition_and_not_length():
    """Twice the random text has about the same ratio; twice the repeated text a lower one."""
    rng = np.random.default_rng(0)
    prose = "".join(map(chr, rng.integers(97, 123, size=4000)))

    assert zlib_ratio(prose) == pytest.approx(zlib_ratio(prose[:2000]), rel=0.05)
    assert zlib_entropy(prose) > 1.9 * zlib_entropy(prose[:2000])
    assert zlib_ratio("again and " * 200) < 0.05 < zlib_ratio(prose)


UNREMARKABLE = {
    "occurrences": 1.0,
    "teacher_suffix_argmax_rate": 0.5,
    "teacher_suffix_entropy": 2.0,
    "zlib_ratio": 0.7,
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "nothing stands out"),
        ({"occurrences": 16.0}, "occurs 16 times"),
        ({"occurrences": 2.0, "zlib_ratio": 0.4}, "occurs 2 times, repetitive text"),
        ({"teacher_suffix_argmax_rate": 1.0}, "teacher recites it"),
        ({"teacher_suffix_argmax_rate": 0.9}, "teacher nearly recites it"),
        ({"teacher_suffix_argmax_rate": 0.89}, "nothing stands out"),
        ({"baseline_suffix_argmax_rate": 1.0}, "baseline recites it"),
        ({"student_suffix_argmax_rate": 0.99}, "nothing stands out"),
        (
            {"teacher_suffix_argmax_rate": 1.0, "student_suffix_argmax_rate": 1.0},
            "teacher and student recite it",
        ),
        ({"teacher_suffix_entropy": 0.49}, "low entropy"),
        ({"teacher_suffix_entropy": 0.5, "zlib_ratio": 0.5}, "nothing stands out"),
        (
            {"occurrences": 3.0, "teacher_suffix_argmax_rate": 1.0, "teacher_suffix_entropy": 0.1},
            "occurs 3 times, teacher recites it, low entropy",
        ),
    ],
)
def test_reasons_name_what_stands_out_most_telling_first(changes, reason):
    """A person reads this beside each flagged example."""
    assert reason_in_words(UNREMARKABLE | changes) == reason
