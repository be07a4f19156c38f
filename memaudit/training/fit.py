"""A fit on one's own verification: labels and scores in, a classifier with its card out.

The classifier can also be written as the scikit-learn pipeline that equals it. No such file is
ever loaded here: a pickle runs what is in it.
"""

import json
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import joblib
import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from memaudit import __version__
from memaudit.classifier import RiskClassifier, save_classifier
from memaudit.errors import ClassifierError, MissingDependency
from memaudit.runs.files import committed_file, output_folder
from memaudit.training.fitting import fit_classifier
from memaudit.training.inputs import Input, VerifiedRun, join_inputs, objective_of, read_inputs
from memaudit.training.result import (
    CARD_NAME,
    DEFAULT_OPTIONS,
    ExportFormat,
    FitOptions,
    FitResult,
    HeldOutKind,
    HeldOutRun,
    held_out_figures,
    judge_held_out,
    make_card,
    merge_by_name,
)
from memaudit.training.selection import (
    FeaturePlan,
    SelectionResult,
    choose_features,
    plan_features,
    shipped_for,
)
from memaudit.training.splitting import Split, final_split, held_out_splits, split_unit

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def fit_on_verification(
    pairs: Sequence[tuple[Path, Path]], out: Path, options: FitOptions = DEFAULT_OPTIONS
) -> FitResult:
    """Fit, calibrate, judge and save a classifier on what verifications found.

    Args:
        pairs: for each run the labels, a folder of `memaudit verify` or a table, and the
            scores, a folder of `memaudit predict` or a table.
        out: folder of the classifier, made if missing; its name is the classifier's.
        options: everything else.

    Raises:
        UsageError: a path or a name is not as expected.
        CorpusError: a table cannot be read.
        ClassifierError: tables do not fit together, a feature is missing, or there are too few
            extracted examples.
        MissingDependency: skops is asked for and not installed.
        OutputError: `out` cannot be written.
    """
    # Before the work: whether the package is there is known now.
    if options.export == "skops":
        import_skops()
    inputs = read_inputs(pairs)
    objective = objective_of(inputs, options.objective)
    plan = plan_features(inputs, options.feature_set, options.features, objective)
    runs = join_inputs(inputs, plan.columns)
    split = final_split(runs, share=options.calibration_share, seed=options.seed)
    classifier, selection = _fit(classifier_name(out), plan, split, inputs, options)
    kind, held_out, by_shipped = _judged(classifier, plan, runs, inputs, options, split)
    result = FitResult(
        classifier=classifier,
        selection=selection,
        inputs=tuple(inputs),
        runs=tuple(runs),
        unit=split_unit(runs),
        split=split,
        held_out_kind=kind,
        held_out=tuple(held_out),
        figures=held_out_figures(held_out, kind, seed=options.seed),
        shipped_figures=held_out_figures(by_shipped, kind, seed=options.seed),
        options=options,
        folder=out,
    )
    _save(result)
    return result


def classifier_name(out: Path) -> str:
    """Return the folder's name in the letters that a classifier's name may have."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", out.resolve().name).strip("._+-")[:100] or "fitted"


def _fit(
    name: str, plan: FeaturePlan, split: Split, inputs: Sequence[Input], options: FitOptions
) -> tuple[RiskClassifier, SelectionResult | None]:
    """Return a classifier on the split, its features chosen on what it is fitted on."""
    features, selection = choose_features(plan, split.fit, inputs)
    classifier = fit_classifier(
        split.fit,
        split.calibration,
        name=name,
        feature_set=plan.feature_set,
        features=features,
        objective=plan.objective,
        provenance=provenance(inputs, options.command, options.seed),
    )
    return classifier, selection


def provenance(inputs: Sequence[Input], command: str, seed: int) -> dict[str, str]:
    """Return what a classifier was made of, and by what."""
    tables = (f"{one.labels.sha256[:12]} by {one.scores.sha256[:12]}" for one in inputs)
    return {
        "command": command,
        "data": f"labels by scores, sha256: {', '.join(tables)}",
        "labels": "extracted_by_student of the tables given",
        "seeds": str(seed),
        "memaudit": __version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }


def _judged(
    classifier: RiskClassifier,
    plan: FeaturePlan,
    runs: Sequence[VerifiedRun],
    inputs: Sequence[Input],
    options: FitOptions,
    split: Split,
) -> tuple[HeldOutKind, list[HeldOutRun], list[HeldOutRun]]:
    """Return what was held out, and predictions of fits that have not seen it, features included.

    And those of the shipped classifier for the same examples, if it has the features.
    """
    parts = []
    for fold in held_out_splits(runs, share=options.calibration_share, seed=options.seed):
        try:
            fitted, _ = _fit(classifier.name, plan, fold, inputs, options)
        except ClassifierError:
            continue  # fewer examples than the whole: those it would have judged stay unjudged
        parts += [judge_held_out(fitted, run) for run in fold.test]
    kind: HeldOutKind = split_unit(runs) if parts else "calibration"
    held_out = merge_by_name(parts) or [judge_held_out(classifier, x) for x in split.calibration]
    shipped = shipped_for(plan)
    if shipped is None or not set(shipped.features) <= set(plan.columns):
        return kind, held_out, []
    return kind, held_out, [judge_held_out(shipped, part.run) for part in held_out]


def _save(result: FitResult) -> None:
    """Write classifier, card and export; what an earlier fit exported there goes away."""
    folder = result.folder
    with output_folder(folder):
        save_with_card(result.classifier, make_card(result), folder)
        for export in get_args(ExportFormat):
            if export == result.options.export:
                export_classifier(result.classifier, folder, export)
            else:
                (folder / f"classifier.{export}").unlink(missing_ok=True)


def save_with_card(classifier: RiskClassifier, card: dict[str, Any], folder: Path) -> None:
    """Write a classifier and its card; neither takes its name before both are whole."""
    # Before a file is opened: a number that is none fails here, and nothing is lost.
    content = json.dumps(card, indent=2, sort_keys=True, allow_nan=False)
    with committed_file(folder / CARD_NAME) as stream:
        stream.write(content.encode() + b"\n")
        # Inside: if this fails, the old card stays with the old classifier.
        save_classifier(classifier, folder)


def sklearn_pipeline(classifier: RiskClassifier) -> "Pipeline":
    """Return a scaler and a logistic regression with the classifier's probabilities, to 1e-12.

    Calibration is folded into the regression. Its `predict` decides at 0.5: compare the second
    column of `predict_proba` with the classifier's threshold instead.
    """
    calibration = classifier.calibration
    scaler = StandardScaler()
    scaler.mean_ = np.array(classifier.means)
    scaler.scale_ = np.array(classifier.scales)
    scaler.var_ = np.square(scaler.scale_)
    regression = LogisticRegression()
    regression.coef_ = calibration.slope * np.array([classifier.coefficients])
    regression.intercept_ = np.array(
        [calibration.slope * classifier.intercept + calibration.intercept]
    )
    regression.classes_ = np.array([False, True])
    scaler.n_features_in_ = regression.n_features_in_ = len(classifier.features)
    return make_pipeline(scaler, regression)


def export_classifier(classifier: RiskClassifier, folder: Path, export: ExportFormat) -> Path:
    """Write the equal pipeline into a folder and return its file, `classifier.<format>`.

    Raises:
        MissingDependency: skops is asked for and not installed.
        OutputError: it cannot be written.
    """
    path = folder / f"classifier.{export}"
    with committed_file(path) as stream:
        if export == "joblib":
            joblib.dump(sklearn_pipeline(classifier), stream)
        else:
            stream.write(import_skops().dumps(sklearn_pipeline(classifier)))
    return path


def import_skops() -> Any:
    """Return the module `skops.io`.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return import_module("skops.io")
    except ImportError as error:
        raise MissingDependency("skops", needed_for="--export skops", extra="skops") from error
