"""What sampling reveals: a map from each classifier's log-odds, fitted and judged on cell files."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from memaudit.classifier import SampledRisk, sigmoid
from memaudit.memorization import probabilistically_extracted
from memaudit.metrics import expected_count
from study.fit import Fitted, Run, Shipped, of_role, predictable, random_effect, source_groups
from study.tables import StudyTable, decimal

SAMPLES = (1, 10, 100, 1000)
"""Of each prefix, as `memaudit verify` counts."""

_NEVER = -20.0
"""Log-odds of what no run has."""


def fit_sampled(fitted: Fitted) -> tuple[SampledRisk, ...]:
    """Return what samples reveal, by log-odds that fits on other sources gave.

    One logistic regression on one number for each count of samples. Runs whose file does not say
    how likely a student finds the suffixes are passed over.
    """
    known = [(run, _logit(p)) for run, p in fitted.held_out if run.suffix_logprobs is not None]
    return tuple(_fit(known, n) for n in SAMPLES) if known else ()


def _fit(known: Sequence[tuple[Run, NDArray[np.float64]]], n: int) -> SampledRisk:
    """Fit the map on all runs, and its spread between runs by leaving source groups out."""
    groups = source_groups([run for run, _ in known])
    ratios, chance = [], []
    for group in groups:
        inside = [any(run is each for each in group) for run, _ in known]
        others = [each for each, is_in in zip(known, inside, strict=True) if not is_in]
        slope, intercept = _line(others or known, n)
        for run, log_odds in (each for each, is_in in zip(known, inside, strict=True) if is_in):
            expected = float((run.weight * sigmoid(slope * log_odds + intercept)).sum())
            found = float(run.weight[revealed(run, n)].sum())
            ratios.append(np.log((found + 0.5) / (expected + 0.5)))
            chance.append(1 / (found + 0.5))
    _, variance = random_effect(np.array(ratios), np.array(chance))
    slope, intercept = _line(known, n)
    log_sd = max(0.1, float(np.sqrt(variance)))
    return SampledRisk(samples=n, slope=slope, intercept=intercept, count_log_sd=log_sd)


def _line(known: Sequence[tuple[Run, NDArray[np.float64]]], n: int) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    weights = np.concatenate([run.weight / run.weight.sum() for run, _ in known])
    found = np.concatenate([revealed(run, n) for run, _ in known])
    if not found.any():
        return 0.0, _NEVER
    model = LogisticRegression(solver="newton-cholesky", max_iter=1_000).fit(
        np.concatenate([log_odds for _, log_odds in known])[:, None],
        found,
        sample_weight=weights * len(weights) / len(known),
    )
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def log_odds_of(fitted: Fitted, run: Run) -> NDArray[np.float64]:
    """Return (n,) calibrated log-odds of a run that nothing was fitted on."""
    return _logit(fitted.probabilities(run))


def _logit(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = logit(np.clip(probabilities, 1e-300, 1 - 1e-16))
    return found


def revealed(run: Run, n: int) -> NDArray[np.bool_]:
    """Return (n_windows,) which suffixes n samples of the student reveal, more likely than not."""
    assert run.suffix_logprobs is not None
    return probabilistically_extracted(run.suffix_logprobs, n, 0.5)


def sampling_table(
    runs: Sequence[Run],
    shipped: Mapping[str, tuple[Shipped, Fitted]],
    sampled: Mapping[str, tuple[SampledRisk, ...]],
) -> StudyTable:
    """Return what was expected of sampling the students of test cells, beside what was found."""
    from sklearn.metrics import average_precision_score

    rows = []
    for name, (spec, fitted) in shipped.items():
        for run in of_role(predictable(runs, spec), "test"):
            if run.suffix_logprobs is None:
                continue
            log_odds = log_odds_of(fitted, run)
            for each in sampled[name]:
                p = sigmoid(each.slope * log_odds + each.intercept)
                found = revealed(run, each.samples)
                total = float(run.weight[found].sum())
                copies = np.repeat(p, np.rint(run.weight).astype(int))
                interval = expected_count(copies, each.count_log_sd)
                rows.append(
                    (
                        *(name, run.label, f"{each.samples:,}"),
                        decimal(float((run.weight * p).sum()), 1),
                        f"{interval.low}–{interval.high}",
                        decimal(total, 0),
                        "yes" if interval.low <= total <= interval.high else "no",
                        decimal(average_precision_score(found, p, sample_weight=run.weight))
                        if found.any()
                        else "–",
                    )
                )
    return StudyTable(
        "sampling",
        "What samples of each suffix reveal, of test cells",
        ("classifier", "run", "samples", "expected", "interval", "found", "covers", "PR-AUC"),
        tuple(rows),
        (
            "Found are windows whose suffix at least one of the samples is, with a probability of "
            "one half or more; at temperature 1, from the whole vocabulary.",
        ),
        n_labels=3,
    )
