"""What a report says of a verification: the sets, and this run's predictions against them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memaudit.evaluation import MissedExample, Rate
from memaudit.labels import ROLES, VerificationResult, VerifiedRows, read_verified_rows
from memaudit.metrics import ExpectedCount

if TYPE_CHECKING:
    from memaudit.runs.finished import FinishedRun


@dataclass(frozen=True, slots=True)
class ExtractionSet:
    """Examples that the same models recite."""

    name: str
    """In a word or two."""

    recited_by: frozenset[str]
    """Roles of those models."""

    examples: int
    """Distinct ones."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What really happened, beside what was predicted. Equal texts count once, but for rows."""

    result: VerificationResult
    """As read."""

    sets: tuple[ExtractionSet, ...]
    """Disjoint; together with those that nobody recites, all examples."""

    expected: ExpectedCount
    """Distinct examples expected to be memorized, of those looked at."""

    expected_rows: float
    """Rows expected to be memorized, of those looked at."""

    precision: Rate
    """Recited among those at risk."""

    recall: Rate
    """At risk among the recited."""

    roc_auc: float | None
    """None without a positive or a negative."""

    pr_auc: float | None
    """Average precision; None without a positive."""

    recited_by: Mapping[str, NDArray[np.bool_]]
    """(n_rows,) by role."""

    looked_at: NDArray[np.bool_]
    """(n_rows,) whether the models were asked for it."""

    missed: tuple[MissedExample, ...]
    """Recited and not at risk, the least probable first; at most 20 of them."""

    def reciters(self, row: int) -> tuple[str, ...] | None:
        """Return the roles of the models that recite a row; None if they were not asked."""
        if not self.looked_at[row]:
            return None
        return tuple(role for role in ROLES if self.recited_by[role][row])

    @property
    def most(self) -> int:
        """Examples in the largest of the sets."""
        return max(each.examples for each in self.sets)

    @property
    def found(self) -> Rate:
        """What the student recites."""
        return self.result.extracted["student"]


def read_verified(folder: Path, run: "FinishedRun") -> Verified:
    """Return what a verification of the run's corpus and teacher found.

    Raises:
        UsageError: it is of another corpus, teacher, objective or window.
        OutputError: it is missing or damaged.
    """
    return shown_rows(read_verified_rows(folder, run))


def shown_rows(rows: VerifiedRows) -> Verified:
    """Return what a report shows of a verification."""
    found = rows.comparison
    return Verified(
        result=rows.result,
        sets=_sets(rows.result),
        expected=found.expected_count,
        expected_rows=found.expected_rows,
        precision=found.precision,
        recall=found.recall,
        roc_auc=found.roc_auc,
        pr_auc=found.pr_auc,
        recited_by=rows.recited_by,
        looked_at=rows.looked_at,
        missed=found.missed,
    )


def _sets(result: VerificationResult) -> tuple[ExtractionSet, ...]:
    counts, in_all = result.sets, result.student_in_easy.count
    named = [
        ("easy, and the student's", ROLES, in_all),
        ("easy, but not the student's", ("teacher", "baseline"), counts["easy"] - in_all),
        ("inherited", ("teacher", "student"), counts["inherited"]),
        ("new", ("student",), counts["new"]),
        ("baseline and student", ("baseline", "student"), counts["baseline_and_student"]),
        ("teacher only", ("teacher",), counts["teacher_only"]),
        ("baseline only", ("baseline",), counts["baseline_only"]),
    ]
    return tuple(ExtractionSet(name, frozenset(roles), n) for name, roles, n in named)
