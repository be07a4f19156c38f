"""Recalibration: a classifier's probabilities, shifted to the level of a small pilot.

How much a student memorizes depends on how long it is trained, on what, and by which loss. The
order of a classifier carries over to other distillations far better than the level does. A pilot
(a few thousand rows, really distilled) has too few memorized examples to fit a classifier, but
enough for the two numbers that set the level.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from memaudit.classifier import Calibration, RiskClassifier, sigmoid
from memaudit.errors import ClassifierError
from memaudit.metrics import ExpectedCount, brier, expected_count, roc_auc
from memaudit.objectives import ObjectiveKind
from memaudit.runs.files import output_folder
from memaudit.training.fit import classifier_name, provenance, save_with_card
from memaudit.training.fitting import feature_matrix
from memaudit.training.inputs import Input, VerifiedRun, join_inputs, objective_of, read_inputs
from memaudit.training.selection import plan_features

MIN_PILOT_POSITIVES = 5
"""Memorized examples, and others, below which a pilot says nothing about the level."""

# Without a pilot, the counts of shipped classifiers have been off by 5 to 20 times on corpora
# unlike their own: log 20 is 3. A prior of two such deviations lets five examples move the level
# nine tenths of the way, and one or two coincidences hardly at all.
_SHIFT_SD = 1.5
_SLOPE_LOG_SD = 0.5
_LARGEST_SHIFT = 3 * _SHIFT_SD  # odds 90 times off: the labels belong to something else
_SEED_LOG_SD = 0.1  # students of two seeds differ by about this, however large the pilot
_N_FOLDS = 5
_LIMITS = (
    "The order of examples is that of the classifier named here; only the level is the pilot's. It "
    "holds for the corpus and the training of the pilot: other epochs, learning rates or losses "
    "need another one. A student trained on more rows than the pilot had may differ from it."
)


@dataclass(frozen=True, slots=True)
class Shift:
    """What a pilot does to log-odds: `center + shift + slope * (log-odds - center)`."""

    center: float
    """Log-odds about which the slope turns: where the pilot says most."""

    shift: float
    """Added to the log-odds there; 0 is no change."""

    slope: float
    """Above 0; 1 is no change."""

    count_log_sd: float
    """What is still unknown of the level, as the spread of a logarithm."""

    def apply(self, log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log-odds after the pilot."""
        return self.center + self.shift + self.slope * (log_odds - self.center)

    def applied_to(
        self, before: RiskClassifier, name: str, made: Mapping[str, str]
    ) -> RiskClassifier:
        """Return a classifier at the level of the pilot, with a name and what it was made of."""
        slope, intercept = before.calibration.slope, before.calibration.intercept
        return msgspec.structs.replace(
            before,
            name=name,
            # Both maps are lines, and so is one after the other: a single calibration says it.
            calibration=Calibration(
                slope=self.slope * slope,
                intercept=self.center + self.shift + self.slope * (intercept - self.center),
            ),
            count_log_sd=self.count_log_sd,
            provenance={
                **made,
                "recalibrated": f"from {before.name}, {before.digest}",
                "fitted": before.provenance.get("data", "unknown"),
            },
        )


def fit_shift(log_odds: NDArray[np.float64], extracted: NDArray[np.bool_]) -> Shift:
    """Return the shift and slope that a pilot makes most probable, shrunk towards no change.

    The shift has a normal prior and the slope a log-normal one, around no change. So a pilot of
    five memorized examples moves the level without being taken at its word, and a large one
    decides alone. What is unknown comes from the curvature at the maximum (Laplace 1774).
    """
    # Information about the level is p (1 - p): centred there, shift and slope hardly correlate.
    center = float(np.average(log_odds, weights=_information(log_odds)))
    distance = log_odds - center
    precision = np.array([_SHIFT_SD**-2, _SLOPE_LOG_SD**-2])

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        spread = np.exp(theta[1]) * distance
        z = center + theta[0] + spread
        nats = np.logaddexp(0, np.where(extracted, -z, z)).sum()
        wrong = sigmoid(z) - extracted
        gradient = np.array([wrong.sum(), (wrong * spread).sum()]) + precision * theta
        # A mean, so that the tolerance means the same for every size of pilot.
        return float(nats + (precision * theta**2).sum() / 2) / len(z), gradient / len(z)

    bounds = [(-30.0, 30.0), (-3.0, 3.0)]  # far beyond what is accepted: no step overflows
    found = minimize(
        loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9}
    )
    shift, slope = float(found.x[0]), float(np.exp(found.x[1]))
    z = center + shift + slope * distance
    J = np.column_stack([np.ones(len(z)), slope * distance])
    weights = _information(z)
    hessian = J.T @ (J * weights[:, np.newaxis]) + np.diag(precision)
    # Of the logarithm of the expected number, by the delta method.
    direction = (weights @ J) / sigmoid(z).sum()
    variance = float(direction @ np.linalg.solve(hessian, direction))
    return Shift(center, shift, slope, float(np.hypot(np.sqrt(variance), _SEED_LOG_SD)))


def _information(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p (1 - p), which does not underflow to 0 before e^-700."""
    information: NDArray[np.float64] = np.exp(
        -np.logaddexp(0, log_odds) - np.logaddexp(0, -log_odds)
    )
    return information


@dataclass(frozen=True, slots=True)
class PilotFigures:
    """How probabilities do on the pilot."""

    expected: ExpectedCount
    """Distinct examples expected to be memorized."""

    log_loss: float
    """Mean, nats."""

    brier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibrated:
    """A classifier at the level of a pilot."""

    classifier: RiskClassifier
    """With another calibration and spread of counts; all else as it was."""

    before: RiskClassifier
    shift: Shift
    inputs: tuple[Input, ...]
    runs: tuple[VerifiedRun, ...]
    figures_before: PilotFigures
    figures_after: PilotFigures
    """Of shifts fitted on four fifths of the pilot each, for the other fifth."""

    folder: Path

    @property
    def n_examples(self) -> int:
        """Distinct examples in the pilot."""
        return sum(len(run.run.extracted) for run in self.runs)

    @property
    def n_extracted(self) -> int:
        """Those that the pilot's student recites."""
        return sum(run.run.n_extracted for run in self.runs)

    @property
    def counts_copies(self) -> bool:
        """Whether scores count copies that a student of a sample has not seen."""
        return any(
            one.about_labels.get("sample") is not None
            and (one.scores.numbers.get("occurrences", np.ones(1)) > 1).any()
            for one in self.inputs
        )

    def document(self) -> dict[str, Any]:
        """Return the card as one JSON document."""
        return {
            **self.classifier.card,
            "recalibrated": {
                "from": self.before.name,
                "from_digest": self.before.digest,
                "shift": self.shift.shift,
                "slope": self.shift.slope,
                "center": self.shift.center,
                "count_log_sd": self.shift.count_log_sd,
            },
            "pilot": {
                "examples": self.n_examples,
                "extracted": self.n_extracted,
                "before": msgspec.to_builtins(self.figures_before),
                "after": msgspec.to_builtins(self.figures_after),
                "after_is": "cross-fitted: each fifth by a shift from the other four",
            },
            "inputs": {one.name: one.document() for one in self.inputs},
            "limits": _LIMITS,
        }


def recalibrate(
    name_or_path: str,
    pairs: Sequence[tuple[Path, Path]],
    out: Path,
    *,
    objective: ObjectiveKind | None = None,
    command: str = "memaudit.training.recalibrate",
) -> Recalibrated:
    """Shift a classifier to the level of a pilot, and save it with a card.

    Args:
        name_or_path: of the classifier: a shipped one's name, or a path.
        pairs: for each pilot its labels and scores, as for `fit_on_verification`.
        out: folder of the new classifier, made if missing.
        objective: what the pilot's student learned from. None: what stands beside the labels.
        command: what was called, for the card.

    Raises:
        UsageError, CorpusError: as `fit_on_verification`.
        ClassifierError: there is no such classifier, it does not fit the pilot, the pilot has too
            few examples of either kind, or it contradicts the classifier.
        OutputError: `out` cannot be written.
    """
    inputs = read_inputs(pairs)
    before = plan_features(inputs, None, (), objective_of(inputs, objective)).classifier(
        name_or_path
    )
    runs = join_inputs(inputs, before.features)
    extracted = np.concatenate([run.run.extracted for run in runs])
    X = np.concatenate([feature_matrix(run.run, before.features) for run in runs])
    log_odds = before.calibrated_logit(X)
    shift = _believable_shift(log_odds, extracted, before.name)
    result = Recalibrated(
        classifier=shift.applied_to(before, classifier_name(out), provenance(inputs, command, 0)),
        before=before,
        shift=shift,
        inputs=tuple(inputs),
        runs=tuple(runs),
        figures_before=_figures(log_odds, extracted, before.count_log_sd),
        figures_after=_figures(_cross_fitted(log_odds, extracted), extracted, shift.count_log_sd),
        folder=out,
    )
    with output_folder(out):
        save_with_card(result.classifier, result.document(), out)
    return result


def _believable_shift(
    log_odds: NDArray[np.float64], extracted: NDArray[np.bool_], name: str
) -> Shift:
    """Return the shift of a pilot that is large enough and does not contradict the classifier."""
    n_positives = int(extracted.sum())
    counts = {"memorized": n_positives, "not memorized": len(extracted) - n_positives}
    for kind, n_found in counts.items():
        if n_found < MIN_PILOT_POSITIVES:
            raise ClassifierError(
                f"a pilot needs at least {MIN_PILOT_POSITIVES} distinct examples that were "
                f"{kind}, this one has {n_found} of {len(extracted):,}",
                hint="verify more rows, or with the epochs that you will really train for",
            )
    # Before the fit: its slope stays above 0, and near 0 it would hide a reversed ranking.
    auc = roc_auc(extracted, log_odds)
    if auc is not None and auc <= 0.5:
        raise ClassifierError(
            f"classifier {name} ranks the pilot no better than chance (ROC-AUC {auc:.2f})",
            hint="check that labels and scores are of the same rows",
        )
    shift = fit_shift(log_odds, extracted)
    if abs(shift.shift) > _LARGEST_SHIFT:
        raise ClassifierError(
            f"the pilot contradicts the classifier {name}: it expects "
            f"{sigmoid(log_odds).sum():,.1f} memorized examples, the labels say {n_positives:,}",
            hint="check that labels and scores are of the same rows, or fit a classifier of your own",
        )
    return shift


def _cross_fitted(
    log_odds: NDArray[np.float64], extracted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return (n,) log-odds by shifts that did not see the example; each fold has its positives."""
    fold = np.empty(len(extracted), dtype=np.int64)
    for kind in (True, False):
        (rows,) = np.nonzero(extracted == kind)
        fold[np.random.default_rng(0).permutation(rows)] = np.arange(len(rows)) % _N_FOLDS
    shifted = np.empty_like(log_odds)
    for i in range(_N_FOLDS):
        seen = fold != i
        shifted[~seen] = fit_shift(log_odds[seen], extracted[seen]).apply(log_odds[~seen])
    return shifted


def _figures(
    log_odds: NDArray[np.float64], extracted: NDArray[np.bool_], count_log_sd: float
) -> PilotFigures:
    probabilities = sigmoid(log_odds)
    nats = np.logaddexp(0, np.where(extracted, -log_odds, log_odds))
    return PilotFigures(
        expected_count(probabilities, count_log_sd),
        float(nats.mean()),
        brier(extracted, probabilities) or 0.0,
    )
