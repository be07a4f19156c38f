"""`memaudit fit`: labels and scores in, a calibrated classifier with its card out."""

import shlex
from pathlib import Path
from typing import Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command, FiniteRange
from memaudit.cli.options import input_option, output_option, training_option
from memaudit.errors import UsageError
from memaudit.text import json_text

_FEATURE_SETS = ("teacher", "teacher+student", "teacher+baseline")
_PATH = click.Path(path_type=Path)


@click.command(short_help="Fit a classifier on what verify found.", cls=Command)
@input_option(
    "--labels",
    type=_PATH,
    metavar="PATH",
    multiple=True,
    required=True,
    help="Folder of verify, or a table with extracted_by_student. One for each --scores.",
)
@input_option(
    "--scores",
    type=_PATH,
    metavar="PATH",
    multiple=True,
    required=True,
    help="Folder of predict on the same corpus, or its risk table. May be repeated.",
)
@input_option(
    "--recalibrate",
    metavar="NAME|PATH",
    help="Do not fit: shift this classifier to the level of a small pilot.",
)
@output_option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    required=True,
    help="Folder of the classifier, which is called like it.",
)
@training_option(
    "--feature-set",
    type=click.Choice(_FEATURE_SETS),
    help="Default: the one that the scores have the columns of.",
)
@training_option(
    "--features",
    metavar="NAME,…",
    help="What to fit on. Default: chosen if there are two or more runs, else those of the shipped classifier.",
)
@training_option(
    "--objective",
    type=click.Choice(("soft", "hard", "cross-entropy")),
    help="What the students learned from. Default: what verify wrote beside the labels, else soft.",
)
@training_option(
    "--calibration-share",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    default=0.3,
    show_default=True,
    metavar="SHARE",
    help="Of the runs or examples, for calibration and threshold.",
)
@training_option(
    "--seed",
    type=options.COUNT,
    default=0,
    show_default=True,
    metavar="N",
    help="Of the split.",
)
@output_option(
    "--export",
    type=click.Choice(("joblib", "skops")),
    help="Also write the equal scikit-learn pipeline.",
)
@options.as_json
@options.color
def fit(**flags: Any) -> None:
    """Fit and calibrate a classifier on what verify found, for predict --classifier DIR.

    Writes classifier.json and card.json into DIR. Each --labels goes with the --scores in the
    same place of their order; each pair is one run. Needs 20 extracted examples to fit and 10
    others to calibrate. With --recalibrate, 5 are enough: only the level of an existing
    classifier changes, not its order.
    """
    pairs = _pairs(flags["labels"], flags["scores"])
    if flags["recalibrate"] is not None:
        _recalibrate(pairs, flags)
        return

    from memaudit.reports.fit import fit_document, fit_page
    from memaudit.reports.terminal import print_page
    from memaudit.training import FitOptions, fit_on_verification

    options = FitOptions(
        feature_set=flags["feature_set"],
        features=_names(flags["features"]),
        objective=flags["objective"],
        calibration_share=flags["calibration_share"],
        seed=flags["seed"],
        export=flags["export"],
        command=_command(flags),
    )
    result = fit_on_verification(pairs, flags["out"], options)
    if flags["as_json"]:
        click.echo(json_text(fit_document(result)))
    else:
        print_page(fit_page(result), color=flags["color"])


def _recalibrate(pairs: list[tuple[Path, Path]], flags: dict[str, Any]) -> None:
    fixed = [name for name in ("feature_set", "features", "export") if flags[name]]
    if fixed:
        raise UsageError(
            f"--{fixed[0].replace('_', '-')} has no meaning with --recalibrate",
            hint="a recalibrated classifier keeps its features",
        )

    from memaudit.reports.fit import recalibration_page
    from memaudit.reports.terminal import print_page
    from memaudit.training import recalibrate

    result = recalibrate(
        flags["recalibrate"],
        pairs,
        flags["out"],
        objective=flags["objective"],
        command=_command(flags),
    )
    if flags["as_json"]:
        document = {"schema_version": 1, "folder": str(result.folder), **result.document()}
        click.echo(json_text(document))
    else:
        print_page(recalibration_page(result), color=flags["color"])


def _pairs(labels: tuple[Path, ...], scores: tuple[Path, ...]) -> list[tuple[Path, Path]]:
    if len(labels) != len(scores):
        raise UsageError(
            f"expected one --labels for each --scores, got {len(labels)} and {len(scores)}",
            hint="give them in pairs, in the same order",
        )
    return list(zip(labels, scores, strict=True))


def _names(features: str | None) -> tuple[str, ...]:
    names = (name.strip() for name in (features or "").split(","))
    return tuple(name for name in names if name)


def _command(flags: dict[str, Any]) -> str:
    """Return the command with what shapes the classifier, in one order."""
    words = ["memaudit", "fit"]
    for labels, scores in zip(flags["labels"], flags["scores"], strict=True):
        words += ["--labels", str(labels), "--scores", str(scores)]
    names = (
        "recalibrate",
        "out",
        "feature_set",
        "features",
        "objective",
        "calibration_share",
        "seed",
        "export",
    )
    for name in names:
        if flags[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(flags[name])]
    return shlex.join(words)
