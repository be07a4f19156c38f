"""`python -m study.report`: refit from the cell files, and write the tables of the study."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memaudit.metrics import clopper_pearson
from study.fit import MAIN_STUDENT, Judged, Run, judge_all, of_role, read_runs
from study.tables import StudyTable, decimal, markdown, write_markdown


def main() -> None:
    """Print the tables of the cells that are finished, and write them as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m study.report", description=main.__doc__)
    parser.add_argument("--cells", type=Path, default=Path("study/cells"))
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    runs = read_runs(arguments.cells)
    tables = [rates_table(runs), students_table(runs)]
    if of_role(runs, "train") and of_role(runs, "test"):
        tables.append(classifiers_table(judge_all(runs)))
    if arguments.markdown is not None:
        write_markdown(tables, arguments.markdown)
    sys.stdout.write(markdown(tables))


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
        if run.student == MAIN_STUDENT:
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


def classifiers_table(judged: dict[str, dict[str, Judged]]) -> StudyTable:
    """Return each method on each test cell."""
    rows = [
        (
            method,
            cell,
            decimal(found.roc_auc, 4),
            decimal(found.pr_auc),
            decimal(found.precision, 2),
            decimal(found.recall, 2),
            decimal(found.expected, 1),
            f"{found.found}",
        )
        for method, cells in judged.items()
        for cell, found in cells.items()
    ]
    return StudyTable(
        "classifiers",
        "Predicting the student of test cells, whose sources nothing was fitted on",
        ("method", "cell", "ROC-AUC", "PR-AUC", "precision", "recall", "expected", "found"),
        tuple(rows),
        ("At natural prevalence: kept rows stand for those that were left out.",),
        n_labels=2,
    )


if __name__ == "__main__":
    main()
