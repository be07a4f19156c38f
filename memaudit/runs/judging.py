"""The verdict: from features to probabilities, and from windows back to rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import RiskClassifier
from memaudit.features import reason_in_words
from memaudit.runs.reading import RowLog, RowWindows
from memaudit.runs.result import WorstExample
from memaudit.runs.risk_table import RiskRow
from memaudit.sensitivity import (
    NAMES_MODEL,
    SENSITIVITY_COLUMNS,
    RowSensitivity,
    SensitivitySummary,
    row_sensitivity,
    summarise,
)

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

    sensitivity: RowSensitivity | None = None
    """What is sensitive in each scored row. None: it was not looked for."""

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

    def row_features(self, index: int) -> dict[str, float]:
        """Return the features of a scored row, by name: its worst window's.

        What is sensitive is of all its windows together.
        """
        window = self.X[self.worst_windows[index]].tolist()
        features = dict(zip(self.feature_names, window, strict=True))
        if self.sensitivity is not None:
            values = self.sensitivity.values[index].tolist()
            features |= dict(zip(SENSITIVITY_COLUMNS, values, strict=True))
        return features


def judge(
    classifier: RiskClassifier,
    feature_names: tuple[str, ...],
    X: NDArray[np.float64],
    cuts: RowWindows,
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
    return Judgement(
        classifier,
        feature_names,
        X,
        probabilities,
        _worst(probabilities, cuts),
        row_sensitivity(feature_names, X, np.array(cuts.windows), np.array(cuts.n_windows)),
    )


def _worst(probabilities: NDArray[np.float64], cuts: RowWindows) -> NDArray[np.int64]:
    """Return the riskiest window of each row, the first if tied."""
    windows = np.array(cuts.windows, dtype=np.int64)
    n_windows = np.array(cuts.n_windows, dtype=np.int64)
    if len(windows) == len(n_windows):
        return windows
    starts = np.cumsum(n_windows) - n_windows
    highest = np.repeat(np.maximum.reduceat(probabilities[windows], starts), n_windows)
    row_of_window = np.repeat(np.arange(len(n_windows)), n_windows)
    worst = np.flatnonzero(probabilities[windows] == highest)
    _, first = np.unique(row_of_window[worst], return_index=True)
    found: NDArray[np.int64] = windows[worst[first]]
    return found


def summarise_run(judgement: Judgement, versions: Mapping[str, str]) -> SensitivitySummary | None:
    """Return how many scored rows hold personal data or secrets; None: it was not looked for.

    Args:
        judgement: on them.
        versions: of the run.
    """
    if judgement.sensitivity is None:
        return None
    is_flagged = judgement.row_probabilities >= judgement.classifier.threshold
    finds_names = versions.get(NAMES_MODEL, "none") != "none"
    return summarise(judgement.sensitivity, is_flagged, finds_names=finds_names)


def risk_rows(
    rows: RowLog, judgement: Judgement, first_stage: Iterable[float] = ()
) -> Iterator[RiskRow]:
    """Yield the rows of the risk table, in the order of the corpus.

    Args:
        rows: of the corpus, in order.
        judgement: on those that were scored.
        first_stage: the probabilities of those that a cascade left out.
    """
    indices, screened = iter(range(len(judgement.worst_windows))), iter(first_stage)
    for source in rows:
        if source.outcome == "screened":
            yield RiskRow(source, probability=next(screened), reason=source.reason)
            continue
        if source.outcome != "scored":
            yield RiskRow(source, reason=source.reason)
            continue
        index = next(indices)
        features = judgement.row_features(index)
        probability = float(judgement.window_probabilities[judgement.worst_windows[index]])
        yield RiskRow(
            source,
            probability=probability,
            flagged=probability >= judgement.classifier.threshold,
            reason=reason_in_words(features),
            features=list(features.values()),
        )


def worst_examples(
    rows: RowLog, judgement: Judgement, n: int, text_of: TextOf | None = None
) -> tuple[WorstExample, ...]:
    """Return the riskiest rows, the riskiest first; of equally risky ones, the first first.

    Those with a secret that its rule puts forward come before all others. Of rows with equal worst
    windows only the first is taken.

    Args:
        rows: of the corpus, in order.
        judgement: on them.
        n: how many at most.
        text_of: gives the text of a window; None leaves it out.
    """
    at_risk = np.zeros(len(judgement.worst_windows), dtype=np.int64)
    if judgement.sensitivity is not None:
        at_risk = judgement.sensitivity.is_secret_at_risk.astype(np.int64)
    # Equal windows once, but for what else their rows hold.
    _, first_rows = np.unique(2 * judgement.worst_windows + at_risk, return_index=True)
    probabilities = judgement.window_probabilities[judgement.worst_windows[first_rows]]
    # By the last key first: secrets at risk, then probability, then place.
    order = np.lexsort((first_rows, -probabilities, -at_risk[first_rows]))[:n]
    chosen = first_rows[order].tolist()
    scored = (row for row in rows if row.outcome == "scored")
    wanted = set(chosen)
    sources = {i: row for i, row in enumerate(scored) if i in wanted}
    examples = []
    for i in chosen:
        window, features = int(judgement.worst_windows[i]), judgement.row_features(i)
        examples.append(
            WorstExample(
                example_id=sources[i].example_id,
                address=sources[i].address,
                row=sources[i].row,
                probability=float(judgement.window_probabilities[window]),
                occurrences=int(features["occurrences"]),
                reason=reason_in_words(features),
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
    return {name: count / max(1, len(worst_windows)) for name, count in n_outside.items()}


def _columns(classifier: RiskClassifier, feature_names: tuple[str, ...]) -> list[int]:
    return [feature_names.index(name) for name in classifier.features]
