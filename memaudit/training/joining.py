"""Joining: the rows that a verification labelled and a prediction scored, each text once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import ClassifierError
from memaudit.features import OBJECTIVE_FEATURES
from memaudit.tables import LABEL_COLUMNS, Table, match_rows
from memaudit.training.fitting import LabelledRun


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinCounts:
    """What became of the rows of two tables."""

    rows: int
    """In the risk table."""

    not_scored: int
    """Of these, without a score: too short or bad."""

    unlabelled: int
    """Scored rows without a label."""

    unscored: int
    """Labels of rows that are not scored or not in the risk table."""

    used: int
    """Rows with score and label."""

    distinct: int
    """Of these, examples with different features: equal ones count once."""

    conflicting: int
    """Distinct examples with both labels: they count as extracted."""


@dataclass(frozen=True, slots=True)
class VerifiedRun:
    """A labelled run that knows which of its examples are the same text as another's."""

    run: LabelledRun
    """Its distinct examples."""

    counts: JoinCounts
    """Of rows."""

    ids: tuple[str, ...]
    """(n,) row and id of the first row of each example."""

    places: tuple[str, ...]
    """(n,) id and address of the same row, if both are known."""

    digests: tuple[bytes, ...]
    """(n,) of all features: the same for the same window and models."""

    texts: NDArray[np.int64]
    """(n,) the same number for the same text, in whichever run; -1 before they are compared."""


def join_tables(labels: Table, scores: Table, *, name: str, features: Sequence[str]) -> VerifiedRun:
    """Return the distinct examples that have both a score and a label.

    Rows with equal features count once: they have equal worst windows.

    Args:
        labels: with `id` or `row`, and `extracted_by_student`.
        scores: with `id` or `row`, and the features.
        name: of the run.
        features: columns of `scores`, all of them finite in every row used.

    Raises:
        ClassifierError: a column is missing, rows do not belong together, or a value is no
            label or not a finite number.
    """
    _require_columns(labels, ("extracted_by_student",))
    _require_columns(scores, features)
    match = match_rows(labels, scores)
    extracted = _label_column(labels, "extracted_by_student")
    outcomes = scores.texts.get("outcome", ["scored"] * scores.n_rows)
    scored = np.array([outcome == "scored" for outcome in outcomes])
    label_of = np.where(match >= 0, extracted[match], np.nan)
    used = np.flatnonzero(scored & np.isfinite(label_of))
    if len(used) == 0:
        raise ClassifierError(
            f"no row of {scores.shown} has both a score and a label in {labels.shown}",
            hint="pair each --labels with the --scores of the same corpus",
        )
    X = _finite_matrix(scores, features, used)
    example_of, firsts, digests = _distinct(X, features)
    # An example counts as extracted if any of its copies is: one leak is a leak.
    positives = np.bincount(example_of, weights=label_of[used])
    copies = np.bincount(example_of)
    columns = {feature: X[firsts, i] for i, feature in enumerate(features)}
    first_rows = used[firsts].tolist()
    has_places = {"id", "address"} <= scores.texts.keys()
    ids, addresses = (scores.texts.get(key, [""] * scores.n_rows) for key in ("id", "address"))
    ordinals = scores.numbers.get("row", np.full(scores.n_rows, np.nan)).tolist()
    return VerifiedRun(
        LabelledRun(name, columns | _other_labels(labels, match[used[firsts]]), positives > 0),
        JoinCounts(
            rows=scores.n_rows,
            not_scored=int((~scored).sum()),
            unlabelled=int((scored & ~np.isfinite(label_of)).sum()),
            unscored=int(np.isfinite(extracted).sum()) - len(used),
            used=len(used),
            distinct=len(firsts),
            conflicting=int(((positives > 0) & (positives < copies)).sum()),
        ),
        ids=tuple(f"{ordinals[row]:.0f} {ids[row]}" for row in first_rows),
        # Ids alone are equal in unrelated corpora: without addresses no row is another's.
        places=tuple(
            f"{ids[row]}\0{addresses[row]}" if has_places else f"{name}\0{row}"
            for row in first_rows
        ),
        digests=digests,
        texts=np.full(len(firsts), -1, dtype=np.int64),
    )


def number_texts(runs: Sequence[VerifiedRun]) -> list[VerifiedRun]:
    """Return the runs with the same number for the same text.

    Texts are the same if their features are equal, or their id and address. Near-duplicates
    cannot be told without the text itself.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Texts are nodes that share a key, directly or through others: their connected components.
    first_with: dict[object, int] = {}
    partners = [
        first_with.setdefault(key, len(first_with))
        for run in runs
        for keys in zip(run.digests, run.places, strict=True)
        for key in keys
    ]
    pairs = np.array(partners, dtype=np.int64).reshape(-1, 2)
    n_keys = len(first_with)
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_keys, n_keys))
    _, component = connected_components(links, directed=False)
    texts = np.split(
        component[pairs[:, 0]].astype(np.int64), np.cumsum([len(run.ids) for run in runs])[:-1]
    )
    return [replace(run, texts=numbers) for run, numbers in zip(runs, texts, strict=True)]


def _require_columns(table: Table, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table.numbers]
    if "id" not in table.texts and "row" not in table.numbers:
        missing.insert(0, "id or row")
    if missing:
        raise ClassifierError(
            f"{table.shown}: expected the column {missing[0]}, "
            f"got {', '.join((*table.texts, *table.numbers)) or 'none that is known'}",
            hint="give the tables that predict and verify wrote, labels after --labels "
            "and scores after --scores",
        )


def _label_column(labels: Table, name: str) -> NDArray[np.float64]:
    column = labels.numbers[name]
    n_wrong = int((np.isfinite(column) & (column != 0) & (column != 1)).sum())
    n_wrong += int(np.isinf(column).sum())
    if n_wrong:
        raise ClassifierError(
            f"{labels.shown}: {name} is neither true nor false in {n_wrong:,} rows",
            hint="label a row by whether the student reproduces it",
        )
    return column


def _finite_matrix(
    scores: Table, features: Sequence[str], used: NDArray[np.int64]
) -> NDArray[np.float64]:
    X = np.column_stack([scores.numbers[name][used] for name in features])
    n_broken = (~np.isfinite(X)).sum(axis=0)
    if n_broken.any():
        column = int(n_broken.argmax())
        raise ClassifierError(
            f"{scores.shown}: feature {features[column]} is not a finite number "
            f"in {n_broken[column]:,} of {len(used):,} scored rows",
            hint="score the corpus again with 'memaudit predict'",
        )
    return X


def _distinct(
    X: NDArray[np.float64], features: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[bytes, ...]]:
    """Return the example of each row, the first row of each example, and its digest."""
    # The objective is that of the run: the same window of another run is the same text.
    of_window = [i for i, name in enumerate(features) if name not in OBJECTIVE_FEATURES]
    number: dict[bytes, int] = {}
    firsts: list[int] = []
    example_of = np.empty(len(X), dtype=np.int64)
    for i, row in enumerate(np.ascontiguousarray(X[:, of_window])):
        digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        example_of[i] = number.setdefault(digest, len(firsts))
        if example_of[i] == len(firsts):
            firsts.append(i)
    return example_of, np.array(firsts, dtype=np.int64), tuple(number)


def _other_labels(labels: Table, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return what the teacher and the baseline recite, where the labels say it of all."""
    columns = {
        name: _label_column(labels, name)[rows]
        for name in LABEL_COLUMNS[1:]
        if name in labels.numbers
    }
    return {name: column for name, column in columns.items() if np.isfinite(column).all()}
