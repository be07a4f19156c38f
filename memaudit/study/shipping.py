"""Shipping: from the cells of a study to the classifiers and demo models in `models/`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memaudit import __version__
from memaudit.classifier import RiskClassifier, save_classifier
from memaudit.features import FEATURE_SETS
from memaudit.runs.commit import committed_file
from memaudit.study.cells import CellResult, choose_examples, read_cell
from memaudit.study.evaluation import Judged, evaluate, judge, judge_rules
from memaudit.study.recipe import Recipe, Role
from memaudit.study.run import cell_path, load_tokenizer, weights_path
from memaudit.training import SelectionResult, fit_classifier, select_features

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Report = dict[str, dict[str, float | None]]
"""`value`, `low` and `high` by statistic."""

_NEVER_CHOSEN = ("occurrences",)
"""Candidates left out: `log_occurrences` says the same without the long tail."""

_DEMO_TEXT_CHARS = 420
_LIMITS = (
    "Fitted on miniature models trained from scratch on English prose, encyclopaedia and "
    "documentation. Probabilities hold for corpora and distillations like those; elsewhere trust "
    "the ranking more than the number, and verify. A low probability is no promise that a text "
    "is not memorized, still less that it does not leak in another way. Training of each teacher "
    "and student ended at a share of recited examples set in the recipe, or at its last epoch: no "
    "example was added or dropped, but how many a run memorizes is partly that choice. In 5 of "
    "the 20 runs the baseline recites more than the teacher, unlike in arXiv:2601.15394."
)


def ship_classifiers(recipe: Recipe, study: Path, models: Path) -> None:
    """Choose features, fit, calibrate and judge one classifier for each feature set.

    Features are chosen and fitted on training cells, thresholds come from calibration cells,
    and test cells are only looked at for the card.

    Args:
        recipe: whose cells all have a result.
        study: where the results are.
        models: each classifier goes into a folder of its name here, with its card.
    """
    cells = {role: _results(recipe, study, role) for role in ("train", "calibration", "test")}
    rules = judge_rules(cells["train"], cells["calibration"], cells["test"])
    rule_reports = {name: evaluate(judged) for name, judged in rules.items()}
    for feature_set in FEATURE_SETS:
        selection = _select(feature_set, cells["train"])
        classifier = fit_classifier(
            [cell.run for cell in cells["train"]],
            [cell.run for cell in cells["calibration"]],
            name=feature_set,
            feature_set=feature_set,
            features=selection.features,
            provenance=_provenance(recipe),
        )
        judged = [judge(classifier, cell.run) for cell in cells["test"]]
        folder = models / feature_set
        folder.mkdir(parents=True, exist_ok=True)
        save_classifier(classifier, folder)
        card = _card(classifier, selection, cells, judged, rule_reports)
        _write_json(folder / "card.json", card)


def _results(recipe: Recipe, study: Path, role: Role) -> list[CellResult]:
    cells = [cell for cell in recipe.cells if cell.role == role]
    return [read_cell(cell, cell_path(study, cell)) for cell in cells]


def _select(feature_set: str, training: Sequence[CellResult]) -> SelectionResult:
    candidates = [name for name in FEATURE_SETS[feature_set] if name not in _NEVER_CHOSEN]
    return select_features([cell.run for cell in training], candidates, feature_set=feature_set)


def _provenance(recipe: Recipe) -> dict[str, str]:
    import sklearn
    import torch
    import transformers

    return {
        "command": "make models",
        "data": "sample_data/prose.jsonl.zst, wiki.jsonl.zst, mixed.jsonl.zst",
        "recipe": "models/recipe.toml",
        "seeds": ", ".join(str(cell.seed) for cell in recipe.cells),
        "labels": "exact match by greedy decoding, float32, student distilled by soft labels",
        "memaudit": __version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _card(
    classifier: RiskClassifier,
    selection: SelectionResult,
    cells: Mapping[str, Sequence[CellResult]],
    judged: Sequence[Judged],
    rule_reports: Mapping[str, Report],
) -> dict[str, Any]:
    """Return what a reader must know before trusting the classifier."""
    by_run = {
        cell.run.name: {
            **{name: entry["value"] for name, entry in evaluate([one], n_resamples=0).items()},
            "examples": len(one.extracted),
            "extracted": cell.run.n_extracted,
            "expected": round(float(one.probabilities.sum()), 6),
        }
        for cell, one in zip(cells["test"], judged, strict=True)
    }
    return {
        "name": classifier.name,
        "digest": classifier.digest,
        "features": list(classifier.features),
        "selection": [{"feature": name, "pr_auc": value} for name, value in selection.steps],
        "threshold": classifier.threshold,
        "cells": {role: _prevalence(results) for role, results in cells.items()},
        "test": {"this classifier": evaluate(judged), **rule_reports},
        "test_by_cell": by_run,
        "statistics": (
            "At the natural prevalence of each cell. ROC-AUC, PR-AUC and the AUC among examples "
            "that occur equally often are means over test cells; the others pool their examples. "
            "95 % intervals from 1,000 resamples of cells, then of examples."
        ),
        "provenance": classifier.provenance,
        "limits": _LIMITS,
    }


def _prevalence(results: Sequence[CellResult]) -> dict[str, dict[str, int]]:
    return {
        cell.run.name: {
            "examples": len(cell.run.extracted),
            "extracted": cell.run.n_extracted,
            "extracted_by_baseline": int(cell.run.features["extracted_by_baseline"].sum()),
            "extracted_by_teacher": int(cell.run.features["extracted_by_teacher"].sum()),
        }
        for cell in results
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
        ("untrained", "demo-student"),
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
