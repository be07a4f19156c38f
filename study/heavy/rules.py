"""Rules that a sceptic would try first, judged on the same runs as the classifiers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Union

import numpy as np
from numpy.typing import NDArray

from study.heavy.cells import CellResult
from study.heavy.evaluation import Judged
from study.heavy.recipe import MAIN_STUDENT

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Inputs = Union[NDArray[np.float64], "csr_matrix"]
"""(n, n_inputs) of a regression."""

TRIVIAL_RULES: dict[str, tuple[str, ...]] = {
    "zlib entropy alone": ("zlib_entropy",),
    "text statistics alone": ("zlib_entropy", "suffix_zlib_entropy", "zlib_ratio"),
    "occurrence count alone": ("log_occurrences",),
}
"""Classifiers on what needs no model."""

RECITING_RULES: dict[str, tuple[str, ...]] = {
    "teacher recites it": ("teacher",),
    "teacher and baseline recite it": ("teacher", "baseline"),
}
"""Who must recite an example for it to be flagged."""

_N_HASHES = 2**14


def judge_rules(
    training: Sequence[CellResult],
    calibration: Sequence[CellResult],
    test: Sequence[CellResult],
) -> dict[str, list[Judged]]:
    """Return what the trivial rules say about the main students of the test cells, by rule."""
    judged = {
        rule: _judge_regression(partial(_columns, features), training, calibration, test)
        for rule, features in TRIVIAL_RULES.items()
    }
    judged["token n-grams alone"] = _judge_regression(_ngrams, training, calibration, test)
    for rule, models in RECITING_RULES.items():
        judged[rule] = [_judge_recited(cell, models) for cell in test]
    return judged


def _judge_recited(cell: CellResult, models: Sequence[str]) -> Judged:
    flags = np.logical_and.reduce([cell.extracted[name] for name in models])
    extracted = cell.extracted[MAIN_STUDENT]
    return Judged(extracted, flags.astype(np.float64), 0.5, cell.features["occurrences"])


def _judge_regression(
    inputs: "Callable[[Sequence[CellResult]], Inputs]",
    training: Sequence[CellResult],
    calibration: Sequence[CellResult],
    test: Sequence[CellResult],
) -> list[Judged]:
    """Return what a logistic regression says that flags as many as the calibration cells extract."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(max_iter=2000)
    labels = np.concatenate([cell.extracted[MAIN_STUDENT] for cell in training])
    regression.fit(inputs(training), labels)
    scores = regression.predict_proba(inputs(calibration))[:, 1]
    rate = np.concatenate([cell.extracted[MAIN_STUDENT] for cell in calibration]).mean()
    threshold = float(np.quantile(scores, 1 - rate))
    return [
        Judged(
            cell.extracted[MAIN_STUDENT],
            regression.predict_proba(inputs([cell]))[:, 1],
            threshold,
            cell.features["occurrences"],
        )
        for cell in test
    ]


def _columns(features: Sequence[str], cells: Sequence[CellResult]) -> NDArray[np.float64]:
    """Return (n, n_features) of the cells' examples."""
    return np.concatenate(
        [np.column_stack([cell.features[name] for name in features]) for cell in cells]
    )


def _ngrams(cells: Sequence[CellResult]) -> "csr_matrix":
    """Return (n, hashes) counts of the runs of one to three token ids in each window."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(token_pattern=r"\d+", ngram_range=(1, 3), n_features=_N_HASHES)
    lines = [" ".join(map(str, window)) for cell in cells for window in cell.windows]
    return vectorizer.transform(lines)
