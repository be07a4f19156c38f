"""What sampling reveals: a map from each classifier's log-odds, fitted and judged on cell files."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from memaudit.classifier import SampledRisk
from memaudit.memorization import probabilistically_extracted
from memaudit.metrics import expected_count
from study.fit import Fitted, Run, Shipped, of_role, predictable, random_effect, source_groups
from study.tables import StudyTable, decimal

SAMPLES = (10, 100, 1000)
"""Of each prefix. What a single one reveals, fits on other sources did not tell: 2 for 18."""

_NATS = np.geomspace(0.01, 0.5, 8)
"""Per token: at which the map is fitted. 10 to 1,000 samples of 16 to 50 tokens lie between."""

Told = tuple[Run, NDArray[np.float64]]
"""A run, and log-odds of its windows that a fit on other sources gave."""


def fit_sampled(fitted: Fitted) -> SampledRisk | None:
    """Return what samples reveal; None if no file of its runs says how likely suffixes are.

    One logistic regression for all numbers of samples and all lengths. Each run weighs the same.
    """
    known = [(run, _logit(p)) for run, p in fitted.held_out if run.suffix_logprobs is not None]
    if not known:
        return None
    misses: dict[int, list[tuple[float, float]]] = {n: [] for n in SAMPLES}
    for group in source_groups([run for run, _ in known]):
        inside = [each for each in known if any(each[0] is run for run in group)]
        outside = [each for each in known if not any(each[0] is run for run in group)]
        sampled = _fit(outside or inside)
        for run, log_odds in inside:
            for n, p in zip(SAMPLES, predicted(sampled, run, log_odds), strict=True):
                expected, found = (run.weight * p).sum(), run.weight[revealed(run, n)].sum()
                miss = float(np.log((found + 0.5) / (expected + 0.5)))
                misses[n].append((miss, float(1 / (found + 0.5))))
    spread = {n: random_effect(*np.array(each).T)[1] ** 0.5 for n, each in misses.items()}
    # What samples reveal follows from the log-odds, and cannot be surer than their level is.
    return _fit(known, {n: max(log_sd, fitted.log_sd) for n, log_sd in spread.items()})


def _fit(known: Sequence[Told], log_sds: Mapping[int, float] | None = None) -> SampledRisk:
    from sklearn.linear_model import LogisticRegression

    log_odds = np.concatenate([each for _, each in known])
    nats = np.concatenate([_nats(run) for run, _ in known])
    weights = np.concatenate([run.weight / run.weight.sum() for run, _ in known])
    stacked = [_inputs(log_odds, allowed) for allowed in _NATS]
    model = LogisticRegression(solver="newton-cholesky", max_iter=1_000).fit(
        np.concatenate(stacked),
        np.concatenate([nats <= allowed for allowed in _NATS]),
        sample_weight=np.tile(weights * len(weights) / len(known), len(_NATS)),
    )
    slope, nats_slope, interaction = model.coef_[0].tolist()
    log_sds = log_sds or dict.fromkeys(SAMPLES, 0.0)
    return SampledRisk(
        intercept=float(model.intercept_[0]),
        slope=slope,
        nats_slope=nats_slope,
        interaction=interaction,
        count_log_sds=tuple((n, max(0.1, float(log_sd))) for n, log_sd in log_sds.items()),
    )


def _inputs(log_odds: NDArray[np.float64], allowed: float) -> NDArray[np.float64]:
    log_nats = np.full(len(log_odds), np.log(allowed))
    return np.column_stack([log_odds, log_nats, log_odds * log_nats])


def _nats(run: Run) -> NDArray[np.float64]:
    """Return (n,) what each suffix costs the student, per token."""
    assert run.suffix_logprobs is not None
    found: NDArray[np.float64] = -run.suffix_logprobs / run.columns["suffix_tokens"]
    return found


def predicted(sampled: SampledRisk, run: Run, log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (len(SAMPLES), n) how likely samples reveal each window of a run."""
    return sampled.predict(log_odds, run.columns["suffix_tokens"].astype(np.float64))


def revealed(run: Run, n: int) -> NDArray[np.bool_]:
    """Return (n_windows,) which suffixes n samples of the student reveal, more likely than not."""
    assert run.suffix_logprobs is not None
    return probabilistically_extracted(run.suffix_logprobs, n, 0.5)


def log_odds_of(fitted: Fitted, run: Run) -> NDArray[np.float64]:
    """Return (n,) calibrated log-odds of a run that nothing was fitted on."""
    return _logit(fitted.probabilities(run))


def _logit(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = logit(np.clip(probabilities, 1e-300, 1 - 1e-16))
    return found


def borrowed(sampled: SampledRisk, other: SampledRisk) -> SampledRisk:
    """Return a map with the spread of another one, where that is wider."""
    log_sds = zip(sampled.count_log_sds, other.count_log_sds, strict=True)
    wider = tuple((n, max(log_sd, theirs)) for (n, log_sd), (_, theirs) in log_sds)
    return msgspec.structs.replace(sampled, count_log_sds=wider)


def sampling_table(
    runs: Sequence[Run],
    shipped: Mapping[str, tuple[Shipped, Fitted]],
    maps: Mapping[str, SampledRisk | None],
) -> StudyTable:
    """Return what was expected of sampling the students of test cells, beside what was found."""
    rows = []
    for name, (spec, fitted) in shipped.items():
        sampled = maps[name]
        for run in of_role(predictable(runs, spec), "test"):
            if run.suffix_logprobs is not None and sampled is not None:
                rows += [
                    (name, run.label, f"{run.columns['suffix_tokens'][0]}", *found)
                    for found in _judged(sampled, run, log_odds_of(fitted, run))
                ]
    return StudyTable(
        "sampling",
        "What samples of each suffix reveal, of test cells",
        (
            *("classifier", "run", "suffix tokens", "samples"),
            *("expected", "interval", "found", "covers", "PR-AUC"),
        ),
        tuple(rows),
        (
            "Found are windows of which, with a probability of one half or more, at least one of "
            "the samples is exactly the suffix; at temperature 1, from the whole vocabulary.",
        ),
        n_labels=2,
    )


def _judged(
    sampled: SampledRisk, run: Run, log_odds: NDArray[np.float64]
) -> Iterator[tuple[str, ...]]:
    from sklearn.metrics import average_precision_score

    found_by = zip(sampled.count_log_sds, predicted(sampled, run, log_odds), strict=True)
    for (n, log_sd), p in found_by:
        found = revealed(run, n)
        total = float(run.weight[found].sum())
        interval = expected_count(np.repeat(p, np.rint(run.weight).astype(int)), log_sd)
        covers = interval.low <= total <= interval.high
        ranked = average_precision_score(found, p, sample_weight=run.weight) if total else None
        yield (
            *(f"{n:,}", decimal(interval.mean, 1), f"{interval.low}–{interval.high}"),
            *(f"{total:.0f}", "yes" if covers else "no", decimal(ranked)),
        )
