"""Risks: from the features of windows to the probabilities of rows, and what is counted of them.

Whatever memaudit says of the risk in a run is counted here, once: the summary of `predict`, the
report, the gate and the filter read the same numbers.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import RiskClassifier
from memaudit.features import objective_features, reason_in_words
from memaudit.metrics import ExpectedCount, expected_count
from memaudit.objectives import Objective
from memaudit.prefilter import make_prefilter
from memaudit.runs.reading import RowWindows
from memaudit.sensitivity import SENSITIVITY_COLUMNS, RowSensitivity, row_sensitivity

OUT_OF_RANGE_LIMIT = 0.05
"""Share of rows beyond a feature's range in training from which a summary says so."""

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class DistinctTexts:
    """The distinct texts of the scored rows: rows with equal texts count as one."""

    windows: NDArray[np.int64]
    """(n_texts,) index of each text's worst window; different texts may share one."""

    probabilities: NDArray[np.float64]
    """(n_texts,)"""

    copies: NDArray[np.int64]
    """(n_texts,) rows that have the text."""

    first_rows: NDArray[np.int64]
    """(n_texts,) the first of those rows, counted among the scored ones."""


@dataclass(frozen=True, slots=True)
class Worst:
    """One of the riskiest examples; of examples with equal windows, the first."""

    example_id: str
    """As in the corpus: untrusted, so show it with `safe_text` only."""

    address: str
    """`<file>:<line or row>`: untrusted."""

    row: int
    """Ordinal in the corpus, from 0."""

    probability: float
    flagged: bool
    """Whether that reaches the threshold."""

    occurrences: int
    """How many times its worst window occurs in the corpus."""

    reason: str
    """In words, such as "occurs 16 times"."""

    features: Mapping[str, float]
    """Of its worst window, by name."""

    holds: tuple[str, ...] = ()
    """What is sensitive in it, in words; nothing if it was not looked for."""

    text: str | None = None
    """Start of its worst window, if it was asked for: text of the corpus."""

    def document(self) -> dict[str, Any]:
        """Return it for JSON; without its text, unless that was asked for."""
        document = {
            "id": self.example_id,
            "address": self.address,
            "row": self.row,
            "probability": self.probability,
            "occurrences": self.occurrences,
            "reason": self.reason,
        }
        return document if self.text is None else document | {"text": self.text}


@dataclass(frozen=True)  # without slots: what is counted is kept
class Risks:
    """What a classifier says about the windows and the scored rows of a run."""

    classifier: RiskClassifier
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

    row_texts: NDArray[np.int64] | None = None
    """(n_scored,) equal for rows with equal texts. None: an old run, equal windows stand for them."""

    @property
    def table_columns(self) -> tuple[str, ...]:
        """Numbers of a row in the risk table: its features, and what is due to its own text."""
        return self.feature_names + (() if self.generic_probabilities is None else ("specific",))

    @property
    def row_probabilities(self) -> NDArray[np.float64]:
        """(n_scored,) the probability of each row's worst window."""
        return self.window_probabilities[self.worst_windows]

    @property
    def is_flagged(self) -> NDArray[np.bool_]:
        """(n_scored,) whether the probability reaches the classifier's threshold."""
        return self.row_probabilities >= self.classifier.threshold

    @cached_property
    def n_flagged(self) -> int:
        """Scored rows that are flagged."""
        return int(self.is_flagged.sum())

    @cached_property
    def n_flagged_texts(self) -> int:
        """Distinct texts that are flagged."""
        return int((self.texts.probabilities >= self.classifier.threshold).sum())

    @cached_property
    def texts(self) -> DistinctTexts:
        """Distinct texts. Texts that only share a window are not equal."""
        _, first, copies = np.unique(self._row_texts, return_index=True, return_counts=True)
        # Equal texts are cut into equal windows, so the first of them speaks for all.
        windows = self.worst_windows[first]
        return DistinctTexts(windows, self.window_probabilities[windows], copies, first)

    @cached_property
    def riskiest_texts(self) -> DistinctTexts:
        """Distinct texts in the order of their risk; of equally risky ones, the first first."""
        texts = self.texts
        # By -probability, then by place: lexsort looks at its last key first.
        order = np.lexsort((texts.first_rows, -texts.probabilities))
        return DistinctTexts(*(getattr(texts, column.name)[order] for column in fields(texts)))

    @property
    def is_recited(self) -> NDArray[np.bool_]:
        """(n_scored,) whether the teacher's first choices are the whole suffix of the worst window."""
        rates = self.X[self.worst_windows, self.feature_names.index("teacher_suffix_argmax_rate")]
        # Exact: a mean of ones is 1, whatever rounds.
        recited: NDArray[np.bool_] = rates == 1.0
        return recited

    @property
    def n_recited(self) -> int:
        """Scored rows whose worst window the teacher recites, token for token."""
        return int(self.is_recited.sum())

    @cached_property
    def n_flagged_windows(self) -> int:
        """Distinct worst windows of flagged rows: texts that share one are counted once."""
        return len(np.unique(self.worst_windows[self.is_flagged]))

    @cached_property
    def n_out_of_reach(self) -> int:
        """Distinct windows that nothing a model could say would flag: the corpus alone decides."""
        known = {name: self.X[:, i] for i, name in enumerate(self.feature_names)}
        could_be_flagged = make_prefilter(self.classifier, 1.0).could_be_flagged(known)
        return len(self.X) - int(could_be_flagged.sum())

    @cached_property
    def expected(self) -> ExpectedCount:
        """Scored rows expected to be memorized: the sum of their probabilities, with an interval."""
        # Rows with the same window are memorized together, whatever follows it in them.
        windows, copies = np.unique(self.worst_windows, return_counts=True)
        return self.classifier.expected_count(self.window_probabilities[windows], copies)

    @cached_property
    def expected_texts(self) -> ExpectedCount:
        """Distinct texts expected to be memorized; those that share a window go together."""
        windows, n_texts = np.unique(self.texts.windows, return_counts=True)
        return self.classifier.expected_count(self.window_probabilities[windows], n_texts)

    @cached_property
    def expected_if_sampled(self) -> dict[int, ExpectedCount]:
        """By n, distinct texts that n samples of each reveal, more likely than not.

        Nothing if the classifier was not fitted for sampling.
        """
        sampled = self.classifier.sampled
        names = "teacher_suffix_logprob", "teacher_suffix_mean_logprob"
        if sampled is None or not {*names} <= {*self.feature_names}:
            return {}
        windows, n_texts = np.unique(self.texts.windows, return_counts=True)
        X = self.X[windows]
        nats, mean_nats = (-X[:, self.feature_names.index(name)] for name in names)
        # Answers may be shorter than a window's suffix: so many tokens were scored of each.
        tokens = np.divide(nats, mean_nats, out=np.ones(len(X)), where=mean_nats > 0).clip(min=1)
        log_odds = self.classifier.calibrated_logit(
            X[:, _columns(self.classifier, self.feature_names)]
        )
        found = sampled.predict(log_odds, np.round(tokens))
        return {
            n: expected_count(probabilities, log_sd, n_texts)
            for (n, log_sd), probabilities in zip(sampled.count_log_sds, found, strict=True)
        }

    def sampled_document(self) -> dict[str, dict[str, float]]:
        """Return `expected_if_sampled` for JSON."""
        return {str(n): asdict(count) for n, count in self.expected_if_sampled.items()}

    @cached_property
    def out_of_range(self) -> dict[str, float]:
        """For each feature of the classifier, the share of scored rows beyond its training range."""
        columns = _columns(self.classifier, self.feature_names)
        n_outside = dict.fromkeys(self.classifier.features, 0)
        # In parts: the features of all rows at once would be the largest array of a run.
        for start in range(0, len(self.worst_windows), _ROWS_AT_ONCE):
            windows = self.worst_windows[start : start + _ROWS_AT_ONCE]
            rates = self.classifier.out_of_range_rate(self.X[windows][:, columns])
            for name, rate in rates.items():
                # A share back into a number of rows: the parts differ in size.
                n_outside[name] += round(rate * len(windows))
        n_rows = max(1, len(self.worst_windows))
        return {name: count / n_rows for name, count in n_outside.items()}

    def expected_if(
        self, objective: Objective, epochs: float | None = None
    ) -> ExpectedCount | None:
        """Return how many distinct texts another way of training would make a student memorize.

        Each row counts by the window that is its riskiest as the run was asked. Without epochs, the
        passes over the corpus are those of the run.

        Returns:
            None: no shipped classifier was fitted on such students, or it needs what was not scored.
        """
        classifier, settings = self.classifier, objective_features(objective)
        if classifier.objective != objective.kind:
            shipped = classifier.for_objective(objective.kind)
            if shipped is None:
                return None
            classifier = shipped
        ranges = dict(zip(classifier.features, classifier.feature_ranges, strict=True))
        fitted = {name: ranges.get(name, (value, value)) for name, value in settings.items()}
        # Beyond what students were trained with, a weighted sum goes on in a straight line: that
        # says nothing of students.
        if any(not low <= settings[name] <= high for name, (low, high) in fitted.items()):
            return None
        # A classifier that does not look at the temperature was fitted at the default one.
        is_other = (
            "log_temperature" not in ranges and objective.temperature != Objective().temperature
        )
        if is_other or (epochs is not None and "log_exposure" not in ranges):
            return None
        if not {*classifier.features} <= {*self.feature_names, *settings}:
            return None
        windows, n_texts = np.unique(self.texts.windows, return_counts=True)
        X = np.column_stack(
            [
                np.full(len(windows), settings[name])
                if name in settings
                else self.X[windows, self.feature_names.index(name)]
                for name in classifier.features
            ]
        )
        if epochs is not None:
            rows, times = (
                self.X[windows, self.feature_names.index(name)]
                for name in ("exposure_median", "occurrences")
            )
            # As `exposure_features` counts it.
            seen = np.log(np.maximum(rows, times) * epochs)
            X[:, classifier.features.index("log_exposure")] = seen
        return classifier.expected_count(classifier.predict_proba(X), n_texts)

    def probabilities_without(
        self, windows: NDArray[np.int64], n_lost: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the probabilities of windows if fewer rows had them.

        The teacher's scores are still those of a teacher that saw every row. What is lost is taken
        to have equal windows: near-copies keep what they had of each other.

        Args:
            windows: (n,) distinct windows.
            n_lost: (n,) rows that have the window now and would not then.
        """
        X, place = self.X[windows], self.feature_names.index
        before = X[:, place("occurrences")].copy()
        left = np.maximum(0.0, before - n_lost)
        X[:, place("occurrences")] = left
        X[:, place("log_occurrences")] = np.log(np.maximum(1.0, left))
        if "log_exposure" in self.feature_names:
            rows = X[:, place("exposure_median")].copy()
            # The features hold only the product of epochs and rows.
            epochs = np.exp(X[:, place("log_exposure")]) / np.maximum(rows, before)
            rows_left = np.maximum(0.0, rows - n_lost)
            times = epochs * np.maximum(rows_left, left)
            # The logarithm of no row at all would be infinite.
            X[:, place("log_exposure")] = np.log(np.maximum(times, np.minimum(1.0, epochs)))
            X[:, place("exposure_median")] = rows_left
            # Of copies the share says only that there are others.
            is_alone = (before > 1) & (left <= 1) & (rows_left - left < 1)
            X[is_alone, place("exposure_share")] = 0.0
            # Of 109,000 windows whose wording was in no row, students recited 1, whatever the
            # teacher knew. No classifier was fitted on an exposure of none.
            is_unseen = np.maximum(rows_left, left) < 0.5
        else:
            is_unseen = left < 0.5
        columns = _columns(self.classifier, self.feature_names)
        return np.where(is_unseen, 0.0, self.classifier.predict_proba(X[:, columns]))

    @cached_property
    def generic_probabilities(self) -> NDArray[np.float64] | None:
        """(n_texts,) as `texts`: that a text is memorized all the same if no row has it.

        Other rows have the same wording then: a page's template, a licence. Never above the text's
        own probability. None: the classifier does not look at exposure, so it cannot tell.
        """
        if "log_exposure" not in self.classifier.features:
            return None
        texts = self.texts
        without = self.probabilities_without(texts.windows, texts.copies)
        return np.minimum(texts.probabilities, without)

    @property
    def expected_generic_texts(self) -> float | None:
        """Of the distinct texts expected to be memorized, those that dropping each would not save."""
        generic = self.generic_probabilities
        return None if generic is None else float(generic.sum())

    @property
    def row_specific_probabilities(self) -> NDArray[np.float64] | None:
        """(n_scored,) that a row's text is memorized because it is in the corpus. None: see above."""
        if self.generic_probabilities is None:
            return None
        return self.row_probabilities - self.generic_probabilities[self.text_of_row]

    @cached_property
    def text_of_row(self) -> NDArray[np.int64]:
        """(n_scored,) index of each row's text in `texts`."""
        return np.unique(self._row_texts, return_inverse=True)[1]

    @property
    def _row_texts(self) -> NDArray[np.int64]:
        return self.worst_windows if self.row_texts is None else self.row_texts

    @property
    def unfamiliar(self) -> dict[str, float]:
        """Features for which too many rows lie beyond what the classifier has seen."""
        return {name: rate for name, rate in self.out_of_range.items() if rate > OUT_OF_RANGE_LIMIT}

    def reason(self, window: int) -> str:
        """Return why a window stands out, in words."""
        return reason_in_words(dict(zip(self.feature_names, self.X[window].tolist(), strict=True)))

    def row_features(self, index: int) -> dict[str, float]:
        """Return the features of a scored row, by name: those of its worst window.

        What is sensitive is taken from all its windows together.
        """
        window = self.X[self.worst_windows[index]].tolist()
        features = dict(zip(self.feature_names, window, strict=True))
        if self.sensitivity is not None:
            values = self.sensitivity.values[index].tolist()
            features |= dict(zip(SENSITIVITY_COLUMNS, values, strict=True))
        return features

    def worst_rows(self, n: int) -> NDArray[np.int64]:
        """Return (at most n,) the riskiest scored rows, the riskiest first; of equals, the first.

        Those with a secret that its rule puts forward come before all others. Of rows with equal
        worst windows only the first is taken.
        """
        at_risk = np.zeros(len(self.worst_windows), dtype=np.int64)
        if self.sensitivity is not None:
            at_risk = self.sensitivity.is_secret_at_risk.astype(np.int64)
        # Equal windows once, unless one of their rows has a secret at risk and another has none.
        _, rows = np.unique(2 * self.worst_windows + at_risk, return_index=True)
        # By the last key first: secrets at risk, then probability, then place.
        order = np.lexsort((rows, -self.row_probabilities[rows], -at_risk[rows]))[:n]
        chosen: NDArray[np.int64] = rows[order]
        return chosen


def predict_risks(
    classifier: RiskClassifier,
    feature_names: tuple[str, ...],
    X: NDArray[np.float64],
    row_windows: RowWindows,
    row_texts: NDArray[np.int64] | None = None,
) -> Risks:
    """Return the probability of every window, and each row's worst window, the first if tied.

    The features of the classifier are among those of X, (n_windows, n_features).

    Raises:
        ClassifierError: a feature is not a finite number.
    """
    probabilities = classifier.predict_proba(X[:, _columns(classifier, feature_names)])
    windows, n_windows = np.array(row_windows.windows), np.array(row_windows.n_windows)
    worst = windows
    # Where each row has one window there is nothing to compare.
    if len(windows) > len(n_windows):
        # Equal to the bit: the highest is one of these very numbers.
        is_highest = probabilities[windows] == np.repeat(
            row_windows.highest(probabilities), n_windows
        )
        places = np.flatnonzero(is_highest)
        # Of each row the first place: of tied windows the first one counts.
        _, first = np.unique(row_windows.rows[places], return_index=True)
        worst = windows[places[first]]
    return Risks(
        classifier,
        feature_names,
        X,
        probabilities,
        worst,
        row_sensitivity(feature_names, X, windows, n_windows),
        row_texts,
    )


def _columns(classifier: RiskClassifier, feature_names: tuple[str, ...]) -> list[int]:
    return [feature_names.index(name) for name in classifier.features]
