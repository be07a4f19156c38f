"""What a student recites because it was in the data, and what it writes anyway.

A student of half of the windows shows both: of the other half it was told nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.fit import MAIN_STUDENT, Fitted, Run, judge, log_exposure
from study.tables import StudyTable, decimal

Predict = Callable[[Run], NDArray[np.float64]]
"""Gives the (n,) probabilities of a run's windows."""


def predict_by(fitted: Fitted) -> Predict:
    """Return the probabilities of a classifier.

    A run that it was fitted on is predicted by a fit on text from other sources.
    """

    def predict(run: Run) -> NDArray[np.float64]:
        for group, pipeline in fitted.without:
            if any(run.cell == each.cell for each in group):
                return fitted.probabilities(run, pipeline)
        return fitted.probabilities(run)

    return predict


def without_text(run: Run, predict: Predict) -> NDArray[np.float64]:
    """Return (n,) probabilities as if no row had a window's text, as `memaudit.runs.risks` does it."""
    count, others = run.columns["count"], run.columns["exposure_median"] - run.columns["count"]
    return with_exposure(run, predict, np.maximum(others, 0), np.zeros(len(count)))


def with_exposure(
    run: Run, predict: Predict, median: NDArray[np.float64], own: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (n,) probabilities as if so many rows had a window's grams, its own text among them."""
    columns: dict[str, NDArray[Any]] = dict(run.columns)
    seen = np.maximum(median, own)
    columns["log_exposure"] = log_exposure(seen, float(columns["epochs"][0]))
    is_alone = (columns["count"] > 1) & (own <= 1) & (median - own < 1)
    columns["exposure_share"] = np.where(is_alone, 0, columns["exposure_share"])
    return np.where(seen < 0.5, 0.0, predict(replace(run, columns=columns)))


def specific_share(run: Run, predict: Predict) -> NDArray[np.float64]:
    """Return (n,) which share of a window's probability is due to its own text."""
    p = predict(run)
    return 1 - np.minimum(p, without_text(run, predict)) / p


def halves_table(inside: Sequence[Run], outside: Sequence[Run], predict: Predict) -> StudyTable:
    """Return what students of half of the windows recite of that half and of the other one."""
    known = {(run.cell, run.student): run for run in inside}
    rows = []
    for out in outside:
        own = known[out.cell, out.student]
        figures = judge(out, predict(out), 0.5)
        rows.append(
            (
                out.cell,
                out.student,
                f"{own.found}",
                decimal(float((own.weight * predict(own)).sum()), 1),
                f"{out.found}",
                decimal(figures.expected, 1),
                decimal(figures.roc_auc, 4),
                decimal(figures.pr_auc),
            )
        )
    return StudyTable(
        "halves",
        "Students of half of the windows: what they recite of that half, and of the other one",
        (
            *("cell", "student", "of its half", "expected", "of the other half", "expected"),
            *("ROC-AUC of the other half", "PR-AUC of the other half"),
        ),
        tuple(rows),
        (
            "The classifier is `teacher`; training and calibration cells are predicted by a fit on "
            "other sources. Of the other half, exposure is counted in the half trained on.",
        ),
        n_labels=2,
    )


def specific_table(inside: Sequence[Run], predict: Predict) -> StudyTable:
    """Return, of what students recite, how much they recite without having been trained on it."""
    rows = []
    for run in inside:
        halves = {f"recited_{name}" for name in ("half", "other-half")}
        if run.student != MAIN_STUDENT or not halves <= set(run.columns):
            continue
        # Each window is in one half: the student of the other one was not told of it.
        untold = np.where(
            run.columns["in_half"], run.columns["recited_other-half"], run.columns["recited_half"]
        )
        p, share = predict(run), specific_share(run, predict)
        alone = replace(run, recited=run.recited & ~untold)
        figures = judge(alone, p * share, 0.5)
        rows.append(
            (
                run.cell,
                f"{run.found}",
                decimal(float((run.weight * p).sum()), 1),
                f"{alone.found}",
                decimal(figures.expected, 1),
                decimal(figures.roc_auc, 4),
                decimal(figures.pr_auc),
                decimal(judge(alone, p, 0.5).pr_auc),
            )
        )
    return StudyTable(
        "specific",
        "Recited only by the student that was trained on it",
        (
            *("cell", "recited", "expected", "not by the student of the half without it"),
            *("expected", "ROC-AUC of `specific`", "PR-AUC of it", "PR-AUC of the probability"),
        ),
        tuple(rows),
        (
            "A student of half of the windows takes half as many steps, so it recites less of "
            "templates too: what it does not recite is an upper limit of what is specific.",
        ),
    )
