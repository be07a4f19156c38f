"""The prefilter: which windows the teacher need not read, told from what costs less.

Two things tell it. A bound: a classifier is a weighted sum, and each of a model's features has a
limit that no model exceeds (an entropy is at least 0), so the highest probability that a window
could still get is known before the teacher has run. Where that stays below the threshold, nothing
is lost. And a screen: a logistic regression on what the corpus tells (how often the window occurs,
how well it compresses), and a small reference where there is one, estimates the probability that
the whole audit would give; its cutoff is such that a stated share of the windows that the audit
flags survives. The reference reads what the bound leaves, the teacher what the screen leaves.
"""

import hashlib
import math
from bisect import bisect
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.classifier import RiskClassifier, shipped_classifiers_dir, sigmoid
from memaudit.errors import ClassifierError, UsageError
from memaudit.features import CORPUS_FEATURES, EXPOSURE_FEATURES, REFERENCE_FEATURES
from memaudit.files import read_small
from memaudit.metrics import clopper_pearson
from memaudit.text import safe_text

CONFIDENCE = 0.95
"""That at least the share asked for survives, by the windows that a screen was calibrated on."""

_NO_MODEL = (*CORPUS_FEATURES, *EXPOSURE_FEATURES)
_MAX_FILE_SIZE = 4 * 2**20
_ROUNDING = 1e-9
# Engines round: a log-probability may come out just above 0.
_SLACK = 1e-3
_LIMITS = (
    ("argmax_rate", 0.0, 1.0),
    ("perplexity", 1.0, math.inf),
    ("entropy", 0.0, math.inf),
    ("kl_divergence", 0.0, math.inf),
    ("logprob", -math.inf, 0.0),
)
"""Of a model's features, by the end of their names; what is not here has none."""


class PrefilterFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What tells from the corpus alone which windows a certain classifier will hardly flag."""

    classifier: str
    """Name of the classifier whose flags it was calibrated on."""

    classifier_digest: str
    estimator: RiskClassifier = msgspec.field(name="first_stage")
    """Estimates the classifier's probability; its features need no teacher."""

    flagged: tuple[float, ...]
    """Ascending: the first stage's probability of each distinct window of the calibration runs
    that the classifier flags; the lowest one, for a window that it flags at several objectives."""

    def __post_init__(self) -> None:
        if not {*self.estimator.features} <= {*_NO_MODEL, *REFERENCE_FEATURES}:
            raise ValueError("expected a first stage that does without the teacher")
        if list(self.flagged) != sorted(self.flagged):
            raise ValueError("expected ascending probabilities of flagged windows")

    def misses(self, survival: float) -> int | None:
        """Return how many flagged calibration windows may be lost; None: there are too few."""
        n = len(self.flagged)

        def is_too_many(n_missed: int) -> bool:
            # Two-sided at 90 %: its lower end is the one-sided bound at 95 %.
            return clopper_pearson(n - n_missed, n, 2 * CONFIDENCE - 1).low < survival

        # The bound falls with every miss, so that bisection finds the first one too many.
        n_allowed = bisect(range(n), False, key=is_too_many)
        return n_allowed - 1 if n_allowed else None

    def cutoff(self, survival: float) -> float:
        """Return the highest cutoff at which so many flagged windows survive.

        An order statistic of the calibration windows: with 95 % confidence at least `survival` of
        windows like those lie at or above it (Clopper-Pearson, one-sided).

        Raises:
            UsageError: the screen was calibrated on too few windows to say so.
        """
        n_missed = self.misses(survival)
        if n_missed is None:
            n = len(self.flagged)
            best = clopper_pearson(n, n, 2 * CONFIDENCE - 1).low
            raise UsageError(
                f"the screen of {safe_text(self.classifier)} was calibrated on {n:,} flagged "
                f"windows: they can vouch for a survival of {best:.4f}, not of {survival:g}",
                hint="give a lower --survival, or 1 to leave out only what cannot be flagged",
            )
        # A hair lower: the rounding of another processor must not lose the window at the
        # cutoff.
        return min(self.flagged[n_missed] * (1 - _ROUNDING), 1.0)


class Prefilter(msgspec.Struct, frozen=True, kw_only=True):
    """How the windows of a run are screened."""

    classifier: RiskClassifier
    """The second stage, which needs the models."""

    survival: float
    """Share of what the classifier would flag that survives, in (0, 1]."""

    estimator: RiskClassifier | None = msgspec.field(default=None, name="first_stage")
    """From a screen. None: only what cannot be flagged is left out."""

    cutoff: float = 0.0
    """Windows whose first-stage probability is below it are left out."""

    @property
    def needs_reference(self) -> bool:
        """Whether the reference reads windows before the teacher does."""
        return self.estimator is not None and not {*self.estimator.features} <= {*_NO_MODEL}

    @property
    def known_features(self) -> tuple[str, ...]:
        """What can be known of a window that the teacher has not read."""
        return _NO_MODEL + (REFERENCE_FEATURES if self.needs_reference else ())

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of all of it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    def highest(self, known: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return (n,) the highest probability that windows could get, whatever models say of them.

        What `known` says of the teacher is not looked at: it has not run yet. For what is not
        there, and for NaN, the limit counts; where that is none, the probability is 1.
        """
        classifier, names = self.classifier, self.known_features
        logits = np.full(len(next(iter(known.values()))), classifier.intercept)
        for name, mean, scale, coefficient in zip(
            classifier.features,
            classifier.means,
            classifier.scales,
            classifier.coefficients,
            strict=True,
        ):
            # 0 times a limit at infinity is no number.
            if coefficient == 0:
                continue
            # Whatever a model says, its term is at most the one at the end of the feature's range;
            # with that end in place of what is unknown, the sum can only be too high, never too low.
            limits = ((low, high) for ending, low, high in _LIMITS if name.endswith(ending))
            low, high = next(limits, (-math.inf, math.inf))
            best = high + _SLACK if coefficient > 0 else low - _SLACK
            values = np.asarray(known.get(name, best) if name in names else best)
            logits += coefficient * ((np.where(np.isnan(values), best, values) - mean) / scale)
        # The slope is above 0: the highest logit gives the highest probability.
        return sigmoid(classifier.calibration.slope * logits + classifier.calibration.intercept)

    def probabilities(self, known: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return (n,) the first stage's probability that the student memorizes each window.

        Never above what the classifier could say; just that without a first stage, and where the
        reference has not read the window either: `known_features` are NaN there.
        """
        probabilities = self.highest(known)
        if self.estimator is not None:
            X = _columns(self.estimator, known)
            was_read = np.isfinite(X).all(axis=1)
            estimates = self.estimator.predict_proba(X[was_read])
            probabilities[was_read] = np.minimum(estimates, probabilities[was_read])
        return probabilities

    def could_be_flagged(self, known: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
        """Return (n,) whether anything that the models not yet asked could say would flag each."""
        return self.highest(known) >= self.classifier.threshold

    def keeps(self, known: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
        """Return (n,) whether the teacher has to look at each window, by its `known_features`."""
        could_be_flagged = self.could_be_flagged(known)
        if self.estimator is None:
            return could_be_flagged
        X = _columns(self.estimator, known)
        likely = self.estimator.predict_proba(X) >= self.cutoff
        # The calibration says nothing about windows unlike those the screen has seen.
        unfamiliar = self.estimator.is_outside(X).any(axis=1)
        return could_be_flagged & (likely | unfamiliar)


def make_prefilter(classifier: RiskClassifier, survival: float) -> Prefilter:
    """Return the prefilter before a classifier, with the screen that was calibrated on its flags.

    At a survival of 1 only what cannot be flagged is left out, and where no screen is shipped.

    Raises:
        UsageError: the survival is no such share, or more than the screen can vouch for.
        ClassifierError: the screen is damaged.
    """
    if not 0 < survival <= 1:
        raise UsageError(
            f"survival is {survival:g}, expected a share above 0 and up to 1",
            hint="give a number such as 0.995 with --survival",
        )
    path = prefilter_fit_path(shipped_classifiers_dir(), classifier.name)
    if survival == 1 or not path.exists():
        return Prefilter(classifier=classifier, survival=1.0)
    screen = load_prefilter_fit(path)
    # A classifier of the user's own may bear a shipped name, and flags other windows.
    if screen.classifier_digest != classifier.digest:
        return Prefilter(classifier=classifier, survival=1.0)
    return Prefilter(
        classifier=classifier,
        survival=survival,
        estimator=screen.estimator,
        cutoff=screen.cutoff(survival),
    )


def _columns(
    classifier: RiskClassifier, known: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    return np.column_stack([known[name] for name in classifier.features])


def prefilter_fit_path(models: Path, classifier: str) -> Path:
    """Return where the screen of a shipped classifier is."""
    return models / f"screen-{classifier}" / "screen.json"


def load_prefilter_fit(path: Path) -> PrefilterFit:
    """Read a screen.

    Raises:
        ClassifierError: it cannot be read, or is not a valid screen.
    """
    try:
        return msgspec.json.decode(read_small(path, _MAX_FILE_SIZE), type=PrefilterFit)
    except (OSError, ValueError, RecursionError) as error:
        raise ClassifierError(
            f"{safe_text(str(path))}: not a valid screen: {safe_text(str(error))}",
            hint="install memaudit again, or leave out --cascade",
        ) from error


def prefilter_fit_bytes(screen: PrefilterFit) -> bytes:
    """Return the content of the file of a screen: the same screen gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(screen, order="sorted"), indent=1) + b"\n"
