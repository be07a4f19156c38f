"""`memaudit verify`: really distil a student, and see what it recites."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command, FiniteRange, bundle
from memaudit.cli.options import (
    ABOVE_ZERO,
    COUNT,
    DTYPES,
    FOLDER,
    POSITIVE,
    Corpus,
    Models,
    Shown,
    Windows,
    models_option,
    output_option,
    training_option,
)
from memaudit.cli.signals import Stopped, raise_if_stopped
from memaudit.errors import UsageError
from memaudit.objectives import DEFAULT_EPOCHS
from memaudit.text import json_text

if TYPE_CHECKING:
    from memaudit.distillation import TrainingOptions
    from memaudit.objectives import Divergence, Objective
    from memaudit.progress import Progress, ReportProgress
    from memaudit.verification import VerificationOptions


def _models(teacher: str, student: str, baseline: str | None, **load: Any) -> Models:
    return Models(teacher, student, baseline, None, options.model_options(**load))


models = bundle(
    "models",
    _models,
    options.teacher,
    models_option(
        "--student",
        metavar="MODEL",
        help="The student before its training: folder or hub id.",
    ),
    models_option(
        "--baseline",
        metavar="MODEL",
        help="A model of the student's size trained on the corpus. Default: made here.",
    ),
    options.device,
    options.model_revision,
    options.trust_remote_code,
    options.offline,
)


def _divergence(**values: Any) -> "Divergence":
    from memaudit.objectives import Divergence

    recipe = options.chosen_recipe()
    if recipe is not None:
        names = {"divergence": "kind", "beta": "beta", "top_k": "top_k", "tail": "tail"}
        values = options.by_recipe(recipe.divergence, names, values)
    kind, top_k = values.pop("divergence"), values.pop("top_k")
    if top_k is not None and kind != "forward-kl":
        raise click.UsageError("--top-k goes with --divergence forward-kl alone")
    if values["tail"] and top_k is None:
        raise click.UsageError("--tail needs --top-k")
    return Divergence(kind, top_k=top_k, **values)


divergence = bundle(
    "divergence",
    _divergence,
    training_option(
        "--divergence",
        type=click.Choice(("forward-kl", "reverse-kl", "jsd")),
        default="forward-kl",
        show_default=True,
        help="How soft labels measure the distance from the teacher.",
    ),
    training_option(
        "--beta",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
        default=0.5,
        show_default=True,
        metavar="SHARE",
        help="Weight of the teacher in the mixture of --divergence jsd.",
    ),
    training_option(
        "--top-k",
        type=POSITIVE,
        metavar="K",
        help="Learn only the teacher's K likeliest tokens. Default: all.",
    ),
    training_option(
        "--tail", is_flag=True, help="With --top-k: count all other tokens as one more token."
    ),
)


def _training(dtype: str, **values: Any) -> "TrainingOptions":
    from memaudit.distillation import TrainingOptions

    names = {name: name for name in values}
    values = options.by_recipe(options.chosen_recipe(), names, values)
    return TrainingOptions(bf16=DTYPES[dtype] == "bfloat16", **values)


training = bundle(
    "training",
    _training,
    training_option(
        "--epochs",
        type=ABOVE_ZERO,
        default=DEFAULT_EPOCHS,
        show_default=True,
        metavar="N",
        help="Passes over the corpus, for student and baseline alike.",
    ),
    training_option(
        "--learning-rate",
        type=ABOVE_ZERO,
        default=5e-5,
        show_default=True,
        metavar="RATE",
        help="Highest learning rate of AdamW, on a cosine schedule.",
    ),
    training_option(
        "--batch-size",
        type=POSITIVE,
        default=32,
        show_default=True,
        metavar="N",
        help="Number of examples in one step.",
    ),
    training_option(
        "--gradient-accumulation",
        type=POSITIVE,
        default=1,
        show_default=True,
        metavar="N",
        help="Split each step into N parts to save memory.",
    ),
    training_option(
        "--seed",
        type=COUNT,
        default=0,
        show_default=True,
        metavar="N",
        help="Seed of the sample, the held-out windows and the order of training.",
    ),
    options.dtype("Number format of the training; extraction is always decided in float32."),
)


@dataclass(frozen=True, slots=True)
class Study:
    """What is verified; fields are called as in `VerificationOptions`."""

    sample: int | None
    held_out_share: float
    check_generate: int
    keep_models: bool


study = bundle(
    "study",
    Study,
    options.corpus_option(
        "--sample",
        type=POSITIVE,
        metavar="N",
        help="Number of rows to verify, drawn at random. Default: all.",
    ),
    options.windows_option(
        "--held-out-share",
        type=FiniteRange(0, 1, max_open=True),
        default=0.1,
        show_default=True,
        metavar="SHARE",
        help="Share of the distinct windows kept from training, to measure perplexity.",
    ),
    options.windows_option(
        "--check-generate",
        type=COUNT,
        default=0,
        show_default=True,
        metavar="K",
        help="Let teacher and student really generate K windows, as a check.",
    ),
    output_option("--keep-models", is_flag=True, help="Keep baseline and student in DIR."),
)

COMMON = (
    "--teacher",
    "--student",
    "--distilled",
    "--data",
    "--out",
    "--predictions",
    "--recipe",
    "--objective",
    "--epochs",
    "--sample",
    "--dry-run",
    "--json",
)


@click.command(
    cls=Command, common=COMMON, short_help="Distil a student and see what it really memorizes."
)
@models
@models_option(
    "--distilled",
    metavar="MODEL",
    multiple=True,
    help="A student that you distilled yourself: nothing is trained. May be repeated.",
)
@options.corpus()
@options.windows()
@options.objective
@divergence
@training
@study
@output_option(
    "--predictions",
    type=FOLDER,
    metavar="RUN",
    help="Folder that predict wrote for this corpus: compares predicted with found.",
)
@output_option(
    "--out",
    type=FOLDER,
    metavar="DIR",
    help="Where results go. Default: runs/<name of the corpus>-verified.",
)
@output_option("--dry-run", is_flag=True, help="Print what it would cost; train nothing.")
@options.threads
@options.shown_with_progress
def verify(  # noqa: PLR0913  one for each group of options
    *,
    models: Models,
    distilled: tuple[str, ...],
    corpus: Corpus,
    window: Windows,
    objective: "Objective",
    divergence: "Divergence",
    training: "TrainingOptions",
    study: Study,
    predictions: Path | None,
    out: Path | None,
    dry_run: bool,
    threads: int | None,
    shown: Shown,
) -> None:
    """Really distil a student from MODEL on CORPUS, and see what it memorizes.

    Fine-tunes a baseline where none is given, distils the student, and asks teacher, baseline and
    student for every window. Writes verification.parquet and verification.json into DIR. Stopped
    at any moment, the same command goes on where it was. With --distilled instead of --student,
    it asks a student that you trained elsewhere; several get a folder each in DIR.
    """
    _require_one_way(models, distilled, study, dry_run=dry_run)
    from memaudit.verification import VerificationOptions

    chosen = VerificationOptions(
        objective=objective,
        divergence=divergence,
        training=training,
        shape=window.shape,
        on_bad_row=corpus.on_bad_row,
        model=models.load,
        threads=threads,
        **options.by_name(study),
    )
    out = out or Path("runs") / f"{corpus.stem}-verified"
    if dry_run:
        _print_estimate(models, corpus, chosen, shown)
    elif distilled:
        _verify_distilled(
            models, distilled, corpus, chosen, shown, predictions=predictions, out=out
        )
    else:
        _verify(models, corpus, chosen, shown, predictions=predictions, out=out)


def _require_one_way(
    models: Models, distilled: tuple[str, ...], study: Study, *, dry_run: bool
) -> None:
    if bool(distilled) == (models.student is not None):
        raise UsageError(
            "expected --student or --distilled, got " + ("both" if distilled else "neither"),
            hint="--student is distilled here; --distilled is a student that you have distilled",
        )
    if distilled and (dry_run or study.keep_models):
        raise UsageError(
            f"{'--dry-run' if dry_run else '--keep-models'} has no meaning with --distilled",
            hint="nothing is trained: leave it out",
        )


def _verify_distilled(
    models: Models,
    distilled: tuple[str, ...],
    corpus: Corpus,
    chosen: "VerificationOptions",
    shown: Shown,
    *,
    predictions: Path | None,
    out: Path,
) -> None:
    from memaudit.reports.terminal import print_page
    from memaudit.reports.verify import students_page, verification_page
    from memaudit.verification import verify_distilled

    with _watched(shown, hint=f"give the same command again to go on in {out}") as progress:
        results = verify_distilled(
            models.teacher,
            distilled,
            corpus.rows,
            baseline=models.baseline,
            predictions=predictions,
            out=out,
            options=chosen,
            progress=progress,
        )
    (first, *others) = results.values()
    if shown.as_json:
        several = {name: result.document() for name, result in results.items()}
        document = {"schema_version": 1, "students": several} if others else first.document()
        click.echo(json_text(document))
    else:
        page = students_page(results, out) if others else verification_page(first, out)
        print_page(page, color=shown.color)


def _verify(
    models: Models,
    corpus: Corpus,
    chosen: "VerificationOptions",
    shown: Shown,
    *,
    predictions: Path | None,
    out: Path,
) -> None:
    from memaudit.reports.terminal import print_page
    from memaudit.reports.verify import verification_page
    from memaudit.verification import verify_distillation

    assert models.student is not None  # click requires it
    with _watched(shown, hint=f"give the same command again to go on in {out}") as progress:
        result = verify_distillation(
            models.teacher,
            models.student,
            corpus.rows,
            baseline=models.baseline,
            predictions=predictions,
            out=out,
            options=chosen,
            progress=progress,
        )
    if shown.as_json:
        click.echo(json_text(result.document()))
    else:
        print_page(verification_page(result, out), color=shown.color)


def _print_estimate(
    models: Models, corpus: Corpus, chosen: "VerificationOptions", shown: Shown
) -> None:
    from memaudit.reports.terminal import print_page
    from memaudit.reports.verify import estimate_page
    from memaudit.verification.estimate import estimate_verification

    assert models.student is not None  # click requires it
    with _watched(shown, hint=None) as progress:
        estimate = estimate_verification(
            models.teacher,
            models.student,
            corpus.rows,
            baseline=models.baseline,
            options=chosen,
            progress=progress,
        )
    if shown.as_json:
        click.echo(json_text(estimate.document()))
    else:
        print_page(estimate_page(estimate), color=shown.color)


@contextmanager
def _watched(shown: Shown, *, hint: str | None) -> Iterator["ReportProgress"]:
    """Show progress, and answer signals."""
    from memaudit.reports.progress import show_progress

    try:
        with show_progress(quiet=shown.quiet, color=shown.color, start="load models") as show:

            def report(progress: "Progress") -> None:
                raise_if_stopped()
                show(progress)

            yield report
    except Stopped as stopped:
        raise Stopped(stopped.number, hint=hint) from None
