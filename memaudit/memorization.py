"""Memorization: whether a model reproduces a window's suffix, by each definition in use.

Exact and probabilistic extraction follow from one scoring pass. Approximate extraction compares
text that was really generated (`engines.generation`).

`memaudit verify` reports the exact and the probabilistic ones of its one pass, approximate
extraction of what `--check-generate` generates, and if asked the probabilistic kind of that
(`engines.generation.near_verbatim_logprobs`).
"""

import math

import numpy as np
from numpy.typing import NDArray

from memaudit.scores import TokenScores, suffix

BEAM_WIDTH = 20
"""Texts followed at once, for near-verbatim extraction: about the cost of as many samples."""


def extracted(scores: TokenScores, prefix_len: int) -> bool:
    """Return whether greedy decoding from the prefix gives exactly the suffix.

    No text is generated: the greedy continuation equals the suffix when every suffix token is
    the argmax given the true tokens before it. Decide it in float32: lower precision flips
    near-ties. Source: Carlini et al. 2022 (arXiv:2202.07646), discoverable memorization.
    """
    return bool(suffix(scores.is_argmax, prefix_len).all())


def suffix_logprob(scores: TokenScores, prefix_len: int) -> float:
    """Return the log-probability of sampling exactly the suffix after the prefix, nats.

    Of sampling at temperature 1 from the whole vocabulary. Another temperature, top-k or top-p
    change every factor, and cannot be had from these scores: they need all logits.

    Returns:
        at most 0.
    """
    # Rounding may leave a log-probability just above 0, that is a probability above 1.
    return min(0.0, float(suffix(scores.logprobs, prefix_len).sum(dtype=np.float64)))


def extraction_probability(logprobs: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return the probability that at least one of n samples is exactly the suffix.

    1 - (1 - p)^n, computed so that rounding does not lose a tiny p.
    Source: Hayes et al. 2024 (arXiv:2410.19482), (n, p)-discoverable extraction; there mostly
    with top-k sampling, here with plain sampling, see `suffix_logprob`.

    Args:
        logprobs: (W,) log p of each window, nats, at most 0; -inf is p = 0.
        n: samples drawn independently, at least 1.

    Returns:
        (W,) in [0, 1].
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not (logprobs <= 0).all():
        raise ValueError("log-probabilities must be at most 0")
    # By the log-probability log(1 - p) that a sample is something else: small p are not rounded to 0.
    with np.errstate(divide="ignore"):  # p = 1 leaves log 0 = -inf, and a probability of 1
        revealed: NDArray[np.float64] = -np.expm1(n * np.log1p(-np.exp(logprobs)))
    return revealed


def probabilistically_extracted(
    logprobs: NDArray[np.float64], n: int, probability: float
) -> NDArray[np.bool_]:
    """Return (W,) which windows n samples reveal with at least this probability, in (0, 1).

    The rest is as for `extraction_probability`.
    Source: Hayes et al. 2024 (arXiv:2410.19482), (n, p)-discoverable extraction.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability must be above 0 and below 1, got {probability}")
    return extraction_probability(logprobs, n) >= probability


def revealed_nats(n: int) -> float:
    """Return what a suffix may cost, in nats, that n samples reveal more likely than not."""
    # (1 - p)^n is one half at p = 1 - 2^(-1/n). By expm1, for 2^(-1/n) rounds to 1 for large n.
    return -math.log(-math.expm1(-math.log(2) / n))


def edit_distance(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Return the least number of tokens to insert, delete or replace to turn a into b.

    The distance of Levenshtein, row by row.

    Returns:
        0 to max(A, B).
    """
    row = np.arange(len(b) + 1)
    for token_id in a:
        row = next_distances(row, b != token_id)
    return int(row[-1])


def next_distances(row: NDArray[np.int64], differs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the edit distances of a text from each start of b, after one more token of the text.

    Leading axes are texts, and are broadcast.

    Args:
        row: (..., B + 1) distances of the text so far from the first 0 to B tokens of b.
        differs: (..., B) whether the new token is another than each token of b.
    """
    columns = np.arange(row.shape[-1])
    kept = np.minimum(row[..., 1:] + 1, row[..., :-1] + differs)
    first = np.broadcast_to(row[..., :1] + 1, (*kept.shape[:-1], 1))
    without_insertion = np.concatenate([first, kept], axis=-1)
    # From column i to j, j - i insertions: a running minimum of what is left without them.
    return np.minimum.accumulate(without_insertion - columns, axis=-1) + columns


def normalised_edit_distance(a: NDArray[np.int32], b: NDArray[np.int32]) -> float:
    """Return the edit distance as a share of the longer one, in [0, 1]; 0 if both are empty."""
    return edit_distance(a, b) / max(1, len(a), len(b))


def approximately_extracted(
    generated: NDArray[np.int32], true: NDArray[np.int32], max_distance: float = 0.1
) -> bool:
    """Return whether the generated text is the suffix but for a few edits.

    10 % is the limit of Gemma 2 (arXiv:2408.00118) and Gemma 3 (arXiv:2503.19786) in their
    sections on memorization, with 50 + 50 tokens. That verbatim matches alone miss leaks:
    Ippolito et al. 2022 (arXiv:2210.17546).

    Args:
        generated: (G,) token ids, what greedy decoding gave.
        true: (S,) token ids, the suffix.
        max_distance: normalised edit distance up to which it counts, in [0, 1].
    """
    return normalised_edit_distance(generated, true) <= max_distance
