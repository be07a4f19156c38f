"""Fit classifiers on cell files, and judge them on the test cells beside what is simpler."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import (
    Calibration,
    RiskClassifier,
    SampledRisk,
    load_classifier,
    shipped_name,
    sigmoid,
)
from memaudit.features import KNOWN_FEATURES, zlib_record
from memaudit.objectives import ObjectiveKind
from study.measure import CellFile, read_cell

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def _named(role: str, features: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{role}_{name}" for name in features)


PAPERS_FEATURES = ("zlib_entropy", "teacher_perplexity", "baseline_perplexity", "kl_divergence")
"""Of Borkar et al. 2026 (arXiv:2601.15394), section 5, over the whole window."""

SUFFIX_PAPERS_FEATURES = (
    "suffix_zlib_entropy",
    "teacher_suffix_perplexity",
    "baseline_suffix_perplexity",
    "suffix_kl_divergence",
)

FITTED = {
    "seven of the teacher's suffix": (
        "teacher_suffix_mean_logprob",
        "teacher_suffix_min_logprob",
        "teacher_suffix_argmax_rate",
        "teacher_suffix_min_margin",
        "teacher_suffix_entropy",
        "teacher_suffix_max_entropy",
        "teacher_suffix_max_surprise",
    ),
    "margins alone": ("teacher_suffix_margin_log_odds",),
    "exposure alone": ("log_exposure", "exposure_share"),
    "the paper's four": PAPERS_FEATURES,
    "the paper's four, suffix": SUFFIX_PAPERS_FEATURES,
    "zlib entropy alone": ("zlib_entropy",),
    "text alone": ("zlib_entropy", "zlib_ratio", "suffix_zlib_entropy", "log_occurrences"),
}
"""What a sceptic would fit, by name."""

_SETTINGS = ("log_temperature",)
"""Always features where they vary."""

_OF_CORPUS = ("log_exposure", "exposure_share")
# Each has a limit that no model exceeds, so that a run knows beforehand what cannot be flagged.
# No sum over a suffix: where all cells have one length it is the mean, and elsewhere it is not.
_OF_LOGPROBS = (
    "prefix_mean_logprob",
    "suffix_mean_logprob",
    "suffix_min_logprob",
    "suffix_argmax_rate",
    "suffix_margin_log_odds",
)
_OF_A_MODEL = (*_OF_LOGPROBS, "suffix_entropy", "suffix_max_entropy")


@dataclass(frozen=True, slots=True)
class Shipped:
    """A classifier that comes with memaudit."""

    name: str
    feature_set: str
    candidates: tuple[str, ...]
    """What `choose_features` chooses from."""

    objective: ObjectiveKind


_OF_TEACHER = _OF_CORPUS + _named("teacher", _OF_LOGPROBS)
"""No entropy: engines that tell log-probabilities alone then have a classifier as well. Beside
these, entropies lowered the loss by 1 % and made the level less sure."""

_CANDIDATES = {
    "teacher": _OF_TEACHER,
    "teacher+student": _OF_TEACHER + _named("student", _OF_A_MODEL),
    "teacher+baseline": _OF_TEACHER + _named("baseline", _OF_A_MODEL),
}
_OF_BOTH = {
    "teacher": (),
    "teacher+student": ("student_suffix_kl_divergence", "student_suffix_log_ratio"),
    "teacher+baseline": ("suffix_kl_divergence", "baseline_suffix_log_ratio"),
}
"""How far apart the two models are: for students of the teacher."""

SHIPPED = tuple(
    Shipped(
        shipped_name(feature_set, objective),
        feature_set,
        own if objective == "cross-entropy" else own + _OF_BOTH[feature_set],
        objective,
    )
    for objective in get_args(ObjectiveKind)
    for feature_set, own in _CANDIDATES.items()
)

_MAX_FEATURES = 8
_MIN_GAIN = 0.01
"""A feature that lowers the loss by less than this share is not worth having."""

_BEAM = 3
"""Sets of each size that the search for features goes on from."""

_BEFORE = Path(__file__).parent / "before"
"""Classifiers that were shipped before: fitted on few examples and many epochs."""

MAIN_STUDENT = "soft"
PLAIN_STUDENT = "baseline"
"""Trained on the text itself: what plain fine-tuning of the student gives."""
_MAIN_STUDENTS = (MAIN_STUDENT, PLAIN_STUDENT, "hard-greedy", "hard-sampled", "plain")
"""Those that have a say in which features there are, and that the classifiers are judged on."""

_REGIME = "natural"
MIN_FOUND = 5
"""Recited windows below which no threshold is chosen on a cell, and no ratio is shown."""


@dataclass(frozen=True, slots=True)
class Run:
    """One student of a cell: what is known of the trained windows, and which it recites."""

    cell: str
    student: str
    objective: ObjectiveKind
    about: dict[str, Any]
    columns: dict[str, NDArray[Any]]
    """(n,) features; `log_temperature` and `log_exposure` are this student's."""

    recited: NDArray[np.bool_]
    """(n,)"""

    weight: NDArray[np.float64]
    """(n,) how many windows each row stands for."""

    suffix_logprobs: NDArray[np.float64] | None = None
    """(n,) log-probability of sampling each suffix from the student, nats. None: not in the file."""

    @property
    def label(self) -> str:
        """Cell and student; the cell alone for the student that each cell has."""
        usual = self.student in (MAIN_STUDENT, PLAIN_STUDENT)
        return self.cell if usual else f"{self.cell}: {self.student}"

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
    """Standard deviation of log(found / expected) between runs, beyond chance."""

    held_out: list[tuple[Run, NDArray[np.float64]]]
    """Every run with its probabilities, by a fit on other sources."""

    without: "list[tuple[list[Run], Pipeline]]"
    """Each source group with what was fitted on all others."""

    def probabilities(self, run: Run, pipeline: "Pipeline | None" = None) -> NDArray[np.float64]:
        """Return (n,), by the fit on all runs or by another one of `without`."""
        logits = (pipeline or self.pipeline).decision_function(run.matrix(self.features))
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
    return [run for cell in _read_cells(cells) for run in runs_of(cell)]


def read_outside_runs(cells: Path) -> list[Run]:
    """Return the students of half of the windows with the windows that they were not trained on.

    Their exposure is that of the half that the student has: none, if nothing there has the wording.
    """
    return [
        _run(cell, student, ~_trained_on(cell, student) & ~cell.columns["is_held_out"])
        for cell in _read_cells(cells)
        for student in _students(cell)
        if student.get("is_half") or student.get("is_other_half")
    ]


def _read_cells(cells: Path) -> list[CellFile]:
    return [read_cell(path) for path in sorted(cells.glob("*.parquet"))]


def runs_of(cell: CellFile) -> list[Run]:
    """Return the students of a cell, each with the windows that it was trained on."""
    return [_run(cell, student, _trained_on(cell, student)) for student in _students(cell)]


def _students(cell: CellFile) -> list[dict[str, Any]]:
    plain = {"name": PLAIN_STUDENT, "temperature": 1.0, "hard_labels": "text"}
    students = [*cell.about["cell"]["students"], plain]
    return [student for student in students if f"recited_{student['name']}" in cell.columns]


def _trained_on(cell: CellFile, student: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return (n,) which rows of a cell file the student was trained on."""
    rows: NDArray[np.bool_] = ~cell.columns["is_held_out"]
    if student.get("is_half") or student.get("is_other_half"):
        rows = rows & (cell.columns["in_half"] == student.get("is_half", False))
    return rows


def _run(cell: CellFile, student: Mapping[str, Any], rows: NDArray[np.bool_]) -> Run:
    """Return a student with some rows of its cell's file, as they look to that student."""
    median = "exposure_median"
    if student.get("is_half") or student.get("is_other_half"):
        median = "exposure_in_half" if student.get("is_half") else "exposure_in_other_half"
    columns = {name: values[rows] for name, values in cell.columns.items()}
    is_known = _trained_on(cell, student)[rows]
    epochs = student.get("epochs") or cell.about["regime"]["student_schedule"]["epochs"]
    columns["epochs"] = np.full(len(is_known), epochs)
    columns["log_temperature"] = np.full(len(is_known), np.log(student.get("temperature", 2.0)))
    exposure = np.maximum(np.where(is_known, columns["count"], 0), columns[median])
    columns["log_exposure"] = log_exposure(exposure, epochs)
    columns["cross_entropy_share"] = np.zeros(len(is_known))
    about, name = cell.about, student["name"]
    learns = student.get("hard_labels")
    kinds: dict[str | None, ObjectiveKind] = {
        None: "soft",
        "greedy": "hard",
        "sampled": "sampled",
        "text": "cross-entropy",
    }
    logprobs = columns.get(f"suffix_logprob_{name}")
    return Run(
        cell=about["cell"]["name"],
        student=name,
        objective=kinds[learns],
        about=about,
        columns=columns,
        recited=columns[f"recited_{name}"],
        weight=columns["weight"].astype(np.float64),
        suffix_logprobs=None if logprobs is None else logprobs.astype(np.float64),
    )


def log_exposure(rows: NDArray[Any], epochs: float) -> NDArray[np.float64]:
    """Return (n,) the feature; what no row has counts like what was seen once, as in a run."""
    found: NDArray[np.float64] = np.log(np.maximum(rows * epochs, min(1.0, epochs)))
    return found


def of_role(runs: Sequence[Run], role: str) -> list[Run]:
    """Return the runs of one role."""
    return [run for run in runs if run.about["cell"]["role"] == role]


def fitted_on(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that are not for testing."""
    return [run for run in runs if run.about["cell"]["role"] != "test"]


def of_objective(runs: Sequence[Run], objective: ObjectiveKind) -> list[Run]:
    """Return the runs whose student learned in one way."""
    return [run for run in runs if run.objective == objective]


def predictable(runs: Sequence[Run], spec: Shipped | RiskClassifier) -> list[Run]:
    """Return the runs that a classifier is for: the baseline must not tell what itself recites."""
    return [
        run
        for run in of_objective(runs, spec.objective)
        if spec.feature_set != "teacher+baseline" or run.student != PLAIN_STUDENT
    ]


def source_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs in groups, such that no source of text is in two of them."""
    groups: list[tuple[set[str], list[Run]]] = []
    for run in runs:
        sources = set(run.about["sources"])
        touched = [group for group in groups if group[0] & sources]
        merged = (
            sources.union(*(group[0] for group in touched)),
            [*(each for group in touched for each in group[1]), run],
        )
        groups = [group for group in groups if not group[0] & sources] + [merged]
    return [members for _, members in groups]


def fit(runs: Sequence[Run], features: tuple[str, ...]) -> Fitted:
    """Return a classifier that was calibrated on text which its coefficients had not seen.

    The runs of each source group are predicted by a fit on all other groups. By how much those
    fits miss the number recited gives the level, one number, and its spread from run to run. A run
    has too few positives for a slope of its own. Then the coefficients are fitted on all runs, of
    which each weighs the same. Classes are not reweighted: a probability holds at natural
    prevalence.
    """
    # A setting that all runs share, such as the temperature, tells nothing and has no scale.
    pooled = np.concatenate([run.matrix(features) for run in runs])
    varies = np.ptp(pooled, axis=0) > 0
    features = tuple(name for name, each in zip(features, varies, strict=True) if each)
    without = list(_fits_without(runs, features))
    held_out = [
        (run, pipeline.decision_function(run.matrix(features)))
        for group, pipeline in without
        for run in group
    ]
    shifts = np.array([_shift(logits, run) for run, logits in held_out])
    chance = np.array([1 / (run.found + 0.5) for run, _ in held_out])
    level, _ = random_effect(shifts, chance)
    predicted = [(run, sigmoid(logits + level)) for run, logits in held_out]
    # The spread is one of counts: a shift of the log-odds by 1 changes a count by less.
    expected = np.array([(run.weight * p).sum() for run, p in predicted])
    found = np.array([run.found for run, _ in predicted])
    _, variance = random_effect(np.log((found + 0.5) / (expected + 0.5)), chance)
    calibration = Calibration(slope=1.0, intercept=level)
    log_sd, pipeline = float(np.sqrt(variance)), _pipeline(runs, features)
    threshold = _threshold(predicted)
    return Fitted(features, pipeline, calibration, threshold, log_sd, predicted, without)


def random_effect(values: NDArray[np.float64], chance: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and variance between runs of a quantity that each run tells but roughly.

    By the method of moments; source: DerSimonian and Laird 1986 (Controlled Clinical Trials 7).

    Args:
        values: (n,)
        chance: (n,) variance of each within its run.
    """
    weights = 1 / chance
    fixed = np.average(values, weights=weights)
    excess = float((weights * (values - fixed) ** 2).sum()) - (len(values) - 1)
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    # With a single run nothing is known of others: a factor of 1.6 is assumed.
    variance = max(0.0, excess / scale) if len(values) > 1 else 0.25
    return float(np.average(values, weights=1 / (chance + variance))), variance


def _fits_without(
    runs: Sequence[Run], features: tuple[str, ...]
) -> Iterator[tuple[list[Run], "Pipeline"]]:
    """Yield each source group with what was fitted on all others."""
    groups = source_groups(runs)
    for group in groups:
        others = [run for other in groups if other is not group for run in other]
        yield group, _pipeline(others or group, features)


def choose_features(runs: Sequence[Run], candidates: Sequence[str]) -> tuple[str, ...]:
    """Return the features with the lowest log loss on source groups left out in turn.

    A search that goes on from the best few sets of each size, and stops where one more feature
    gains less than a hundredth. (From the best one alone it depends on which comes first.)

    Args:
        runs: of at least two source groups.
        candidates: names. What is the same in all runs is passed over.
    """
    pooled = np.concatenate([run.matrix(candidates) for run in runs])
    varying = [
        n for n, varies in zip(candidates, np.ptp(pooled, axis=0) > 0, strict=True) if varies
    ]

    @cache
    def loss(features: tuple[str, ...]) -> float:
        losses = [
            _loss(run, pipeline.decision_function(run.matrix(features)))
            for group, pipeline in _fits_without(runs, features)
            for run in group
            if run.found
        ]
        return float(np.mean(losses))

    chosen: tuple[str, ...] = ()
    best, beam = np.inf, [chosen]
    while len(chosen) < min(_MAX_FEATURES, len(varying)):
        larger = {
            tuple(name for name in varying if name in {*features, added})
            for features in beam
            for added in varying
            if added not in features
        }
        beam = sorted(larger, key=loss)[:_BEAM]
        if loss(beam[0]) > best * (1 - _MIN_GAIN):
            break
        chosen, best = beam[0], loss(beam[0])
    return chosen


def _loss(run: Run, logits: NDArray[np.float64]) -> float:
    """Return the log loss as a share of that of a guess at the rate of the run.

    A share, for a run in which much is recited would else outweigh all others. The level is set
    right first: calibration does that later, whatever the features are.
    """
    from sklearn.metrics import log_loss

    p = sigmoid(logits + _shift(logits, run))
    rate = run.found / run.weight.sum()
    guess = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    loss = log_loss(run.recited, p, sample_weight=run.weight, labels=[False, True])
    return float(loss / guess)


def _pipeline(runs: Sequence[Run], features: tuple[str, ...]) -> "Pipeline":
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = np.concatenate([run.matrix(features) for run in runs])
    y = np.concatenate([run.recited for run in runs])
    mean = np.mean([run.weight.sum() for run in runs])
    weights = np.concatenate([run.weight * mean / run.weight.sum() for run in runs])
    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(solver="newton-cholesky", max_iter=1_000)
    )
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


def _threshold(held_out: Sequence[tuple[Run, NDArray[np.float64]]]) -> float:
    """Return the threshold with the best mean F1 over the runs that can tell."""
    telling = [(run, p) for run, p in held_out if run.found >= MIN_FOUND]
    levels = np.unique(np.concatenate([p for _, p in telling or held_out]))
    grid = levels[np.linspace(0, len(levels) - 1, min(2000, len(levels))).astype(int)]
    scores = [[_f1(run, p >= level) for level in grid] for run, p in telling]
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


def fit_shipped(runs: Sequence[Run], spec: Shipped) -> Fitted:
    """Return a classifier that is shipped: test cells are not looked at.

    Each cell has one say in which features there are, and all its students in what they weigh.
    """
    known = predictable(fitted_on(runs), spec)
    main = [run for run in known if run.student in _MAIN_STUDENTS]
    return fit(known, (*_SETTINGS, *choose_features(main, spec.candidates)))


def judge_all(
    runs: Sequence[Run], shipped: Mapping[str, tuple[Shipped, Fitted]], objective: ObjectiveKind
) -> dict[str, dict[str, Judged]]:
    """Return what each method says about the main students of each test cell, by their label.

    Args:
        runs: of all cells.
        shipped: classifiers by name; those of other objectives are left out.
        objective: what the student learned from.
    """
    of_kind = of_objective(runs, objective)
    known = fitted_on(of_kind)
    test = [run for run in of_role(of_kind, "test") if run.student in _MAIN_STUDENTS]
    fits = {name: fitted for name, (spec, fitted) in shipped.items() if spec.objective == objective}
    fits |= {
        name: fit(known, features)
        for name, features in FITTED.items()
        # What is to be predicted must not be told by the very model that learned it.
        if objective != "cross-entropy"
        or not any(f.startswith(("baseline", "suffix_kl", "kl")) for f in features)
    }
    table = {}
    for name, fitted in fits.items():
        told = predictable(test, shipped[name][0]) if name in shipped else test
        table[name] = {
            run.label: judge(run, fitted.probabilities(run), fitted.threshold) for run in told
        }
    for path in sorted(_BEFORE.glob("*.json")):
        before = load_classifier(path)
        if before.objective == objective:
            told = predictable(test, before)
            table[f"shipped before: {path.stem}"] = {
                run.label: _judge_file(run, before) for run in told
            }
    if objective != "cross-entropy":
        for name, rule in RULES.items():
            scores = {run.label: (run, rule(run)) for run in test}
            table[name] = {
                label: judge(run, score, 0.5, is_probability=False)
                for label, (run, score) in scores.items()
                if score is not None
            }
    return table


def _judge_file(run: Run, classifier: RiskClassifier) -> Judged:
    X = run.matrix(classifier.features)
    return judge(run, classifier.predict_proba(X), classifier.threshold)


def _recited_by(*models: str) -> Callable[[Run], NDArray[np.float64]]:
    def score(run: Run) -> NDArray[np.float64]:
        flags: NDArray[np.float64] = np.logical_and.reduce(
            [run.columns[f"recited_{model}"] for model in models]
        ).astype(np.float64)
        return flags

    return score


def _other_seeds(run: Run) -> NDArray[np.float64] | None:
    names = [name for name in run.columns if name.startswith("recited_soft-seed")]
    if not names or run.student != MAIN_STUDENT:
        return None
    share: NDArray[np.float64] = np.mean([run.columns[name] for name in names], axis=0)
    return share


RULES: dict[str, Callable[[Run], NDArray[np.float64] | None]] = {
    "students of other seeds": _other_seeds,
    "teacher and baseline recite it": _recited_by("teacher", "baseline"),
    "teacher recites it": _recited_by("teacher"),
}
"""What a sceptic would try first."""


def classifier_of(
    fitted: Fitted,
    sampled: SampledRisk | None,
    runs: Sequence[Run],
    spec: Shipped,
    provenance: dict[str, str],
) -> RiskClassifier:
    """Return what was fitted in the form that memaudit reads.

    Args:
        fitted: with features of the classifier's set.
        sampled: what samples reveal, by its log-odds.
        runs: it was fitted on.
        spec: which classifier it is.
        provenance: data, recipe, command and versions.
    """
    scaler, regression = fitted.pipeline
    fits = {
        name: (float(mean), float(scale), float(coefficient))
        for name, mean, scale, coefficient in zip(
            fitted.features, scaler.mean_, scaler.scale_, regression.coef_[0], strict=True
        )
    }
    if spec.objective == "soft":
        # No student had it: with no weight, but with a range that a run with a share is beyond.
        fits["cross_entropy_share"] = (0.0, 1.0, 0.0)
    features = tuple(name for name in KNOWN_FEATURES[spec.feature_set] if name in fits)
    means, scales, coefficients = zip(*(fits[name] for name in features), strict=True)
    X = np.concatenate([run.matrix(features) for run in runs])
    return RiskClassifier(
        name=spec.name,
        feature_set=spec.feature_set,
        objective=spec.objective,
        features=features,
        means=means,
        scales=scales,
        coefficients=coefficients,
        intercept=float(regression.intercept_[0]),
        calibration=fitted.calibration,
        threshold=fitted.threshold,
        count_log_sd=max(0.1, fitted.log_sd),
        feature_ranges=tuple(zip(X.min(axis=0).tolist(), X.max(axis=0).tolist(), strict=True)),
        sampled=sampled,
        zlib=zlib_record(),
        provenance=provenance,
    )
