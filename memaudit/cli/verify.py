"""`memaudit verify`: really distil a student, and see what it recites."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command, FiniteRange, Shown, bundle
from memaudit.cli.options import (
    ABOVE_ZERO,
    COUNT,
    DTYPES,
    FOLDER,
    POSITIVE,
    Afterwards,
    Corpus,
    Models,
    models_option,
    output_option,
    training_option,
)
from memaudit.errors import UsageError
from memaudit.objectives import DEFAULT_EPOCHS, Divergence, LabelSampling, Objective

if TYPE_CHECKING:
    from memaudit.distillation import TrainingOptions
    from memaudit.labels import VerificationResult


@bundle(
    options.teacher,
    models_option(
        "--student", "The student before its training: folder or hub id.", metavar="MODEL"
    ),
    models_option(
        "--baseline",
        "A model of the student's size trained on the corpus. Default: made here.",
        metavar="MODEL",
    ),
    options.device,
    *options.HUB,
)
def models(teacher: str, student: str, baseline: str | None, **load: Any) -> Models:
    """Return the models."""
    return Models(teacher, student, baseline, None, options.model_options(**load))


@bundle(
    training_option(
        "--divergence",
        "How soft labels measure the distance from the teacher.",
        ("forward-kl", "reverse-kl", "jsd"),
        "forward-kl",
    ),
    training_option(
        "--beta",
        "Weight of the teacher in the mixture of --divergence jsd.",
        FiniteRange(0, 1, min_open=True, max_open=True),
        0.5,
    ),
    training_option(
        "--top-k",
        "Learn only the teacher's K likeliest tokens. Default: all.",
        POSITIVE,
        metavar="K",
    ),
    training_option(
        "--tail", "With --top-k: count all other tokens as one more token.", is_flag=True
    ),
    training_option(
        "--on-policy",
        "Share of the steps in which the student learns from text that it writes itself.",
        FiniteRange(0, 1),
        0.0,
        metavar="SHARE",
    ),
    training_option(
        "--label-temperature",
        "With --objective sampled: temperature at which the teacher samples its text. Default: 1.",
        FiniteRange(min=0),
        0.0,
        metavar="T",
        show_default=False,
    ),
    training_option(
        "--label-top-p",
        "With --label-temperature: sample from the likeliest tokens that have this probability.",
        FiniteRange(0, 1, min_open=True),
        1.0,
        metavar="P",
    ),
)
def loss(
    on_policy: float, label_temperature: float, label_top_p: float, **values: Any
) -> dict[str, Any]:
    """Return fields of `VerificationOptions`; what the user has not said, a recipe may."""
    recipe = options.chosen_recipe()
    share = options.by_recipe(recipe, {"on_policy": "on_policy"}, {"on_policy": on_policy})
    if recipe is not None:
        names = {"divergence": "kind", "beta": "beta", "top_k": "top_k", "tail": "tail"}
        values = options.by_recipe(recipe.divergence, names, values)
    kind, top_k = values.pop("divergence"), values.pop("top_k")
    if top_k is not None and kind != "forward-kl":
        raise click.UsageError("--top-k goes with --divergence forward-kl alone")
    if values["tail"] and top_k is None:
        raise click.UsageError("--tail needs --top-k")
    return {
        "divergence": Divergence(kind, top_k=top_k, **values, **share),
        "labels": LabelSampling(label_temperature, label_top_p),
    }


@bundle(
    training_option(
        "--epochs",
        "Passes over the corpus, for student and baseline alike.",
        ABOVE_ZERO,
        DEFAULT_EPOCHS,
    ),
    training_option(
        "--learning-rate",
        "Highest learning rate of AdamW, on a cosine schedule.",
        ABOVE_ZERO,
        5e-5,
        metavar="RATE",
    ),
    training_option("--batch-size", "Number of examples in one step.", POSITIVE, 32),
    training_option(
        "--gradient-accumulation", "Split each step into N parts to save memory.", POSITIVE, 1
    ),
    training_option(
        "--seed", "Seed of the sample, the held-out windows and the order of training.", COUNT, 0
    ),
    options.dtype("Number format of the training; extraction is always decided in float32."),
)
def training(dtype: str, **values: Any) -> "TrainingOptions":
    """Return how models are trained; what the user has not said, a recipe may."""
    from memaudit.distillation import TrainingOptions

    names = {name: name for name in values}
    values = options.by_recipe(options.chosen_recipe(), names, values)
    return TrainingOptions(bf16=DTYPES[dtype] == "bfloat16", **values)


@bundle(
    options.corpus_option(
        "--sample", "Number of rows to verify, drawn at random. Default: all.", POSITIVE
    ),
    options.windows_option(
        "--held-out-share",
        "Share of the distinct windows kept from training, to measure perplexity.",
        FiniteRange(0, 1, max_open=True),
        0.1,
    ),
    options.windows_option(
        "--check-generate",
        "Let teacher and student really generate K windows, as a check.",
        COUNT,
        0,
        metavar="K",
    ),
    options.windows_option(
        "--near-verbatim",
        "Also find what sampling reveals but for this share of a suffix's tokens, such as 0.1.",
        FiniteRange(0, 1, min_open=True, max_open=True),
        metavar="SHARE",
    ),
    output_option("--keep-models", "Keep baseline and student in DIR.", is_flag=True),
    options.threads,
)
def study(**values: Any) -> dict[str, Any]:
    """Return fields of `VerificationOptions`."""
    return values


COMMON = (
    *("--teacher", "--student", "--distilled", "--data", "--out", "--predictions"),
    *("--recipe", "--objective", "--epochs", "--sample", "--dry-run", "--json"),
)


@click.command(cls=Command, common=COMMON)
@models
@models_option(
    "--distilled",
    "A student that you distilled yourself: nothing is trained. May be repeated.",
    metavar="MODEL",
    multiple=True,
)
@options.corpus()
@options.window
@options.objective
@loss
@training
@study
@output_option(
    "--predictions",
    "Folder that predict wrote for this corpus: compares predicted with found.",
    FOLDER,
    metavar="RUN",
)
@output_option(
    "--out", "Where results go. Default: runs/<name of the corpus>-verified.", FOLDER, metavar="DIR"
)
@output_option("--dry-run", "Print what it would cost; train nothing.", is_flag=True)
@options.afterwards
@options.shown
def verify(  # noqa: PLR0913  one for each group of options
    *,
    models: Models,
    distilled: tuple[str, ...],
    corpus: Corpus,
    window: dict[str, Any],
    objective: Objective,
    loss: dict[str, Any],
    training: "TrainingOptions",
    study: dict[str, Any],
    predictions: Path | None,
    out: Path | None,
    dry_run: bool,
    afterwards: Afterwards,
    shown: Shown,
) -> None:
    """Really distil a student from MODEL on CORPUS, and see what it memorizes.

    Fine-tunes a baseline where none is given, distils the student, and asks teacher, baseline and
    student for every window. Writes verification.parquet and verification.json into DIR. Stopped
    at any moment, the same command goes on where it was. With --distilled instead of --student,
    it asks a student that you trained elsewhere; several get a folder each in DIR.
    """
    _require_one_way(models, distilled, dry_run=dry_run, keep_models=study["keep_models"])
    from memaudit.verification.examples import VerificationOptions

    # To sample is what was asked for, so without a temperature it is at 1, not greedy.
    if objective.kind == "sampled" and not loss["labels"].settings:
        loss["labels"] = LabelSampling(1.0, loss["labels"].top_p)
    chosen = VerificationOptions(
        objective=objective,
        training=training,
        on_bad_row=corpus.on_bad_row,
        model=models.load,
        **(loss | window | study),
    )
    out = out or Path("runs") / f"{corpus.stem}-verified"
    given: dict[str, Any] = {"baseline": models.baseline, "options": chosen}
    if dry_run:
        _print_estimate(models, corpus, given, shown)
        return
    from memaudit.integrations.trackers import log_scalars
    from memaudit.labels import PARTS
    from memaudit.runs.signature import sign_folder

    # Before hours of training: a package or a key that is missing is found now.
    key = afterwards.signing_key()
    given |= {"predictions": predictions, "out": out}
    for name, result in _verified(models, distilled, corpus, given, shown).items():
        log_scalars(afterwards.tracker, result.document(), out / name)
        if key is not None:
            shown.signed(sign_folder(out / name, key, PARTS))


def _verified(
    models: Models, students: tuple[str, ...], corpus: Corpus, given: dict[str, Any], shown: Shown
) -> "dict[str, VerificationResult]":
    """Show and return what was found, by the name of the student; one distilled here has none."""
    out = given["out"]
    with shown.watched(f"give the same command again to go on in {out}") as progress:
        from memaudit.reports.verify import students_page, verification_page
        from memaudit.verification import distilled, run

        given |= {"progress": progress}
        if models.student is None:
            results = distilled.verify_distilled(models.teacher, students, corpus.rows, **given)
        else:
            first = run.verify_distillation(models.teacher, models.student, corpus.rows, **given)
            results = {"": first}
    (first, *others) = results.values()
    if others:
        several = {name: result.document() for name, result in results.items()}
        shown.tell({"schema_version": 1, "students": several}, students_page(results, out))
    else:
        shown.tell(first.document(), verification_page(first, out))
    return results


def _require_one_way(
    models: Models, distilled: tuple[str, ...], *, dry_run: bool, keep_models: bool
) -> None:
    if bool(distilled) == (models.student is not None):
        raise UsageError(
            "expected --student or --distilled, got " + ("both" if distilled else "neither"),
            hint="--student is distilled here; --distilled is a student that you have distilled",
        )
    if distilled and (dry_run or keep_models):
        raise UsageError(
            f"{'--dry-run' if dry_run else '--keep-models'} has no meaning with --distilled",
            hint="nothing is trained: leave it out",
        )


def _print_estimate(models: Models, corpus: Corpus, given: dict[str, Any], shown: Shown) -> None:
    assert models.student is not None  # nothing is trained for one that is distilled already
    with shown.watched() as progress:
        from memaudit.reports.verify import estimate_page
        from memaudit.verification.estimate import estimate_verification

        estimate = estimate_verification(
            models.teacher, models.student, corpus.rows, **given, progress=progress
        )
    shown.tell(estimate.document(), estimate_page(estimate))
