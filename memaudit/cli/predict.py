"""`memaudit predict`: a corpus in, a risk table and a summary out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.audit_flags import (
    DTYPES,
    ROW_SHAPES,
    TABLE_FORMATS,
    audit_options,
    corpus_options,
    corpus_stem,
    split_formats,
)
from memaudit.cli.folders import FolderType
from memaudit.cli.signals import Stopped, raise_if_stopped
from memaudit.errors import MemauditError
from memaudit.text import json_text

if TYPE_CHECKING:
    from memaudit.audit import Progress, ReportProgress

_POSITIVE = click.IntRange(min=1)
_COUNT = click.IntRange(min=0)


@click.command(short_help="Predict which examples a student would memorize.")
@options.teacher
@options.data
@click.option(
    "--student", metavar="MODEL", help="The student before training: sharpens the prediction."
)
@click.option(
    "--baseline",
    metavar="MODEL",
    help="A model of the student's size trained on the corpus; instead of --student.",
)
@click.option(
    "--classifier", metavar="NAME|PATH", help="Default: the shipped one that fits the models given."
)
@click.option(
    "--objective",
    type=click.Choice(("soft", "hard", "cross-entropy")),
    default="soft",
    show_default=True,
    help="What the student will learn: the teacher's distribution, the text it writes, or the corpus alone.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="T",
    help="Of soft labels.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(min=0, max=1),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Of plain cross-entropy in the loss of soft labels.",
)
@click.option(
    "--engine",
    type=click.Choice(("auto", "hf", "vllm")),
    default="auto",
    show_default=True,
    help="What runs the models: transformers (hf) or vLLM; auto is vLLM where it is installed and can run them.",
)
@click.option(
    "--tensor-parallel",
    type=_POSITIVE,
    default=1,
    show_default=True,
    metavar="N",
    help="GPUs that share each model; needs vLLM.",
)
@click.option(
    "--gpu-memory-share",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=0.8,
    show_default=True,
    metavar="S",
    help="Of each GPU's memory, for vLLM.",
)
@click.option(
    "--out",
    type=FolderType(),
    metavar="DIR",
    help="Where the risk table goes, also s3:// or gs://; a run that was interrupted there is continued. Default: runs/<name of the corpus>.",
)
@click.option("--restart", is_flag=True, help="Start over instead of continuing what is in DIR.")
@click.option(
    "--shard",
    metavar="I/N",
    help="Score one of N parts, 0/N to N-1/N, each into a DIR of its own, for 'memaudit merge'.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(ROW_SHAPES + TABLE_FORMATS),
    multiple=True,
    metavar="FORMAT",
    help="How rows hold text (auto, text, prompt-completion, messages) or how the risk table is written (parquet, jsonl, csv); one of each may be given. Default: auto and parquet.",
)
@options.text_column
@options.id_column
@options.config_name
@options.split
@options.revision
@click.option(
    "--streaming/--no-streaming",
    default=True,
    show_default=True,
    help="Read a corpus on the hub without downloading it first.",
)
@click.option(
    "--max-row-bytes",
    type=_POSITIVE,
    default=16 * 1024**2,
    show_default=True,
    metavar="BYTES",
    help="A longer row is a bad row.",
)
@options.on_bad_row
@click.option(
    "--windows",
    type=click.Choice(("first", "tile")),
    default="first",
    show_default=True,
    help="Score one window at the start of an example, or all that fit in a row.",
)
@options.prefix_tokens
@options.suffix_tokens
@click.option(
    "--dtype",
    type=click.Choice(tuple(DTYPES)),
    default="float32",
    show_default=True,
    help="Number format of the models; bfloat16 is faster and less exact.",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the models first: a tenth to a fifth faster, after half a minute; needs a C++ compiler.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Where models run: auto, cpu, cuda, cuda:1.",
)
@click.option(
    "--workers",
    type=_POSITIVE,
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that score, each with models of its own; on GPUs, one for each.",
)
@click.option(
    "--executor",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="Where it is scored: in processes of this machine, or in actors on Ray.",
)
@click.option(
    "--address",
    metavar="ADDR",
    help="Of a Ray cluster, or auto. Default: one on this machine, for the time of the run.",
)
@click.option(
    "--replicas", type=_POSITIVE, metavar="N", help="Actors on Ray that score. Default: 1."
)
@click.option(
    "--gpus-per-replica",
    type=click.FloatRange(min=0),
    metavar="G",
    help="GPUs that each of them reserves; 0 runs on CPUs. Default: 0.",
)
@click.option(
    "--threads",
    type=_POSITIVE,
    metavar="N",
    help="CPU threads of each process. Default: the cores, divided among the processes.",
)
@click.option(
    "--cascade",
    is_flag=True,
    help="Spare the teacher windows that, by the corpus alone, cannot or will hardly be flagged.",
)
@click.option(
    "--survival",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Of what would be flagged, with --cascade; 1: leave out only what cannot be flagged. Default: 0.995.",
)
@click.option(
    "--sensitive",
    is_flag=True,
    help="Mark what holds personal data or secrets; needs the extra 'sensitive'.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read the corpus, score a few windows, and tell what it would take; write nothing.",
)
@click.option(
    "--chunk-size",
    type=_POSITIVE,
    default=128,
    show_default=True,
    metavar="N",
    help="Distinct windows that are scored and committed together: what a crash can cost.",
)
@options.model_revision
@options.trust_remote_code
@options.offline
@click.option(
    "--top",
    type=_COUNT,
    default=10,
    show_default=True,
    metavar="N",
    help="Worst examples in the summary.",
)
@click.option(
    "--show-text",
    type=_COUNT,
    default=0,
    show_default=True,
    metavar="N",
    help="Characters of the worst examples' text in the summary.",
)
@options.as_json
@options.quiet
@options.color
def predict(**flags: Any) -> None:
    """Predict which examples of CORPUS a student distilled from MODEL would memorize.

    Writes risk.parquet, one row an example, and summary.json into DIR. No file and no output
    holds text of the corpus unless --show-text asks for it. If the run is interrupted or the
    machine dies, the same command goes on where it was; 'memaudit status DIR' tells how far it is.
    """
    row_shape, table_format = split_formats(flags["formats"])
    # Read when the hub's packages and torch are imported, so it has to be said before.
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if flags["compiled"]:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_folder_for_kernels()))
    if flags["offline"]:
        names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        os.environ |= dict.fromkeys(names, "1")

    out = flags["out"] or Path("runs") / _default_name(flags)
    with stop_explained(out):
        arguments = {
            "teacher": flags["teacher"],
            "data": corpus_options(flags, row_shape),
            "student": flags["student"],
            "baseline": flags["baseline"],
            "out": out,
            "options": audit_options(flags, table_format),
        }
        if flags["dry_run"]:
            _plan(flags, arguments)
            return
        if flags["shard"] is None:
            _predict_all(flags, arguments)
        else:
            _predict_shard(flags, arguments)


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


def _default_name(flags: dict[str, Any]) -> str:
    """Return the name of the folder of a run whose user named none."""
    stem = corpus_stem(flags["data"])
    if flags["shard"] is None:
        return stem
    from memaudit.runs.manifest import parse_shard

    shard = parse_shard(flags["shard"])
    return f"{stem}-{shard.index}-of-{shard.count}"


def _predict_all(flags: dict[str, Any], arguments: dict[str, Any]) -> None:
    from memaudit.audit import audit_corpus
    from memaudit.reports.terminal import print_summary
    from memaudit.runs.workers import failure_error

    with _watched(flags) as progress:
        result = audit_corpus(**arguments, progress=progress)
    if not flags["as_json"]:
        print_summary(result, color=flags["color"])
    if result.errors:
        raise failure_error(result.failures, result.errors)
    if flags["as_json"]:
        click.echo(json_text(result.document()))


def _plan(flags: dict[str, Any], arguments: dict[str, Any]) -> None:
    from memaudit.planning import plan_audit
    from memaudit.reports.plan import print_plan

    del arguments["out"]
    with _watched(flags) as progress:
        plan = plan_audit(**arguments, progress=progress)
    if flags["as_json"]:
        click.echo(json_text(plan.document()))
    else:
        print_plan(plan, color=flags["color"])


def _predict_shard(flags: dict[str, Any], arguments: dict[str, Any]) -> None:
    from memaudit.audit import score_shard
    from memaudit.reports.status import print_status
    from memaudit.runs.manifest import parse_shard
    from memaudit.runs.workers import failure_error

    with _watched(flags) as progress:
        status = score_shard(**arguments, shard=parse_shard(flags["shard"]), progress=progress)
    if not flags["as_json"]:
        print_status(status, color=flags["color"])
    if status.failures:
        raise failure_error(status.failures)
    if flags["as_json"]:
        click.echo(json_text(status.document()))


@contextmanager
def _watched(flags: dict[str, Any]) -> Iterator["ReportProgress"]:
    """Show progress, and notice signals that a library dropped."""
    from memaudit.reports.progress import show_progress

    with show_progress(quiet=flags["quiet"], color=flags["color"]) as show:

        def report(progress: "Progress") -> None:
            raise_if_stopped()
            show(progress)

        yield report


@contextmanager
def stop_explained(out: Path) -> Iterator[None]:
    """If a signal stops the run in a folder, say how to go on."""
    try:
        yield
    except Stopped as stopped:
        raise Stopped(stopped.number, hint=_how_to_go_on(out)) from None


def _how_to_go_on(out: Path) -> str:
    from memaudit.runs.folder import MANIFEST, Run
    from memaudit.runs.manifest import read_manifest

    try:
        run = Run(out, read_manifest(out / MANIFEST))
    except MemauditError:
        return "nothing had been scored yet: give the same command again"
    # Not verified here: that would keep the user waiting, and the next start does it anyway.
    chunks = run.own_chunks
    n_there = sum(run.plan.path(chunk).exists() for chunk in chunks)
    return f"give the same command again to go on: {n_there:,} of {len(chunks):,} chunks are kept in {out}"
