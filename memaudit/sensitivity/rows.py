"""From windows to rows: what is sensitive in an example, all of its windows together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memaudit.sensitivity.evidence import SENSITIVITY_COLUMNS, SENSITIVITY_COUNTS


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
    """Scored rows with personal data."""

    secrets: int
    """Scored rows with secrets."""

    flagged_personal_data: int
    """Flagged rows with personal data."""

    flagged_secrets: int
    """Flagged rows with secrets."""

    flagged_sensitive: int
    """Flagged rows with either: the rest of the flagged is common text."""

    unflagged_secrets_at_risk: int
    """Rows that are not flagged, with a secret that its own rule puts forward."""

    finds_names: bool
    """Whether people's names were looked for: that takes a spaCy model."""

    def in_words(self, n_flagged: int) -> str:
        """Return which of the examples at risk are sensitive and which are common text.

        Args:
            n_flagged: flagged rows.
        """
        more = self.unflagged_secrets_at_risk
        return (
            f"Of the {n_flagged:,} at risk, {self.flagged_secrets:,} hold a secret, "
            f"{self.flagged_personal_data:,} personal data, and "
            f"{n_flagged - self.flagged_sensitive:,} neither: common text. "
            f"{more:,} more {'holds' if more == 1 else 'hold'} a secret that the teacher recites "
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
    """Count rows.

    Args:
        rows: the scored ones.
        is_flagged: (n_rows,) whether the classifier flags them.
        finds_names: whether people's names were looked for.
    """
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
