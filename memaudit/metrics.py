"""Metrics: how well probabilities predict what is extracted, and how sure one can be of it.

Throughout, `extracted` is (n,) bool, what was observed, and `probabilities` is (n,) float, what
was predicted; ranking metrics take any score. A metric that does not exist for the examples at
hand (no positive, no pair) is None.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Metric = Callable[[NDArray[np.bool_], NDArray[np.float64]], float | None]
"""Anything of `extracted` and `probabilities`, such as `pr_auc`."""

_Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution: 95 %, two-sided


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a number lies, at the confidence asked for."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ExpectedCount:
    """How many examples are expected to be memorized."""

    mean: float
    """Sum of the probabilities."""

    low: int
    high: int
    """Ends of the 95 % interval, at least 0 and at most the number of examples."""


def roc_auc(extracted: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> float | None:
    """Return how often a random positive outranks a random negative; a tie counts half.

    Returns:
        in [0, 1]; None without a positive or without a negative.
    """
    n_positives = int(extracted.sum())
    n_pairs = n_positives * (len(extracted) - n_positives)
    if n_pairs == 0:
        return None
    _, inverse, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    # The ranks of the positives tell how many pairs they win (Mann & Whitney 1947); ties share one.
    average_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(average_ranks[inverse][extracted].sum())
    return (rank_sum - n_positives * (n_positives + 1) / 2) / n_pairs


def pr_auc(extracted: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> float | None:
    """Return the average precision: the sum of precision times gain in recall, by threshold.

    Not interpolated, as in scikit-learn. Chance level is the prevalence.

    Returns:
        in (0, 1]; None without a positive.
    """
    n_positives = int(extracted.sum())
    if n_positives == 0:
        return None
    # One threshold for each different score: equal ones are flagged together.
    levels, inverse = np.unique(-probabilities, return_inverse=True)
    n_flagged = np.cumsum(np.bincount(inverse, minlength=len(levels)))
    gained = np.bincount(inverse[extracted], minlength=len(levels))
    return float((np.cumsum(gained) / n_flagged * gained).sum() / n_positives)


def brier(extracted: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> float | None:
    """Return the mean squared difference of probability and outcome; None for no examples."""
    if len(extracted) == 0:
        return None
    return float(np.square(probabilities - extracted).mean())


def expected_calibration_error(
    extracted: NDArray[np.bool_], probabilities: NDArray[np.float64], n_bins: int = 10
) -> float | None:
    """Return the mean gap between predicted and observed share, over bins of equal size.

    Bins of equal size, not of equal width: nearly all probabilities are near 0 here. Equal
    probabilities share a bin, so that the order of examples does not matter.

    Returns:
        in [0, 1], bins weighted by their examples; None for no examples.
    """
    n = len(extracted)
    if n == 0:
        return None
    first_ranks = np.searchsorted(np.sort(probabilities), probabilities)
    gaps = np.bincount(first_ranks * n_bins // n, weights=probabilities - extracted)
    return float(np.abs(gaps).sum() / n)


def expected_count(
    probabilities: NDArray[np.float64], log_sd: float, copies: NDArray[np.int64] | None = None
) -> ExpectedCount:
    """Return how many examples will be memorized, with a 95 % interval.

    Two things may be off: chance (the variance of a sum of independent Bernoulli variables,
    `v = sum(copies**2 * p * (1 - p))`, for copies of a text share its fate) and the level of all probabilities in a corpus unlike those that
    the classifier was calibrated on (a factor, log-normal with median 1). With `m = sum(copies * p)` and
    `z = 1.96`, each side of the interval adds the two half-widths as independent:

        low  = m - sqrt((m - m * exp(-z * log_sd))**2 + z**2 * v)
        high = m + sqrt((m * exp(z * log_sd) - m)**2 + z**2 * v)

    and is rounded outwards to whole examples, within 0 and n.
    Source: Zou & Donner 2008 (doi:10.1002/sim.3095).

    Args:
        probabilities: (n,) calibrated, in [0, 1].
        log_sd: standard deviation of the factor's logarithm, at least 0.
        copies: (n,) how many examples each probability stands for. None: one.
    """
    if copies is None:
        copies = np.ones(len(probabilities), dtype=np.int64)
    mean = float((copies * probabilities).sum())
    chance = _Z_95 * math.sqrt((copies**2 * probabilities * (1 - probabilities)).sum())
    # Squares are added, not widths: chance and level are seldom at their worst together. A factor
    # is symmetric in its logarithm alone, so the upper side is the wider one.
    low = mean - math.hypot(mean * math.expm1(-_Z_95 * log_sd), chance)
    high = mean + math.hypot(mean * math.expm1(_Z_95 * log_sd), chance)
    return ExpectedCount(
        mean=mean, low=max(0, math.floor(low)), high=min(int(copies.sum()), math.ceil(high))
    )


def clopper_pearson(n_hits: int, n_trials: int, confidence: float = 0.95) -> Interval:
    """Return the exact two-sided interval of a share.

    Source: Clopper & Pearson 1934 (doi:10.1093/biomet/26.4.404).

    Args:
        n_hits: in 0 to n_trials.
        n_trials: 0 gives the whole of [0, 1].
        confidence: in (0, 1); each side may miss with half of the rest.
    """
    if not 0 <= n_hits <= n_trials:
        raise ValueError(f"expected 0 <= n_hits <= n_trials, got {n_hits} of {n_trials}")
    tail = (1 - confidence) / 2
    # The upper end for hits is the lower end for misses, seen from the other side.
    n_misses = n_trials - n_hits
    # Without a hit, or without a miss, that end is exact: there is no quantile of a or b = 0.
    low = _beta_quantile(tail, n_hits, n_misses + 1) if n_hits else 0.0
    high = 1.0 - _beta_quantile(tail, n_misses, n_hits + 1) if n_misses else 1.0
    return Interval(low, high)


def _beta_quantile(probability: float, a: int, b: int) -> float:
    """Return x in (0, 1) with I_x(a, b) = probability, by halving.

    Not scipy's: a gate needs intervals, and is installed without scipy.
    """
    low, high = 0.0, 1.0
    # It ends at the latest where no float lies between the two ends.
    while low < (middle := (low + high) / 2) < high and high - low > 1e-15 * high:
        if _beta_cdf(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return middle


def _beta_cdf(x: float, a: int, b: int) -> float:
    """Return the regularized incomplete beta function I_x(a, b) for x in (0, 1), a and b from 1.

    By its continued fraction, evaluated from the front with the method of Lentz.
    Source: NIST Digital Library of Mathematical Functions, 8.17.22 (convergence) and 1.12.
    """
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, its mirror image does not
        return 1.0 - _beta_cdf(1.0 - x, b, a)
    # In logarithms: the gamma function itself overflows beyond 171.
    log_front = a * math.log(x) + b * math.log1p(-x) - math.log(a)
    log_front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    value, upper, lower, m = 1.0, 1.0, 0.0, 0
    while True:
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        even = (m + 1) * (b - m - 1) * x / ((a + 2 * m + 1) * (a + 2 * m + 2))
        before = value
        for term in (odd, even):
            lower = 1.0 / (1.0 + term * lower)
            upper = 1.0 + term / upper
            value *= upper * lower
        if abs(value - before) <= 1e-15 * abs(value):
            return math.exp(log_front) / value
        m += 1
