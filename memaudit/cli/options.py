"""Options that several commands have, each declared once, in bundles that hand over one value."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import click
from click.core import ParameterSource

from memaudit.cli.command import (
    CountRange,
    Decorator,
    DeviceType,
    FiniteRange,
    Shown,
    bundle,
    option,
)
from memaudit.corpus import CorpusOptions, CorpusShape
from memaudit.corpus.base import DEFAULT_TEMPLATE_DATE
from memaudit.corpus.discovery import without_ending
from memaudit.errors import UsageError
from memaudit.files import TABLE_FORMATS, TableFormat
from memaudit.objectives import Objective, ObjectiveKind
from memaudit.text import inert, safe_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from memaudit.engines.models import ModelOptions
    from memaudit.integrations.trackers import Tracker
    from memaudit.recipes import Recipe

POSITIVE = CountRange(min=1)
COUNT = CountRange(min=0)
ABOVE_ZERO = FiniteRange(min=0, min_open=True)
SHARE = FiniteRange(0, 1)
PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
OBJECTIVES: tuple[ObjectiveKind, ...] = get_args(ObjectiveKind)
ROW_SHAPES: tuple[CorpusShape, ...] = get_args(CorpusShape)
DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
"""Number formats by the names that they are given."""

input_option = partial(option, heading="Input")
models_option = partial(option, heading="Models")
corpus_option = partial(option, heading="Corpus")
windows_option = partial(option, heading="Windows")
training_option = partial(option, heading="Training")
limits_option = partial(option, heading="Limits")
output_option = partial(option, heading="Output")
speed_option = partial(option, heading="Speed")
machines_option = partial(option, heading="Many machines")


# Models


@dataclass(frozen=True, slots=True)
class Models:
    """Which models take part, and how they are loaded."""

    teacher: str
    student: str | None
    baseline: str | None
    """Of the student's size, trained on the corpus."""
    classifier: str | None
    """Name or path. None: the shipped one that fits the models."""
    load: "ModelOptions"


_TEACHER = "The model you distil from, after its training on the corpus: folder, .gguf file"
teacher = models_option("--teacher", f"{_TEACHER} or hub id.", metavar="MODEL", required=True)
teacher_anywhere = models_option(
    "--teacher",
    f"{_TEACHER}, hub id, http://HOST:PORT where 'vllm serve' or SGLang serves it, or 'captured' "
    "where the corpus holds its log-probabilities.",
    metavar="MODEL",
    required=True,
)
HUB = (
    models_option("--model-revision", "Branch, tag or commit of models on the hub.", metavar="REV"),
    models_option(
        "--trust-remote-code", "Run the code that a model on the hub brings along.", is_flag=True
    ),
    models_option("--offline", "Use no network.", is_flag=True),
)
"""How models of the hub are had; parameters of `model_options`."""
device = models_option(
    "--device",
    "Where models run: auto (a GPU if there is one), cpu, cuda, cuda:1, split (over all of them).",
    DeviceType(),
    "auto",
    metavar="NAME",
)


def model_options(
    *, dtype: str = "float32", model_revision: str | None, offline: bool, **load: Any
) -> "ModelOptions":
    """Return how models are loaded, and tell the libraries that load them."""
    prepare_libraries(offline=offline)
    from memaudit.engines.models import ModelOptions

    return ModelOptions(
        dtype=DTYPES[dtype],  # type: ignore[arg-type]  # one of the two
        revision=model_revision,
        offline=offline,
        **load,
    )


def prepare_libraries(*, offline: bool = False) -> None:
    """Set the variables that the hub's packages and torch read when they are imported."""
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    # Only if the user has not chosen otherwise: who looks for a fault wants torch's warnings.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if offline:
        names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        os.environ |= dict.fromkeys(names, "1")


# Corpus


@dataclass(frozen=True, slots=True)
class Corpus:
    """How the corpus is read."""

    rows: CorpusOptions
    on_bad_row: Literal["error", "skip"]

    @property
    def stem(self) -> str:
        """A name for it that is safe as a file name: its own, without endings."""
        source = self.rows.source
        if source == "-":
            return "stdin"
        stem = without_ending(source)
        # `owner/name` is a hub id unless such a folder is there.
        is_hub_id = stem == source and source.count("/") == 1 and not Path(source).exists()
        name = stem.replace("/", "--") if is_hub_id else Path(stem).name
        # No dot or hyphen at the start: such a folder is hidden, or read as an option.
        return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "corpus"


_HOW_READ = (
    corpus_option(
        "--data",
        "File, folder, glob, hub id, or - for jsonl on standard input.",
        metavar="CORPUS",
        required=True,
    ),
    corpus_option(
        "--format",
        "How rows hold text. Default: auto.",
        ROW_SHAPES + TABLE_FORMATS,
        name="formats",
        multiple=True,
        metavar="|".join(ROW_SHAPES),
    ),
    corpus_option("--text-column", "Column that holds the text. Default: text.", metavar="NAME"),
    corpus_option(
        "--map",
        "Column that holds what a format calls otherwise, such as prompt=question. May repeat.",
        name="mapping",
        multiple=True,
        metavar="ROLE=COLUMN",
    ),
    corpus_option(
        "--id-column",
        "Column that names a row in reports. Default: id, where there is one.",
        metavar="NAME",
    ),
    corpus_option("--config-name", "Configuration of a corpus on the hub.", metavar="NAME"),
    corpus_option(
        "--split",
        "Split of a corpus on the hub, or of files that are called after splits; "
        "all reads all of them. Default: train; files of several splits need one.",
        metavar="NAME",
    ),
    corpus_option("--revision", "Branch, tag or commit of a corpus on the hub.", metavar="REV"),
    corpus_option(
        "--template-date",
        "Date that a chat template is told when it asks for today's.",
        default=DEFAULT_TEMPLATE_DATE,
        metavar="YYYY-MM-DD",
    ),
    corpus_option(
        "--add-special-tokens",
        "Put a BOS token in front of every window. auto: if the tokenizer adds one. "
        "There is never a second one.",
        ("auto", "yes", "no"),
        "auto",
    ),
)
on_bad_row = corpus_option(
    "--on-bad-row",
    "Stop at a row that cannot be used, or count it and go on.",
    ("error", "skip"),
    "error",
)


def corpus(*more: Decorator) -> Decorator:
    """Declare how a corpus is read: `corpus: Corpus`; `more` are options of one command alone."""

    @bundle(*_HOW_READ, *more, on_bad_row)
    def corpus(
        data: str, formats: tuple[str, ...], on_bad_row: Literal["error", "skip"], **how: Any
    ) -> Corpus:
        how["config"] = how.pop("config_name")
        shape, _ = split_formats(formats)
        return Corpus(CorpusOptions(data, shape=shape, **how), on_bad_row)  # type: ignore[arg-type]  # click has checked it

    return corpus


def split_formats(formats: tuple[str, ...]) -> tuple[str, str | None]:
    """Return the shape of rows and the format of the table that the values of --format name.

    The second meaning is the old one, for which there is --table-format now.
    """
    shapes = [value for value in formats if value in ROW_SHAPES]
    tables = [value for value in formats if value in TABLE_FORMATS]
    for values in (shapes, tables):
        if len(values) > 1:
            raise UsageError(
                f"--format is given as {' and as '.join(values)}, which say the same thing twice",
                hint=f"give one of {', '.join(ROW_SHAPES)}; the table has --table-format",
            )
    return shapes[0] if shapes else "auto", tables[0] if tables else None


# Windows


@bundle(
    windows_option(
        "--windows",
        "auto: the start of each answer where rows have answers, else the start of each row. "
        "first: the start of each row. tile: all of each answer, or of each row.",
        ("auto", "first", "tile"),
        "auto",
    ),
    windows_option(
        "--turns", "Which answers of a conversation are scored.", ("all", "last"), "all"
    ),
    windows_option(
        "--min-suffix",
        "Number of tokens of the shortest answer that is scored.",
        POSITIVE,
        16,
        name="min_suffix_len",
    ),
    windows_option("--prefix-tokens", "Number of tokens that the model is given.", POSITIVE, 50),
    windows_option(
        "--suffix-tokens",
        "Number of following tokens compared with what the model writes.",
        POSITIVE,
        50,
    ),
)
def window(prefix_tokens: int, suffix_tokens: int, **which: Any) -> dict[str, Any]:
    """Return which windows are cut, as fields of an audit's or a verification's options."""
    from memaudit.windows import WindowShape

    return {"shape": WindowShape(prefix_tokens, suffix_tokens), **which}


# Training


def given(name: str) -> bool:
    """Whether the user has given a parameter of the command that runs, by a flag or a variable."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT)


def chosen_recipe() -> "Recipe | None":
    """Return what --recipe names."""
    name = click.get_current_context().params.get("recipe")
    if name is None:
        return None
    from memaudit.recipes import read_recipe

    return read_recipe(name)


def by_recipe(found: Any, names: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by parameter; what the user has not given comes from a part of a recipe, if any."""
    return {
        name: value if given(name) or (told := getattr(found, names[name], None)) is None else told
        for name, value in values.items()
    }


@bundle(
    training_option(
        "--recipe",
        "How you will train, by your trainer's name (axolotl, distillkit, llama-factory, trl, "
        "trl-gkd, trl-gold, trl-sft, ms-swift, nemo, modelopt, tinker, tinker-on-policy, "
        "easydistill) or its own YAML or JSON file. Options that you give beside it win.",
        metavar="NAME|FILE",
    ),
    training_option(
        "--objective",
        "How you will train. soft: on the teacher's token probabilities (KL). hard: on the text "
        "that the teacher finds likeliest. sampled: on text that it samples at temperature 1. "
        "cross-entropy: on your corpus (plain fine-tuning).",
        OBJECTIVES,
        "soft",
    ),
    training_option(
        "--temperature",
        "Softmax temperature of the distillation loss.",
        ABOVE_ZERO,
        2.0,
        metavar="T",
    ),
    training_option("--alpha", "Weight of cross-entropy in the soft-label loss.", SHARE, 0.0),
)
def objective(recipe: str | None, **values: Any) -> Objective:
    """Return what the student learns from; what the user has not said, a recipe may."""
    found = chosen_recipe()
    if found is not None:
        params = click.get_current_context().params
        told = [f"recipe: {found.in_words}", *(f"note: {note}" for note in found.notes)]
        told = [] if params.get("quiet") else told
        not_understood = "may change what the student learns and is not understood"
        told += [f"warning: {safe_text(x)} {not_understood}" for x in found.not_understood]
        if "survival" in params:  # a prediction
            told += [f"warning: no classifier was fitted on {x}" for x in found.beyond_prediction]
        for line in told:
            click.echo(inert(line), err=True)
        names = {"objective": "kind", "temperature": "temperature", "alpha": "cross_entropy_share"}
        values = by_recipe(found.objective, names, values)
    return Objective(values["objective"], values["temperature"], values["alpha"])


# Output


@dataclass(frozen=True, slots=True)
class Afterwards:
    """What is done with results once they are there."""

    sign: Path | None
    """The private key that they are signed with."""
    tracker: "Tracker | None"
    """That is handed their numbers."""

    def signing_key(self) -> "Ed25519PrivateKey | None":
        """Return the key, once all of this can be done: asked before the work of hours.

        Raises:
            MissingDependency: a package is not installed.
            UsageError: the key cannot be read.
        """
        from memaudit.integrations.trackers import require_tracker
        from memaudit.runs.signature import read_signing_key

        require_tracker(self.tracker)
        return None if self.sign is None else read_signing_key(self.sign)


sign = output_option(
    "--sign",
    "Sign the results with this private key, ed25519 in PEM; needs the extra 'sign'.",
    FILE,
    metavar="KEY",
)


@bundle(
    sign,
    output_option(
        "--log-to",
        "Hand the numbers of the result, never a text, to a tracker; needs the extra of that name.",
        ("wandb", "mlflow", "trackio", "tensorboard"),
    ),
)
def afterwards(sign: Path | None, log_to: "Tracker | None") -> Afterwards:
    """Return what is done with results."""
    return Afterwards(sign, log_to)


@bundle(
    output_option(
        "--json", "Print one JSON document instead of the summary.", name="as_json", is_flag=True
    ),
    output_option("--quiet", "Show no progress.", short="-q", is_flag=True),
    output_option("--color", "Whether output is coloured.", ("auto", "always", "never"), "auto"),
)
def shown(**values: Any) -> Shown:
    """Return how the result is shown."""
    return Shown(**values)


table_format = output_option(
    "--table-format", "How the risk table is written. Default: parquet.", TABLE_FORMATS
)


@bundle(
    table_format,
    output_option("--format", "Its old name.", TABLE_FORMATS, name="old_format", hidden=True),
)
def table(table_format: str | None, old_format: str | None) -> TableFormat:
    """Return the format of the risk table."""
    return chosen_table_format(table_format, old_format)


def chosen_table_format(new: str | None, old: str | None, *, quiet: bool = False) -> TableFormat:
    """Return the format of the risk table, from --table-format or from what --format used to say."""
    if new is not None and old not in (None, new):
        raise UsageError(
            f"--table-format says {new} and --format says {old}",
            hint="leave out --format: it says how rows hold text",
        )
    if old is not None and not quiet:
        click.echo(f"note: --format {old} is now called --table-format {old}", err=True)
    return cast(TableFormat, new or old or "parquet")


# Speed


threads = speed_option(
    "--threads",
    "CPU threads of each process. Default: the cores, divided among the processes.",
    click.IntRange(1, 4096),
    metavar="N",
)


def dtype(help: str) -> Decorator:
    """Declare the number format of models."""
    return speed_option("--dtype", help, tuple(DTYPES), "float32")
