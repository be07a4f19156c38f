"""How far classifiers carry: to other families and objectives, and with a pilot to a new level."""

from collections.abc import Mapping, Sequence

import numpy as np

from memaudit.classifier import shipped_name, sigmoid
from memaudit.training.recalibration import MIN_PILOT_POSITIVES, fit_shift
from study.fit import (
    MAIN_STUDENT,
    PLAIN_STUDENT,
    Fitted,
    Run,
    Shipped,
    fit,
    fitted_on,
    judge,
    of_objective,
    of_role,
)
from study.tables import StudyTable, decimal

_PILOTS = (500, 2_000, 5_000)
_DRAWS = 50


def families_table(runs: Sequence[Run], shipped: Fitted) -> StudyTable:
    """Return test cells predicted by fits that saw neither their family nor their sources."""
    soft = of_objective(runs, "soft")
    rows = []
    for family in sorted({run.about["cell"]["family"] for run in soft}):
        others = [run for run in fitted_on(soft) if run.about["cell"]["family"] != family]
        fitted = fit(others, shipped.features)
        for run in of_role(soft, "test"):
            if run.about["cell"]["family"] == family and run.student == MAIN_STUDENT:
                found = judge(run, fitted.probabilities(run), fitted.threshold)
                whole = judge(run, shipped.probabilities(run), shipped.threshold)
                rows.append(
                    (
                        family,
                        run.cell,
                        decimal(found.roc_auc, 4),
                        f"{decimal(found.pr_auc)} / {decimal(whole.pr_auc)}",
                        f"{decimal(found.recall, 2)} / {decimal(whole.recall, 2)}",
                        f"{decimal(found.expected, 1)} / {decimal(whole.expected, 1)}",
                        f"{found.found}",
                    )
                )
    return StudyTable(
        "families",
        "Test cells of a family that nothing was fitted on, beside the classifier as shipped",
        ("family", "cell", "ROC-AUC", "PR-AUC", "recall", "expected", "found"),
        tuple(rows),
        ("Without the family / with it. `teacher`, with its features.",),
        n_labels=2,
    )


def objectives_table(
    runs: Sequence[Run], shipped: Mapping[str, tuple[Shipped, Fitted]]
) -> StudyTable:
    """Return what students of one teacher recite, by what they learn from.

    Args:
        runs: of cells that nothing was fitted on; those without the usual student are left out.
        shipped: by name; each student is predicted by the teacher's of its objective.
    """
    rows = []
    for run in (run for run in runs if MAIN_STUDENT in run.about["recited"]):
        teacher, baseline = (run.columns[f"recited_{m}"] for m in ("teacher", PLAIN_STUDENT))
        alone = run.recited & teacher & ~baseline
        usual = run.about["recited"][MAIN_STUDENT]
        _, fitted = shipped[shipped_name("teacher", run.objective)]
        judged = judge(run, fitted.probabilities(run), fitted.threshold)
        rows.append(
            (
                run.cell,
                run.student,
                f"{run.found}",
                decimal(run.found / usual, 2),
                f"{int((run.recited & teacher & baseline).sum())}",
                f"{int(alone.sum())} of {int((teacher & ~baseline).sum())}",
                decimal(judged.expected, 1),
                decimal(judged.roc_auc, 4),
                decimal(judged.pr_auc),
            )
        )
    return StudyTable(
        "objectives",
        "What students recite, by what they learn from",
        (
            *("cell", "student", "recited", "of those by soft labels at T = 2"),
            *("in T∩B", "inherited", "expected", "ROC-AUC", "PR-AUC"),
        ),
        tuple(rows),
        (
            "`baseline` and `plain` are plain fine-tuning on the text. All others learn from the same "
            "teacher, at T = 1 but for `soft`. Inherited: recited by teacher and student and not by the "
            "baseline.",
            "Expected, ROC-AUC and PR-AUC are those of the shipped classifiers that look at the teacher "
            "alone: for soft labels, fitted on forward KL alone and told the temperature; for text that the "
            "teacher writes; and for plain fine-tuning.",
        ),
        n_labels=2,
    )


def teachers_table(runs: Sequence[Run], shipped: Fitted) -> StudyTable:
    """Return what students recite of windows that their teacher has seen, and of the others."""
    rows = []
    for run in of_objective(runs, "soft"):
        saw = run.about["cell"].get("teacher_saw", "all")
        if saw == "all":
            continue
        has_seen = run.columns["in_half"] if saw == "half" else np.zeros(len(run.recited), bool)
        p = shipped.probabilities(run)
        for name, part in (("yes", has_seen), ("no", ~has_seen)):
            n = run.weight[part].sum()
            if n:
                models = (
                    run.columns["recited_teacher"],
                    run.columns["recited_baseline"],
                    run.recited,
                )
                found = " / ".join(f"{int(recited[part].sum())}" for recited in models)
                expected = decimal(float((run.weight * p)[part].sum()), 1)
                rows.append((run.cell, run.student, name, f"{n:,.0f}", found, expected))
    return StudyTable(
        "teachers",
        "What is recited where the teacher saw half of the windows, or none",
        ("cell", "student", "seen by the teacher", "windows", "T / B / S", "expected of S"),
        tuple(rows),
        ("The baseline saw all windows. Expected: by the shipped `teacher`.",),
        n_labels=3,
    )


def pilots_table(runs: Sequence[Run], shipped: Fitted) -> StudyTable:
    """Return by which factor the expected number of test runs is wrong, after pilots of some sizes.

    A pilot is drawn from the run itself, so it is as if its student had been trained on all rows.
    """
    rows = []
    for run in of_role(of_objective(runs, "soft"), "test"):
        if run.found < MIN_PILOT_POSITIVES or run.student.startswith(MAIN_STUDENT + "-"):
            continue
        logits = shipped.pipeline.decision_function(run.matrix(shipped.features))
        logits = shipped.calibration.slope * logits + shipped.calibration.intercept
        population = np.repeat(np.arange(len(logits)), np.rint(run.weight).astype(int))
        rng = np.random.default_rng(0)
        cells = []
        for size in _PILOTS:
            if size > len(population):
                cells.append("–")
                continue
            factors, n_refused = [], 0
            for _ in range(_DRAWS):
                drawn = rng.choice(population, size, replace=False)
                if run.recited[drawn].sum() < MIN_PILOT_POSITIVES:
                    n_refused += 1
                    continue
                after = fit_shift(logits[drawn], run.recited[drawn]).apply(logits)
                factors.append(_factor(float((run.weight * sigmoid(after)).sum()), run.found))
            cells.append(_quantiles(factors, n_refused))
        before = _factor(float((run.weight * sigmoid(logits)).sum()), run.found)
        rows.append((run.cell, run.student, f"{run.found}", f"{before:.2f}", *cells))
    return StudyTable(
        "pilots",
        "By which factor the expected number is wrong, without a pilot and after one",
        (
            *("cell", "student", "found", "no pilot"),
            *(f"{size:,} windows" for size in _PILOTS),
        ),
        tuple(rows),
        (
            f"Median and 90 % quantile over {_DRAWS} pilots drawn from the run; in brackets how many "
            f"of them had fewer than {MIN_PILOT_POSITIVES} recited windows and were refused. "
            "`memaudit fit --recalibrate` does this.",
        ),
        n_labels=2,
    )


def _factor(expected: float, found: int) -> float:
    return max(expected / found, found / expected)


def _quantiles(factors: Sequence[float], n_refused: int) -> str:
    refused = f" ({n_refused})" if n_refused else ""
    if not factors:
        return f"–{refused}"
    return f"{np.median(factors):.2f}, {np.quantile(factors, 0.9):.2f}{refused}"
