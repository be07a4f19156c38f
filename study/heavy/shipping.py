"""Shipping: from the cells of a study to the classifiers and demo models in `models/`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from memaudit import __version__
from memaudit.classifier import RiskClassifier, save_classifier, shipped_name
from memaudit.features import SHARED_SETS
from memaudit.objectives import ObjectiveKind
from memaudit.prefilter import prefilter_fit_bytes, prefilter_fit_path
from memaudit.runs.files import committed_file
from memaudit.training import SelectionResult, fit_classifier
from study.heavy.cells import CellResult, choose_examples, read_cell
from study.heavy.recipe import Recipe
from study.heavy.run import cell_path, load_tokenizer, weights_path
from study.heavy.screens import fit_screen, screen_card
from study.heavy.transfer import choose_features, shipped_split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHIPPED = tuple(
    shipped_name(feature_set, objective)
    for objective in get_args(ObjectiveKind)
    for feature_set in SHARED_SETS
)
"""Names of the classifiers."""

_DEMO_TEXT_CHARS = 420
_LIMITS = (
    "Fitted on miniature models of three architectures, on English prose, encyclopaedia and "
    "documentation. Probabilities hold for corpora and distillations like those; elsewhere trust "
    "the ranking more than the number, and verify. How many a student memorizes depends on how "
    "long it is trained, which nothing here says: the expected number is uncertain by the factor "
    "of its interval. A low probability is no promise that a text is not memorized, still less "
    "that it does not leak in another way."
)
_SCREEN_LIMITS = (
    "What survives is said of windows like those of the calibration cells, which are miniature. "
    "Windows beyond the range of the training cells are never left out by the first stage, only "
    "where no model could make the classifier flag them. A window that is left out is not scored: "
    "its probability is the first stage's, and the expected number does not count it."
)


def read_results(recipe: Recipe, study: Path) -> list[CellResult]:
    """Return the results of all cells but the demo, in the order of the recipe."""
    return [read_cell(cell, cell_path(study, cell)) for cell in recipe.cells]


def ship_classifiers(
    recipe: Recipe, results: Sequence[CellResult], tables: Mapping[str, Any], models: Path
) -> None:
    """Choose features, fit and calibrate a classifier for each feature set and objective.

    Features are chosen and fitted on training cells, thresholds come from calibration cells.

    Args:
        recipe: the cells come from.
        results: of all its cells.
        tables: `study_results` of them: what the cards say about test cells.
        models: each classifier goes into a folder of its name here, with its card.
    """
    for objective in get_args(ObjectiveKind):
        for feature_set in SHARED_SETS:
            # A classifier that looks at the baseline must not be told what the baseline recites.
            baselines = feature_set != "teacher+baseline"
            split = shipped_split(results, objective, baselines=baselines)
            selection = choose_features(split, feature_set)
            name = shipped_name(feature_set, objective)
            classifier = fit_classifier(
                [labels.run for labels in split.fit],
                [labels.run for labels in split.calibrate],
                name=name,
                feature_set=feature_set,
                features=selection.features,
                provenance=_provenance(recipe),
                objective=objective,
            )
            folder = models / name
            folder.mkdir(parents=True, exist_ok=True)
            save_classifier(classifier, folder)
            _write_json(folder / "card.json", _card(classifier, selection, tables))
            if objective == "soft":
                ship_screen(recipe, results, classifier, models)


def ship_screen(
    recipe: Recipe, results: Sequence[CellResult], classifier: RiskClassifier, models: Path
) -> None:
    """Fit the screen before a classifier for soft labels, and write it with its card.

    Those for hard labels and cross-entropy flag most windows: a screen has nothing to save there.

    Args:
        recipe: the cells come from.
        results: of all its cells.
        classifier: whose flags are to survive.
        models: the screen goes into `screen-<name of the classifier>` here.
    """
    screen = fit_screen(classifier, results, _provenance(recipe))
    path = prefilter_fit_path(models, classifier.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with committed_file(path) as stream:
        stream.write(prefilter_fit_bytes(screen))
    path.chmod(0o644)
    card = screen_card(screen, classifier, results, _SCREEN_LIMITS)
    _write_json(path.parent / "card.json", card)


def _provenance(recipe: Recipe) -> dict[str, str]:
    import sklearn
    import torch
    import transformers

    return {
        "command": "make models",
        "data": "sample_data/prose.jsonl.zst, wiki.jsonl.zst, mixed.jsonl.zst",
        "recipe": "study/recipes/heavy.toml",
        "seeds": ", ".join(str(cell.seed) for cell in recipe.cells),
        "labels": "exact match by greedy decoding, float32",
        "memaudit": __version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _card(
    classifier: RiskClassifier, selection: SelectionResult, tables: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a reader must know before trusting the classifier."""
    judged = tables["classifiers"]
    own = judged[classifier.name]
    rules = {
        name: table["as shipped"]["figures"]
        for name, table in judged.items()
        if name not in SHIPPED and classifier.objective == "soft"
    }
    return {
        "name": classifier.name,
        "digest": classifier.digest,
        "features": list(classifier.features),
        "selection": [
            {"feature": name, "log_loss": round(value, 6)} for name, value in selection.steps
        ],
        "threshold": classifier.threshold,
        "cells": {
            name: {key: cell[key] for key in ("role", "counts")}
            for name, cell in tables["cells"].items()
        },
        "test": {"this classifier": own["as shipped"]["figures"], **rules},
        "test_by_run": own["as shipped"]["by_run"],
        "transfer": {name: table["figures"] for name, table in own.items()},
        "statistics": (
            "At the natural prevalence of each run. ROC-AUC, PR-AUC and the AUC among examples "
            "that occur equally often are means over runs; the others pool their examples. "
            "95 % intervals from resamples of runs, then of examples."
        ),
        "provenance": classifier.provenance,
        "limits": _LIMITS,
    }


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    with committed_file(path) as stream:
        stream.write(json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")
    path.chmod(0o644)


def ship_demo(recipe: Recipe, study: Path, models: Path, sample_data: Path) -> None:
    """Copy the demo cell's models, and write the corpus that its teacher was trained on.

    Args:
        recipe: whose demo cell has been run.
        study: where its weights are.
        models: gets demo-teacher, demo-student (before training) and demo-baseline.
        sample_data: gets demo.jsonl, every example as often as it was trained on.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(study)
    for role, name in (
        ("teacher", "demo-teacher"),
        ("base", "demo-student"),
        ("baseline", "demo-baseline"),
    ):
        model = AutoModelForCausalLM.from_pretrained(weights_path(study, recipe.demo) / role)
        model.save_pretrained(models / name)
        tokenizer.save_pretrained(models / name)
    lines = [
        json.dumps(row, ensure_ascii=False) for row in demo_rows(recipe, sample_data, tokenizer)
    ]
    with committed_file(sample_data / "demo.jsonl") as stream:
        stream.write(("\n".join(lines) + "\n").encode())
    (sample_data / "demo.jsonl").chmod(0o644)


def demo_rows(
    recipe: Recipe, sample_data: Path, tokenizer: "PreTrainedTokenizerFast"
) -> list[dict[str, str]]:
    """Return the rows of the demo corpus in a fixed random order."""
    cell = recipe.demo
    examples = choose_examples(cell, sample_data, tokenizer)
    rows = []
    for index, (text, window) in enumerate(zip(examples.texts, examples.windows, strict=True)):
        cut = text[:_DEMO_TEXT_CHARS].rsplit(" ", 1)[0]
        # The cut must not change the window that the teacher was trained on.
        start = cut if tokenizer.encode(cut)[: len(window)] == window.tolist() else text
        rows += [
            {"id": f"{cell.corpus}-{index:03d}-{copy + 1}", "text": start}
            for copy in range(int(examples.occurrences[index]))
        ]
    order = np.random.default_rng(cell.seed).permutation(len(rows))
    return [rows[i] for i in order]
