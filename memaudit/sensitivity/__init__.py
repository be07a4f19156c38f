"""What must not leak: personal data and secrets, found by detectors that are optional packages.

Found are places and kinds; no function here hands out what stands there.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import MissingDependency, is_installed
from memaudit.text import number_of

if TYPE_CHECKING:
    from memaudit.sensitivity.detectors import PersonalDataDetector, SecretDetector


PersonalKind = Literal[
    "email", "phone", "credit_card", "iban", "ip_address", "national_id", "person"
]
"""Personal data. A `person` is found only where a spaCy model is installed.

Dates, places, links and nationalities are none by themselves: nearly every text has them.
"""

SecretKind = Literal["private_key", "access_key", "password", "random_string"]
"""Secrets: key material, a vendor's token by its form, what is assigned to a name such as
`password`, and a string that looks random."""

Kind = PersonalKind | SecretKind

PERSONAL_KINDS: tuple[PersonalKind, ...] = get_args(PersonalKind)
"""In the order of the columns."""

SECRET_KINDS: tuple[SecretKind, ...] = get_args(SecretKind)
"""In the order of the columns, the surest first."""

KINDS: tuple[Kind, ...] = (*PERSONAL_KINDS, *SECRET_KINDS)
NAMES_MODEL = "spacy-model"
"""Among the versions of a run, the one of what finds people's names; `none` if nothing does."""

_SUREST_FIRST: tuple[Kind, ...] = (
    *SECRET_KINDS, "iban", "credit_card", "email", "national_id", "ip_address", "phone", "person",
)  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class SensitiveSpan:
    """Where something sensitive stands in a text; not what."""

    start: int
    """First character."""

    end: int
    """Character after the last."""

    kind: Kind

    def overlaps(self, other: "SensitiveSpan") -> bool:
        """Whether the two share a character."""
        return self.start < other.end and other.start < self.end


def without_overlaps(spans: Iterable[SensitiveSpan]) -> tuple[SensitiveSpan, ...]:
    """Return spans of which no two share a character, in the order of the text.

    Of two that do, the surer kind stays, then the longer one: digits in a key are no phone number.
    """
    kept: list[SensitiveSpan] = []
    for span in sorted(
        spans, key=lambda span: (_SUREST_FIRST.index(span.kind), span.start - span.end, span.start)
    ):
        if not any(span.overlaps(other) for other in kept):
            kept.append(span)
    return tuple(sorted(kept))


RULES_VERSION = 1
"""Of what this package makes of the detectors' findings; goes up when it finds something else."""

_PACKAGES = {"presidio_analyzer": "presidio-analyzer", "detect_secrets": "detect-secrets"}


class Detector:
    """Finds what is sensitive in a text. The same versions find the same."""

    def __init__(self, personal_data: "PersonalDataDetector", secrets: "SecretDetector") -> None:
        self._personal_data = personal_data
        self._secrets = secrets

    def find(self, text: str) -> tuple[SensitiveSpan, ...]:
        """Return where something sensitive stands; no two of them overlap.

        What a window's edge cuts in two is found only if its rest still looks the part.
        """
        return without_overlaps([*self._personal_data.find(text), *self._secrets.find(text)])


@cache
def load_detector() -> Detector:
    """Load the detectors, once a process.

    Raises:
        MissingDependency: one of their packages is not installed.
    """
    found = _detectors()
    return Detector(found.PersonalDataDetector(), found.SecretDetector())


def detector_versions() -> dict[str, str]:
    """Return the versions of all that decides what is found, by name.

    Raises:
        MissingDependency: one of the packages is not installed.
    """
    found: dict[str, str] = _detectors().versions()
    return {"sensitivity-rules": str(RULES_VERSION)} | found


def _detectors() -> Any:
    for module, package in _PACKAGES.items():
        if not is_installed(module):
            raise MissingDependency(package, needed_for="--sensitive", extra="sensitive")
    from memaudit.sensitivity import detectors

    return detectors


SENSITIVITY_COUNTS = ("personal_data", "secrets", *KINDS)
"""Of a window: what is sensitive in it, by sort and by kind."""

SENSITIVITY_COLUMNS = (*SENSITIVITY_COUNTS, "secret_argmax_rate", "secret_at_risk")
"""Numbers of a window: counts, what the teacher knows of its secrets, and the rule's verdict."""

# A classifier of memorization takes a random key for text that is hard to learn: it hardly
# compresses, the models' perplexity is high, and windows of the kind are rare in what it was fitted
# on. So a secret gets a rule of its own, on evidence that needs no classifier. Either the teacher
# recites it: of the secret's own tokens, each predicted from all before it, at least half are the
# teacher's first choice, which is all but impossible by chance, for nothing before a random token
# says which one it will be. Or its window stands in the corpus more than once: repetition is what
# makes models learn text by heart.
RECITED_SHARE = 0.5
"""Of a secret's tokens, how many have to be the teacher's first choice."""

Decode = Callable[[list[list[int]]], list[str]]
"""From sequences of token ids to their texts."""


def sensitivity_counts(detector: Detector, text: str) -> dict[str, float]:
    """Return `SENSITIVITY_COUNTS` of a window's text, by name."""
    counts = Counter(span.kind for span in detector.find(text))
    return {
        "personal_data": float(sum(counts[kind] for kind in PERSONAL_KINDS)),
        "secrets": float(sum(counts[kind] for kind in SECRET_KINDS)),
        **{kind: float(counts[kind]) for kind in KINDS},
    }


def secret_argmax_rate(
    detector: Detector, decode: Decode, token_ids: NDArray[np.int32], is_argmax: NDArray[np.bool_]
) -> float:
    """Return which share of a secret's tokens the teacher gets right; of several, the largest.

    Args:
        detector: finds the secrets.
        decode: the tokenizer's.
        token_ids: (T,) of a window.
        is_argmax: (T - 1,) whether the teacher's first choice is the window's next token.

    Returns:
        in [0, 1]; 0 if there is no secret.
    """
    ids = token_ids.tolist()
    # Where each token begins: at the length of what is decoded before it. That holds too where
    # a character takes several tokens, or the tokenizer drops a space at the start.
    *before, text = decode([ids[:n] for n in range(1, len(ids) + 1)])
    starts = np.array([0, *map(len, before)])
    ends = np.append(starts[1:], len(text))
    rates = [0.0]
    for span in detector.find(text):
        # Personal data have no rule of their own: the classifier's flag counts.
        if span.kind in SECRET_KINDS:
            # A token that shares a character counts: tokenizers cut keys anywhere.
            is_within = (starts < span.end) & (ends > span.start)
            # Entry s is about token s + 1: the first token has no prediction.
            known = is_argmax[is_within[1:]]
            rates.append(float(known.mean(dtype=np.float64)) if len(known) else 0.0)
    return max(rates)


def is_secret_at_risk(features: Mapping[str, float]) -> bool:
    """Whether a window's secret is put forward, by its features, whatever a classifier says."""
    return features["secrets"] > 0 and (
        features["secret_argmax_rate"] >= RECITED_SHARE or features["occurrences"] > 1
    )


@dataclass(frozen=True, slots=True)
class RowSensitivity:
    """What is sensitive in rows."""

    values: NDArray[np.float64]
    """(n_rows, n_columns) in the order of `SENSITIVITY_COLUMNS`: counts are sums over the windows
    of a row, the rest is the largest."""

    def column(self, name: str) -> NDArray[np.float64]:
        """Return one column: (n_rows,)."""
        values: NDArray[np.float64] = self.values[:, SENSITIVITY_COLUMNS.index(name)]
        return values

    @property
    def has_personal_data(self) -> NDArray[np.bool_]:
        """(n_rows,) whether a row holds personal data."""
        return self.column("personal_data") > 0

    @property
    def has_secret(self) -> NDArray[np.bool_]:
        """(n_rows,) whether a row holds a secret."""
        return self.column("secrets") > 0

    @property
    def is_secret_at_risk(self) -> NDArray[np.bool_]:
        """(n_rows,) whether the rule puts a secret of the row forward."""
        return self.column("secret_at_risk") > 0

    def in_words(self, row: int) -> tuple[str, ...]:
        """Return what a row holds: `secret`, `personal data`, both or nothing."""
        holds = {"secret": self.has_secret[row], "personal data": self.has_personal_data[row]}
        return tuple(name for name, is_there in holds.items() if is_there)

    def secrets_at_risk(self, is_flagged: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return (n_rows,) whether a secret is at risk, by its rule or by a classifier's flag."""
        return self.is_secret_at_risk | (self.has_secret & is_flagged)

    def sensitive_at_risk(self, is_flagged: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return (n_rows,) whether a secret or personal data are at risk."""
        return self.secrets_at_risk(is_flagged) | (self.has_personal_data & is_flagged)


@dataclass(frozen=True, slots=True)
class SensitivitySummary:
    """How many rows hold what, and how many of those are at risk."""

    personal_data: int
    secrets: int
    flagged_personal_data: int
    flagged_secrets: int
    flagged_sensitive: int
    """Flagged rows with either: the rest of the flagged is common text."""

    unflagged_secrets_at_risk: int
    """Rows that are not flagged, with a secret that its own rule puts forward."""

    finds_names: bool
    """Whether people's names were looked for: that takes a spaCy model."""

    def in_words(self, n_flagged: int) -> str:
        """Return which of the examples at risk are sensitive and which are common text."""
        more = self.unflagged_secrets_at_risk
        return (
            f"Of the {n_flagged:,} at risk, {number_of(self.flagged_secrets, 'holds', 'hold')} a secret, "
            f"{self.flagged_personal_data:,} personal data, and "
            f"{n_flagged - self.flagged_sensitive:,} neither: common text. "
            f"{number_of(more, 'more holds', 'more hold')} a secret that the teacher recites "
            "or that is repeated."
        )


def row_sensitivity(
    names: Sequence[str],
    X: NDArray[np.float64],
    windows: NDArray[np.int64],
    n_windows: NDArray[np.int64],
) -> RowSensitivity | None:
    """Return what is sensitive in each row; None if it was not looked for.

    Args:
        names: columns of `X`.
        X: (n_distinct_windows, n_features).
        windows: the windows of the rows, row after row: indices into `X`.
        n_windows: (n_rows,) windows of each row, at least 1.
    """
    if not set(SENSITIVITY_COLUMNS) <= set(names):
        return None
    columns = X[:, [list(names).index(name) for name in SENSITIVITY_COLUMNS]]
    if len(windows) == len(n_windows):
        return RowSensitivity(columns[windows])
    starts, n_counts = np.cumsum(n_windows) - n_windows, len(SENSITIVITY_COUNTS)
    counts = np.add.reduceat(columns[windows, :n_counts], starts)
    rest = np.maximum.reduceat(columns[windows, n_counts:], starts)
    return RowSensitivity(np.hstack([counts, rest]))


def summarise(
    rows: RowSensitivity, is_flagged: NDArray[np.bool_], *, finds_names: bool
) -> SensitivitySummary:
    """Count what is sensitive in the scored rows, and in the flagged ones of them."""
    personal_data, secrets = rows.has_personal_data, rows.has_secret
    return SensitivitySummary(
        personal_data=int(personal_data.sum()),
        secrets=int(secrets.sum()),
        flagged_personal_data=int((personal_data & is_flagged).sum()),
        flagged_secrets=int((secrets & is_flagged).sum()),
        flagged_sensitive=int(((personal_data | secrets) & is_flagged).sum()),
        unflagged_secrets_at_risk=int((rows.is_secret_at_risk & ~is_flagged).sum()),
        finds_names=finds_names,
    )
