"""Labelled runs whose risk is known."""

import numpy as np

from memaudit.training.fitting import LabelledRun

FEATURES = ("zlib_entropy", "log_occurrences", "teacher_suffix_mean_logprob")
SIGNAL, NOISE, COUNT = "teacher_suffix_mean_logprob", "zlib_entropy", "log_occurrences"


def make_run(name, seed, n=400, level=-3.0, sign=1.0):
    """A run whose risk is known: sigmoid(1.5 * log-probability + 2 * log count + level)."""
    rng = np.random.default_rng(seed)
    features = {
        "zlib_entropy": rng.normal(120, 15, size=n).round(),
        "log_occurrences": np.log(rng.integers(1, 5, size=n)),
        "teacher_suffix_mean_logprob": rng.normal(size=n) - 2,
    }
    logit = 1.5 * (features[SIGNAL] + 2) + 2 * features[COUNT] + level
    extracted = rng.random(n) < 1 / (1 + np.exp(-sign * logit))
    return LabelledRun(name, features, extracted)


RUNS = [make_run(f"run-{seed}", seed) for seed in range(4)]
"""Of one kind of corpus."""
