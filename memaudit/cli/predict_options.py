"""The options of `memaudit predict`, in the groups of its help; each group is one value."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.command import FiniteRange, bundle
from memaudit.cli.folders import FolderType
from memaudit.cli.options import (
    COUNT,
    POSITIVE,
    Models,
    machines_option,
    models_option,
    output_option,
    speed_option,
)
from memaudit.errors import UsageError
from memaudit.objectives import DEFAULT_EPOCHS

if TYPE_CHECKING:
    from memaudit.engines import EngineName, VllmOptions
    from memaudit.runs.options import RayOptions
    from memaudit.runs.risk_table import TableFormat

DEFAULT_SURVIVAL = 0.995
"""Share of flagged windows that a cascade must still find."""


def _folder_for_kernels() -> Path:
    """Make the folder that compiled code is loaded from: nobody else may write to it."""
    from memaudit.runs.files import output_errors

    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "memaudit" / "kernels"
    with output_errors(folder):
        caches.mkdir(parents=True, exist_ok=True)
        for made in (folder.parent, folder):
            made.mkdir(mode=0o700, exist_ok=True)
    return folder


def _models(
    teacher: str, student: str | None, baseline: str | None, classifier: str | None, **load: Any
) -> Models:
    if load["compiled"]:
        # Read when torch is imported, so it has to be said before.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_folder_for_kernels()))
    return Models(teacher, student, baseline, classifier, options.model_options(**load))


models = bundle(
    "models",
    _models,
    options.teacher,
    models_option(
        "--student",
        metavar="MODEL",
        help="The student before its training. Adds its scores to the prediction; one more pass.",
    ),
    models_option(
        "--baseline",
        metavar="MODEL",
        help="A model of the student's size trained on the corpus; instead of --student.",
    ),
    models_option(
        "--classifier",
        metavar="NAME|PATH",
        help="What turns scores into probabilities. Default: the shipped one that fits the models.",
    ),
    options.device,
    options.dtype("Number format of the models; bfloat16 is faster and less exact."),
    speed_option(
        "--compile",
        "compiled",
        is_flag=True,
        help="Compile the models first: a tenth to a fifth faster, after half a minute; needs a C++ compiler.",
    ),
    options.model_revision,
    options.trust_remote_code,
    options.offline,
)

corpus = options.corpus(
    options.corpus_option(
        "--streaming/--no-streaming",
        default=True,
        show_default=True,
        help="Read a corpus on the hub without downloading it first.",
    ),
    options.corpus_option(
        "--max-row-bytes",
        type=POSITIVE,
        default=16 * 1024**2,
        show_default=True,
        metavar="BYTES",
        help="A longer row is a bad row.",
    ),
    options.corpus_option(
        "--max-decompressed-bytes",
        type=POSITIVE,
        default=256 * 1024**3,
        metavar="BYTES",
        help="Refuse a compressed file that unpacks to more. Default: 256 GiB.",
    ),
    options.corpus_option(
        "--max-compression-ratio",
        type=POSITIVE,
        default=1000,
        show_default=True,
        metavar="N",
        help="Refuse a file that unpacks to more than N times its size.",
    ),
)

window = options.windows(
    options.windows_option(
        "--windows",
        type=click.Choice(("auto", "first", "tile")),
        default="auto",
        show_default=True,
        help="auto: the start of each answer where rows have answers, else the start of each row. "
        "first: the start of each row. tile: all of each answer, or of each row.",
    ),
    options.windows_option(
        "--turns",
        type=click.Choice(("all", "last")),
        default="all",
        show_default=True,
        help="Which answers of a conversation are scored.",
    ),
    options.windows_option(
        "--min-suffix",
        "min_suffix_len",
        type=POSITIVE,
        default=16,
        show_default=True,
        metavar="N",
        help="Number of tokens of the shortest answer that is scored.",
    ),
)


def _epochs(epochs: float) -> float:
    told = options.by_recipe(options.chosen_recipe(), {"epochs": "epochs"}, {"epochs": epochs})
    return float(told["epochs"])


epochs = bundle(
    "epochs",
    _epochs,
    options.training_option(
        "--epochs",
        type=options.ABOVE_ZERO,
        default=DEFAULT_EPOCHS,
        show_default=True,
        metavar="N",
        help="How many times you will train on the corpus. Used by classifiers that ask for exposure.",
    ),
)


@dataclass(frozen=True, slots=True)
class Output:
    """What is written; fields are called as in `AuditOptions`."""

    restart: bool
    table_format: "TableFormat"
    n_worst: int
    show_text: int
    sensitive: bool


def _output(table_format: str | None, top: int, **values: Any) -> Output:
    given = click.get_current_context().params
    _, old = options.split_formats(given["formats"])
    chosen = options.chosen_table_format(table_format, old, quiet=given["quiet"])
    return Output(table_format=chosen, n_worst=top, **values)


out = output_option(
    "--out",
    type=FolderType(),
    metavar="DIR",
    help="Where results go, also s3:// or gs://. A run that was interrupted there is continued. Default: runs/<name of the corpus>.",
)
output = bundle(
    "output",
    _output,
    output_option(
        "--restart", is_flag=True, help="Start over instead of continuing what is in DIR."
    ),
    options.table_format,
    output_option(
        "--sensitive",
        is_flag=True,
        help="Mark rows with personal data or secrets; needs the extra 'sensitive'.",
    ),
    output_option(
        "--top",
        type=COUNT,
        default=10,
        show_default=True,
        metavar="N",
        help="How many of the worst rows the summary lists.",
    ),
    output_option(
        "--show-text",
        type=COUNT,
        default=0,
        show_default=True,
        metavar="N",
        help="Show the first N characters of their texts in the summary.",
    ),
)


@dataclass(frozen=True, slots=True)
class Speed:
    """What runs the models, and how fast; fields are called as in `AuditOptions`."""

    engine: "EngineName"
    vllm: "VllmOptions"
    workers: int
    threads: int | None
    chunk_size: int
    survival: float | None
    """Share of flagged windows that a cascade must still find. None: no cascade."""


def _speed(
    tensor_parallel: int,
    gpu_memory_share: float,
    cascade: bool,
    survival: float | None,
    **values: Any,
) -> Speed:
    from memaudit.engines import VllmOptions

    if survival is not None and not cascade:
        raise UsageError("--survival is for a cascade", hint="add --cascade")
    if cascade and survival is None:
        survival = DEFAULT_SURVIVAL
    return Speed(vllm=VllmOptions(tensor_parallel, gpu_memory_share), survival=survival, **values)


speed = bundle(
    "speed",
    _speed,
    speed_option(
        "--engine",
        type=click.Choice(("auto", "hf", "vllm")),
        default="auto",
        show_default=True,
        help="What runs the models: transformers (hf) or vLLM. auto takes vLLM where it is installed and can run them.",
    ),
    speed_option(
        "--tensor-parallel",
        type=POSITIVE,
        default=1,
        show_default=True,
        metavar="N",
        help="Number of GPUs that share each model; needs vLLM.",
    ),
    speed_option(
        "--gpu-memory-share",
        type=FiniteRange(min=0, max=1, min_open=True, max_open=True),
        default=0.8,
        show_default=True,
        metavar="S",
        help="Share of each GPU's memory that vLLM may use.",
    ),
    speed_option(
        "--workers",
        type=POSITIVE,
        default=1,
        show_default=True,
        metavar="N",
        help="Number of processes that score, each with its own copy of the models; with GPUs, one per GPU.",
    ),
    options.threads,
    speed_option(
        "--cascade",
        is_flag=True,
        help="Skip windows that the repeat counts already show to be (almost) safe.",
    ),
    speed_option(
        "--survival",
        type=FiniteRange(min=0, max=1, min_open=True),
        metavar="SHARE",
        help="With --cascade: share of flagged windows that must still be found. 1 = lose none. Default: 0.995.",
    ),
    speed_option(
        "--chunk-size",
        type=POSITIVE,
        default=128,
        show_default=True,
        metavar="N",
        help="Number of distinct windows saved at a time. A crash costs at most this many.",
    ),
)


@dataclass(frozen=True, slots=True)
class Machines:
    """How a run is spread over machines."""

    shard: str | None
    """`I/N`."""
    ray: "RayOptions | None"


def _machines(shard: str | None, executor: str, **ray: Any) -> Machines:
    from memaudit.runs.options import RayOptions

    given = {name: value for name, value in ray.items() if value is not None}
    if executor == "ray":
        if click.get_current_context().params["workers"] > 1:
            raise UsageError(
                "--workers is for this machine alone", hint="give --replicas with --executor ray"
            )
        return Machines(shard, RayOptions(**given))
    if given:
        name = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{name} is for Ray", hint="add --executor ray")
    return Machines(shard, None)


machines = bundle(
    "machines",
    _machines,
    machines_option(
        "--shard",
        metavar="I/N",
        help="Score one of N parts, 0/N to N-1/N, each into its own DIR, for 'memaudit merge'.",
    ),
    machines_option(
        "--executor",
        type=click.Choice(("local", "ray")),
        default="local",
        show_default=True,
        help="Score in processes on this machine, or in Ray actors.",
    ),
    machines_option(
        "--address",
        metavar="ADDR",
        help="Address of a Ray cluster, or auto. Default: one on this machine, for the time of the run.",
    ),
    machines_option(
        "--replicas", type=POSITIVE, metavar="N", help="Number of Ray actors. Default: 1."
    ),
    machines_option(
        "--gpus-per-replica",
        type=FiniteRange(min=0),
        metavar="G",
        help="GPUs that each actor reserves; 0 runs on CPUs. Default: 0.",
    ),
)

dry_run = output_option(
    "--dry-run",
    is_flag=True,
    help="Read the corpus, score a few windows, print what the run would cost; write nothing.",
)

COMMON = (
    "--teacher",
    "--data",
    "--out",
    "--student",
    "--recipe",
    "--objective",
    "--temperature",
    "--text-column",
    "--windows",
    "--dry-run",
    "--json",
)
