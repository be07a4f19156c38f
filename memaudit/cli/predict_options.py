"""`memaudit predict`: a corpus in, a risk table and a summary out.

Its options stand in the groups of its help, each of which is one value. What is done with them is
in predict.py, so that help needs neither numpy nor the rest.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command, FiniteRange, FolderType, Shown, SwitchType, bundle
from memaudit.cli.options import (
    COUNT,
    POSITIVE,
    Afterwards,
    Corpus,
    Models,
    machines_option,
    models_option,
    output_option,
    speed_option,
)
from memaudit.cli.signals import Stopped
from memaudit.errors import UsageError
from memaudit.objectives import DEFAULT_EPOCHS, Objective
from memaudit.runs.files import output_errors

if TYPE_CHECKING:
    from memaudit.runs.manifest import Shard
    from memaudit.runs.options import RayOptions

DEFAULT_SURVIVAL = 0.995
"""Share of flagged windows that a cascade must still find."""


@bundle(
    options.teacher_anywhere,
    models_option(
        "--student",
        "The student before its training. Adds its scores to the prediction; one more pass.",
        metavar="MODEL",
    ),
    models_option(
        "--baseline",
        "A model of the student's size trained on the corpus; instead of --student.",
        metavar="MODEL",
    ),
    models_option(
        "--classifier",
        "What turns scores into probabilities. Default: the shipped one that fits the models.",
        metavar="NAME|PATH",
    ),
    options.device,
    options.dtype("Number format of the models; bfloat16 is faster and less exact."),
    speed_option(
        "--compile",
        "Compile the models first: up to a fifth faster, after half a minute; needs a C++ compiler. auto: "
        "time both ways if the run is long, and take what pays.",
        SwitchType(("auto", "on", "off")),
        "off",
        name="compiled",
        is_flag=False,
        flag_value="on",
    ),
    *options.HUB,
)
def models(
    teacher: str, student: str | None, baseline: str | None, classifier: str | None, **load: Any
) -> Models:
    """Return the models; where compiled code goes is said before torch is imported."""
    load["compiled"] = {"on": True, "off": False, "auto": None}[load["compiled"]]
    if load["compiled"] is not False:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = caches / "memaudit" / "kernels"
        # Compiled code is loaded from there: nobody else may write to it.
        with output_errors(folder):
            caches.mkdir(parents=True, exist_ok=True)
            # One by one: with `parents=True` those above would get the usual rights.
            for made in (folder.parent, folder):
                made.mkdir(mode=0o700, exist_ok=True)
        # Read when torch is imported, so it has to be said before.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return Models(teacher, student, baseline, classifier, options.model_options(**load))


# A file of kilobytes can unpack to terabytes, and one line can be all of it: a corpus from
# outside is read within the last three bounds.
corpus = options.corpus(
    options.corpus_option(
        "--streaming/--no-streaming",
        "Read a corpus on the hub without downloading it first.",
        default=True,
    ),
    options.corpus_option(
        "--max-row-bytes", "A longer row is a bad row.", POSITIVE, 16 * 1024**2, metavar="BYTES"
    ),
    options.corpus_option(
        "--max-decompressed-bytes",
        "Refuse a compressed file that unpacks to more. Default: 256 GiB.",
        POSITIVE,
        256 * 1024**3,
        show_default=False,
        metavar="BYTES",
    ),
    options.corpus_option(
        "--max-compression-ratio",
        "Refuse a file that unpacks to more than N times its size.",
        POSITIVE,
        1000,
    ),
)


@bundle(
    options.training_option(
        "--epochs",
        "How many times you will train on the corpus. Most classifiers use it.",
        options.ABOVE_ZERO,
        DEFAULT_EPOCHS,
    )
)
def epochs(epochs: float) -> float:
    """Return passes over the corpus, by a recipe where the user has not said them."""
    told = options.by_recipe(options.chosen_recipe(), {"epochs": "epochs"}, {"epochs": epochs})
    return float(told["epochs"])


out = output_option(
    "--out",
    "Where results go, also s3:// or gs://. A run that was interrupted there is continued. Default: runs/<name of the corpus>.",
    FolderType(),
)


@bundle(
    output_option("--restart", "Start over instead of continuing what is in DIR.", is_flag=True),
    options.table_format,
    output_option(
        "--sensitive",
        "Mark rows with personal data or secrets; needs the extra 'sensitive'.",
        is_flag=True,
    ),
    output_option("--top", "How many of the worst rows the summary lists.", COUNT, 10),
    output_option(
        "--show-text", "Show the first N characters of their texts in the summary.", COUNT, 0
    ),
)
def output(table_format: str | None, top: int, **values: Any) -> dict[str, Any]:
    """Return fields of `AuditOptions`."""
    given = click.get_current_context().params
    _, old = options.split_formats(given["formats"])
    chosen = options.chosen_table_format(table_format, old, quiet=given["quiet"])
    return {"table_format": chosen, "n_worst": top, **values}


@bundle(
    speed_option(
        "--engine",
        "What runs the models: transformers (hf) or vLLM. auto takes vLLM where it is installed and can run them.",
        ("auto", "hf", "vllm"),
        "auto",
    ),
    speed_option(
        "--tensor-parallel", "Number of GPUs that share each model; needs vLLM.", POSITIVE, 1
    ),
    speed_option(
        "--gpu-memory-share",
        "Share of each GPU's memory that vLLM may use.",
        FiniteRange(min=0, max=1, min_open=True, max_open=True),
        0.8,
        metavar="S",
    ),
    models_option(
        "--tokenizer",
        "Tokenizer of a teacher that is served or captured: folder or hub id. Default where it is "
        "served: the model's name there.",
        metavar="MODEL",
    ),
    models_option(
        "--captured-temperature",
        "kd_temperature at which axolotl prepared what the corpus holds of a captured teacher. "
        "Default: that of the --recipe, else 1.",
        options.ABOVE_ZERO,
        metavar="T",
    ),
    models_option(
        "--served-model", "Which model behind http, if several are served there.", metavar="NAME"
    ),
    speed_option(
        "--requests",
        "How many requests to a teacher behind http are under way at once.",
        POSITIVE,
        8,
    ),
    speed_option(
        "--workers",
        "Number of processes that score, each with its own copy of the models; with GPUs, one per GPU.",
        POSITIVE,
        1,
    ),
    options.threads,
    speed_option(
        "--cascade",
        "Skip windows that the repeat counts already show to be (almost) safe.",
        is_flag=True,
    ),
    speed_option(
        "--survival",
        "With --cascade: share of flagged windows that must still be found. 1 = lose none. Default: 0.995.",
        FiniteRange(min=0, max=1, min_open=True),
    ),
    speed_option(
        "--chunk-size",
        "Number of distinct windows saved at a time. A crash costs at most this many. Default: 128 "
        "on a CPU, 4,096 on a GPU.",
        POSITIVE,
    ),
)
def speed(
    tensor_parallel: int,
    gpu_memory_share: float,
    captured_temperature: float | None,
    cascade: bool,
    survival: float | None,
    **values: Any,
) -> dict[str, Any]:
    """Return fields of `AuditOptions`."""
    from memaudit.engines import EndpointOptions, VllmOptions

    if survival is not None and not cascade:
        raise UsageError("--survival is for a cascade", hint="add --cascade")
    if cascade and survival is None:
        survival = DEFAULT_SURVIVAL
    vllm = VllmOptions(tensor_parallel, gpu_memory_share)
    recipe, params = options.chosen_recipe(), click.get_current_context().params
    if captured_temperature is None and params["teacher"] == "captured":
        if recipe and recipe.trainer == "axolotl":
            captured_temperature = recipe.objective.temperature
        elif not params["quiet"]:
            note = "taken to be captured at temperature 1; --captured-temperature tells another"
            click.echo(note, err=True)
    endpoint = EndpointOptions(
        values.pop("tokenizer"),
        values.pop("served_model"),
        values.pop("requests"),
        captured_temperature or 1.0,
    )
    return {"vllm": vllm, "endpoint": endpoint, "survival": survival, **values}


@dataclass(frozen=True, slots=True)
class Machines:
    """How a run is spread over machines."""

    shard: "Shard | None"
    """None: all is scored in one run."""
    prepared: Path | None
    """Folder that shards share, so that one of them reads the corpus. None: each does."""
    ray: "RayOptions | None"


@bundle(
    machines_option(
        "--shard",
        "Score one of N parts, 0/N to N-1/N, each into its own DIR, for 'memaudit merge'.",
        metavar="I/N",
    ),
    machines_option(
        "--prepared",
        "Folder that all shards share: one reads the corpus and leaves its windows there, as token ids.",
        FolderType(),
        metavar="DIR",
    ),
    machines_option(
        "--executor",
        "Score in processes on this machine, or tokenise, count and score on Ray.",
        ("local", "ray"),
        "local",
    ),
    machines_option(
        "--address",
        "Address of a Ray cluster, or auto. Default: one on this machine, for the time of the run.",
        metavar="ADDR",
    ),
    machines_option("--replicas", "Number of Ray actors. Default: 1.", POSITIVE),
    machines_option(
        "--gpus-per-replica",
        "GPUs that each actor reserves; 0 runs on CPUs. Default: 0.",
        FiniteRange(min=0),
        metavar="G",
    ),
)
def machines(shard: str | None, prepared: Path | None, executor: str, **ray: Any) -> Machines:
    """Return them, once they go together."""
    from memaudit.runs.options import RayOptions

    part = None
    if shard is not None:  # imported for shards alone: the first word must not wait for it
        from memaudit.runs.manifest import parse_shard

        part = parse_shard(shard)
    elif prepared is not None:
        raise UsageError("--prepared is for shards", hint="add --shard, or leave it out")
    given = {name: value for name, value in ray.items() if value is not None}
    if executor == "ray":
        if click.get_current_context().params["workers"] > 1:
            raise UsageError(
                "--workers is for this machine alone", hint="give --replicas with --executor ray"
            )
        return Machines(part, prepared, RayOptions(**given))
    if given:
        name = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{name} is for Ray", hint="add --executor ray")
    return Machines(part, prepared, None)


dry_run = output_option(
    "--dry-run",
    "Read the corpus, score a few windows, print what the run would cost; write nothing.",
    is_flag=True,
)

COMMON = (
    *("--teacher", "--data", "--out", "--student", "--recipe", "--objective"),
    *("--temperature", "--text-column", "--windows", "--dry-run", "--json"),
)


@click.command(cls=Command, common=COMMON)
@models
@corpus
@options.window
@options.objective
@epochs
@out
@output
@speed
@machines
@dry_run
@options.afterwards
@options.shown
def predict(  # noqa: PLR0913  one for each group of options
    *,
    models: Models,
    corpus: Corpus,
    window: dict[str, Any],
    objective: Objective,
    epochs: float,
    out: Path | None,
    output: dict[str, Any],
    speed: dict[str, Any],
    machines: Machines,
    dry_run: bool,
    afterwards: Afterwards,
    shown: Shown,
) -> None:
    """Predict which examples of CORPUS a student distilled from MODEL would memorize.

    Writes risk.parquet, one row per example, and summary.json into DIR. No file and no output
    holds text of the corpus unless --show-text asks for it. If the run is interrupted or the
    machine dies, give the same command again: it goes on where it was. 'memaudit status DIR' shows
    how far a run is.
    """
    part = machines.shard
    name = corpus.stem if part is None else f"{corpus.stem}-{part.index}-of-{part.count}"
    out = out or Path("runs") / name
    with stop_explained(out):
        # Imported here: help is faster without, and a signal meanwhile is answered like any other.
        with shown.working("load memaudit"):
            from memaudit.cli.predict import plan_run, predict_all, predict_shard
            from memaudit.runs.options import AuditOptions

        audit = {
            "teacher": models.teacher,
            "data": corpus.rows,
            "student": models.student,
            "baseline": models.baseline,
            "options": AuditOptions(
                classifier=models.classifier,
                model=models.load,
                objective=objective,
                epochs=epochs,
                on_bad_row=corpus.on_bad_row,
                ray=machines.ray,
                **(window | speed | output),
            ),
        }
        if dry_run:
            plan_run(audit, shown)
        elif part is None:
            predict_all(audit, out, shown, afterwards)
        else:
            predict_shard(audit, out, part, machines.prepared, shown)


@contextmanager
def stop_explained(out: Path) -> Iterator[None]:
    """If a signal stops the run in a folder, say how to go on."""
    try:
        yield
    except Stopped as stopped:
        from memaudit.cli.predict import how_to_go_on

        raise Stopped(stopped.number, hint=how_to_go_on(out)) from None
