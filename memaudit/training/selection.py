"""Selection: which features a fit may look at, and which of them predict best.

What is chosen is judged on runs that were not fitted on.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from memaudit.classifier import (
    RiskClassifier,
    find_classifier,
    shipped_classifiers_dir,
    shipped_name,
)
from memaudit.errors import ClassifierError, UsageError
from memaudit.features import KNOWN_FEATURES
from memaudit.objectives import ObjectiveKind
from memaudit.text import safe_text
from memaudit.training.fitting import LabelledRun, example_weights, feature_matrix, pooled_labels
from memaudit.training.inputs import Input

MIN_RUN_POSITIVES = 5
"""Extracted examples of a run below which its log loss says little about positives."""

_MIN_GAIN = 0.02  # of the log loss; less is within the noise of a rerun
_N_FOLDS = 5
_NEVER_CHOSEN = ("occurrences",)  # log_occurrences says the same without the long tail


@dataclass(frozen=True, slots=True)
class SelectionResult:
    """Features chosen by forward selection."""

    features: tuple[str, ...]
    """In the order of the feature set, as a classifier wants them."""

    log_loss: float
    """Mean over held-out runs, nats; slightly optimistic, for the features were chosen by it."""

    steps: tuple[tuple[str, float], ...]
    """Feature added and log loss reached, in the order chosen."""


@dataclass(frozen=True, slots=True)
class _Fold:
    """Standardised training rows, and the runs held out."""

    X: NDArray[np.float64]
    y: NDArray[np.bool_]
    weights: NDArray[np.float64]
    held_out: list[tuple[NDArray[np.float64], NDArray[np.bool_]]]

    def log_losses(self, columns: Sequence[int]) -> Iterator[float]:
        """Yield the log loss over each run held out of a fit on the given columns, nats."""
        # Looser than a fit: there are many of these, and gains below 2 % do not count.
        regression = LogisticRegression(solver="lbfgs", tol=1e-4, max_iter=10_000)
        regression.fit(self.X[:, columns], self.y, sample_weight=self.weights)
        for X, extracted in self.held_out:
            logits = regression.decision_function(X[:, columns])
            # log(1 + exp(-z)) for a positive, log(1 + exp(z)) for a negative.
            yield float(np.logaddexp(0, np.where(extracted, -logits, logits)).mean())


def select_features(
    runs: Sequence[LabelledRun],
    candidates: Sequence[str],
    *,
    feature_set: str,
    max_features: int = 8,
) -> SelectionResult:
    """Return the features that predict best on runs not fitted on, chosen one by one.

    Each step adds the candidate with the least log loss, a mean over held-out runs, and stops
    when that gains less than 2 %. Unlike a ranking metric the log loss also asks whether the
    level is right in a run that was not fitted on: features that only rank within a run leave
    the number expected there off by a factor. Each run is held out alone or, when there are more
    than 5, with every fifth.

    Args:
        runs: at least 2, of which 2 with 5 extracted examples.
        candidates: feature names; of equal ones the first wins.
        feature_set: key of `FEATURE_SETS`; holds the candidates.
        max_features: at most.

    Raises:
        ClassifierError: too few runs with positives, or a feature that a run lacks.
    """
    names = [name for name in KNOWN_FEATURES[feature_set] if name in candidates]
    column = {name: index for index, name in enumerate(names)}
    folds = _folds(runs, names)
    chosen, steps, best = list[str](), list[tuple[str, float]](), np.inf
    while len(chosen) < max_features:
        left = [name for name in candidates if name not in chosen]
        tried = [[column[kept] for kept in (*chosen, name)] for name in left]
        values = [
            float(np.mean([loss for fold in folds for loss in fold.log_losses(columns)]))
            for columns in tried
        ]
        if not values or min(values) > best * (1 - _MIN_GAIN):
            break
        best = min(values)
        # The first of equal ones: the order of the set then decides, not the processor.
        chosen.append(left[values.index(best)])
        steps.append((chosen[-1], best))
    in_order = tuple(name for name in names if name in chosen)
    return SelectionResult(in_order, best, tuple(steps))


def _folds(runs: Sequence[LabelledRun], names: Sequence[str]) -> list[_Fold]:
    if sum(run.n_extracted >= MIN_RUN_POSITIVES for run in runs) < 2:
        raise ClassifierError(
            f"choosing features needs at least 2 runs with {MIN_RUN_POSITIVES} extracted "
            f"examples, the {len(runs)} runs given have fewer",
            hint="give more runs, or name the features yourself",
        )
    # Dealt out with these first, so that no fold lacks positives to fit on.
    runs = sorted(runs, key=lambda run: run.n_extracted < MIN_RUN_POSITIVES)
    matrices = [feature_matrix(run, names) for run in runs]
    n_folds = min(_N_FOLDS, len(runs))
    folds = []
    for fold in range(n_folds):
        kept = [i for i in range(len(runs)) if i % n_folds != fold]
        weights = example_weights([runs[i] for i in kept])
        X = np.concatenate([matrices[i] for i in kept])
        # Fitted without the held-out runs: their means and scales are part of what is unseen.
        scaler = StandardScaler().fit(X, sample_weight=weights)
        held_out = [
            (scaler.transform(matrices[i]), runs[i].extracted)
            for i in range(fold, len(runs), n_folds)
        ]
        labels = pooled_labels([runs[i] for i in kept])
        # A column is standardised by itself: features chosen later are columns of this matrix.
        folds.append(_Fold(scaler.transform(X), labels, weights, held_out))
    return folds


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """Which features there are."""

    feature_set: str
    objective: ObjectiveKind
    columns: tuple[str, ...]
    """Those of the set that every table of scores has, in its order."""

    given: tuple[str, ...]
    """Those to fit on, in the order of the set; empty: they are chosen."""

    def classifier(self, name_or_path: str | None = None) -> RiskClassifier:
        """Return the one asked for, or the shipped one, as `find_classifier` does."""
        return find_classifier(name_or_path, self.feature_set, self.objective)


def plan_features(
    inputs: Sequence[Input],
    feature_set: str | None,
    given: Sequence[str],
    objective: ObjectiveKind = "soft",
) -> FeaturePlan:
    """Return what the tables allow; no feature set is the one that most columns belong to.

    Raises:
        UsageError: a feature is not of the set.
        ClassifierError: a table has none of the set's features, or lacks one that is given.
    """
    shared = set.intersection(*(set(one.scores.numbers) for one in inputs))
    # Of equal ones the first, which needs the fewest models: all sets have the teacher's columns.
    name = feature_set or max(KNOWN_FEATURES, key=lambda key: len(shared & {*KNOWN_FEATURES[key]}))
    unknown = [feature for feature in given if feature not in KNOWN_FEATURES[name]]
    if unknown:
        close = difflib.get_close_matches(unknown[0], KNOWN_FEATURES[name], n=1)
        raise UsageError(
            f"no feature {safe_text(unknown[0])} in the set {name}",
            hint=f"did you mean {close[0]}?"
            if close
            else f"choose from {', '.join(KNOWN_FEATURES[name])}",
        )
    columns = tuple(feature for feature in KNOWN_FEATURES[name] if feature in shared)
    in_order = tuple(feature for feature in KNOWN_FEATURES[name] if feature in given)
    plan = FeaturePlan(name, objective, columns, in_order)
    _require_columns(plan, in_order if columns else KNOWN_FEATURES[name], inputs)
    return plan


def choose_features(
    plan: FeaturePlan, runs: Sequence[LabelledRun], inputs: Sequence[Input]
) -> tuple[tuple[str, ...], SelectionResult | None]:
    """Return the features to fit on, and how they were chosen if they were.

    Chosen by forward selection where at least two runs hold five extracted examples each; else
    those of the shipped classifier of the same set, for soft labels if none is for the objective.

    Raises:
        ClassifierError: nothing is shipped for the set, or a table lacks a feature.
    """
    if plan.given:
        return plan.given, None
    if sum(run.n_extracted >= MIN_RUN_POSITIVES for run in runs) >= 2:
        candidates = [name for name in plan.columns if name not in _NEVER_CHOSEN]
        selection = select_features(runs, candidates, feature_set=plan.feature_set)
        return selection.features, selection
    shipped = (shipped_for(plan) or find_classifier(None, plan.feature_set)).features
    _require_columns(plan, shipped, inputs)
    return shipped, None


def shipped_for(plan: FeaturePlan) -> RiskClassifier | None:
    """Return the shipped classifier of the set and the objective, if there is one."""
    if not (shipped_classifiers_dir() / shipped_name(plan.feature_set, plan.objective)).is_dir():
        return None
    return plan.classifier()


def _require_columns(plan: FeaturePlan, features: Sequence[str], inputs: Sequence[Input]) -> None:
    missing = [feature for feature in features if feature not in plan.columns]
    if missing:
        without = next(one for one in inputs if missing[0] not in one.scores.numbers)
        raise ClassifierError(
            f"{without.scores.shown}: expected the column {missing[0]} for the feature set "
            f"{plan.feature_set}, it has {len(plan.columns)} columns of that set",
            hint="predict with the models that the set needs, or name other --features",
        )
