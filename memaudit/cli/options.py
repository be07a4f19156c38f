"""Options that several commands have, each said once."""

from typing import TYPE_CHECKING, Any

import click

from memaudit.errors import UsageError

if TYPE_CHECKING:
    from memaudit.objectives import Objective

POSITIVE = click.IntRange(min=1)
"""At least one."""

teacher = click.option(
    "--teacher", metavar="MODEL", required=True, help="Trained on the corpus: folder or hub id."
)

data = click.option(
    "--data",
    metavar="CORPUS",
    required=True,
    help="File, folder, glob, hub id, or - for jsonl on standard input.",
)

text_column = click.option("--text-column", metavar="NAME", help="Column of the text.")

id_column = click.option("--id-column", metavar="NAME", help="Column that names a row in reports.")

config_name = click.option(
    "--config-name", metavar="NAME", help="Configuration of a corpus on the hub."
)

split = click.option(
    "--split",
    default="train",
    show_default=True,
    metavar="NAME",
    help="Split of a corpus on the hub.",
)

revision = click.option("--revision", metavar="REV", help="Revision of a corpus on the hub.")

on_bad_row = click.option(
    "--on-bad-row",
    type=click.Choice(("error", "skip")),
    default="error",
    show_default=True,
    help="Stop at a row that cannot be used, or count it and go on.",
)

prefix_tokens = click.option(
    "--prefix-tokens",
    type=POSITIVE,
    default=50,
    show_default=True,
    metavar="N",
    help="Tokens of a window that a model is given.",
)

suffix_tokens = click.option(
    "--suffix-tokens",
    type=POSITIVE,
    default=50,
    show_default=True,
    metavar="N",
    help="Tokens of a window that must not be reproduced.",
)

model_revision = click.option(
    "--model-revision", metavar="REV", help="Revision of models on the hub."
)

trust_remote_code = click.option(
    "--trust-remote-code", is_flag=True, help="Run code that comes with a model."
)

offline = click.option("--offline", is_flag=True, help="Reach no network.")

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of the summary."
)

quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")

color = click.option(
    "--color",
    type=click.Choice(("auto", "always", "never")),
    default="auto",
    show_default=True,
    help="Whether output is coloured.",
)


def chosen_objective(flags: dict[str, Any]) -> "Objective":
    """Return what --objective, --temperature and --alpha say.

    Raises:
        UsageError: a number is not finite.
    """
    from memaudit.objectives import Objective

    try:
        return Objective(flags["objective"], flags["temperature"], flags["alpha"])
    except ValueError as error:  # click takes inf and nan for numbers
        raise UsageError(
            str(error), hint="give finite numbers with --temperature and --alpha"
        ) from error
