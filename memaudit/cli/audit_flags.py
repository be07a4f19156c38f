"""From the flags of `memaudit predict` to the options of an audit."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memaudit.cli import options
from memaudit.errors import UsageError

if TYPE_CHECKING:
    from memaudit.corpus import CorpusOptions
    from memaudit.runs.options import AuditOptions, RayOptions

ROW_SHAPES = ("auto", "text", "prompt-completion", "messages")
TABLE_FORMATS = ("parquet", "jsonl", "csv")
"""Values of --format: how rows hold text, and how the risk table is written."""

DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
"""Number formats by the names that they are given."""

_ENDINGS = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|feather|txt)(\.(gz|zst|bz2|xz))?$", re.IGNORECASE
)


def split_formats(formats: tuple[str, ...]) -> tuple[str, str]:
    """Return the shape of rows and the format of the table that the values of --format name."""
    shapes = [value for value in formats if value in ROW_SHAPES]
    tables = [value for value in formats if value in TABLE_FORMATS]
    for values in (shapes, tables):
        if len(values) > 1:
            raise UsageError(
                f"--format is given as {' and as '.join(values)}, which say the same thing twice",
                hint=f"give one of {', '.join(ROW_SHAPES)} and one of {', '.join(TABLE_FORMATS)}",
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


def corpus_options(flags: dict[str, Any], row_shape: str) -> "CorpusOptions":
    """Return how the corpus is read."""
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


def _ray_options(flags: dict[str, Any]) -> "RayOptions | None":
    from memaudit.runs.options import RayOptions

    given = {
        name: flags[name]
        for name in ("address", "replicas", "gpus_per_replica")
        if flags[name] is not None
    }
    if flags["executor"] == "ray":
        if flags["workers"] > 1:
            raise UsageError(
                "--workers is for this machine alone", hint="give --replicas with --executor ray"
            )
        return RayOptions(**given)
    if given:
        name = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{name} is for Ray", hint="add --executor ray")
    return None


def audit_options(flags: dict[str, Any], table_format: str) -> "AuditOptions":
    """Return how the corpus is audited.

    Raises:
        UsageError: flags do not go together, or a number is not finite.
    """
    from memaudit.engines import VllmOptions
    from memaudit.engines.models import ModelOptions
    from memaudit.runs.options import AuditOptions
    from memaudit.windows import WindowShape

    model = ModelOptions(
        dtype=DTYPES[flags["dtype"]],  # type: ignore[arg-type]  # one of the two
        device=flags["device"],
        revision=flags["model_revision"],
        trust_remote_code=flags["trust_remote_code"],
        offline=flags["offline"],
        compiled=flags["compiled"],
    )
    try:
        ray = _ray_options(flags)
        vllm = VllmOptions(flags["tensor_parallel"], flags["gpu_memory_share"])
    except ValueError as error:  # click takes inf and nan for numbers
        raise UsageError(str(error), hint="give finite numbers") from error
    return AuditOptions(
        classifier=flags["classifier"],
        objective=options.chosen_objective(flags),
        engine=flags["engine"],
        vllm=vllm,
        shape=WindowShape(flags["prefix_tokens"], flags["suffix_tokens"]),
        windows=flags["windows"],
        on_bad_row=flags["on_bad_row"],
        model=model,
        table_format=table_format,  # type: ignore[arg-type]  # click has checked it
        n_worst=flags["top"],
        show_text=flags["show_text"],
        threads=flags["threads"],
        workers=flags["workers"],
        ray=ray,
        chunk_size=flags["chunk_size"],
        survival=_survival(flags),
        sensitive=flags["sensitive"],
        restart=flags["restart"],
    )


def _survival(flags: dict[str, Any]) -> float | None:
    if flags["survival"] is not None and not flags["cascade"]:
        raise UsageError("--survival is for a cascade", hint="add --cascade")
    if not flags["cascade"]:
        return None
    return 0.995 if flags["survival"] is None else float(flags["survival"])
