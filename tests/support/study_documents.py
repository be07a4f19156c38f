"""The document of a study that never ran: round numbers, in the schema of study/results.py."""

from study.heavy.classifier_tables import CLASSIFIER_FIGURES
from study.heavy.rates import ratio_figures

FAMILIES = ("gpt-neox", "olmo2", "qwen3")
CORPORA = ("mixed", "prose", "wiki")
EXAMPLES = 1000


def figure(value, margin=0.02):
    """A figure with its interval."""
    return {"value": value, "low": max(0.0, value - margin), "high": min(1.0, value + margin)}


def counts(teacher=80, baseline=40, easy=35, soft=20, soft_in_easy=19, **others):
    """Counts of a cell in which the paper's findings hold."""
    return {
        "examples": EXAMPLES,
        "teacher": teacher,
        "baseline": baseline,
        "easy": easy,
        "teacher_only": teacher - easy,
        "soft": soft,
        "soft_in_easy": soft_in_easy,
        "soft_inherited": 1,
        "soft_new": 0,
        "hard": 22,
        "hard_in_easy": 18,
        "hard_inherited": 3,
        "hard_new": 1,
        "soft-t4": 5,
        "soft-t4_in_easy": 5,
        "soft-t4_inherited": 0,
        "soft-t4_new": 0,
        **others,
    }


def rates(cells):
    """What `rates_by` says about the counts of some cells."""
    totals = {key: sum(cell[key] for cell in cells) for key in cells[0]}
    return {"cells": len(cells), "counts": totals, "figures": ratio_figures(cells)}


def student(name, cells, objective):
    """What `objectives_against_baseline` says."""
    figures = {
        "rate": (name, "examples"),
        "against_baseline": (name, "baseline"),
        "against_soft": (name, "soft"),
        "in_easy": (f"{name}_in_easy", name),
        "inherited": (f"{name}_inherited", "teacher_only"),
    }
    entry = rates(cells) | {"figures": ratio_figures(cells, figures)}
    return entry | {"objective": {"kind": "soft", "cross_entropy_share": 0, "seed": 0} | objective}


def judged(roc_auc=0.98, pr_auc=0.8, not_fitted=(), **figures):
    """What a method scores; its runs expect 10, 20 and 4 where 10, 10 and 3 are found."""
    values = dict.fromkeys(CLASSIFIER_FIGURES, 0.5) | {"roc_auc": roc_auc, "pr_auc": pr_auc}
    found = {"a": (10, 10.0), "b": (10, 20.0), "c": (3, 4.0)}
    return {
        "figures": {name: figure(value) for name, value in (values | figures).items()},
        "not_fitted": list(not_fitted),
        "by_run": {
            run: {"examples": 100, "found": n, "expected": expected}
            for run, (n, expected) in found.items()
        },
    }


def arm(dropped, memorized, new=0, though_dropped=0, perplexity=21.0):
    """What came of an intervention."""
    return {
        "examples": EXAMPLES,
        "dropped": dropped,
        "memorized": memorized,
        "newly_memorized": new,
        "memorized_though_dropped": though_dropped,
        "trained_on": EXAMPLES - dropped,
        "held_out_perplexity": perplexity,
    }


def make_document(changed=None):
    """The document of two cells for each family and corpus.

    Args:
        changed: counts by `family / corpus`, other than usual.
    """
    settings = [f"{family} / {corpus}" for family in FAMILIES for corpus in CORPORA]
    by_setting = {name: [counts(**(changed or {}).get(name, {}))] * 2 for name in settings}
    cells = [cell for group in by_setting.values() for cell in group]
    classifiers = {
        name: {"as shipped": judged(), "other family": judged(0.96, 0.7, not_fitted=("olmo2",))}
        for name in ("teacher", "teacher+student", "teacher+baseline", "the paper's four")
    }
    classifiers |= {
        name: {"as shipped": judged(roc_auc, roc_auc / 2)}
        for name, roc_auc in (("zlib entropy alone", 0.7), ("occurrence count alone", 0.9))
    }
    classifiers["teacher-hard"] = {"as shipped": judged(0.95, 0.75)}
    classifiers["students of two other seeds"] = {"as shipped": judged(0.9, 0.9)}
    return {
        "schema_version": 1,
        "cells": {
            f"test-{name}-{index}": {
                "family": name.split(" / ")[0],
                "corpus": name.split(" / ")[1],
                "pretrained": True,
                "seen_by_teacher": 1.0,
                "counts": cell,
            }
            for name, group in by_setting.items()
            for index, cell in enumerate(group)
        },
        "rates": {
            "family and corpus": {name: rates(group) for name, group in by_setting.items()},
            "plan": {"natural-16": rates(cells)},
            "all": {"all": rates(cells)},
        },
        "objectives": {
            "soft": student("soft", cells, {"temperature": 2.0}),
            "soft-t4": student("soft-t4", cells, {"temperature": 4.0}),
            "hard": student("hard", cells, {"kind": "hard", "temperature": 2.0}),
        },
        "held_out_perplexity": {"base": 30.0, "teacher": 15.0, "baseline": 22.0, "soft": 20.0},
        "classifiers": classifiers,
        "interventions": {
            "test-qwen3-prose": {
                "none": arm(0, 20, perplexity=20.0),
                "flagged": arm(25, 1, new=1),
                "random": arm(25, 19),
                "deduplicated": arm(0, 0),
            }
        },
    }
