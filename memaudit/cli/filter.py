"""`memaudit filter`: a corpus written again without what would be memorized of it."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command, FiniteRange, Shown, bundle
from memaudit.cli.options import (
    COUNT,
    PATH,
    corpus_option,
    input_option,
    limits_option,
    models_option,
    output_option,
)
from memaudit.errors import UsageError

_SIMILARITY = 0.8


@bundle(
    limits_option(
        "--max-probability",
        "Rows with a higher probability are too risky. Default: the flagged rows.",
        FiniteRange(0, 1),
        metavar="P",
    ),
    limits_option("--top", "The K riskiest rows are too risky.", COUNT, metavar="K"),
    limits_option(
        "--expected-at-most",
        "Remove the fewest rows so that at most N are memorized, by the upper end of the interval.",
        FiniteRange(min=0),
    ),
    limits_option(
        "--strategy",
        "What happens to risky rows. drop: they go. deduplicate: one of each equal text stays. "
        "downsample: --max-copies rows of each risky window stay. excise: the risky part is cut out "
        "of them; needs --teacher.",
        ("drop", "deduplicate", "downsample", "excise"),
        "drop",
    ),
    limits_option(
        "--max-copies",
        "Rows with the same risky window that downsample keeps.",
        options.POSITIVE,
        1,
    ),
    limits_option(
        "--near-duplicates",
        f"Also deduplicate texts this similar to those of risky rows. Without a number: {_SIMILARITY}.",
        FiniteRange(0, 1, min_open=True),
        is_flag=False,
        flag_value=_SIMILARITY,
        metavar="SIMILARITY",
    ),
)
def chosen(**values: Any) -> dict[str, Any]:
    """Return the fields of `FilterOptions`; made once the screen says what is done."""
    return values


@bundle(*options.HUB)
def hub(**values: Any) -> dict[str, Any]:
    """Return parameters of `model_options`."""
    return values


@click.command("filter", cls=Command)
@input_option("--run", "What predict wrote.", PATH, name="run_folder", required=True, metavar="DIR")
@corpus_option(
    "--data",
    "The corpus that was predicted, unchanged: file, folder or glob.",
    metavar="CORPUS",
    required=True,
)
@output_option(
    "--out",
    "File to write, in the format of the corpus; a folder if the corpus has several files.",
    PATH,
    metavar="FILE",
)
@output_option("--force", "Replace FILE if it is there.", is_flag=True)
@chosen
@models_option(
    "--teacher",
    "Its tokenizer counts tokens, and renders messages if the corpus has them.",
    metavar="MODEL",
)
@output_option("--dry-run", "Print what would change; write nothing.", is_flag=True)
@output_option(
    "--push-to-hub", "Upload the result as a private dataset owner/name.", metavar="NAME"
)
@output_option("--public", "With --push-to-hub: for everybody to read.", is_flag=True)
@hub
@options.shown
def filter_(  # noqa: PLR0913  one for each option
    *,
    run_folder: Path,
    data: str,
    out: Path | None,
    force: bool,
    chosen: dict[str, Any],
    teacher: str | None,
    dry_run: bool,
    push_to_hub: str | None,
    public: bool,
    hub: dict[str, Any],
    shown: Shown,
) -> None:
    """Write CORPUS without the rows that the run in DIR finds too risky.

    Rows that stay keep their bytes, columns and order. FILE.removed.parquet lists the rows that
    went, and FILE.manifest.json says what was done; neither holds text of the corpus. With
    --strategy excise, FILE.excised.parquet says what was cut.
    """
    # Before the run is read: what does not go together is told at once.
    if out is None and not dry_run:
        raise UsageError("no --out is given", hint="say where to write to, or give --dry-run")
    if public and push_to_hub is None:
        raise UsageError("--public goes with --push-to-hub", hint="leave it out")
    if push_to_hub is not None and (dry_run or hub["offline"]):
        raise UsageError(
            "--push-to-hub does not go with --dry-run or --offline", hint="leave out one of them"
        )

    with shown.reading(run_folder), ExitStack() as opened:
        from memaudit import filtering
        from memaudit.reports.gate import filter_page
        from memaudit.runs.run import read_run

        run, cuts = read_run(run_folder), None
        # Only the tokenizer is loaded: no model is needed to cut a corpus.
        if teacher is not None:
            from memaudit.engines import models, tokenizer

            loading = options.model_options(**hub)
            _, folder, where = opened.enter_context(models.open_model(teacher, loading))
            cuts = tokenizer.load_tokenizer(folder, where)
        result = filtering.filter_corpus(
            run,
            data,
            None if dry_run else out,
            options=filtering.FilterOptions(**chosen),
            tokenizer=cuts,
            replaces=force,
        )
    if push_to_hub is not None and out is not None:
        filtering.push_to_hub(out, push_to_hub, is_public=public)
    shown.tell(result.document(), filter_page(result))
