"""What a fit may look at: a feature set, its columns in the scores, and how features are chosen."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from memaudit.classifier import (
    RiskClassifier,
    find_classifier,
    shipped_classifiers_dir,
    shipped_name,
)
from memaudit.errors import ClassifierError, UsageError
from memaudit.features import FEATURE_SETS
from memaudit.objectives import ObjectiveKind
from memaudit.text import safe_text
from memaudit.training.inputs import Input
from memaudit.training.labelled_run import LabelledRun
from memaudit.training.selection import MIN_RUN_POSITIVES, SelectionResult, select_features

_NEVER_CHOSEN = ("occurrences",)  # log_occurrences says the same without the long tail


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """Which features there are."""

    feature_set: str
    """Key of `FEATURE_SETS`."""

    objective: ObjectiveKind
    """What the students learned from."""

    columns: tuple[str, ...]
    """Those of the set that every table of scores has, in its order."""

    given: tuple[str, ...]
    """Those to fit on, in the order of the set; empty: they are chosen."""


def plan_features(
    inputs: Sequence[Input],
    feature_set: str | None,
    given: Sequence[str],
    objective: ObjectiveKind = "soft",
) -> FeaturePlan:
    """Return what the tables allow.

    Args:
        inputs: at least one.
        feature_set: None: the set that most columns belong to.
        given: to fit on, in any order; empty: they are chosen later.
        objective: what the students learned from.

    Raises:
        UsageError: a feature is not of the set.
        ClassifierError: a table has none of the set's features, or lacks one that is given.
    """
    shared = set.intersection(*(set(one.scores.numbers) for one in inputs))
    name = feature_set or max(FEATURE_SETS, key=lambda key: len(shared & {*FEATURE_SETS[key]}))
    unknown = [feature for feature in given if feature not in FEATURE_SETS[name]]
    if unknown:
        close = difflib.get_close_matches(unknown[0], FEATURE_SETS[name], n=1)
        raise UsageError(
            f"no feature {safe_text(unknown[0])} in the set {name}",
            hint=f"did you mean {close[0]}?"
            if close
            else f"choose from {', '.join(FEATURE_SETS[name])}",
        )
    columns = tuple(feature for feature in FEATURE_SETS[name] if feature in shared)
    in_order = tuple(feature for feature in FEATURE_SETS[name] if feature in given)
    plan = FeaturePlan(name, objective, columns, in_order)
    _require_columns(plan, in_order if columns else FEATURE_SETS[name], inputs)
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
    return find_classifier(None, plan.feature_set, plan.objective)


def _require_columns(plan: FeaturePlan, features: Sequence[str], inputs: Sequence[Input]) -> None:
    missing = [feature for feature in features if feature not in plan.columns]
    if missing:
        without = next(one for one in inputs if missing[0] not in one.scores.numbers)
        raise ClassifierError(
            f"{without.scores.shown}: expected the column {missing[0]} for the feature set "
            f"{plan.feature_set}, it has {len(plan.columns)} columns of that set",
            hint="predict with the models that the set needs, or name other --features",
        )
