"""The verdict: from features to probabilities, and from windows back to rows."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import RiskClassifier
from memaudit.features import reason_in_words
from memaudit.runs.cutting import RowCuts
from memaudit.runs.result import WorstExample
from memaudit.runs.risk_table import RiskRow
from memaudit.runs.spool import RowSpool

TextOf = Callable[[int], str]
"""From the index of a distinct window to its text: text of the corpus."""

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a classifier says about windows and rows."""

    classifier: RiskClassifier
    """Whose verdict it is."""

    feature_names: tuple[str, ...]
    """Columns of `X`."""

    X: NDArray[np.float64]
    """(n_windows, n_features) by distinct window."""

    window_probabilities: NDArray[np.float64]
    """(n_windows,) that the student memorizes the window."""

    worst_windows: NDArray[np.int64]
    """(n_scored,) index of the riskiest window of each scored row."""

    @property
    def row_probabilities(self) -> NDArray[np.float64]:
        """(n_scored,) the probability of each row's worst window."""
        return self.window_probabilities[self.worst_windows]

    @property
    def n_flagged(self) -> int:
        """Scored rows whose probability reaches the threshold."""
        return int((self.row_probabilities >= self.classifier.threshold).sum())

    def reason(self, window: int) -> str:
        """Return why a window stands out, in words."""
        return reason_in_words(dict(zip(self.feature_names, self.X[window].tolist(), strict=True)))


def judge(
    classifier: RiskClassifier,
    feature_names: tuple[str, ...],
    X: NDArray[np.float64],
    cuts: RowCuts,
) -> Judgement:
    """Return the probability of every window, and each row's worst window, the first if tied.

    Args:
        classifier: its features are among the names.
        feature_names: columns of `X`.
        X: (n_windows, n_features) by distinct window.
        cuts: which windows the rows have.

    Raises:
        ClassifierError: a feature is not a finite number.
    """
    probabilities = classifier.predict_proba(X[:, _columns(classifier, feature_names)])
    worst = np.empty(len(cuts.n_windows), dtype=np.int64)
    start = 0
    for i, n_windows in enumerate(cuts.n_windows):
        windows = cuts.windows[start : start + n_windows]
        worst[i] = max(windows, key=probabilities.__getitem__)
        start += n_windows
    return Judgement(classifier, feature_names, X, probabilities, worst)


def risk_rows(rows: RowSpool, judgement: Judgement) -> Iterator[RiskRow]:
    """Yield the rows of the risk table, in the order of the corpus."""
    worst_windows = iter(judgement.worst_windows.tolist())
    for source in rows:
        if source.outcome != "scored":
            yield RiskRow(source, reason=source.reason)
            continue
        window = next(worst_windows)
        probability = float(judgement.window_probabilities[window])
        yield RiskRow(
            source,
            probability=probability,
            flagged=probability >= judgement.classifier.threshold,
            reason=judgement.reason(window),
            features=judgement.X[window].tolist(),
        )


def worst_examples(
    rows: RowSpool, judgement: Judgement, n: int, text_of: TextOf | None = None
) -> tuple[WorstExample, ...]:
    """Return the riskiest rows, the riskiest first; of equally risky ones, the first first.

    Of rows with equal worst windows only the first is taken.

    Args:
        rows: of the corpus, in order.
        judgement: on them.
        n: how many at most.
        text_of: gives the text of a window; None leaves it out.
    """
    occurrences = judgement.feature_names.index("occurrences")
    distinct, first_rows = np.unique(judgement.worst_windows, return_index=True)
    # By -probability, then by place: lexsort looks at its last key first.
    order = np.lexsort((first_rows, -judgement.window_probabilities[distinct]))[:n]
    window_of = dict(zip(first_rows[order].tolist(), distinct[order].tolist(), strict=True))
    scored = (row for row in rows if row.outcome == "scored")
    sources = {i: row for i, row in enumerate(scored) if i in window_of}
    examples = []
    for i, window in window_of.items():
        examples.append(
            WorstExample(
                example_id=sources[i].example_id,
                address=sources[i].address,
                row=sources[i].row,
                probability=float(judgement.window_probabilities[window]),
                occurrences=int(judgement.X[window, occurrences]),
                reason=judgement.reason(window),
                text=None if text_of is None else text_of(window),
            )
        )
    return tuple(examples)


def out_of_range_rates(judgement: Judgement) -> dict[str, float]:
    """Return, for each feature of the classifier, the share of scored rows beyond its range."""
    classifier, worst_windows = judgement.classifier, judgement.worst_windows
    columns = _columns(classifier, judgement.feature_names)
    n_outside: Counter[str] = Counter(dict.fromkeys(classifier.features, 0))
    for start in range(0, len(worst_windows), _ROWS_AT_ONCE):
        windows = worst_windows[start : start + _ROWS_AT_ONCE]
        rates = classifier.out_of_range_rate(judgement.X[windows][:, columns])
        n_outside.update({name: round(rate * len(windows)) for name, rate in rates.items()})
    return {name: count / len(worst_windows) for name, count in n_outside.items()}


def _columns(classifier: RiskClassifier, feature_names: tuple[str, ...]) -> list[int]:
    return [feature_names.index(name) for name in classifier.features]
