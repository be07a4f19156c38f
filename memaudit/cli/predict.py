"""`memaudit predict`: a corpus in, a risk table and a summary out."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.errors import UsageError

if TYPE_CHECKING:
    from memaudit.audit import AuditOptions, AuditResult
    from memaudit.corpus import CorpusOptions

_ROW_SHAPES = ("auto", "text", "prompt-completion", "messages")
_TABLE_FORMATS = ("parquet", "jsonl", "csv")
_DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
_POSITIVE = click.IntRange(min=1)
_COUNT = click.IntRange(min=0)


@click.command()
@click.option("--teacher", metavar="MODEL", required=True, help="Trained on the corpus: folder or hub id.")
@click.option("--data", metavar="CORPUS", required=True, help="File, folder, glob, hub id, or - for jsonl on standard input.")
@click.option("--student", metavar="MODEL", help="The student before training: sharpens the prediction.")
@click.option("--baseline", metavar="MODEL", help="A model of the student's size trained on the corpus; instead of --student.")
@click.option("--classifier", metavar="NAME|PATH", help="Default: the shipped one that fits the models given.")
@click.option("--engine", type=click.Choice(("auto", "hf", "vllm")), default="auto", show_default=True, help="What runs the models.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Where the risk table goes. Default: runs/<name of the corpus>.")
@click.option("--format", "formats", type=click.Choice(_ROW_SHAPES + _TABLE_FORMATS), multiple=True, metavar="FORMAT", help="How rows hold text (auto, text, prompt-completion, messages) or how the risk table is written (parquet, jsonl, csv); one of each may be given. Default: auto and parquet.")
@click.option("--text-column", metavar="NAME", help="Column of the text.")
@click.option("--id-column", metavar="NAME", help="Column that names a row in reports.")
@click.option("--config-name", metavar="NAME", help="Configuration of a corpus on the hub.")
@click.option("--split", default="train", show_default=True, metavar="NAME", help="Split of a corpus on the hub.")
@click.option("--revision", metavar="REV", help="Revision of a corpus on the hub.")
@click.option("--streaming/--no-streaming", default=True, show_default=True, help="Read a corpus on the hub without downloading it first.")
@click.option("--max-row-bytes", type=_POSITIVE, default=16 * 1024**2, show_default=True, metavar="BYTES", help="A longer row is a bad row.")
@click.option("--on-bad-row", type=click.Choice(("error", "skip")), default="error", show_default=True, help="Stop at a row that cannot be used, or count it and go on.")
@click.option("--windows", type=click.Choice(("first", "tile")), default="first", show_default=True, help="Score one window at the start of an example, or all that fit in a row.")
@click.option("--prefix-tokens", type=_POSITIVE, default=50, show_default=True, metavar="N", help="Tokens of a window that a model is given.")
@click.option("--suffix-tokens", type=_POSITIVE, default=50, show_default=True, metavar="N", help="Tokens of a window that must not be reproduced.")
@click.option("--dtype", type=click.Choice(tuple(_DTYPES)), default="float32", show_default=True, help="Number format of the models; bfloat16 is faster and less exact.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="Where models run: auto, cpu, cuda, cuda:1.")
@click.option("--threads", type=_POSITIVE, metavar="N", help="CPU threads. Default: one for each core.")
@click.option("--model-revision", metavar="REV", help="Revision of models on the hub.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model.")
@click.option("--offline", is_flag=True, help="Reach no network.")
@click.option("--top", type=_COUNT, default=10, show_default=True, metavar="N", help="Worst examples in the summary.")
@click.option("--show-text", type=_COUNT, default=0, show_default=True, metavar="N", help="Characters of the worst examples' text in the summary.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the summary.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--color", type=click.Choice(("auto", "always", "never")), default="auto", show_default=True, help="Whether output is coloured.")
def predict(**flags: Any) -> None:
    """Predict which examples of CORPUS a student distilled from MODEL would memorize.

    Writes risk.parquet, one row an example, and summary.json into DIR. No file and no output
    holds text of the corpus unless --show-text asks for it.
    """
