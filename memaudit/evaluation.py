"""Evaluation: what was predicted beside what was found, with intervals.

Examples are distinct windows: all copies of a text are memorized or none are, so a text that is
repeated a thousand times is one observation. Only what is called rows counts copies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from memaudit.metrics import (
    ExpectedCount,
    Interval,
    brier,
    clopper_pearson,
    expected_calibration_error,
    expected_count,
    pr_auc,
    roc_auc,
)


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of something counted, with its exact 95 % interval (Clopper-Pearson)."""

    count: int
    of: int
    rate: float | None
    """The share; None out of none."""

    low: float
    high: float
    """Ends of the interval, in [0, 1]."""

    @classmethod
    def of_counts(cls, count: int, of: int) -> Self:
        """Return the rate of counts, of which the second may be 0."""
        interval = clopper_pearson(count, of)
        # Out of none the interval is all of [0, 1]: nothing is known, and 0 would be a claim.
        return cls(count, of, count / of if of else None, interval.low, interval.high)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval."""

    value: float | None
    """None where it does not exist."""

    interval: Interval | None
    """None where the number is undefined on half of the resamples or more."""

    def document(self) -> dict[str, float | None]:
        """Return `value`, `low` and `high`, to the six decimals that every processor agrees on."""
        bounds = (None, None) if self.interval is None else (self.interval.low, self.interval.high)
        numbers = dict(zip(("value", "low", "high"), (self.value, *bounds), strict=True))
        return {key: x if x is None else round(x, 6) for key, x in numbers.items()}


class Examples(Protocol):
    """The examples of one run, as columns of equal length, such as labels and probabilities."""

    def __len__(self) -> int:
        """Return how many there are."""

    def take(self, rows: NDArray[np.int64], /) -> Self:
        """Return these examples in this order, those named twice twice."""


R = TypeVar("R", bound=Examples)


def bootstrap(
    runs: Sequence[R],
    statistics: Mapping[str, Callable[[Sequence[R]], float | None]],
    *,
    n: int,
    seed: int,
    resample_runs: bool,
) -> dict[str, Figure]:
    """Return each statistic of all runs together with its 95 % percentile interval.

    There is at least one run. Intervals are from n resamples: 0 gives none. Examples are drawn
    within their run, so every run keeps its size. Resampling whole runs as well makes an interval
    cover which distillations there happen to be: the next one differs more from these than its
    examples do from each other.
    """
    values: dict[str, list[float]] = {name: [] for name in statistics}
    rng = np.random.default_rng(seed)
    for _ in range(n):
        order = rng.integers(len(runs), size=len(runs)) if resample_runs else range(len(runs))
        drawn = [runs[i].take(rng.integers(len(runs[i]), size=len(runs[i]))) for i in order]
        for name, statistic in statistics.items():
            value = statistic(drawn)
            if value is not None:
                values[name].append(value)
    figures = {}
    for name, statistic in statistics.items():
        interval = None
        # Where a statistic seldom exists, the resamples on which it does are the lucky ones.
        if 2 * len(values[name]) > n:
            low, high = np.quantile(values[name], [0.025, 0.975]).tolist()
            interval = Interval(low, high)
        # Of the runs themselves: a mean over the resamples would add the noise of drawing them.
        figures[name] = Figure(statistic(runs), interval)
    return figures


@dataclass(frozen=True, slots=True)
class Compared:
    """What was predicted of the examples of one run, beside what was found."""

    extracted: NDArray[np.bool_]
    """(n,) whether the student recites the example."""

    probabilities: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    """(n,) whether the prediction reached its threshold."""

    def __len__(self) -> int:
        return len(self.extracted)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return these examples in this order."""
        return type(self)(self.extracted[rows], self.probabilities[rows], self.flagged[rows])

    @property
    def n_caught(self) -> int:
        """Examples that were flagged and are recited."""
        return int((self.extracted & self.flagged).sum())

    @property
    def precision(self) -> Rate:
        """Recited among the flagged."""
        return Rate.of_counts(self.n_caught, int(self.flagged.sum()))

    @property
    def recall(self) -> Rate:
        """Flagged among the recited."""
        return Rate.of_counts(self.n_caught, int(self.extracted.sum()))


@dataclass(frozen=True, slots=True)
class MissedExample:
    """An example that the student recites and the prediction did not flag."""

    id: str
    """As in the corpus: untrusted, so show it with `safe_text` only."""

    row: int
    """Ordinal in the corpus, from 0."""

    address: str
    """`<file>:<line or row>`, untrusted like the id."""

    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Predicted against found. Equal windows count once, but for the numbers of rows."""

    predictions: str
    """The folder of the predictions as given, safe to show."""

    predictions_digest: str
    """SHA-256 of its table, hexadecimal."""

    classifier: str
    threshold: float
    """Probability from which it flags, in (0, 1)."""

    examples: int
    """Distinct examples with prediction and label."""

    roc_auc: float | None
    """None without a positive or a negative."""

    pr_auc: float | None
    """Average precision; None without a positive."""

    brier: float | None
    """Mean squared error of the probabilities."""

    calibration_error: float | None
    """Mean gap of predicted and found share, over ten bins of equal size."""

    precision: Rate
    """Extracted among the flagged."""

    recall: Rate
    """Flagged among the extracted."""

    lift: float | None
    """Precision over prevalence: how much more often the flagged are extracted than all."""

    expected: float
    """Distinct examples expected to be memorized."""

    expected_low: int
    expected_high: int
    """Ends of its 95 % interval."""

    interval_covers_level: bool
    """Whether that interval allows for the level of all probabilities being off; chance alone
    where the classifier is not at hand."""

    found: int
    """Distinct examples that the student recites."""

    expected_rows: float
    found_rows: int
    """The same of rows, equal ones counted each time."""

    missed: tuple[MissedExample, ...]
    """Extracted and not flagged, the least probable first; as many as were asked for."""

    differences: tuple[str, ...] = ()
    """Where the predictions are for another training, in words: "epochs 3 instead of 9"."""

    @property
    def n_missed(self) -> int:
        """Extracted and not flagged, listed or not."""
        return self.recall.of - self.recall.count

    @property
    def expected_count(self) -> ExpectedCount:
        """Distinct examples expected to be memorized, with the interval."""
        return ExpectedCount(self.expected, self.expected_low, self.expected_high)


@dataclass(frozen=True, slots=True)
class RowPredictions:
    """What a run says of the rows of a corpus, and what said it."""

    shown: str
    """The folder of the run, safe to show."""

    digest: str
    """SHA-256 of its risk table."""

    classifier: str
    threshold: float
    count_log_sd: float | None
    """How far its counts have been off, as the spread of a logarithm. None: not known here."""

    probabilities: NDArray[np.float64]
    """(n_rows,) NaN where a row was not scored."""

    flagged: NDArray[np.bool_]
    """(n_rows,)"""


@dataclass(frozen=True, slots=True)
class FoundRows:
    """What a distilled student recites, by row of the corpus."""

    ids: Sequence[str]
    """(n_rows,) as in the corpus, untrusted."""

    rows: Sequence[int]
    """(n_rows,) ordinals in the corpus."""

    addresses: Sequence[str]
    """(n_rows,) `<file>:<line or row>`, untrusted."""

    looked_at: NDArray[np.bool_]
    """(n_rows,) whether the student was trained on the row and asked for it."""

    example: NDArray[np.int64]
    """(n_rows,) number of the row's distinct window; -1 where it was not looked at."""

    recites: NDArray[np.bool_]
    """(n_rows,) whether the student recites it; False where it was not looked at."""


def compare(found: FoundRows, predicted: RowPredictions, *, n_missed: int = 100) -> Comparison:
    """Compare predicted with found, each distinct window by its first row.

    Rows that were looked at all have a probability. At most `n_missed` missed examples are listed.
    """
    looked_at = np.flatnonzero(found.looked_at)
    _, first, copies = np.unique(found.example[looked_at], return_index=True, return_counts=True)
    rows = looked_at[first]
    examples = Compared(found.recites[rows], predicted.probabilities[rows], predicted.flagged[rows])
    extracted, probability = examples.extracted, examples.probabilities
    # Without the classifier only chance is known: the interval is then too narrow, and says so.
    expected = expected_count(probability, predicted.count_log_sd or 0.0)
    precision, prevalence = examples.precision, float(extracted.mean())
    missed = rows[extracted & ~examples.flagged]
    # The least expected first: those are where the classifier is most wrong.
    by_probability = missed[np.argsort(predicted.probabilities[missed], kind="stable")]
    return Comparison(
        predictions=predicted.shown,
        predictions_digest=predicted.digest,
        classifier=predicted.classifier,
        threshold=predicted.threshold,
        examples=len(examples),
        roc_auc=roc_auc(extracted, probability),
        pr_auc=pr_auc(extracted, probability),
        brier=brier(extracted, probability),
        calibration_error=expected_calibration_error(extracted, probability),
        precision=precision,
        recall=examples.recall,
        lift=None if precision.rate is None or prevalence == 0 else precision.rate / prevalence,
        expected=expected.mean,
        expected_low=expected.low,
        expected_high=expected.high,
        interval_covers_level=predicted.count_log_sd is not None,
        found=int(extracted.sum()),
        expected_rows=float((copies * probability).sum()),
        found_rows=int(copies[extracted].sum()),
        missed=tuple(
            MissedExample(
                found.ids[row],
                found.rows[row],
                found.addresses[row],
                float(predicted.probabilities[row]),
            )
            for row in by_probability[:n_missed].tolist()
        ),
    )
