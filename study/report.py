"""`python -m study.report`: refit from the cell files, and write the tables of the study."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from memaudit.classifier import SampledRisk
from memaudit.gate.check import MIN_RUNS
from memaudit.metrics import clopper_pearson, expected_count
from memaudit.objectives import ObjectiveKind
from study.fit import (
    MAIN_STUDENT,
    PLAIN_STUDENT,
    RULES,
    SHIPPED,
    Fitted,
    Judged,
    Run,
    Shipped,
    fit_shipped,
    judge,
    judge_all,
    read_outside_runs,
    read_runs,
)
from study.interventions import interventions_table, read_interventions
from study.sampling import borrowed, fit_sampled, sampling_table
from study.shipping import ship
from study.specific import halves_table, predict_by, specific_table
from study.tables import StudyTable, decimal, markdown, write_markdown
from study.transfer import families_table, objectives_table, pilots_table, teachers_table


def main() -> None:
    """Print the tables of the cells that are finished, and write them as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m study.report", description=main.__doc__)
    parser.add_argument("--cells", type=Path, default=Path("study/cells"))
    parser.add_argument("--objectives", type=Path, default=Path("study/objectives"))
    parser.add_argument("--interventions", type=Path, default=Path("study/interventions"))
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--models", type=Path, metavar="DIR", help="put classifiers here")
    arguments = parser.parse_args()
    runs, others = read_runs(arguments.cells), read_runs(arguments.objectives)
    # Their baselines are left out: the windows of most are those of a cell whose baseline counts.
    runs += [run for run in others if run.objective != "soft" and run.student != PLAIN_STUDENT]
    shipped = _fit_all(runs)
    teacher = shipped["teacher"][1]
    predict = predict_by(teacher)
    sampled = _fit_all_sampled(shipped)
    judged = {kind: judge_all(runs, shipped, kind) for kind in get_args(ObjectiveKind)}
    tables = [
        rates_table(runs),
        students_table(runs),
        left_out_table({name: fitted for name, (_, fitted) in shipped.items()}),
        classifiers_table(judged["soft"], "soft labels"),
        classifiers_table(judged["hard"], "hard labels"),
        classifiers_table(judged["sampled"], "text that the teacher samples"),
        classifiers_table(judged["cross-entropy"], "plain fine-tuning"),
        families_table(runs, teacher),
        pilots_table(runs, teacher),
        objectives_table(others, shipped),
        sampling_table(runs, shipped, sampled),
        teachers_table(runs, teacher),
        halves_table(runs, read_outside_runs(arguments.cells), predict),
        specific_table(runs, predict),
        interventions_table(read_interventions(arguments.interventions)),
    ]
    if arguments.models is not None:
        ship(runs, shipped, sampled, judged, arguments.models)
    if arguments.markdown is not None:
        write_markdown(tables, arguments.markdown)
    sys.stdout.write(markdown(tables))


def _fit_all(runs: Sequence[Run]) -> dict[str, tuple[Shipped, Fitted]]:
    """Return all that is shipped, by name.

    How much runs differ cannot be told from a few: those of soft labels then stand for them.
    """
    shipped = {spec.name: (spec, fit_shipped(runs, spec)) for spec in SHIPPED}
    for name, (spec, fitted) in shipped.items():
        if len(fitted.held_out) < MIN_RUNS:
            log_sd = max(fitted.log_sd, shipped[spec.feature_set][1].log_sd)
            shipped[name] = (spec, replace(fitted, log_sd=log_sd))
    return shipped


def _fit_all_sampled(
    shipped: Mapping[str, tuple[Shipped, Fitted]],
) -> dict[str, SampledRisk | None]:
    """Return what samples reveal, by name; spreads of few runs are those of soft labels, too."""
    sampled = {name: fit_sampled(fitted) for name, (_, fitted) in shipped.items()}
    for name, (spec, fitted) in shipped.items():
        own, soft = sampled[name], sampled[spec.feature_set]
        if len(fitted.held_out) < MIN_RUNS and own is not None and soft is not None:
            sampled[name] = borrowed(own, soft)
    return sampled


def rates_table(runs: Sequence[Run]) -> StudyTable:
    """Return what the models of each cell recite."""
    return StudyTable(
        "rates",
        "What teacher (T), baseline (B) and student (S) recite",
        (
            "cell",
            "family",
            "windows",
            "T %",
            "B %",
            "S %",
            "T / B / S",
            "S in T∩B",
            "templates in S",
            "held-out loss: base / B / S / T",
            "of 1,000 never trained on: T / B / S",
            "core-minutes",
        ),
        tuple(_rates(run) for run in runs if run.student == MAIN_STUDENT),
        (
            "Intervals (95 %) are exact for independent windows (Clopper-Pearson); those of one "
            "cell have their teacher in common.",
            "Two recited suffixes that share 8 tokens in a row are of one template. A cell with fewer "
            "than five templates says little of other text.",
            "S is the student of soft labels at T = 2, seed 1.",
        ),
        n_labels=2,
    )


def _rates(run: Run) -> tuple[str, ...]:
    about: dict[str, Any] = run.about
    found, n = about["recited"], about["windows"]
    three = ("teacher", "baseline", MAIN_STUDENT)
    loss = about["held_out_loss"]
    return (
        run.cell,
        about["cell"]["family"],
        f"{n:,}",
        *(_rate(found[model], n) for model in three),
        " / ".join(f"{found[model]}" for model in three),
        f"{found[f'{MAIN_STUDENT} in T∩B']}",
        f"{about['templates']}",
        " / ".join(f"{loss[m]:.2f}" for m in ("base", "baseline", MAIN_STUDENT, "teacher")),
        " / ".join(f"{about['recited_of_held_out'][model]}" for model in three),
        f"{sum(about['seconds'].values()) / 60:.1f}",
    )


def _rate(found: int, n: int) -> str:
    interval = clopper_pearson(found, n)
    return f"{100 * found / n:.2f}\n{100 * interval.low:.2f}–{100 * interval.high:.2f}"


def students_table(runs: Sequence[Run]) -> StudyTable:
    """Return the further students of each cell."""
    rows = []
    for run in runs:
        recited, easy = run.about["recited"], f"{run.student} in T∩B"
        if run.objective != "soft" or run.student == MAIN_STUDENT:
            continue
        outside = run.about["recited"][run.student] - run.found
        rows.append(
            (
                run.cell,
                run.student,
                f"{recited[run.student]}",
                f"{recited[MAIN_STUDENT]}",
                f"{recited[easy]}",
                f"{run.found} + {outside}" if run.student == "half" else "–",
            )
        )
    return StudyTable(
        "students",
        "Further students",
        (
            "cell",
            "student",
            "recited",
            "by S",
            "in T∩B",
            "of the half trained on + of the other half",
        ),
        tuple(rows),
        n_labels=2,
    )


def left_out_table(shipped: Mapping[str, Fitted]) -> StudyTable:
    """Return how well each run is predicted by a fit on text from other sources."""
    rows = []
    for name, fitted in shipped.items():
        for run, probabilities in fitted.held_out:
            found = judge(run, probabilities, fitted.threshold)
            copies = np.repeat(probabilities, np.rint(run.weight).astype(int))
            interval = expected_count(copies, fitted.log_sd)
            seeds = RULES["students of other seeds"](run)
            rule = None if seeds is None else judge(run, seeds, 0.5).pr_auc
            rows.append(
                (
                    name,
                    run.cell,
                    run.student,
                    *_figures(found),
                    f"{interval.low}–{interval.high}",
                    "yes" if interval.low <= run.found <= interval.high else "no",
                    decimal(rule),
                )
            )
    return StudyTable(
        "left-out",
        "Each run, predicted by a fit on text from other sources",
        (
            *("classifier", "cell", "student", "ROC-AUC", "PR-AUC", "precision", "recall"),
            *("expected", "found", "interval", "covers", "PR-AUC of the student of another seed"),
        ),
        tuple(rows),
        (
            "Features, threshold and level were chosen on these very runs: the test cells are the "
            "judge.",
        ),
        n_labels=3,
    )


def classifiers_table(judged: Mapping[str, Mapping[str, Judged]], student: str) -> StudyTable:
    """Return each method on each test cell."""
    rows = [
        (method, cell, *_figures(found))
        for method, cells in judged.items()
        for cell, found in cells.items()
    ]
    return StudyTable(
        "classifiers",
        f"Predicting the student of test cells, whose sources nothing was fitted on: {student}",
        ("method", "cell", "ROC-AUC", "PR-AUC", "precision", "recall", "expected", "found"),
        tuple(rows),
        ("At natural prevalence: kept rows stand for those that were left out.",),
        n_labels=2,
    )


def _figures(found: Judged) -> tuple[str, ...]:
    return (
        decimal(found.roc_auc, 4),
        decimal(found.pr_auc),
        decimal(found.precision, 2),
        decimal(found.recall, 2),
        decimal(found.expected, 1),
        f"{found.found}",
    )


if __name__ == "__main__":
    main()
