"""Results: one document with all that a study found, from which tables and plots are made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memaudit.classifier import shipped_name
from memaudit.features import SHARED_SETS
from memaudit.objectives import ObjectiveKind
from study.heavy.cells import CellResult
from study.heavy.evaluation import Judged, evaluate
from study.heavy.rates import (
    held_out_perplexities,
    objectives_against_baseline,
    rates_by,
    set_counts,
)
from study.heavy.recipe import MAIN_STUDENT
from study.heavy.rules import judge_rules
from study.heavy.transfer import (
    Labels,
    Split,
    fit_split,
    judge_by_other_seeds,
    judge_split,
    labels_of,
    shipped_split,
    splits_by,
)

OTHER_SEEDS = ("soft-seed-2", "soft-seed-3")
"""Students that differ from the main one in their seed alone."""

PAPERS_FEATURES = ("zlib_entropy", "teacher_perplexity", "baseline_perplexity", "kl_divergence")
"""Of Borkar et al. 2026 (arXiv:2601.15394), section 5."""

_N_RESAMPLES = 300


def study_results(results: Sequence[CellResult], *, n_jobs: int = 1) -> dict[str, Any]:
    """Return all tables of a study.

    Args:
        results: of its cells, the demo's not among them.
        n_jobs: processes.
    """
    main = [result for result in results if is_main(result)]
    return {
        "schema_version": 1,
        "cells": {result.cell.name: _cell_document(result) for result in results},
        "rates": {
            "family and corpus": rates_by(main, lambda r: f"{r.cell.family} / {r.cell.corpus}"),
            "family": rates_by(main, lambda r: r.cell.family),
            "corpus": rates_by(main, lambda r: r.cell.corpus),
            "plan": rates_by(results, lambda r: r.cell.plan),
            "all": rates_by(main, lambda r: "all"),
        },
        "objectives": objectives_against_baseline(main),
        "held_out_perplexity": held_out_perplexities(main),
        "classifiers": _classifier_tables(results, n_jobs),
    }


def is_main(result: CellResult) -> bool:
    """Return whether a cell is one of the grid: pretrained models, a teacher that saw all."""
    return result.cell.pretrained and result.cell.seen_by_teacher == 1


def _cell_document(result: CellResult) -> dict[str, Any]:
    cell = result.cell
    return {
        "family": cell.family,
        "corpus": cell.corpus,
        "role": cell.role,
        "plan": cell.plan,
        "max_repeats": cell.max_repeats,
        "seed": cell.seed,
        "teacher": str(cell.teacher),
        "student": str(cell.student),
        "pretrained": cell.pretrained,
        "seen_by_teacher": cell.seen_by_teacher,
        "counts": set_counts(result),
        "held_out_perplexity": {k: round(v, 4) for k, v in sorted(result.perplexity.items())},
        "cpu_seconds": round(result.cpu_seconds, 1),
    }


def evaluation_splits(results: Sequence[CellResult]) -> dict[str, list[Split]]:
    """Return the splits that soft-label classifiers are judged by, in groups.

    As shipped; within one family and corpus; without what is judged (a family, a corpus, …); and
    without the objectives judged.
    """
    shipped = shipped_split(results, "soft")
    every_objective = replace(
        shipped,
        test=tuple(
            labels
            for labels in labels_of(results, "test", "soft")
            if labels.student not in (MAIN_STUDENT, *OTHER_SEEDS)
        ),
    )
    left_out = {f"other {name}": splits_by(shipped, key) for name, key in SETTINGS.items()}
    return {
        "as shipped": [shipped],
        "within family and corpus": splits_by(shipped, _family_and_corpus, within=True),
        **left_out,
        "other temperature or share": splits_by(every_objective, lambda labels: labels.student),
    }


SETTINGS: dict[str, Callable[[Labels], str]] = {
    "family": lambda labels: labels.result.cell.family,
    "corpus": lambda labels: labels.result.cell.corpus,
    "windows": lambda labels: f"{labels.result.cell.window_half}+{labels.result.cell.window_half}",
    "repetition": lambda labels: (
        "natural text" if labels.result.cell.max_repeats == 1 else "repeated text"
    ),
    "student size": lambda labels: str(labels.result.cell.student),
    "start": lambda labels: "pretrained" if labels.result.cell.pretrained else "scratch",
    "exposure of the teacher": lambda labels: f"seen {labels.result.cell.seen_by_teacher:g}",
}
"""What may differ between the distillations fitted on and the one predicted."""


def _family_and_corpus(labels: Labels) -> str:
    return f"{labels.result.cell.family} / {labels.result.cell.corpus}"


@dataclass(frozen=True, slots=True)
class _Task:
    """One classifier to fit and judge."""

    method: str
    group: str
    split: Split
    feature_set: str
    features: tuple[str, ...] | None

    def judged(self) -> dict[str, Judged] | None:
        """Return predictions by run, or None where there are too few positives to fit on."""
        classifier = fit_split(self.split, self.feature_set, features=self.features)
        return None if classifier is None else judge_split(self.split, classifier)


def _tasks(results: Sequence[CellResult]) -> list[_Task]:
    methods: dict[str, tuple[str, tuple[str, ...] | None]] = {
        **{name: (name, None) for name in SHARED_SETS},
        "the paper's four": ("teacher+baseline", PAPERS_FEATURES),
    }
    tasks = [
        _Task(method, group, split, *fitted)
        for method, fitted in methods.items()
        for group, splits in evaluation_splits(results).items()
        for split in splits
    ]
    kinds: tuple[ObjectiveKind, ...] = ("hard", "cross-entropy")
    for kind in kinds:
        for feature_set in SHARED_SETS:
            baselines = feature_set != "teacher+baseline"
            split = shipped_split(results, kind, baselines=baselines)
            tasks.append(
                _Task(shipped_name(feature_set, kind), "as shipped", split, feature_set, None)
            )
    return tasks


def _classifier_tables(results: Sequence[CellResult], n_jobs: int) -> dict[str, Any]:
    from joblib import Parallel, delayed

    tasks = _tasks(results)
    judged = Parallel(n_jobs=n_jobs)(delayed(task.judged)() for task in tasks)
    by_group: dict[str, dict[str, dict[str, Judged]]] = {}
    failed: dict[tuple[str, str], list[str]] = {}
    for task, runs in zip(tasks, judged, strict=True):
        group = by_group.setdefault(task.method, {}).setdefault(task.group, {})
        if runs is None:
            failed.setdefault((task.method, task.group), []).append(task.split.name)
        else:
            group |= {f"{task.split.name}: {name}": one for name, one in runs.items()}
    by_group |= {name: {"as shipped": runs} for name, runs in _references(results).items()}
    summaries = Parallel(n_jobs=n_jobs)(
        delayed(_summary)(runs, failed.get((method, group), []))
        for method, groups in by_group.items()
        for group, runs in groups.items()
    )
    remaining = iter(summaries)
    return {
        method: {group: next(remaining) for group in groups} for method, groups in by_group.items()
    }


def _references(results: Sequence[CellResult]) -> dict[str, dict[str, Judged]]:
    """Return what trivial rules and other seeds' students say about the test cells."""
    by_role = {
        role: [result for result in results if result.cell.role == role]
        for role in ("train", "calibration", "test")
    }
    names = [result.cell.name for result in by_role["test"]]
    rules = judge_rules(by_role["train"], by_role["calibration"], by_role["test"])
    return {
        **{rule: dict(zip(names, runs, strict=True)) for rule, runs in rules.items()},
        "students of two other seeds": judge_by_other_seeds(by_role["test"], OTHER_SEEDS),
    }


def _summary(judged: Mapping[str, Judged], failed: Sequence[str]) -> dict[str, Any]:
    """Return figures over all runs, and for each run what was expected and what was found."""
    runs = list(judged.values())
    return {
        "figures": evaluate(runs, n_resamples=_N_RESAMPLES) if runs else {},
        "not_fitted": sorted(failed),
        "by_run": {
            name: {
                "examples": len(one.extracted),
                "found": int(one.extracted.sum()),
                "expected": round(float(np.sum(one.probabilities)), 4),
                **{
                    key: entry["value"]
                    for key, entry in evaluate([one], n_resamples=0).items()
                    if key in ("roc_auc", "pr_auc", "equal_count_auc", "precision", "recall")
                },
            }
            for name, one in sorted(judged.items())
        },
    }
