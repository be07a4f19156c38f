"""Shipping: classifiers with their cards, and the screens before them, from the cell files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit import __version__
from memaudit.classifier import (
    Calibration,
    RiskClassifier,
    SampledRisk,
    save_classifier,
)
from memaudit.features import REFERENCE_FEATURES, zlib_record
from memaudit.metrics import clopper_pearson
from memaudit.objectives import ObjectiveKind
from memaudit.prefilter import Prefilter, PrefilterFit, prefilter_fit_bytes, prefilter_fit_path
from memaudit.runs.files import committed_file
from study.fit import (
    MIN_FOUND,
    Fitted,
    Judged,
    Run,
    Shipped,
    classifier_of,
    of_objective,
    source_groups,
)

DEFAULT_SURVIVAL = 0.995
"""What the cards of screens are written at."""

_CURVE_POINTS = 51
_SCREEN_FEATURES = ("log_temperature", "zlib_entropy", "exposure_share", "log_exposure")
_LIMITS = (
    "Fitted on miniature models of three architectures and on English documentation, web pages, "
    "encyclopaedia and prose, mostly with its page templates: many windows that occur once, few "
    "epochs. Most of what is recited there is template text. Probabilities hold for corpora and "
    "distillations like those; elsewhere trust the order more than the number, and verify. Where "
    "few examples are trained on for many epochs, the expected number is up to several times too "
    "high. A low probability is no promise that a text is not memorized, still less that it does "
    "not leak in another way."
)
_STATISTICS = (
    "Test cells have sources of text that nothing was fitted on, one of them a family of models "
    "too. At natural prevalence. ROC-AUC, PR-AUC, precision and recall are means over test cells "
    "without added copies in which 5 windows or more are recited; low and high are the lowest and "
    "highest of them, not an interval."
)


def ship(
    runs: Sequence[Run],
    shipped: Mapping[str, tuple[Shipped, Fitted]],
    sampled: Mapping[str, SampledRisk | None],
    judged: Mapping[str, Mapping[str, Mapping[str, Judged]]],
    models: Path,
) -> None:
    """Write classifiers, cards and screens.

    Args:
        runs: of all cells.
        shipped: by name.
        sampled: what samples reveal, by name.
        judged: by objective, method and test cell, as `judge_all` returns them.
        models: each classifier goes into a folder of its name here.
    """
    for name, (spec, fitted) in shipped.items():
        of_kind = of_objective(runs, spec.objective)
        known = [run for run in of_kind if run.about["cell"]["role"] != "test"]
        provenance = _provenance(spec.objective)
        classifier = classifier_of(fitted, sampled[name], known, spec, provenance)
        folder = models / name
        folder.mkdir(parents=True, exist_ok=True)
        save_classifier(classifier, folder)
        card = _card(classifier, fitted, of_kind, judged[spec.objective])
        _write_json(folder / "card.json", card)
        if spec.objective == "soft":
            _ship_screen(classifier, of_kind, models)


def _provenance(objective: ObjectiveKind) -> dict[str, str]:
    import sklearn
    import torch
    import transformers

    recipes = {"soft": "natural.toml", "cross-entropy": "natural.toml, objectives.toml"}.get(
        objective, "objectives.toml"
    )
    return {
        "command": "make classifiers",
        "recipe": f"study/recipes/{recipes}",
        "data": "sample_data/natural.jsonl.zst, pages.jsonl.zst, mixed.jsonl.zst, wiki.jsonl.zst",
        "labels": "exact match by greedy decoding, float32",
        "memaudit": __version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _card(
    classifier: RiskClassifier,
    fitted: Fitted,
    runs: Sequence[Run],
    judged: Mapping[str, Mapping[str, Judged]],
) -> dict[str, Any]:
    """Return what a reader must know before trusting the classifier."""
    own = judged[classifier.name]
    by_label = {run.label: run.about for run in runs}
    natural = [
        name
        for name, found in own.items()
        if by_label[name]["regime"]["copies"] == {} and found.found >= MIN_FOUND
    ]
    others = {}
    for method, found in judged.items():
        of = [name for name in natural if name in found]
        if method != classifier.name and of:
            name = method if of == natural else f"{method} ({len(of)} of {len(natural)})"
            others[name] = _figures(found, of)
    return {
        "name": classifier.name,
        "digest": classifier.digest,
        "feature_set": classifier.feature_set,
        "objective": classifier.objective,
        "features": list(classifier.features),
        "threshold": classifier.threshold,
        "cells": {
            name: {
                "role": about["cell"]["role"],
                "counts": {"examples": about["windows"], **about["recited"]},
            }
            for name, about in {run.cell: run.about for run in runs}.items()
        },
        "curves": {"precision_recall": _curve(fitted, runs, natural)},
        # Each run was predicted by a fit on other sources: that is what the level rests on.
        "level": {
            "runs": len(fitted.held_out),
            "memorized": sum(run.found for run, _ in fitted.held_out),
            "log_sd": classifier.count_log_sd,
        },
        "test": {
            "this classifier": _figures(own, natural),
            **others,
        },
        "test_by_run": {
            name: {
                "examples": by_label[name]["windows"],
                "expected": found.expected,
                "found": found.found,
                "roc_auc": found.roc_auc,
                "pr_auc": found.pr_auc,
                "precision": found.precision,
                "recall": found.recall,
            }
            for name, found in own.items()
        },
        "statistics": _STATISTICS,
        "provenance": classifier.provenance,
        "limits": _LIMITS,
    }


def _figures(by_cell: Mapping[str, Judged], cells: Sequence[str]) -> dict[str, Any]:
    figures = {}
    for metric in ("roc_auc", "pr_auc", "precision", "recall"):
        values = [getattr(by_cell[cell], metric) for cell in cells]
        known = [value for value in values if value is not None]
        if known:
            value = {"value": np.mean(known), "low": min(known), "high": max(known)}
            figures[metric] = {key: round(float(each), 6) for key, each in value.items()}
    return figures


def _curve(fitted: Fitted, runs: Sequence[Run], labels: Sequence[str]) -> list[list[float]]:
    """Return recall and precision at falling thresholds, over all windows of some test runs."""
    from sklearn.metrics import precision_recall_curve

    chosen = [run for run in runs if run.label in labels]
    precision, recall, _ = precision_recall_curve(
        np.concatenate([run.recited for run in chosen]),
        np.concatenate([fitted.probabilities(run) for run in chosen]),
        sample_weight=np.concatenate([run.weight for run in chosen]),
    )
    # Thresholds rise along the arrays: the last place is the highest threshold that finds as much.
    places = [
        int(np.flatnonzero(recall >= least)[-1]) for least in np.linspace(0, 1, _CURVE_POINTS)
    ]
    return [
        [round(float(recall[i]), 4), round(float(precision[i]), 4)] for i in dict.fromkeys(places)
    ]


def _ship_screen(classifier: RiskClassifier, runs: Sequence[Run], models: Path) -> None:
    """Fit the screen before a classifier: it estimates, from the corpus, what the classifier says.

    No label of a student enters: what it has to find is what the classifier would flag.
    """
    known = [run for run in runs if run.about["cell"]["role"] != "test"]
    lowest = []
    for group in source_groups(known):
        others = [run for run in known if not any(run is each for each in group)]
        estimator = _fit_estimator(classifier, others or group)
        for run in group:
            flagged = _says(classifier, run) >= classifier.threshold
            estimates = estimator.predict_proba(run.matrix(estimator.features)[flagged])
            lowest.append(np.repeat(estimates, np.rint(run.weight[flagged]).astype(int)))
    screen = PrefilterFit(
        classifier=classifier.name,
        classifier_digest=classifier.digest,
        estimator=_fit_estimator(classifier, known),
        flagged=tuple(np.sort(np.concatenate(lowest)).tolist()),
    )
    path = prefilter_fit_path(models, classifier.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with committed_file(path) as stream:
        stream.write(prefilter_fit_bytes(screen))
    path.chmod(0o644)
    _write_json(path.parent / "card.json", _screen_card(screen, classifier, runs))


def _says(classifier: RiskClassifier, run: Run) -> NDArray[np.float64]:
    return classifier.predict_proba(run.matrix(classifier.features))


def _fit_estimator(classifier: RiskClassifier, runs: Sequence[Run]) -> RiskClassifier:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    # What the classifier itself is told by the reference is known before the teacher has run.
    of_reference = tuple(name for name in classifier.features if name in REFERENCE_FEATURES)
    X = np.concatenate([run.matrix(_SCREEN_FEATURES) for run in runs])
    varies = np.ptp(X, axis=0) > 0
    corpus = tuple(n for n, each in zip(_SCREEN_FEATURES, varies, strict=True) if each)
    features = corpus + of_reference
    X = np.concatenate([run.matrix(features) for run in runs])
    weight = np.concatenate([run.weight for run in runs])
    targets = np.concatenate([_says(classifier, run) for run in runs])
    scaler = StandardScaler().fit(X, sample_weight=weight)
    # A soft target is a positive and a negative example that share one weight.
    regression = LogisticRegression(tol=1e-6, max_iter=10_000).fit(
        np.concatenate([scaler.transform(X)] * 2),
        np.repeat([True, False], len(X)),
        sample_weight=np.concatenate([targets * weight, (1 - targets) * weight]),
    )
    return RiskClassifier(
        name=f"screen-{classifier.name}",
        feature_set=classifier.feature_set,
        features=features,
        means=tuple(scaler.mean_.tolist()),
        scales=tuple(scaler.scale_.tolist()),
        coefficients=tuple(regression.coef_[0].tolist()),
        intercept=float(regression.intercept_[0]),
        calibration=Calibration(slope=1.0, intercept=0.0),
        threshold=classifier.threshold,
        count_log_sd=0.0,
        feature_ranges=tuple(zip(X.min(axis=0).tolist(), X.max(axis=0).tolist(), strict=True)),
        zlib=zlib_record(),
        provenance=classifier.provenance,
    )


def _screen_card(
    screen: PrefilterFit, classifier: RiskClassifier, runs: Sequence[Run]
) -> dict[str, Any]:
    return {
        "screen": f"before the classifier {classifier.name}, {classifier.digest}",
        "features": list(screen.estimator.features),
        "flagged_windows": len(screen.flagged),
        "survival": DEFAULT_SURVIVAL,
        "may_be_lost": screen.misses(DEFAULT_SURVIVAL),
        "test_by_run": screen_figures(screen, classifier, runs),
        "statistics": "Windows of test cells, whose sources nothing was fitted on; exact 95 % "
        "intervals of survival for independent windows (Clopper-Pearson).",
        "provenance": classifier.provenance,
    }


def screen_figures(
    screen: PrefilterFit, classifier: RiskClassifier, runs: Sequence[Run]
) -> dict[str, dict[str, Any]]:
    """Return what a screen saves and loses on each test run."""
    if screen.misses(DEFAULT_SURVIVAL) is None:
        return {}
    cascade = Prefilter(
        classifier=classifier,
        survival=DEFAULT_SURVIVAL,
        estimator=screen.estimator,
        cutoff=screen.cutoff(DEFAULT_SURVIVAL),
    )
    figures = {}
    for run in runs:
        if run.about["cell"]["role"] != "test":
            continue
        columns = {name: run.columns[name].astype(np.float64) for name in run.columns}
        keeps = cascade.keeps(columns)
        flagged = _says(classifier, run) >= classifier.threshold
        n_flagged = round(float(run.weight[flagged].sum()))
        n_survived = round(float(run.weight[flagged & keeps].sum()))
        survival = clopper_pearson(n_survived, n_flagged)
        figures[f"{run.cell}: {run.student}"] = {
            "windows": round(float(run.weight.sum())),
            "windows_read": round(float(run.weight[keeps].sum())),
            "flagged": n_flagged,
            "survived": n_survived,
            "survival_interval": [round(survival.low, 4), round(survival.high, 4)],
        }
    return figures


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    with committed_file(path) as stream:
        stream.write(json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")
    path.chmod(0o644)
