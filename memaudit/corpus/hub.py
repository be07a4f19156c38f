"""Rows from a corpus on the Hugging Face hub, read by `datasets`; code of a corpus never runs.

Imported where such a corpus is read: `datasets` takes a second.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NoReturn

import datasets
import pyarrow as pa
from huggingface_hub.errors import HfHubHTTPError

from memaudit.corpus.base import CorpusOptions, ProjectColumns, Record
from memaudit.corpus.discovery import HubCorpus
from memaudit.errors import CorpusError

_ERRORS: tuple[type[Exception], ...] = (
    HfHubHTTPError.__bases__[0],  # of whichever HTTP library the client is built on
    datasets.exceptions.DatasetsError,
    pa.ArrowException,
    OSError,
    ValueError,
    RuntimeError,
)
"""What `datasets` raises for a bad name, a bad connection or bad data."""

CONFIGS_TO_CHOOSE: dict[str, tuple[str, ...]] = {
    "Salesforce/wikitext": (
        "wikitext-103-raw-v1",
        "wikitext-103-v1",
        "wikitext-2-raw-v1",
        "wikitext-2-v1",
    ),
    "nvidia/Nemotron-CC-v2": (
        "Diverse-QA",
        "High-Quality",
        "High-Quality-Synthetic",
        "Medium-High-Quality",
        "Medium-Quality",
        "Translated-Diverse-QA",
    ),
}
"""Well-known corpora that have no default configuration: said before anything is fetched."""


def read_hub(
    corpus: HubCorpus, options: CorpusOptions, project: ProjectColumns
) -> Iterator[Record]:
    """Yield the rows of a split.

    Raises:
        CorpusError: it cannot be reached, does not exist, or a configuration must be chosen.
    """
    if options.config is None and corpus.hub_id in CONFIGS_TO_CHOOSE:
        _ask_for_config(corpus.hub_id, CONFIGS_TO_CHOOSE[corpus.hub_id])
    split = options.split or "train"
    try:
        dataset = datasets.load_dataset(
            corpus.hub_id,
            name=options.config,
            split=split,
            revision=corpus.revision,
            streaming=options.streaming,
        )
    except _ERRORS as error:
        _explain(corpus, options, split, error)
    # A stream of JSON has no columns before its first row has come.
    if dataset.column_names is not None:
        wanted = project(dataset.column_names, corpus.hub_id)
        dataset = dataset.select_columns(list(wanted))
    number = 0
    try:
        for values in dataset:
            number += 1
            yield Record(number, number, values, "row")
    except _ERRORS as error:
        # The name of the error alone: what it says may quote a row.
        raise CorpusError(
            f"{corpus.hub_id}: reading stopped after row {number:,}: {type(error).__name__}",
            hint="try again, or download it and give the files",
        ) from error


def _explain(corpus: HubCorpus, options: CorpusOptions, split: str, error: Exception) -> NoReturn:
    """Raise why a corpus cannot be loaded, and what to choose instead where the hub says it."""
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        raise CorpusError(
            f"{corpus.hub_id}: no such file or folder here, and no such corpus on the hub, "
            "or none that you may read",
            hint="check the name; if access must be granted, ask for it there "
            "and log in with: hf auth login",
        ) from error
    if isinstance(error, ConnectionError):
        raise CorpusError(
            f"{corpus.hub_id}: no such file or folder here, and the hub cannot be reached",
            hint="check the connection and HF_HUB_OFFLINE, or give a local copy",
        ) from error
    # Asked only after a failure: each answer is a request, and may fail as well.
    try:
        configs = datasets.get_dataset_config_names(corpus.hub_id, revision=corpus.revision)
        if options.config not in configs and (options.config or len(configs) > 1):
            _ask_for_config(corpus.hub_id, configs, options.config)
        splits = datasets.get_dataset_split_names(
            corpus.hub_id, options.config, revision=corpus.revision
        )
    except _ERRORS:
        splits = []
    # A split may be a part or a sum, such as train[:10%]+test: its first name is looked for.
    if splits and re.split(r"[\[+]", split)[0] not in splits:
        raise CorpusError(
            f"{corpus.hub_id}: no split {split}",
            hint=f"choose with --split one of: {', '.join(splits)}",
        ) from error
    if options.streaming and "[" in split:
        raise CorpusError(
            f"{corpus.hub_id}: a part of a split, {split}, cannot be streamed",
            hint="give the whole split, or switch streaming off",
        ) from error
    raise CorpusError(
        f"{corpus.hub_id}: cannot be loaded: {type(error).__name__}",
        hint="check --config-name, --split and --revision, or give a local copy",
    ) from error


def _ask_for_config(hub_id: str, configs: Sequence[str], given: str | None = None) -> NoReturn:
    raise CorpusError(
        f"{hub_id}: no configuration {given}" if given else f"{hub_id}: has several configurations",
        hint=f"choose with --config-name one of: {', '.join(configs)}",
    )
