"""`memaudit filter`: a corpus written again without what would be memorized of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memaudit.cli import options
from memaudit.cli.command import Command, FiniteRange
from memaudit.cli.options import (
    corpus_option,
    input_option,
    limits_option,
    models_option,
    output_option,
)
from memaudit.errors import UsageError
from memaudit.text import json_text

if TYPE_CHECKING:
    from memaudit.filtering import FilterOptions
    from memaudit.filtering.texts import TeacherTokenizer

_PATH = click.Path(path_type=Path)
_SIMILARITY = 0.8


@click.command("filter", short_help="Write a corpus without what would be memorized.", cls=Command)
@input_option(
    "--run", "run_folder", type=_PATH, required=True, metavar="DIR", help="What predict wrote."
)
@corpus_option(
    "--data",
    metavar="CORPUS",
    required=True,
    help="The corpus that was predicted, unchanged: file, folder or glob.",
)
@output_option(
    "--out",
    type=_PATH,
    metavar="FILE",
    help="Where what stays goes, in the format it has; a folder if the corpus has several files.",
)
@output_option("--force", is_flag=True, help="Replace FILE if it is there.")
@limits_option(
    "--max-probability",
    type=FiniteRange(0, 1),
    metavar="P",
    help="Rows above it are too risky. Default: the flagged ones are.",
)
@limits_option("--top", type=options.COUNT, metavar="K", help="The K riskiest rows are too risky.")
@limits_option(
    "--expected-at-most",
    type=FiniteRange(min=0),
    metavar="N",
    help="Remove as little as brings the number memorized to N, by the upper end of its interval.",
)
@limits_option(
    "--strategy",
    type=click.Choice(("drop", "deduplicate", "downsample", "excise")),
    default="drop",
    show_default=True,
    help="What happens to risky rows: drop removes them; deduplicate keeps one of each equal text; "
    "downsample keeps --max-copies rows of each risky window; excise cuts the risky part out of them "
    "and needs --teacher.",
)
@limits_option(
    "--max-copies",
    type=options.POSITIVE,
    default=1,
    show_default=True,
    metavar="N",
    help="Rows with the same risky window that downsample keeps.",
)
@limits_option(
    "--near-duplicates",
    type=FiniteRange(0, 1, min_open=True),
    is_flag=False,
    flag_value=_SIMILARITY,
    metavar="SIMILARITY",
    help=f"Deduplicate texts that are nearly those of risky rows, too; {_SIMILARITY} if no number is given.",
)
@models_option(
    "--teacher",
    metavar="MODEL",
    help="Its tokenizer counts tokens, and renders messages if the corpus has them.",
)
@output_option("--dry-run", is_flag=True, help="Tell what would come of it; write nothing.")
@output_option(
    "--push-to-hub", metavar="NAME", help="Upload the result as a private dataset owner/name."
)
@output_option("--public", is_flag=True, help="With --push-to-hub: for everybody to read.")
@options.model_revision
@options.trust_remote_code
@options.offline
@options.as_json
@options.color
def filter_(**flags: Any) -> None:
    """Write CORPUS without the rows that the run in DIR finds too risky.

    What stays keeps its bytes, columns and order. Beside it go FILE.removed.parquet, which says
    which rows went, and FILE.manifest.json; neither holds text of the corpus. With --strategy
    excise, FILE.excised.parquet says what was cut.
    """
    from memaudit.filtering import filter_corpus
    from memaudit.runs.run import read_run

    _check_flags(flags)
    chosen = _options(flags)
    run = read_run(flags["run_folder"])
    out = None if flags["dry_run"] else flags["out"]
    with _tokenizer(flags) as tokenizer:
        result = filter_corpus(
            run,
            flags["data"],
            out,
            options=chosen,
            tokenizer=tokenizer,
            replaces=flags["force"],
        )
    if flags["push_to_hub"] is not None:
        from memaudit.filtering import push_to_hub

        push_to_hub(flags["out"], flags["push_to_hub"], is_public=flags["public"])
    if flags["as_json"]:
        click.echo(json_text(result.document()))
    else:
        from memaudit.reports.gate import filter_page
        from memaudit.reports.terminal import print_page

        print_page(filter_page(result), color=flags["color"])


def _check_flags(flags: dict[str, Any]) -> None:
    if flags["out"] is None and not flags["dry_run"]:
        raise UsageError("no --out is given", hint="say where to write to, or give --dry-run")
    if flags["public"] and flags["push_to_hub"] is None:
        raise UsageError("--public goes with --push-to-hub", hint="leave it out")
    if flags["push_to_hub"] is not None and (flags["dry_run"] or flags["offline"]):
        raise UsageError(
            "--push-to-hub does not go with --dry-run or --offline", hint="leave out one of them"
        )


def _options(flags: dict[str, Any]) -> "FilterOptions":
    from memaudit.filtering import FilterOptions

    names = ("max_probability", "top", "expected_at_most", "strategy", "max_copies")
    return FilterOptions(
        near_duplicates=flags["near_duplicates"], **{name: flags[name] for name in names}
    )


@contextmanager
def _tokenizer(flags: dict[str, Any]) -> "Iterator[TeacherTokenizer | None]":
    """Give the teacher's tokenizer, if one is asked for."""
    if flags["teacher"] is None:
        yield None
        return
    from memaudit.engines.models import ModelOptions, open_model
    from memaudit.engines.tokenizer import load_tokenizer

    # Read when the hub's packages are imported, so it has to be said before.
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    model = ModelOptions(
        revision=flags["model_revision"],
        trust_remote_code=flags["trust_remote_code"],
        offline=flags["offline"],
    )
    with open_model(flags["teacher"], model) as (_, folder, where):
        yield load_tokenizer(folder, where)
