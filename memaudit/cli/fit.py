"""`memaudit fit`: labels and scores in, a calibrated classifier with its card out."""

import shlex
from itertools import chain
from pathlib import Path
from typing import Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command, FiniteRange, Shown, bundle
from memaudit.cli.options import (
    COUNT,
    FOLDER,
    OBJECTIVES,
    PATH,
    input_option,
    output_option,
    training_option,
)
from memaudit.errors import UsageError

_FEATURE_SETS = ("teacher", "teacher+student", "teacher+baseline")


@bundle(
    training_option(
        "--feature-set",
        "Whose scores to fit on. Default: all that the scores have columns of.",
        _FEATURE_SETS,
    ),
    training_option(
        "--features",
        "What to fit on. Default: chosen if there are two or more runs, else those of the shipped classifier.",
        metavar="NAME,…",
    ),
    training_option(
        "--objective",
        "What the students learned from. Default: what verify wrote beside the labels, else soft.",
        OBJECTIVES,
    ),
    training_option(
        "--calibration-share",
        "Share of the runs or examples that calibration and threshold come from.",
        FiniteRange(0, 1, min_open=True, max_open=True),
        0.3,
    ),
    training_option("--seed", "Seed of that split.", COUNT, 0),
    output_option("--export", "Also write an equal scikit-learn pipeline.", ("joblib", "skops")),
)
def wanted(**values: Any) -> dict[str, Any]:
    """Return the fields of `FitOptions`, as they are declared: the card says the command in that order."""
    # A bundle collects its parameters from the last to the first.
    return dict(reversed(values.items()))


@click.command(cls=Command)
@input_option(
    "--labels",
    "Folder of verify, or a table with extracted_by_student. One for each --scores.",
    PATH,
    metavar="PATH",
    multiple=True,
    required=True,
)
@input_option(
    "--scores",
    "Folder of predict on the same corpus, or its risk table. May be repeated.",
    PATH,
    metavar="PATH",
    multiple=True,
    required=True,
)
@input_option(
    "--recalibrate",
    "Do not fit: shift this classifier to the level of a small pilot.",
    metavar="NAME|PATH",
)
@output_option(
    "--out",
    "Folder of the classifier; its name is the classifier's.",
    FOLDER,
    metavar="DIR",
    required=True,
)
@wanted
@options.shown
def fit(
    *,
    labels: tuple[Path, ...],
    scores: tuple[Path, ...],
    recalibrate: str | None,
    out: Path,
    wanted: dict[str, Any],
    shown: Shown,
) -> None:
    """Fit and calibrate a classifier on what verify found, for predict --classifier DIR.

    Writes classifier.json and card.json into DIR. Each --labels goes with the --scores in the
    same place of their order; each pair is one run. Needs 20 extracted examples to fit and 10
    others to calibrate. With --recalibrate, 5 are enough: only the level of an existing
    classifier changes, not its order.
    """
    if len(labels) != len(scores):
        raise UsageError(
            f"expected one --labels for each --scores, got {len(labels)} and {len(scores)}",
            hint="give them in pairs, in the same order",
        )
    pairs = list(zip(labels, scores, strict=True))
    # The card names this command: what shapes the classifier, in one order.
    said: list[tuple[str, Any]] = []
    for labels_path, scores_path in pairs:
        said += [("labels", labels_path), ("scores", scores_path)]
    said += [("recalibrate", recalibrate), ("out", out), *wanted.items()]
    words = [(f"--{name.replace('_', '-')}", str(x)) for name, x in said if x is not None]
    command = shlex.join(["memaudit", "fit", *chain.from_iterable(words)])
    if recalibrate is not None:
        _recalibrate(recalibrate, pairs, out, wanted, command, shown)
        return

    with shown.working("fit the classifier"):
        from memaudit.reports.fit import fit_document, fit_page
        from memaudit.training.fit import fit_on_verification
        from memaudit.training.result import FitOptions

        names = [name.strip() for name in (wanted.pop("features") or "").split(",")]
        features = tuple(filter(None, names))
        options = FitOptions(**wanted, features=features, command=command)
        result = fit_on_verification(pairs, out, options)
    shown.tell(fit_document(result), fit_page(result))


def _recalibrate(
    classifier: str,
    pairs: list[tuple[Path, Path]],
    out: Path,
    wanted: dict[str, Any],
    command: str,
    shown: Shown,
) -> None:
    fixed = [name for name in ("feature_set", "features", "export") if wanted[name]]
    if fixed:
        raise UsageError(
            f"--{fixed[0].replace('_', '-')} has no meaning with --recalibrate",
            hint="a recalibrated classifier keeps its features",
        )

    with shown.working("shift the classifier"):
        from memaudit.reports.fit import recalibration_page
        from memaudit.training.recalibration import recalibrate

        result = recalibrate(classifier, pairs, out, objective=wanted["objective"], command=command)
    document = {"schema_version": 1, "folder": str(result.folder), **result.document()}
    shown.tell(document, recalibration_page(result))
