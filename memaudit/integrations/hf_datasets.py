"""Columns of risk for a `datasets.Dataset`, from a finished run on the same rows."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from memaudit.corpus import Conversation, CorpusOptions, Rendered, read_corpus
from memaudit.corpus.base import RawDigest, RowError
from memaudit.corpus.shapes import ColumnChooser, read_content
from memaudit.errors import UsageError
from memaudit.integrations import RowRisks, read_row_risks, refuse_other_corpus
from memaudit.text import number_of

if TYPE_CHECKING:
    from datasets import Dataset

PROBABILITY = "memaudit_probability"
"""Column with the probability that the student memorizes the row; null where none was scored."""

FLAGGED = "memaudit_flagged"
"""Column that says whether the probability reaches the classifier's threshold."""

_ROWS_AT_ONCE = 1000


class RiskColumns:
    """A function for `Dataset.map(…, batched=True, with_indices=True)` that adds both columns.

    Rows go by their place, so map it before anything is shuffled or filtered. Where rows have
    the id column of the run, every id is compared. Use `with_risk` to have the texts compared too.
    """

    def __init__(self, run: str | Path) -> None:
        """Read a finished run.

        Raises:
            UsageError: there is no run, or it has not been scored to the end.
            OutputError: a file was changed or damaged.
        """
        self.risks = read_row_risks(run)

    def __call__(
        self, batch: Mapping[str, Sequence[Any]], indices: Sequence[int]
    ) -> dict[str, Any]:
        """Return the two columns for the rows with these indices.

        Raises:
            UsageError: a row is not one of the run.
        """
        risks = self.risks
        if indices and max(indices) >= risks.n_rows:
            rows = number_of(risks.n_rows, "row")
            raise refuse_other_corpus(risks, f"it has {rows}, and here are more")
        for index, value in zip(indices, batch.get(risks.id_column, ()), strict=False):
            is_id = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
            if is_id and str(value) != risks.ids[index]:
                raise refuse_other_corpus(risks, f"row {index} has another id there")
        found = risks.probabilities[np.asarray(indices, dtype=np.int64)]
        return {
            PROBABILITY: [None if np.isnan(value) else value for value in found.tolist()],
            # NaN is at or above nothing: a row without a score is not flagged.
            FLAGGED: (found >= risks.threshold).tolist(),
        }


def with_risk(dataset: "Dataset", run: str | Path) -> "Dataset":
    """Return the dataset with the columns `memaudit_probability` and `memaudit_flagged`.

    Args:
        dataset: the rows that `memaudit predict` read, all of them and in that order.
        run: folder of the finished run.

    Raises:
        UsageError: the rows are not those of the run, or there is no finished run.
        OutputError: a file of the run was changed or damaged.
        CorpusError: the dataset lacks the columns that the run read.
    """
    if not hasattr(dataset, "select_columns") or not hasattr(dataset, "__len__"):
        raise UsageError(
            f"expected a Dataset of datasets, got {type(dataset).__name__}",
            hint="choose a split of a DatasetDict; over a stream map RiskColumns",
        )
    columns = RiskColumns(run)
    risks = columns.risks
    if len(dataset) != risks.n_rows:
        difference = f"it has {number_of(risks.n_rows, 'row')}, the dataset has {len(dataset):,}"
        raise refuse_other_corpus(risks, difference)
    _compare_texts(dataset, risks)
    return dataset.map(columns, batched=True, with_indices=True)


def _compare_texts(dataset: "Dataset", risks: RowRisks) -> None:
    """Refuse other texts. Of messages the ids are compared, and where there are none the messages."""
    keys = ("shape", "text_column", "id_column", "mapping")
    given = {key: risks.corpus[key] for key in keys if key in risks.corpus}
    chooser = ColumnChooser(CorpusOptions(risks.folder, **given))
    columns = chooser.settle(dataset.column_names)
    if columns is None:
        chooser.refuse("the dataset", dataset.column_names)
    texts = hashlib.sha256()
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        batch = dataset[start : start + _ROWS_AT_ONCE]
        rows = [
            dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
        ]
        for row, is_read in zip(rows, risks.is_read[start:], strict=False):
            if not is_read:
                continue
            try:
                content = read_content(row, columns)
            except RowError as error:
                difference = f"a row that it read cannot be read here, {error}"
                raise refuse_other_corpus(risks, difference) from error
            if isinstance(content, Conversation):
                _require_same_messages(dataset, risks, given)
                return
            texts.update(msgspec.json.encode(content.text))
    if texts.hexdigest() != risks.texts_digest:
        raise refuse_other_corpus(risks, "its texts are others, or in another order")


def _require_same_messages(dataset: "Dataset", risks: RowRisks, given: dict[str, Any]) -> None:
    """Refuse other messages where no ids tell. Which text they became, the teacher's template says."""
    if risks.id_column in dataset.column_names or risks.raw_digest is None:  # older runs have none
        return
    # A data set has all keys in every message: null is what a message lacks, or what it says, or
    # only as content, which OpenAI writes beside calls.
    for rows in (dataset, map(dict, dataset), map(_without_nulls, dataset)):
        options, raw = CorpusOptions("the dataset", rows=rows, **given), RawDigest()
        for row in read_corpus(options, render_messages=lambda conversation: Rendered("")):
            raw.add(row)
        if raw.value == risks.raw_digest:
            return
    raise UsageError(
        f"{risks.folder}: the rows have no ids, and their messages are not those of the run, or their "
        "order, or the order of their keys is another one",
        hint="give the rows ids, or predict from the data set itself: "
        "memaudit.audit_corpus(teacher, dataset, out=...)",
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_nulls(item)
            for key, item in value.items()
            if item is not None or key == "content"
        }
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
