"""Row matching: which rows of two tables are about the same row of the corpus."""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import ClassifierError
from memaudit.text import safe_text
from memaudit.training.tables import Table


def match_rows(labels: Table, scores: Table) -> NDArray[np.int64]:
    """Return the row of the labels that belongs to each row of the scores.

    Rows are joined by ordinal, or by id where a table has no ordinals. Where both tables have
    them, ids and addresses have to agree.

    Returns:
        (n_scores,) -1 where there is none.

    Raises:
        ClassifierError: a key is empty or repeats, or ids or addresses differ.
    """
    by = "row" if all("row" in table.numbers for table in (labels, scores)) else "id"
    label_keys, score_keys = _keys(labels, by), _keys(scores, by)
    place = {key: i for i, key in enumerate(label_keys)}
    match = np.array([place.get(key, -1) for key in score_keys], dtype=np.int64)
    for column in ("id", "address"):
        _require_agreement(column, labels, scores, match)
    return match


def _keys(table: Table, by: str) -> list[float] | list[str]:
    if by not in table.texts and by not in table.numbers:
        raise ClassifierError(
            f"{table.shown}: expected the column {by}, for the other table has no other key",
            hint="give both tables the columns id and row",
        )
    keys = table.numbers["row"].tolist() if by == "row" else _bare(table.texts["id"])
    n_empty = sum(str(key) in ("", "nan") for key in keys)
    if n_empty:
        raise ClassifierError(
            f"{table.shown}: {by} is empty in {n_empty:,} of {table.n_rows:,} rows",
            hint="give every row its ordinal in the corpus",
        )
    n_repeated = len(keys) - len(set(keys))
    if n_repeated:
        raise ClassifierError(
            f"{table.shown}: {by} repeats in {n_repeated:,} of {table.n_rows:,} rows, "
            "so that rows cannot be told apart",
            hint="give both tables the column row, the ordinal in the corpus",
        )
    return keys


def _bare(words: Sequence[str]) -> list[str]:
    """Return words without the `'` that csv tables put before what a spreadsheet would run."""
    return [word.removeprefix("'") for word in words]


def _require_agreement(column: str, labels: Table, scores: Table, match: NDArray[np.int64]) -> None:
    if column not in labels.texts or column not in scores.texts:
        return
    # A corpus may have been named by another path, but has the same name and lines.
    comparable = (lambda word: PurePath(word).name) if column == "address" else str
    ours = [comparable(word) for word in _bare(scores.texts[column])]
    theirs = [comparable(word) for word in _bare(labels.texts[column])]
    wrong = [i for i, j in enumerate(match.tolist()) if j >= 0 and ours[i] != theirs[j]]
    if wrong:
        label = f"row {wrong[0]:,}"
        if "id" in scores.texts:
            label = f"id {safe_text(scores.texts['id'][wrong[0]])}"
        raise ClassifierError(
            f"{column} differs between {scores.shown} and {labels.shown} in {len(wrong):,} of "
            f"{int((match >= 0).sum()):,} rows, first at {label}",
            hint="predict and verify on the same corpus, or pair the tables in the same order",
        )
