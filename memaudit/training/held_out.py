"""Held-out figures: what a fit says about examples that neither it nor its threshold has seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import RiskClassifier
from memaudit.metrics import (
    ExpectedCount,
    Interval,
    Metric,
    brier,
    clopper_pearson,
    expected_calibration_error,
    pr_auc,
    roc_auc,
)
from memaudit.training.labelled_run import LabelledRun, feature_matrix

_N_RESAMPLES = 500


@dataclass(frozen=True, slots=True)
class HeldOutRun:
    """Predictions for the examples of a run that were held out, or for all of them."""

    name: str
    """Of the run."""

    run: LabelledRun
    """Their features and what the student did."""

    probabilities: NDArray[np.float64]
    """(n,) predicted."""

    flagged: NDArray[np.bool_]
    """(n,) at or above the threshold of the fit that predicted it."""

    expected: tuple[ExpectedCount, ...]
    """How many would be memorized, by fit."""

    features: tuple[tuple[str, ...], ...]
    """Of each fit."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval."""

    value: float | None
    """None where it does not exist."""

    interval: Interval | None
    """None where the number is too often undefined."""

    def document(self) -> dict[str, float | None]:
        """Return `value`, `low` and `high`, to the six decimals that every processor agrees on."""
        bounds = (None, None) if self.interval is None else (self.interval.low, self.interval.high)
        numbers = dict(zip(("value", "low", "high"), (self.value, *bounds), strict=True))
        return {key: x if x is None else round(x, 6) for key, x in numbers.items()}


def judge_held_out(name: str, classifier: RiskClassifier, run: LabelledRun) -> HeldOutRun:
    """Return what a classifier says about examples that it was not fitted on."""
    probabilities = classifier.predict_proba(feature_matrix(run, classifier.features))
    return HeldOutRun(
        name=name,
        run=run,
        probabilities=probabilities,
        flagged=probabilities >= classifier.threshold,
        expected=(classifier.expected_count(probabilities),),
        features=(classifier.features,),
    )


def merge_by_name(parts: Sequence[HeldOutRun]) -> list[HeldOutRun]:
    """Return one entry a name: the parts of a run that were held out from different fits."""
    names = dict.fromkeys(part.name for part in parts)
    return [_merged([part for part in parts if part.name == name]) for name in names]


def _merged(parts: Sequence[HeldOutRun]) -> HeldOutRun:
    first = parts[0]
    columns = {
        feature: np.concatenate([part.run.features[feature] for part in parts])
        for feature in first.run.features
    }
    return HeldOutRun(
        name=first.name,
        run=LabelledRun(
            first.name, columns, np.concatenate([part.run.extracted for part in parts])
        ),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        flagged=np.concatenate([part.flagged for part in parts]),
        expected=tuple(count for part in parts for count in part.expected),
        features=tuple(names for part in parts for names in part.features),
    )


_RANKING = {"roc_auc": roc_auc, "pr_auc": pr_auc}
_PROBABILITY = {"brier": brier, "calibration_error": expected_calibration_error}


def held_out_figures(
    runs: Sequence[HeldOutRun], *, with_threshold: bool, resample_runs: bool, seed: int
) -> dict[str, Figure]:
    """Return how well predictions do, by name, at the prevalence of each run.

    ROC-AUC and PR-AUC are means over runs, the others are over the examples of all runs
    together. Shares have exact intervals (Clopper-Pearson), for examples that are independent;
    the others are resampled.

    Args:
        runs: at least one.
        with_threshold: whether calibration and threshold have not seen the examples, so that
            what depends on them may be said.
        resample_runs: whether an interval covers which runs there are, beside their examples.
        seed: of the resampling.
    """
    extracted = np.concatenate([part.run.extracted for part in runs])
    figures = {"prevalence": _share(int(extracted.sum()), len(extracted))}
    figures |= _bootstrapped(runs, _RANKING, _mean_over_runs, resample_runs, seed)
    if with_threshold:
        flagged = np.concatenate([part.flagged for part in runs])
        n_caught = int((extracted & flagged).sum())
        figures["precision"] = _share(n_caught, int(flagged.sum()))
        figures["recall"] = _share(n_caught, int(extracted.sum()))
        figures |= _bootstrapped(runs, _PROBABILITY, _pooled, resample_runs, seed)
    return figures


def _share(n_hits: int, n_trials: int) -> Figure:
    if n_trials == 0:
        return Figure(None, None)
    return Figure(n_hits / n_trials, clopper_pearson(n_hits, n_trials))


_Pair = tuple[NDArray[np.bool_], NDArray[np.float64]]


def _mean_over_runs(metric: Metric, pairs: Sequence[_Pair]) -> float | None:
    values = [metric(extracted, probabilities) for extracted, probabilities in pairs]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _pooled(metric: Metric, pairs: Sequence[_Pair]) -> float | None:
    return metric(*(np.concatenate(columns) for columns in zip(*pairs, strict=True)))


def _bootstrapped(
    runs: Sequence[HeldOutRun],
    metrics: Mapping[str, Metric],
    combine: Callable[[Metric, Sequence[_Pair]], float | None],
    resample_runs: bool,
    seed: int,
) -> dict[str, Figure]:
    rng = np.random.default_rng(seed)
    pairs = [(part.run.extracted, part.probabilities) for part in runs]
    values: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(_N_RESAMPLES):
        order = rng.integers(len(pairs), size=len(pairs)) if resample_runs else range(len(pairs))
        drawn = [_resampled(pairs[i], rng) for i in order]
        for name, metric in metrics.items():
            value = combine(metric, drawn)
            if value is not None:
                values[name].append(value)
    return {
        name: Figure(combine(metric, pairs), _percentiles(values[name]))
        for name, metric in metrics.items()
    }


def _resampled(pair: _Pair, rng: np.random.Generator) -> _Pair:
    drawn = rng.integers(len(pair[0]), size=len(pair[0]))
    return pair[0][drawn], pair[1][drawn]


def _percentiles(values: Sequence[float]) -> Interval | None:
    if 2 * len(values) <= _N_RESAMPLES:
        return None
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return Interval(low, high)
