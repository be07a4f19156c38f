"""Transfer: classifiers judged on families, corpora and recipes that they were not fitted on.

Every split fits on training cells, calibrates on calibration cells and judges on test cells; what
is left out is left out of all of the first two. Cells of different roles share no text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from memaudit.classifier import RiskClassifier
from memaudit.errors import ClassifierError
from memaudit.features import FEATURE_SETS, OBJECTIVE_FEATURES
from memaudit.objectives import ObjectiveKind
from memaudit.training.fitting import LabelledRun, fit_classifier
from memaudit.training.selection import SelectionResult, select_features
from study.heavy.cells import CellResult
from study.heavy.evaluation import Judged, judge
from study.heavy.recipe import MAIN_STUDENT
from study.recipe import Role

NEVER_CHOSEN = ("occurrences",)
"""Candidates left out: `log_occurrences` says the same without the long tail."""

_MAX_FEATURES = 6


@dataclass(frozen=True, slots=True)
class Labels:
    """The examples of a cell with the labels of one of its students, or of its baseline."""

    result: CellResult
    """The cell."""

    student: str
    """Whose labels."""

    @property
    def run(self) -> LabelledRun:
        """Features and labels."""
        return self.result.run(self.student)


@dataclass(frozen=True, slots=True)
class Split:
    """Which labels are fitted on, calibrated on and judged."""

    name: str
    """What is left out, such as `without olmo2`."""

    fit: tuple[Labels, ...]
    """For features and coefficients."""

    calibrate: tuple[Labels, ...]
    """For probabilities and threshold."""

    test: tuple[Labels, ...]
    """Only looked at."""


def labels_of(
    results: Sequence[CellResult], role: Role, kind: ObjectiveKind, *, baselines: bool = False
) -> list[Labels]:
    """Return the labels of every student that learned by one kind of objective.

    Args:
        results: cells.
        role: of the cells taken.
        kind: of the students' objective.
        baselines: whether baselines count as students of cross-entropy: a classifier that looks at
            the baseline must not be told about itself.
    """
    return [
        Labels(result, student)
        for result in results
        if result.cell.role == role
        for student in ("baseline", *(each.name for each in result.cell.students))
        if result.objective(student).kind == kind and (baselines or student != "baseline")
    ]


def shipped_split(
    results: Sequence[CellResult], kind: ObjectiveKind, *, baselines: bool = False
) -> Split:
    """Return the split of the shipped classifiers: all that a role holds.

    Judged are the main students for soft labels, else all students.
    """
    fit, calibrate, test = (
        tuple(labels_of(results, role, kind, baselines=baselines))
        for role in ("train", "calibration", "test")
    )
    if kind == "soft":
        test = tuple(labels for labels in test if labels.student == MAIN_STUDENT)
    return Split("as shipped", fit, calibrate, test)


def splits_by(split: Split, value: Callable[[Labels], str], *, within: bool = False) -> list[Split]:
    """Return a split for each value found in the labels judged.

    Args:
        split: what there is to fit, calibrate and judge.
        value: of labels, such as the family.
        within: fit on the same value only, instead of on all others.
    """
    splits = []
    for found in sorted({value(labels) for labels in split.test}):
        fit, calibrate = (
            tuple(labels for labels in side if (value(labels) == found) == within)
            for side in (split.fit, split.calibrate)
        )
        test = tuple(labels for labels in split.test if value(labels) == found)
        name = f"{'within' if within else 'without'} {found}"
        splits.append(Split(name, fit, calibrate, test))
    return splits


def choose_features(split: Split, feature_set: str) -> SelectionResult:
    """Return the features that forward selection keeps on the split's training runs.

    For soft labels it looks at the main students; how soft the labels are is in from the start,
    where the split has more than one answer.
    """
    runs = [labels.run for labels in split.fit]
    varied = [
        name for name in OBJECTIVE_FEATURES if len({run.features[name][0] for run in runs}) > 1
    ]
    main = [labels.run for labels in split.fit if labels.student == MAIN_STUDENT] or runs
    candidates = [
        name
        for name in FEATURE_SETS[feature_set]
        if name not in (*NEVER_CHOSEN, *OBJECTIVE_FEATURES)
    ]
    chosen = select_features(main, candidates, feature_set=feature_set, max_features=_MAX_FEATURES)
    return replace(chosen, features=(*varied, *chosen.features))


def fit_split(
    split: Split, feature_set: str, *, features: tuple[str, ...] | None = None
) -> RiskClassifier | None:
    """Return a classifier fitted as the split says; None where it holds too few positives.

    Args:
        split: see there.
        feature_set: key of `FEATURE_SETS`.
        features: None chooses them, on the split's own training runs.
    """
    try:
        return fit_classifier(
            [labels.run for labels in split.fit],
            [labels.run for labels in split.calibrate],
            name=split.name.replace(" ", "-").replace("/", "-"),
            feature_set=feature_set,
            features=features or choose_features(split, feature_set).features,
            provenance={},
        )
    except ClassifierError:
        return None


def judge_split(split: Split, classifier: RiskClassifier) -> dict[str, Judged]:
    """Return what the classifier says about each test run, by its name."""
    return {labels.run.name: judge(classifier, labels.run) for labels in split.test}


def judge_by_other_seeds(results: Sequence[CellResult], seeds: Sequence[str]) -> dict[str, Judged]:
    """Return what students of other seeds say about the main student, by run.

    The prediction is the share of the others that recite an example: a noisy reference, for they
    are few, and not a bound.

    Args:
        results: cells; those without all the seeds are left out.
        seeds: names of students that differ from the main one in their seed alone.
    """
    judged = {}
    for result in results:
        if not set(seeds) <= result.extracted.keys():
            continue
        share = np.mean([result.extracted[name] for name in seeds], axis=0)
        run = result.run()
        judged[run.name] = Judged(run.extracted, share, 0.5, run.features["occurrences"])
    return judged
