"""`memaudit predict`: a corpus in, a risk table and a summary out."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.signals import Stopped, raise_if_stopped
from memaudit.errors import MemauditError, UsageError

if TYPE_CHECKING:
    from memaudit.audit import ReportProgress
    from memaudit.corpus import CorpusOptions
    from memaudit.runs.options import AuditOptions
    from memaudit.runs.progress import Progress

_ROW_SHAPES = ("auto", "text", "prompt-completion", "messages")
_TABLE_FORMATS = ("parquet", "jsonl", "csv")
_DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
_ENDINGS = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|feather|txt)(\.(gz|zst|bz2|xz))?$", re.IGNORECASE
)
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
    help="What runs the models.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where the risk table goes; a run that was interrupted there is continued. Default: runs/<name of the corpus>.",
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
    type=click.Choice(_ROW_SHAPES + _TABLE_FORMATS),
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
    type=click.Choice(tuple(_DTYPES)),
    default="float32",
    show_default=True,
    help="Number format of the models; bfloat16 is faster and less exact.",
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
    "--threads",
    type=_POSITIVE,
    metavar="N",
    help="CPU threads of each process. Default: the cores, divided among the workers.",
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
    row_shape, table_format = _split_formats(flags["formats"])
    # Read when the hub's packages are imported, so it has to be said before.
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    if flags["offline"]:
        names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        os.environ |= dict.fromkeys(names, "1")

    arguments = {
        "teacher": flags["teacher"],
        "data": _corpus_options(flags, row_shape),
        "student": flags["student"],
        "baseline": flags["baseline"],
        "options": _audit_options(flags, table_format),
    }
    if flags["shard"] is None:
        _predict_all(flags, arguments)
    else:
        _predict_shard(flags, arguments)


def _predict_all(flags: dict[str, Any], arguments: dict[str, Any]) -> None:
    from memaudit.audit import audit_corpus
    from memaudit.reports.terminal import print_summary

    out = flags["out"] or Path("runs") / corpus_stem(flags["data"])
    with _watched(flags, out) as progress:
        result = audit_corpus(**arguments, out=out, progress=progress)
    if flags["as_json"]:
        click.echo(json.dumps(result.document(), sort_keys=True, allow_nan=False))
    else:
        print_summary(result, color=flags["color"])


def _predict_shard(flags: dict[str, Any], arguments: dict[str, Any]) -> None:
    from memaudit.audit import score_shard
    from memaudit.reports.status import print_status
    from memaudit.runs.shards import parse_shard

    shard = parse_shard(flags["shard"])
    stem = f"{corpus_stem(flags['data'])}-{shard.index}-of-{shard.count}"
    out = flags["out"] or Path("runs") / stem
    with _watched(flags, out) as progress:
        status = score_shard(**arguments, shard=shard, out=out, progress=progress)
    if flags["as_json"]:
        click.echo(json.dumps(status.document(), sort_keys=True, allow_nan=False))
    else:
        print_status(status, color=flags["color"])


@contextmanager
def _watched(flags: dict[str, Any], out: Path) -> Iterator["ReportProgress"]:
    """Show progress, and answer signals."""
    from memaudit.reports.progress import show_progress

    with stop_explained(out), show_progress(quiet=flags["quiet"], color=flags["color"]) as show:

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
    from memaudit.runs.directory import MANIFEST, Run
    from memaudit.runs.manifest import read_manifest

    try:
        run = Run(out, read_manifest(out / MANIFEST))
    except MemauditError:
        return "nothing had been scored yet: give the same command again"
    # Not verified here: that would keep the user waiting, and the next start does it anyway.
    chunks = run.own_chunks
    n_there = sum(run.plan.path(chunk).exists() for chunk in chunks)
    return f"give the same command again to go on: {n_there:,} of {len(chunks):,} chunks are kept in {out}"


def _split_formats(formats: tuple[str, ...]) -> tuple[str, str]:
    """Return the shape of rows and the format of the table that the values of --format name."""
    shapes = [value for value in formats if value in _ROW_SHAPES]
    tables = [value for value in formats if value in _TABLE_FORMATS]
    for values in (shapes, tables):
        if len(values) > 1:
            raise UsageError(
                f"--format is given as {' and as '.join(values)}, which say the same thing twice",
                hint=f"give one of {', '.join(_ROW_SHAPES)} and one of {', '.join(_TABLE_FORMATS)}",
            )
    return (shapes or ["auto"])[0], (tables or ["parquet"])[0]


def corpus_stem(source: str) -> str:
    """Return a name for a corpus that is safe as a file name: its own, without endings."""
    if source == "-":
        return "stdin"
    stem = _ENDINGS.sub("", source)
    is_hub_id = stem == source and source.count("/") == 1 and not Path(source).exists()
    name = stem.replace("/", "--") if is_hub_id else Path(stem).name
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "corpus"


def _corpus_options(flags: dict[str, Any], row_shape: str) -> "CorpusOptions":
    from memaudit.corpus import CorpusOptions

    return CorpusOptions(
        flags["data"],
        shape=row_shape,  # type: ignore[arg-type]  # click has checked it
        text_column=flags["text_column"],
        id_column=flags["id_column"],
        config=flags["config_name"],
        split=flags["split"],
        revision=flags["revision"],
        streaming=flags["streaming"],
        max_row_bytes=flags["max_row_bytes"],
    )


def _audit_options(flags: dict[str, Any], table_format: str) -> "AuditOptions":
    from memaudit.engines.models import ModelOptions
    from memaudit.runs.options import AuditOptions
    from memaudit.windows import WindowShape

    model = ModelOptions(
        dtype=_DTYPES[flags["dtype"]],  # type: ignore[arg-type]  # one of the two
        device=flags["device"],
        revision=flags["model_revision"],
        trust_remote_code=flags["trust_remote_code"],
        offline=flags["offline"],
    )
    return AuditOptions(
        classifier=flags["classifier"],
        objective=options.chosen_objective(flags),
        engine=flags["engine"],
        shape=WindowShape(flags["prefix_tokens"], flags["suffix_tokens"]),
        windows=flags["windows"],
        on_bad_row=flags["on_bad_row"],
        model=model,
        table_format=table_format,  # type: ignore[arg-type]  # click has checked it
        n_worst=flags["top"],
        show_text=flags["show_text"],
        threads=flags["threads"],
        workers=flags["workers"],
        chunk_size=flags["chunk_size"],
        restart=flags["restart"],
    )
