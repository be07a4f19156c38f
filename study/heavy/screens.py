"""Screens: fitted on what the shipped classifiers say, calibrated on what they flag.

No label of a student enters: what a screen has to find is what the whole audit would flag, and the
audit's features are known for every window of a cell. So a cell counts at every objective of the
recipe, whichever its own students had.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import Calibration, RiskClassifier, zlib_record
from memaudit.features import CORPUS_FEATURES, REFERENCE_FEATURES, objective_features
from memaudit.metrics import clopper_pearson
from memaudit.objectives import Objective
from memaudit.prefilter import CONFIDENCE, Prefilter, PrefilterFit
from study.heavy.cells import CellResult
from study.heavy.recipe import MAIN_STUDENT

DEFAULT_SURVIVAL = 0.995
"""What cards are written at."""

ESTIMATOR_FEATURES = (
    "log_temperature",
    "cross_entropy_share",
    "zlib_entropy",
    "log_occurrences",
)
"""What the shipped screens look at, beside what their classifier looks at of the reference: chosen
on training cells, where n-grams added nothing."""

_CURVE = (0.9, 0.95, 0.98, 0.99, 0.995, 0.997)
_STATISTICS = (
    "On test cells; by cell and for the curve at the objective of the cell's main student. Tokens "
    "of distinct windows. A flagged window survives if it is not left out. Intervals are exact for "
    "independent windows (Clopper-Pearson, 95 %); those of one cell have their teacher in common. "
    "`bound_alone` leaves out only what cannot be flagged. The survival is calibrated over all "
    "objectives together; at one of them the flagged calibration windows are as few as listed."
)


@dataclass(frozen=True, slots=True)
class _View:
    """The windows of a cell at one objective."""

    cell: str
    objective: Objective
    window_len: int
    features: dict[str, NDArray[np.float64]]
    probabilities: NDArray[np.float64]
    """What the classifier says."""

    flagged: NDArray[np.bool_]


def objectives_of(results: Sequence[CellResult]) -> list[Objective]:
    """Return the objectives of soft labels that the students of some cells had, in order."""
    losses = {student.loss for result in results for student in result.cell.students}
    soft = [loss for loss in losses if loss.kind == "soft"]
    return sorted(soft, key=lambda loss: (loss.cross_entropy_share, loss.temperature))


def fit_screen(
    classifier: RiskClassifier, results: Sequence[CellResult], provenance: dict[str, str]
) -> PrefilterFit:
    """Fit on training cells, and calibrate on calibration cells, the screen before a classifier.

    The first stage is a logistic regression on the classifier's probabilities as soft targets.

    Args:
        classifier: for soft labels.
        results: of a study; test cells are not looked at.
        provenance: data, recipe, seeds, command, versions.
    """
    objectives = objectives_of(results)
    fit = _views(classifier, _of_role(results, "train"), objectives)
    estimator = _fit_estimator(classifier, fit, provenance)
    calibration = _views(classifier, _of_role(results, "calibration"), objectives)
    lowest: dict[str, NDArray[np.float64]] = {}
    for view in calibration:
        estimates = _estimates(estimator, view)
        of_flagged = np.where(view.flagged, estimates, np.inf)
        lowest[view.cell] = np.minimum(lowest.get(view.cell, np.inf), of_flagged)
    flagged = np.sort(np.concatenate(list(lowest.values())))
    return PrefilterFit(
        classifier=classifier.name,
        classifier_digest=classifier.digest,
        estimator=estimator,
        flagged=tuple(flagged[np.isfinite(flagged)].tolist()),
    )


def screen_card(
    screen: PrefilterFit, classifier: RiskClassifier, results: Sequence[CellResult], limits: str
) -> dict[str, Any]:
    """Return how a screen was made, and what it saves and loses on test cells.

    Args:
        screen: see there.
        classifier: whose flags are to survive.
        results: of a study; only test cells are judged.
        limits: what a reader must know.
    """
    cascade = prefilter_at(screen, classifier, DEFAULT_SURVIVAL)
    bound = Prefilter(classifier=classifier, survival=1.0)
    test, objectives = _of_role(results, "test"), objectives_of(results)
    by_objective = {_name(each): _views(classifier, test, [each]) for each in objectives}
    main = [view for each in test for view in _views(classifier, [each], [_main_objective(each)])]
    return {
        "screen": f"before the classifier {classifier.name}, {classifier.digest}",
        "features": list(screen.estimator.features),
        "fitted_on": "the classifier's probabilities of the windows of training cells, "
        "at every objective of soft labels that the recipe has",
        "calibration": _calibration(screen, classifier, results),
        "test_by_objective": {
            name: _figures(views, cascade) for name, views in by_objective.items()
        },
        "test_by_cell": {view.cell: _figures([view], cascade) for view in main},
        "bound_alone": {name: _figures(views, bound) for name, views in by_objective.items()},
        "curve": [
            {"survival": survival, **_figures(main, prefilter_at(screen, classifier, survival))}
            for survival in _CURVE
            if screen.misses(survival) is not None
        ],
        "statistics": _STATISTICS,
        "provenance": screen.estimator.provenance,
        "limits": limits,
    }


def _calibration(
    screen: PrefilterFit, classifier: RiskClassifier, results: Sequence[CellResult]
) -> dict[str, Any]:
    cells = _of_role(results, "calibration")
    n_missed = screen.misses(DEFAULT_SURVIVAL)
    return {
        "distinct_flagged_windows": len(screen.flagged),
        "flagged_windows_by_objective": {
            _name(objective): sum(
                int(view.flagged.sum()) for view in _views(classifier, cells, [objective])
            )
            for objective in objectives_of(results)
        },
        "survival": DEFAULT_SURVIVAL,
        "confidence": CONFIDENCE,
        "may_be_lost": n_missed,
        "cutoff": None if n_missed is None else screen.cutoff(DEFAULT_SURVIVAL),
    }


def _main_objective(result: CellResult) -> Objective:
    return result.objective(MAIN_STUDENT)


def prefilter_at(screen: PrefilterFit, classifier: RiskClassifier, survival: float) -> Prefilter:
    """Return the cascade of a screen at some survival; if it cannot vouch for it, the bound alone."""
    if screen.misses(survival) is None:
        return Prefilter(classifier=classifier, survival=1.0)
    return Prefilter(
        classifier=classifier,
        survival=survival,
        estimator=screen.estimator,
        cutoff=screen.cutoff(survival),
    )


def _of_role(results: Sequence[CellResult], role: str) -> list[CellResult]:
    return [result for result in results if result.cell.role == role]


def _views(
    classifier: RiskClassifier, results: Sequence[CellResult], objectives: Sequence[Objective]
) -> list[_View]:
    views = []
    for result in results:
        for objective in objectives:
            settings = objective_features(objective)
            n, window_len = result.windows.shape
            features = {**result.features, **{k: np.full(n, v) for k, v in settings.items()}}
            X = np.column_stack([features[name] for name in classifier.features])
            probabilities = classifier.predict_proba(X)
            flagged = probabilities >= classifier.threshold
            views.append(
                _View(result.cell.name, objective, window_len, features, probabilities, flagged)
            )
    return views


def _fit_estimator(
    classifier: RiskClassifier, views: Sequence[_View], provenance: dict[str, str]
) -> RiskClassifier:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    # What the classifier itself is told by the reference is known before the teacher has run.
    of_reference = tuple(name for name in classifier.features if name in REFERENCE_FEATURES)
    names = ESTIMATOR_FEATURES + of_reference
    X = np.concatenate([_columns(view, names) for view in views])
    targets = np.concatenate([view.probabilities for view in views])
    scaler = StandardScaler().fit(X)
    # A soft target is a positive and a negative example that share one weight.
    regression = LogisticRegression(tol=1e-6, max_iter=10_000).fit(
        np.concatenate([scaler.transform(X)] * 2),
        np.repeat([True, False], len(X)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    return RiskClassifier(
        name=f"screen-{classifier.name}",
        feature_set=classifier.feature_set,
        features=names,
        means=tuple(scaler.mean_.tolist()),
        scales=tuple(scaler.scale_.tolist()),
        coefficients=tuple(regression.coef_[0].tolist()),
        intercept=float(regression.intercept_[0]),
        calibration=Calibration(slope=1.0, intercept=0.0),
        threshold=classifier.threshold,
        count_log_sd=0.0,
        feature_ranges=tuple(zip(X.min(axis=0).tolist(), X.max(axis=0).tolist(), strict=True)),
        zlib=zlib_record(),
        provenance=provenance,
    )


def _columns(view: _View, names: Sequence[str]) -> NDArray[np.float64]:
    return np.column_stack([view.features[name] for name in names])


def _estimates(estimator: RiskClassifier, view: _View) -> NDArray[np.float64]:
    return estimator.predict_proba(_columns(view, estimator.features))


def _figures(views: Sequence[_View], cascade: Prefilter) -> dict[str, Any]:
    """Return what a cascade saves and loses; shares with exact 95 % intervals."""
    kept = [cascade.keeps(view.features) for view in views]

    def total(of: Callable[[_View, NDArray[np.bool_]], Any]) -> int:
        return sum(int(of(view, keep)) for view, keep in zip(views, kept, strict=True))

    n_windows, n_kept = total(lambda _, keep: len(keep)), total(lambda _, keep: keep.sum())
    n_flagged = total(lambda view, _: view.flagged.sum())
    n_survived = total(lambda view, keep: (view.flagged & keep).sum())
    tokens = total(lambda view, keep: view.window_len * len(keep))
    tokens_read = total(lambda view, keep: view.window_len * keep.sum())
    corpus_alone = [
        {name: column for name, column in view.features.items() if name in CORPUS_FEATURES}
        for view in views
    ]
    asked = [cascade.could_be_flagged(corpus) for corpus in corpus_alone]
    n_asked = sum(v.window_len * int(a.sum()) for v, a in zip(views, asked, strict=True))
    saved = clopper_pearson(n_windows - n_kept, n_windows)
    survival = clopper_pearson(n_survived, n_flagged)
    return {
        "windows": n_windows,
        "windows_read": n_kept,
        "saved_windows_interval": [round(saved.low, 6), round(saved.high, 6)],
        "tokens": tokens,
        "teacher_tokens_read": tokens_read,
        "reference_tokens_read_before": n_asked if cascade.needs_reference else 0,
        "times_fewer": round(tokens / tokens_read, 3) if tokens_read else None,
        "flagged": n_flagged,
        "survived": n_survived,
        "survival_interval": [round(survival.low, 6), round(survival.high, 6)],
    }


def _name(objective: Objective) -> str:
    share = objective.cross_entropy_share
    return f"T = {objective.temperature:g}" + (f", {share:.0%} cross-entropy" if share else "")
