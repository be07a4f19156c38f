"""Classifiers: a logistic regression over window features, kept as JSON and run with numpy."""

import errno
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.errors import ClassifierError
from memaudit.features import FEATURE_SETS, KNOWN_FEATURES, ZlibRecord, is_aligned, zlib_record
from memaudit.files import output_errors, written_file
from memaudit.memorization import revealed_nats
from memaudit.metrics import ExpectedCount, expected_count
from memaudit.objectives import ObjectiveKind
from memaudit.text import safe_text

FORMAT = 1
"""Goes up when an older memaudit could not read, or would misread, a new file."""

MAX_FILE_SIZE = 1 << 20
"""Bytes. A classifier with every known feature takes less than 1 % of it."""

FILE_NAME = "classifier.json"
"""The file inside a classifier's folder."""

# Finite is not enough: two numbers of 1e308 in a file from anywhere multiply to infinity.
_MAX_NUMBER = 1e50
"""A product of any four numbers of a classifier stays finite in float64."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Platt's map from logit to probability, `sigmoid(slope * logit + intercept)`."""

    slope: float
    """Above 0: calibration never changes the order."""

    intercept: float
    """Shifts every probability; absorbs the prevalence of the calibration runs."""


class SampledRisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What sampling reveals, by the calibrated log-odds z of being memorized.

    n samples reveal a suffix if, more likely than not, one of them is exactly it; at temperature
    1, from the whole vocabulary. So it must cost the student at most
    `a = -log(1 - 2**(-1 / n)) / suffix tokens` nats per token, which is as likely as

        sigmoid(intercept + slope * z + (nats_slope + interaction * z) * log(a))

    Source: Hayes et al. 2024 (arXiv:2410.19482), (n, p)-discoverable extraction.
    """

    intercept: float
    slope: float
    nats_slope: float
    interaction: float
    count_log_sds: tuple[tuple[int, float], ...]
    """By rising n: as the `count_log_sd` of a classifier, for n samples."""

    def __post_init__(self) -> None:
        numbers = self.intercept, self.slope, self.nats_slope, self.interaction
        if not all(abs(number) <= _MAX_NUMBER for number in numbers):
            raise ValueError(f"expected finite numbers up to {_MAX_NUMBER:g}")
        samples = [n for n, log_sd in self.count_log_sds if n >= 1 and 0 <= log_sd <= 20]
        if samples != sorted({n for n, _ in self.count_log_sds}):
            raise ValueError("expected rising numbers of samples, each with a number in [0, 20]")

    def predict(
        self, log_odds: NDArray[np.float64], suffix_lens: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the probability that samples reveal each window.

        Args:
            log_odds: (n_windows,) of being memorized, calibrated.
            suffix_lens: (n_windows,) tokens, at least 1.

        Returns:
            (len(count_log_sds), n_windows)
        """
        by_nats = self.nats_slope + self.interaction * log_odds
        found = [
            sigmoid(self.intercept + self.slope * log_odds + by_nats * np.log(nats / suffix_lens))
            for nats in (revealed_nats(n) for n, _ in self.count_log_sds)
        ]
        return np.maximum.accumulate(np.array(found), axis=0)  # more samples never reveal less


# Defaults are left out of the JSON: a file from before a field came keeps its digest.
class RiskClassifier(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """Predicts from a window's raw features whether the student will memorize it."""

    name: str
    """Letters, digits and `._+-`, at most 100."""

    feature_set: str
    """Key of `FEATURE_SETS`: which models it needs."""

    objective: ObjectiveKind = "soft"
    """What the students it was fitted on learned from."""

    features: tuple[str, ...]
    """Columns of X, a subset of the feature set in its order."""

    means: tuple[float, ...]
    """Subtracted from the columns of X."""

    scales: tuple[float, ...]
    """The columns of X are divided by them, above 0."""

    coefficients: tuple[float, ...]
    """One for each standardised column."""

    intercept: float
    """Logit at the means."""

    calibration: Calibration
    """Fitted on runs that the coefficients never saw."""

    threshold: float
    """Probability at or above which a window is flagged, in (0, 1)."""

    count_log_sd: float
    """Spread of log(observed / expected number memorized) over calibration runs, in [0, 20]."""

    feature_ranges: tuple[tuple[float, float], ...]
    """Lowest and highest value of each column in training."""

    sampled: SampledRisk | None = None
    """None: it was fitted for greedy decoding alone."""

    zlib: ZlibRecord
    """Of the interpreter that measured the training features."""

    provenance: dict[str, str]
    """Data, recipe, seeds, command and versions, for people."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError("expected a name of at most 100 letters, digits and ._+-")
        if self.feature_set not in FEATURE_SETS:
            raise ValueError(f"unknown feature set, expected one of {', '.join(FEATURE_SETS)}")
        used = set(self.features)
        in_order = [name for name in KNOWN_FEATURES[self.feature_set] if name in used]
        if not used or in_order != list(self.features):
            raise ValueError(
                f"expected features of the set {self.feature_set}, each once, in its order"
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        n_features = len(self.features)
        for field in ("means", "scales", "coefficients", "feature_ranges"):
            length = len(getattr(self, field))
            if length != n_features:
                raise ValueError(f"expected {n_features} {field}, got {length}")
        single = self.intercept, self.calibration.slope, self.calibration.intercept
        many = self.means, self.scales, self.coefficients, np.ravel(self.feature_ranges)
        numbers = np.concatenate([single, *many])
        # Nothing compares with NaN: this way round it is refused, too.
        if not (np.abs(numbers) <= _MAX_NUMBER).all():
            raise ValueError(f"expected finite numbers up to {_MAX_NUMBER:g}")
        if min(self.scales) < 1 / _MAX_NUMBER or self.calibration.slope <= 0:
            raise ValueError("expected scales and a calibration slope above 0")
        if any(low > high for low, high in self.feature_ranges):
            raise ValueError("expected feature ranges with low <= high")
        if not 0 < self.threshold < 1:
            raise ValueError(f"expected a threshold between 0 and 1, got {self.threshold:g}")
        if not 0 <= self.count_log_sd <= 20:
            raise ValueError(f"expected count_log_sd in [0, 20], got {self.count_log_sd:g}")

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the classifier as canonical JSON."""
        # Sorted: the digest outlives another order of the fields in this file.
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    @property
    def card(self) -> dict[str, Any]:
        """What its card begins with."""
        return {
            "name": self.name,
            "digest": self.digest,
            "feature_set": self.feature_set,
            "objective": self.objective,
            "features": list(self.features),
            "threshold": self.threshold,
            "provenance": self.provenance,
        }

    def for_objective(self, objective: ObjectiveKind) -> "RiskClassifier | None":
        """Return what is shipped for the same models and another objective; None: nothing is."""
        try:
            return find_classifier(None, self.feature_set, objective)
        except ClassifierError:
            return None

    def predict_logit(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the logits before calibration: sklearn's `decision_function`.

        A row's logit is the same bits whatever rows stand beside it.

        Args:
            X: (n, n_features) raw features, in the order of `features`.

        Returns:
            (n,)

        Raises:
            ClassifierError: a feature is not a finite number.
            ValueError: X has another number of columns.
        """
        X = self._checked(X)
        standardised = (X - np.array(self.means)) / np.array(self.scales)
        # Not `@`: BLAS rounds a row differently in batches of different size.
        # Contiguous: where columns lie together numpy sums in another order, and rounds otherwise.
        products = np.ascontiguousarray(standardised * np.array(self.coefficients))
        logits: NDArray[np.float64] = products.sum(axis=1) + self.intercept
        return logits

    def predict_proba(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n,) the calibrated probability of each window, in [0, 1]; see `predict_logit`."""
        return sigmoid(self.calibrated_logit(X))

    def calibrated_logit(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log-odds of what `predict_proba` returns."""
        return self.calibration.slope * self.predict_logit(X) + self.calibration.intercept

    def expected_count(
        self, probabilities: NDArray[np.float64], copies: NDArray[np.int64] | None = None
    ) -> ExpectedCount:
        """Return how many examples will be memorized, as `metrics.expected_count` defines it."""
        return expected_count(probabilities, self.count_log_sd, copies)

    def out_of_range_rate(self, X: NDArray[np.float64]) -> dict[str, float]:
        """Return, for each feature, the share of rows outside its range in training.

        Args:
            X: (n, n_features) raw features, in the order of `features`.

        Returns:
            shares in [0, 1]; 0 for no rows.
        """
        rates = self.is_outside(X).sum(axis=0) / max(1, len(X))
        return {name: float(rate) for name, rate in zip(self.features, rates, strict=True)}

    def is_outside(self, X: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return (n, n_features) whether a value of raw features is beyond its range in training."""
        X = self._checked(X)
        lowest, highest = np.array(self.feature_ranges).T
        outside: NDArray[np.bool_] = (lowest > X) | (highest < X)
        return outside

    def _checked(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        if X.ndim != 2 or X.shape[1] != len(self.features):
            raise ValueError(f"expected X of shape (n, {len(self.features)}), got {X.shape}")
        n_broken = (~np.isfinite(X)).sum(axis=0)
        if n_broken.any():
            column = int(n_broken.argmax())
            raise ClassifierError(
                f"feature {self.features[column]} is not a finite number "
                f"in {n_broken[column]} of {len(X)} windows",
                hint="the scores are broken: check that the model's weights hold no NaN",
            )
        return X


class _ClassifierFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in `classifier.json`."""

    classifier: RiskClassifier
    digest: str
    format: int


class _Header(msgspec.Struct):
    """The one key that every format has."""

    format: int


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-logits)), without overflow at either end."""
    # Of a number up to 0 alone: exp(800) would be infinite, and the quotient no number.
    decayed = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, decayed) / (1.0 + decayed)


def load_classifier(path: Path) -> RiskClassifier:
    """Read a classifier from its folder, or from its JSON file; never unpickles anything.

    Raises:
        ClassifierError: there is no such file, or it is not a valid classifier of this format.
    """
    where = safe_text(str(path))
    content = _read_limited(path, where)
    # How pickles begin, and the archives of torch and skops.
    if content.startswith((b"\x80", b"PK")):
        raise ClassifierError(
            f"{where}: expected a JSON classifier, got a pickle or an archive",
            hint="memaudit never loads pickles: fit the classifier with 'memaudit fit'",
        )
    try:
        # The format comes first, for a newer file may have other keys.
        found = msgspec.json.decode(content, type=_Header).format
        if found != FORMAT:
            raise ValueError(
                f"expected format {FORMAT}, got {found:.6g}: another memaudit wrote it"
            )
        parsed = msgspec.json.decode(content, type=_ClassifierFile)
        # Against damage and edits by hand. Who forges a file can compute it: values were checked.
        if parsed.digest != parsed.classifier.digest:
            raise ValueError("the digest does not match the content, which was changed or damaged")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ClassifierError(
            f"{where}: not a valid classifier: {safe_text(str(error))}",
            hint="fetch the file again, or fit the classifier anew with 'memaudit fit'",
        ) from error
    return parsed.classifier


def _read_limited(path: Path, where: str) -> bytes:
    """Return the file's first bytes; a pipe or a device is not opened, for it may never end."""
    try:
        file = path / FILE_NAME if path.is_dir() else path
        # Neither raises for a name with a NUL, where opening it would be a ValueError.
        if not file.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file")
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ClassifierError(
            f"{where}: cannot read the classifier: {error.strerror}",
            hint=f"give a folder that holds {FILE_NAME}, or the file itself",
        ) from error
    if len(content) > MAX_FILE_SIZE:
        raise ClassifierError(
            f"{where}: expected at most {MAX_FILE_SIZE} bytes, got more",
            hint="this is not a classifier: give the file that 'memaudit fit' wrote",
        )
    return content


def save_classifier(classifier: RiskClassifier, path: Path) -> None:
    """Write a classifier as sorted JSON: all of it or, if that fails, nothing.

    Args:
        classifier: the same classifier gives the same bytes.
        path: a `.json` file, or the folder to put `classifier.json` into.

    Raises:
        OutputError: the place cannot be written.
    """
    file = path if path.suffix == ".json" else path / FILE_NAME
    parsed = _ClassifierFile(classifier=classifier, digest=classifier.digest, format=FORMAT)
    content = msgspec.json.format(msgspec.json.encode(parsed, order="sorted"), indent=2) + b"\n"
    with output_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with written_file(file) as stream:
        stream.write(content)


def shipped_classifiers_dir() -> Path:
    """Return the folder of the classifiers that come with memaudit."""
    package = Path(__file__).parent
    # A wheel has the models inside the package, a checkout has them beside it.
    inside_wheel = package / "models"
    return inside_wheel if inside_wheel.is_dir() else package.parent / "models"


def shipped_name(feature_set: str, objective: ObjectiveKind) -> str:
    """Return the name of the shipped classifier for the models and the objective at hand.

    No classifier was fitted on references with tokenizers of their own: there, the teacher's serves.
    """
    if is_aligned(feature_set):
        feature_set = "teacher"
    return feature_set if objective == "soft" else f"{feature_set}-{objective}"


def find_classifier(
    name_or_path: str | None, feature_set: str, objective: ObjectiveKind = "soft"
) -> RiskClassifier:
    """Return the classifier asked for, or the shipped one for the models and objective at hand.

    Args:
        name_or_path: a shipped one's name, a path, or None: the shipped one that fits.
        feature_set: key of `FEATURE_SETS`: what the run can compute.
        objective: what the student will learn from.

    Raises:
        ClassifierError: there is none, it is broken, it needs a model that the run lacks, or it
            was fitted on students of another objective.
    """
    name = shipped_name(feature_set, objective) if name_or_path is None else name_or_path
    choices = sorted(file.parent.name for file in shipped_classifiers_dir().glob(f"*/{FILE_NAME}"))
    # A shipped name comes before a path: a folder called "teacher" must not change what it means.
    if name in choices:
        path = shipped_classifiers_dir() / name
    # lexists: Path.exists raises for a name of 5,000 letters.
    elif name_or_path is not None and os.path.lexists(name):
        path = Path(name)
    else:
        raise ClassifierError(
            f"no classifier {safe_text(name)}, expected a path or one of: "
            f"{', '.join(choices) or 'none is shipped'}",
            hint="choose one with --classifier, or fit one with 'memaudit fit'",
        )
    classifier = load_classifier(path)
    _check_fits(classifier, feature_set, objective)
    return classifier


def told_classifier(summary: Mapping[str, Any]) -> RiskClassifier | None:
    """Return the classifier that a run's summary names; None if it is not at hand."""
    try:
        named = summary["classifier"], summary["feature_set"], summary.get("objective", "soft")
        classifier = find_classifier(*named)
    except (ClassifierError, KeyError):
        return None
    # A namesake with other coefficients would lend an interval that nobody measured.
    return classifier if classifier.digest == summary.get("classifier_digest") else None


def _check_fits(classifier: RiskClassifier, feature_set: str, objective: ObjectiveKind) -> None:
    if classifier.objective != objective:
        raise ClassifierError(
            f"classifier {classifier.name} was fitted on students that learned by "
            f"{classifier.objective} labels, expected {objective}",
            hint="say with --objective what the student will learn from, or choose another classifier",
        )
    missing = [name for name in classifier.features if name not in KNOWN_FEATURES[feature_set]]
    if missing:
        n_features = len(classifier.features)
        role = classifier.feature_set.removeprefix("teacher+")
        hint = f"give --{role}, or choose a classifier without it"
        if is_aligned(feature_set):
            hint = f"give a {role} with the teacher's tokenizer, or leave out --classifier"
        elif is_aligned(role):
            hint = "it was fitted on a reference with a tokenizer of its own: give such a one"
        raise ClassifierError(
            f"classifier {classifier.name} expects {n_features} features, "
            f"this run has {n_features - len(missing)}: no {missing[0].replace('_', ' ')}",
            hint=hint,
        )


def check_features(classifier: RiskClassifier, features: Sequence[str], engine: str) -> None:
    """Refuse an engine that cannot tell what a classifier looks at.

    Raises:
        ClassifierError: naming the first feature that is missing.
    """
    missing = [name for name in classifier.features if name not in features]
    if missing:
        raise ClassifierError(
            f"classifier {classifier.name} looks at {missing[0]}, which the engine "
            f"{safe_text(engine)} cannot tell exactly",
            hint="use --engine hf, or fit a classifier on what it can tell with 'memaudit fit'",
        )


def check_zlib(classifier: RiskClassifier) -> None:
    """Refuse a classifier whose zlib features this interpreter would measure differently.

    Raises:
        ClassifierError: this interpreter's zlib compresses to other lengths.
    """
    uses_zlib = any("zlib" in name for name in classifier.features)
    here = zlib_record()
    if uses_zlib and here.golden_sha256 != classifier.zlib.golden_sha256:
        raise ClassifierError(
            f"classifier {classifier.name} expects the compressed lengths of zlib "
            f"{safe_text(classifier.zlib.version)}, this interpreter's zlib {here.version} gives others",
            hint="use a Python built with the standard zlib, or choose a classifier without zlib",
        )
