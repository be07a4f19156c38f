"""`memaudit verify`: really distil a student, and see what it recites."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.audit_flags import corpus_stem
from memaudit.cli.signals import Stopped, raise_if_stopped
from memaudit.text import json_text

if TYPE_CHECKING:
    from memaudit.corpus import CorpusOptions
    from memaudit.verification import VerificationOptions
    from memaudit.verification.options import ReportStage, StageProgress

_DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
_POSITIVE = click.IntRange(min=1)
_COUNT = click.IntRange(min=0)
_ABOVE_ZERO = click.FloatRange(min=0, min_open=True)


@click.command(short_help="Distil a student and see what it really memorizes.")
@options.teacher
@click.option(
    "--student",
    metavar="MODEL",
    required=True,
    help="The student before training: folder or hub id.",
)
@options.data
@click.option(
    "--baseline",
    metavar="MODEL",
    help="The student's size trained on the corpus without a teacher. Default: made here.",
)
@click.option(
    "--objective",
    type=click.Choice(("soft", "hard", "cross-entropy")),
    default="soft",
    show_default=True,
    help="Learn the teacher's distribution, the text it writes, or the corpus alone.",
)
@click.option(
    "--temperature",
    type=_ABOVE_ZERO,
    default=2.0,
    show_default=True,
    metavar="T",
    help="Of soft labels.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Of plain cross-entropy in the loss of soft labels.",
)
@click.option(
    "--epochs",
    type=_ABOVE_ZERO,
    default=3.0,
    show_default=True,
    metavar="N",
    help="Passes over the corpus, of student and baseline alike.",
)
@click.option(
    "--learning-rate",
    type=_ABOVE_ZERO,
    default=5e-5,
    show_default=True,
    metavar="RATE",
    help="Peak of a cosine schedule, of AdamW.",
)
@click.option(
    "--batch-size",
    type=_POSITIVE,
    default=32,
    show_default=True,
    metavar="N",
    help="Examples in one step.",
)
@click.option(
    "--gradient-accumulation",
    type=_POSITIVE,
    default=1,
    show_default=True,
    metavar="N",
    help="Parts that a step is run in, to save memory.",
)
@click.option(
    "--sample", type=_POSITIVE, metavar="N", help="Rows to verify, at random. Default: all."
)
@click.option(
    "--held-out-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    metavar="SHARE",
    help="Of the distinct windows, kept from training to measure perplexity.",
)
@click.option(
    "--predictions",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="RUN",
    help="Folder that predict wrote for this corpus: compares predicted with found.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where results go. Default: runs/<name of the corpus>-verified.",
)
@click.option(
    "--format",
    "row_shape",
    type=click.Choice(("auto", "text", "prompt-completion", "messages")),
    default="auto",
    show_default=True,
    help="How rows hold text.",
)
@options.text_column
@options.id_column
@options.config_name
@options.split
@options.revision
@options.on_bad_row
@options.prefix_tokens
@options.suffix_tokens
@click.option(
    "--check-generate",
    type=_COUNT,
    default=0,
    show_default=True,
    metavar="K",
    help="Windows that teacher and student really continue, as a check.",
)
@click.option(
    "--seed",
    type=_COUNT,
    default=0,
    show_default=True,
    metavar="N",
    help="Of the sample, the held-out windows and the order of training.",
)
@click.option("--dry-run", is_flag=True, help="Print what it would cost; train nothing.")
@click.option("--keep-models", is_flag=True, help="Leave baseline and student in DIR.")
@click.option(
    "--dtype",
    type=click.Choice(tuple(_DTYPES)),
    default="float32",
    show_default=True,
    help="Number format that training runs in; extraction is always decided in float32.",
)
@click.option(
    "--device",
    type=click.Choice(("auto", "cpu", "cuda")),
    default="auto",
    show_default=True,
    help="Where models run.",
)
@click.option(
    "--threads", type=_POSITIVE, metavar="N", help="CPU threads. Default: one for each core."
)
@options.model_revision
@options.trust_remote_code
@options.offline
@options.as_json
@options.quiet
@options.color
def verify(**flags: Any) -> None:
    """Really distil a student from MODEL on CORPUS, and see what it memorizes.

    Fine-tunes a baseline where none is given, distils the student, and asks teacher, baseline and
    student for every window. Writes verification.parquet and verification.json into DIR. Stopped
    at any moment, the same command goes on where it was.
    """
    # Read when the hub's packages are imported, so it has to be said before.
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    if flags["offline"]:
        names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        os.environ |= dict.fromkeys(names, "1")
    if flags["dry_run"]:
        _print_estimate(flags)
    else:
        _verify(flags)


def _verify(flags: dict[str, Any]) -> None:
    from memaudit.reports.verification import print_verification
    from memaudit.verification import verify_distillation

    out = flags["out"] or Path("runs") / f"{corpus_stem(flags['data'])}-verified"
    with _watched(flags, hint=f"give the same command again to go on in {out}") as progress:
        result = verify_distillation(
            flags["teacher"],
            flags["student"],
            _corpus_options(flags),
            baseline=flags["baseline"],
            predictions=flags["predictions"],
            out=out,
            options=_options(flags),
            progress=progress,
        )
    if flags["as_json"]:
        click.echo(json_text(result.document()))
    else:
        print_verification(result, out, color=flags["color"])


def _print_estimate(flags: dict[str, Any]) -> None:
    from memaudit.reports.verification import print_estimate
    from memaudit.verification import estimate_verification

    with _watched(flags, hint=None) as progress:
        estimate = estimate_verification(
            flags["teacher"],
            flags["student"],
            _corpus_options(flags),
            baseline=flags["baseline"],
            options=_options(flags),
            progress=progress,
        )
    if flags["as_json"]:
        click.echo(json_text(estimate.document()))
    else:
        print_estimate(estimate, color=flags["color"])


@contextmanager
def _watched(flags: dict[str, Any], *, hint: str | None) -> Iterator["ReportStage"]:
    """Show progress, and answer signals."""
    from memaudit.reports.progress import show_progress

    try:
        with show_progress(quiet=flags["quiet"], color=flags["color"]) as show:

            def report(progress: "StageProgress") -> None:
                raise_if_stopped()
                show(progress)  # type: ignore[arg-type]  # it has all that is shown

            yield report
    except Stopped as stopped:
        raise Stopped(stopped.number, hint=hint) from None


def _corpus_options(flags: dict[str, Any]) -> "CorpusOptions":
    from memaudit.corpus import CorpusOptions

    return CorpusOptions(
        flags["data"],
        shape=flags["row_shape"],
        text_column=flags["text_column"],
        id_column=flags["id_column"],
        config=flags["config_name"],
        split=flags["split"],
        revision=flags["revision"],
    )


def _options(flags: dict[str, Any]) -> "VerificationOptions":
    from memaudit.distillation import TrainingOptions
    from memaudit.engines.models import ModelOptions
    from memaudit.verification import VerificationOptions
    from memaudit.windows import WindowShape

    return VerificationOptions(
        objective=options.chosen_objective(flags),
        training=TrainingOptions(
            epochs=flags["epochs"],
            learning_rate=flags["learning_rate"],
            batch_size=flags["batch_size"],
            seed=flags["seed"],
            gradient_accumulation=flags["gradient_accumulation"],
            bf16=_DTYPES[flags["dtype"]] == "bfloat16",
        ),
        shape=WindowShape(flags["prefix_tokens"], flags["suffix_tokens"]),
        sample=flags["sample"],
        held_out_share=flags["held_out_share"],
        on_bad_row=flags["on_bad_row"],
        check_generate=flags["check_generate"],
        keep_models=flags["keep_models"],
        model=ModelOptions(
            device=flags["device"],
            revision=flags["model_revision"],
            trust_remote_code=flags["trust_remote_code"],
            offline=flags["offline"],
        ),
        threads=flags["threads"],
    )
