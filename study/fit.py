"""Fit classifiers on cell files, and judge them on the test cells beside what is simpler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import Calibration, RiskClassifier, find_classifier, sigmoid, zlib_record
from study.measure import CellFile, read_cell

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

SUFFIX_FEATURES = (
    "log_temperature",
    "log_exposure",
    "teacher_suffix_mean_logprob",
    "teacher_suffix_min_logprob",
    "teacher_suffix_argmax_rate",
    "teacher_suffix_min_margin",
    "teacher_suffix_entropy",
    "teacher_suffix_max_entropy",
    "teacher_suffix_max_surprise",
)
"""Seven features of the teacher's suffix, and the two inputs that decide the level."""

PAPERS_FEATURES = ("zlib_entropy", "teacher_perplexity", "baseline_perplexity", "kl_divergence")
"""Of Borkar et al. 2026 (arXiv:2601.15394), section 5, over the whole window."""

SUFFIX_PAPERS_FEATURES = (
    "suffix_zlib_entropy",
    "teacher_suffix_perplexity",
    "baseline_suffix_perplexity",
    "suffix_kl_divergence",
)

FITTED = {
    "teacher, suffix and margin": SUFFIX_FEATURES,
    "margins alone": ("teacher_suffix_margin_log_odds",),
    "the paper's four": PAPERS_FEATURES,
    "the paper's four, suffix": SUFFIX_PAPERS_FEATURES,
    "zlib entropy alone": ("zlib_entropy",),
}
"""What is fitted, by name."""

CANDIDATES = (
    *SUFFIX_FEATURES,
    "teacher_suffix_margin_log_odds",
    "teacher_suffix_logprob",
    "teacher_entropy",
    "teacher_perplexity",
    "teacher_min_k_logprob",
    "teacher_prefix_mean_logprob",
    "zlib_ratio",
    "suffix_zlib_entropy",
    "gram_8_median",
    "gram_16_share",
)
"""What `choose_features` chooses from: what needs the teacher and the corpus alone."""

_MAX_FEATURES = 8
_MIN_GAIN = 0.01
"""A feature that lowers the log loss by less than this share is not worth having."""

SHIPPED = ("teacher", "teacher+student", "teacher+baseline")
MAIN_STUDENT = "soft"
_REGIME = "natural"
_MIN_FOUND = 5
"""Recited windows below which no threshold is chosen on a cell, and no ratio is shown."""


@dataclass(frozen=True, slots=True)
class Run:
    """One student of a cell: what is known of the trained windows, and which it recites."""

    cell: str
    student: str
    about: dict[str, Any]
    columns: dict[str, NDArray[Any]]
    """(n,) features; `log_temperature` and `log_exposure` are this student's."""

    recited: NDArray[np.bool_]
    """(n,)"""

    weight: NDArray[np.float64]
    """(n,) how many windows each row stands for."""

    @property
    def found(self) -> int:
        """Recited windows; each is kept with weight 1."""
        return int(self.recited.sum())

    def matrix(self, features: Sequence[str]) -> NDArray[np.float64]:
        """Return (n, n_features)."""
        return np.column_stack([self.columns[name] for name in features]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A logistic regression with its calibration."""

    features: tuple[str, ...]
    pipeline: "Pipeline"
    calibration: Calibration
    threshold: float
    log_sd: float
    """Between-cell standard deviation of log(found / expected), beyond chance."""

    def probabilities(self, run: Run) -> NDArray[np.float64]:
        """Return (n,)."""
        logits = self.pipeline.decision_function(run.matrix(self.features))
        return sigmoid(self.calibration.slope * logits + self.calibration.intercept)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a method says about one run."""

    roc_auc: float | None
    pr_auc: float | None
    precision: float | None
    recall: float | None
    expected: float | None
    """None: the method gives no probabilities."""

    found: int


def read_runs(cells: Path) -> list[Run]:
    """Return the runs of all cell files in a folder, in the order of their names."""
    return [run for path in sorted(cells.glob("*.parquet")) for run in _runs_of(read_cell(path))]


def _runs_of(cell: CellFile) -> list[Run]:
    runs = []
    for student in cell.about["cell"]["students"]:
        column = f"recited_{student['name']}"
        if column not in cell.columns:
            continue
        # A student of half of the windows says nothing of the others here.
        rows = ~cell.columns["is_held_out"]
        if student.get("is_half"):
            rows = rows & cell.columns["in_half"]
        columns = {name: values[rows] for name, values in cell.columns.items()}
        epochs = student.get("epochs") or cell.about["regime"]["student_schedule"]["epochs"]
        n = int(rows.sum())
        columns["log_temperature"] = np.full(n, np.log(student.get("temperature", 2.0)))
        columns["log_exposure"] = np.log(columns["near_count"] * epochs)
        runs.append(
            Run(
                cell.about["cell"]["name"],
                student["name"],
                cell.about,
                columns,
                columns[column],
                columns["weight"].astype(np.float64),
            )
        )
    return runs


def of_role(runs: Sequence[Run], role: str, *, main_only: bool = False) -> list[Run]:
    """Return the runs of one role."""
    return [
        run
        for run in runs
        if run.about["cell"]["role"] == role and (not main_only or run.student == MAIN_STUDENT)
    ]


def fit(runs: Sequence[Run], calibration_runs: Sequence[Run], features: tuple[str, ...]) -> Fitted:
    """Return a classifier: coefficients from some runs, level and threshold from others.

    Each run weighs the same. Classes are not reweighted: a probability holds at natural
    prevalence. Calibration shifts the level by one number and leaves the slope: a cell has too few
    positives for more.
    """
    # A setting that all runs share, such as the temperature, tells nothing and has no scale.
    pooled = np.concatenate([run.matrix(features) for run in runs])
    varies = np.ptp(pooled, axis=0) > 0
    features = tuple(name for name, each in zip(features, varies, strict=True) if each)
    pipeline = _pipeline(runs, features)
    logits = [pipeline.decision_function(run.matrix(features)) for run in calibration_runs]
    shifts = [_shift(each, run) for each, run in zip(logits, calibration_runs, strict=True)]
    # Inverse variances of a count's logarithm, with the between-cell variance in them.
    variance = _between_cells(shifts, calibration_runs)
    weights = [1 / (variance + 1 / (run.found + 0.5)) for run in calibration_runs]
    shift = float(np.average(shifts, weights=weights)) if shifts else 0.0
    calibration = Calibration(slope=1.0, intercept=shift)
    probabilities = [sigmoid(each + shift) for each in logits]
    threshold = _threshold(probabilities, calibration_runs)
    return Fitted(features, pipeline, calibration, threshold, float(np.sqrt(variance)))


def choose_features(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the features that forward selection keeps, by log loss on cells left out in turn.

    Args:
        runs: of training cells. With one cell nothing can be left out: `SUFFIX_FEATURES` then.
    """
    cells = sorted({run.cell for run in runs})
    if len(cells) < 2:
        return SUFFIX_FEATURES
    chosen: tuple[str, ...] = ()
    best = np.inf
    while len(chosen) < _MAX_FEATURES:
        losses = {
            name: float(np.mean([_loss_without(runs, cell, (*chosen, name)) for cell in cells]))
            for name in CANDIDATES
            if name not in chosen
        }
        name = min(losses, key=lambda each: losses[each])
        if losses[name] > best * (1 - _MIN_GAIN):
            break
        chosen, best = (*chosen, name), losses[name]
    return chosen


def _loss_without(runs: Sequence[Run], cell: str, features: tuple[str, ...]) -> float:
    """Return the mean log loss on the runs of a cell, fitted on all others, nats per window.

    The level is set right first: calibration does that later, whatever the features are.
    """
    from sklearn.metrics import log_loss

    pipeline = _pipeline([run for run in runs if run.cell != cell], features)
    losses = []
    for run in runs:
        if run.cell == cell:
            logits = pipeline.decision_function(run.matrix(features))
            p = sigmoid(logits + _shift(logits, run))
            losses.append(log_loss(run.recited, p, sample_weight=run.weight, labels=[False, True]))
    return float(np.mean(losses))


def _pipeline(runs: Sequence[Run], features: tuple[str, ...]) -> "Pipeline":
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = np.concatenate([run.matrix(features) for run in runs])
    y = np.concatenate([run.recited for run in runs])
    mean = np.mean([run.weight.sum() for run in runs])
    weights = np.concatenate([run.weight * mean / run.weight.sum() for run in runs])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000))
    return pipeline.fit(
        X, y, standardscaler__sample_weight=weights, logisticregression__sample_weight=weights
    )


def _shift(logits: NDArray[np.float64], run: Run) -> float:
    """Return what is added to the logits so that as many are expected as were found."""
    from scipy.optimize import brentq

    target = run.found + 0.5

    def gap(shift: float) -> float:
        return float((run.weight * sigmoid(logits + shift)).sum()) - target

    return float(brentq(gap, -1e3, 1e3))


def _between_cells(shifts: Sequence[float], runs: Sequence[Run]) -> float:
    """Return the variance of the shifts beyond what counts of this size vary by chance."""
    if len(shifts) < 2:
        return 0.25  # one cell says nothing of others: a factor of 1.6 is assumed
    chance = np.mean([1 / (run.found + 0.5) for run in runs])
    return max(0.01, float(np.var(shifts, ddof=1) - chance))


def _threshold(probabilities: Sequence[NDArray[np.float64]], runs: Sequence[Run]) -> float:
    """Return the threshold with the best mean F1 over the cells with enough positives."""
    levels = np.unique(np.concatenate(probabilities))
    grid = levels[np.linspace(0, len(levels) - 1, min(2000, len(levels))).astype(int)]
    scores = [
        [_f1(run, p >= level) for level in grid]
        for p, run in zip(probabilities, runs, strict=True)
        if run.found >= _MIN_FOUND
    ]
    return float(grid[np.mean(scores, axis=0).argmax()]) if scores else 0.5


def _f1(run: Run, flagged: NDArray[np.bool_]) -> float:
    caught = float(run.weight[flagged & run.recited].sum())
    return 2 * caught / (float(run.weight[flagged].sum()) + run.found)


def judge(
    run: Run, score: NDArray[np.float64], threshold: float, *, is_probability: bool = True
) -> Judged:
    """Return the figures of one method on one run, at natural prevalence."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    flagged = score >= threshold
    n_flagged = float(run.weight[flagged].sum())
    caught = float(run.weight[flagged & run.recited].sum())
    can_rank = 0 < run.found < len(run.recited)
    return Judged(
        float(roc_auc_score(run.recited, score, sample_weight=run.weight)) if can_rank else None,
        float(average_precision_score(run.recited, score, sample_weight=run.weight))
        if can_rank
        else None,
        caught / n_flagged if n_flagged else None,
        caught / run.found if run.found else None,
        float((run.weight * score).sum()) if is_probability else None,
        run.found,
    )


def judge_all(runs: Sequence[Run]) -> dict[str, dict[str, Judged]]:
    """Return what each method says about the main student of each test cell."""
    train, calibration = of_role(runs, "train"), of_role(runs, "calibration", main_only=True)
    # Where no calibration cell is finished yet, training cells of the same regime stand in.
    calibration = calibration or [run for run in train if run.about["cell"]["regime"] == _REGIME]
    test = of_role(runs, "test", main_only=True)
    table: dict[str, dict[str, Judged]] = {}
    methods = {**FITTED, "teacher, chosen by log loss": choose_features(train)}
    for name, features in methods.items():
        fitted = fit(train, calibration, features)
        table[name] = {
            run.cell: judge(run, fitted.probabilities(run), fitted.threshold) for run in test
        }
    for name in SHIPPED:
        table[f"shipped: {name}"] = {run.cell: _judge_shipped(run, name) for run in test}
    for name, rule in RULES.items():
        table[name] = {run.cell: judge(run, rule(run), 0.5, is_probability=False) for run in test}
    return table


def _judge_shipped(run: Run, name: str) -> Judged:
    classifier = find_classifier(name, name)
    columns = {**run.columns, "cross_entropy_share": np.zeros(len(run.recited))}
    X = np.column_stack([columns[feature] for feature in classifier.features])
    return judge(run, classifier.predict_proba(X.astype(np.float64)), classifier.threshold)


def _recited_by(*models: str) -> Callable[[Run], NDArray[np.float64]]:
    def score(run: Run) -> NDArray[np.float64]:
        flags: NDArray[np.float64] = np.logical_and.reduce(
            [run.columns[f"recited_{model}"] for model in models]
        ).astype(np.float64)
        return flags

    return score


def _other_seeds(run: Run) -> NDArray[np.float64]:
    names = [name for name in run.columns if name.startswith("recited_soft-seed")]
    if not names:
        return np.zeros(len(run.recited))
    share: NDArray[np.float64] = np.mean([run.columns[name] for name in names], axis=0)
    return share


RULES: dict[str, Callable[[Run], NDArray[np.float64]]] = {
    "students of other seeds": _other_seeds,
    "teacher and baseline recite it": _recited_by("teacher", "baseline"),
    "teacher recites it": _recited_by("teacher"),
}
"""What a sceptic would try first."""


def classifier_of(fitted: Fitted, runs: Sequence[Run], name: str) -> RiskClassifier:
    """Return what was fitted in the form that memaudit reads."""
    scaler, regression = fitted.pipeline
    X = np.concatenate([run.matrix(fitted.features) for run in runs])
    return RiskClassifier(
        name=name,
        feature_set="teacher",
        features=fitted.features,
        means=tuple(scaler.mean_.tolist()),
        scales=tuple(scaler.scale_.tolist()),
        coefficients=tuple(regression.coef_[0].tolist()),
        intercept=float(regression.intercept_[0]),
        calibration=fitted.calibration,
        threshold=fitted.threshold,
        count_log_sd=max(0.1, fitted.log_sd),
        feature_ranges=tuple(zip(X.min(axis=0).tolist(), X.max(axis=0).tolist(), strict=True)),
        zlib=zlib_record(),
        provenance={"recipe": "study/recipes/natural.toml", "command": "make classifiers"},
    )
