"""`python -m study.interventions RECIPE`: distil again without some windows, and count all of them.

The paper counts what is recited of the windows that stay. Here those that went are counted too:
a student can recite a page's template without the page. The teacher stays as it is.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from memaudit.classifier import RiskClassifier, load_classifier
from memaudit.runs.files import committed_file
from study.__main__ import say
from study.exposure import exposure_of
from study.fit import MAIN_STUDENT, Run, runs_of
from study.measure import CellFile, features_of, recited_by
from study.recipe import Cell, read_recipe
from study.specific import Predict, specific_share, with_exposure
from study.stages import Workshop, read_windows, train_student
from study.tables import StudyTable, decimal

_SPECIFIC = 0.5
"""Share of a probability that is due to the text itself, from which it counts as specific."""


def main() -> None:
    """Intervene in cells whose models are all there, and write a small file for each."""
    parser = argparse.ArgumentParser(prog="python -m study.interventions", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder with the models")
    parser.add_argument("--sample-data", type=Path, default=Path("sample_data"))
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--out", type=Path, default=Path("study/interventions"))
    parser.add_argument("--only", nargs="*", metavar="CELL", help="names of cells")
    arguments = parser.parse_args()
    disable_progress_bar()
    shop = Workshop(read_recipe(arguments.recipe), arguments.sample_data, arguments.work, say)
    classifier = load_classifier(arguments.models / "teacher")
    for cell in shop.recipe.cells:
        path = arguments.out / f"{cell.name}.json"
        if cell.name in (arguments.only or []) and not path.exists():
            found = intervene(shop, cell, classifier)
            path.parent.mkdir(parents=True, exist_ok=True)
            with committed_file(path) as stream:
                stream.write(json.dumps(found, indent=2).encode() + b"\n")
            path.chmod(0o644)


def intervene(shop: Workshop, cell: Cell, classifier: RiskClassifier) -> dict[str, Any]:
    """Distil without what is flagged, or specific, or generic, or drawn by chance, and count.

    Returns:
        by intervention: how many windows went, and how many of those recited before are recited
        after, of the windows that stayed and of those that went.
    """
    made = read_windows(shop, cell)
    prefix_len = shop.recipe.regimes[cell.regime].prefix_len
    run = _whole_run(shop, cell)

    def predict(each: Run) -> NDArray[np.float64]:
        return classifier.predict_proba(each.matrix(classifier.features))

    before, results = run.recited, {}
    for name, dropped in choose(run, predict, classifier.threshold).items():
        if not dropped.any():
            continue
        folder = shop.cell_folder(cell) / f"without-{name}-{classifier.digest[:8]}"
        train_student(shop, cell, cell.students[0], folder, keeps=~dropped)
        after = recited_by(folder, list(made.windows), prefix_len)
        left = _as_left(run, predict, made.windows, ~dropped, prefix_len)
        results[name] = {
            "dropped": int(dropped.sum()),
            "recited": {"kept": int(before[~dropped].sum()), "dropped": int(before[dropped].sum())},
            "recited_after": {
                "kept": int(after[~dropped].sum()),
                "dropped": int(after[dropped].sum()),
                "dropped, and before": int((after & before)[dropped].sum()),
            },
            # Counted anew in what stayed: the other estimate lets one text go at a time.
            "expected_after": round(float(left[dropped].sum()), 2),
            "expected_if_alone": round(
                float((predict(run) * (1 - specific_share(run, predict)))[dropped].sum()), 2
            ),
        }
    return {"cell": cell.name, "classifier": classifier.digest, "interventions": results}


def choose(run: Run, predict: Predict, threshold: float) -> dict[str, NDArray[np.bool_]]:
    """Return, for each intervention, (n,) which windows go. `random` drops as many as `flagged`."""
    flagged = predict(run) >= threshold
    is_specific = flagged & (specific_share(run, predict) >= _SPECIFIC)
    drawn = np.zeros(len(flagged), np.bool_)
    drawn[np.random.default_rng(0).permutation(len(flagged))[: flagged.sum()]] = True
    return {
        "flagged": flagged,
        "specific": is_specific,
        "generic": flagged & ~is_specific,
        "random": drawn,
    }


def _whole_run(shop: Workshop, cell: Cell) -> Run:
    """Return the main student with every window that it was trained on: none is left out."""
    made, name = read_windows(shop, cell), cell.students[0].name
    columns, _ = features_of(shop, cell)
    columns = {name: values[: len(made.windows)] for name, values in columns.items()}
    folder, prefix_len = shop.cell_folder(cell) / name, shop.recipe.regimes[cell.regime].prefix_len
    columns[f"recited_{name}"] = recited_by(folder, list(made.windows), prefix_len)
    columns["weight"] = np.ones(len(made.windows))
    schedule = shop.recipe.regimes[cell.regime].student_schedule
    about = {
        "cell": {"name": cell.name, "students": [{"name": name}]},
        "regime": {"student_schedule": {"epochs": schedule.epochs}},
    }
    return next(run for run in runs_of(CellFile(columns, about)) if run.student == MAIN_STUDENT)


def _as_left(
    run: Run,
    predict: Predict,
    windows: NDArray[np.int32],
    stays: NDArray[np.bool_],
    prefix_len: int,
) -> NDArray[np.float64]:
    """Return (n,) probabilities by the exposure that the windows have in those that stay."""
    weights = run.columns["count"][stays].astype(np.int64)
    found = exposure_of(list(windows[stays]), list(windows), prefix_len, weights, least=0)
    left = replace(run, columns=run.columns | {"exposure_share": found.share})
    return with_exposure(left, predict, found.median, np.where(stays, run.columns["count"], 0))


def read_interventions(folder: Path) -> list[Mapping[str, Any]]:
    """Return what was found, in the order of the cells' names."""
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]


def interventions_table(found: Sequence[Mapping[str, Any]]) -> StudyTable:
    """Return what dropping windows does to them, and to those that stay."""
    rows = [
        (
            each["cell"],
            name,
            f"{result['dropped']:,}",
            f"{result['recited']['kept']} + {result['recited']['dropped']}",
            f"{result['recited_after']['kept']} + {result['recited_after']['dropped']}",
            f"{result['recited_after']['dropped, and before']}",
            decimal(result["expected_after"], 1),
            decimal(result["expected_if_alone"], 1),
        )
        for each in found
        for name, result in each["interventions"].items()
    ]
    return StudyTable(
        "interventions",
        "Distilled again without some windows: recited of those that stayed + of those that went",
        (
            *("cell", "without", "windows dropped", "recited before", "recited after"),
            "dropped ones recited before and after",
            "of the dropped, expected after",
            "if each went alone",
        ),
        tuple(rows),
        (
            "Specific: at least half of the probability is due to the window's own rows. Random: as "
            "many as are flagged. Students of other seeds differ in about a fifth of what they recite.",
        ),
        n_labels=2,
    )


if __name__ == "__main__":
    main()
