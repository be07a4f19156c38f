"""What a report says of a verification: the sets, and this run's predictions against them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memaudit.gate.verified import read_verification
from memaudit.metrics import ExpectedCount, pr_auc, roc_auc
from memaudit.verification.result import (
    ROLES,
    MissedExample,
    Rate,
    VerificationResult,
    read_document,
)
from memaudit.verification.table import read_table

if TYPE_CHECKING:
    import pyarrow as pa

    from memaudit.runs.finished import FinishedRun


_MISSED_SHOWN = 20


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
    read_verification(folder, run)  # refuses what does not belong to the run
    result = read_document(json.loads((folder / "verification.json").read_text(encoding="utf-8")))
    return verified_run(result, read_table(folder / "verification.parquet"), run)


def verified_run(result: VerificationResult, table: "pa.Table", run: "FinishedRun") -> Verified:
    """Compare the run with the labels of its rows.

    Args:
        result: of a verification.
        table: its rows, those of the run.
        run: finished.
    """
    looked_at = table["outcome"].to_numpy() == "scored"
    recited_by = {
        role: table[f"extracted_by_{role}"].fill_null(False).to_numpy().astype(np.bool_)
        for role in ROLES
    }
    rows = np.flatnonzero(looked_at)
    examples = table["example"].to_numpy(zero_copy_only=False)[rows].astype(np.int64)
    _, first, copies = np.unique(examples, return_index=True, return_counts=True)
    first_rows = rows[first]
    extracted, flagged = recited_by["student"][first_rows], run.is_flagged[first_rows]
    probabilities = run.probabilities[first_rows]
    n_caught = int((flagged & extracted).sum())
    return Verified(
        result=result,
        sets=_sets(result),
        expected=run.judgement.classifier.expected_count(probabilities),
        expected_rows=float((copies * probabilities).sum()),
        precision=Rate.of_counts(n_caught, int(flagged.sum())),
        recall=Rate.of_counts(n_caught, int(extracted.sum())),
        roc_auc=roc_auc(extracted, probabilities),
        pr_auc=pr_auc(extracted, probabilities),
        recited_by=recited_by,
        looked_at=looked_at,
        missed=_missed(run, first_rows[extracted & ~flagged]),
    )


def _missed(run: "FinishedRun", rows: NDArray[np.int64]) -> tuple[MissedExample, ...]:
    by_probability = rows[np.argsort(run.probabilities[rows], kind="stable")]
    found = []
    for row in by_probability[:_MISSED_SHOWN].tolist():
        source = run.row(row)
        place = (source.example_id, source.row, source.address)
        found.append(MissedExample(*place, float(run.probabilities[row])))
    return tuple(found)


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
