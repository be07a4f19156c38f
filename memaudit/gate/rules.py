"""The rules: what a policy asks, held against the evidence."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memaudit.gate.policy import GatePolicy
from memaudit.gate.result import Guarantee, RuleResult, Status
from memaudit.labels import VerifiedRows
from memaudit.metrics import ExpectedCount
from memaudit.runs.run import Run

_PREDICTED = ("MEM001", "MEM002", "MEM006", "MEM007")
"""Rules that rest on the classifier's probabilities."""

_KNOWN = ("scored", "screened", "too_short")
"""Outcomes of rows about which something is known; a screened one was found unlikely to matter."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that rules are held against."""

    run: Run
    counts: NDArray[np.bool_]
    """(n_rows,) scored rows that count: all, or the new ones."""

    recited: NDArray[np.bool_]
    """(n_rows,) whether the teacher recites the suffix of the row's worst window."""

    expected: ExpectedCount
    """Of the rows that count."""

    guarantee: Guarantee
    verified: VerifiedRows | None
    is_new_only: bool
    """Whether known rows do not count."""

    @property
    def noun(self) -> str:
        """What is counted."""
        return "new examples" if self.is_new_only else "examples"


def recited_rows(run: Run) -> NDArray[np.bool_]:
    """Return (n_rows,) whether the teacher's first choices are the whole suffix."""
    risks = run.risks
    rates = risks.X[:, risks.feature_names.index("teacher_suffix_argmax_rate")]
    recited = np.zeros(run.n_rows, dtype=np.bool_)
    recited[run.is_scored] = rates[run.worst_windows[run.is_scored]] == 1.0
    return recited


def apply_rules(
    policy: GatePolicy, evidence: Evidence, out_of_range: float
) -> tuple[RuleResult, ...]:
    """Return what came of each rule that the policy asks for, in the order of their ids.

    Args:
        policy: what is allowed.
        evidence: what is known.
        out_of_range: share of scored rows unlike those that the classifier was fitted on.
    """
    rules = tuple(_results(policy, evidence))
    if out_of_range <= policy.max_out_of_range_share:
        return rules
    why = (
        f", and the prediction is a guess: {out_of_range:.0%} of the scored rows are unlike those "
        f"the classifier was trained on, at most {policy.max_out_of_range_share:.0%} allowed"
    )
    # What fails already stays failed: a policy may let pass what is inconclusive.
    return tuple(
        replace(rule, status="inconclusive", message=rule.message + why)
        if rule.id in _PREDICTED and rule.status == "pass"
        else rule
        for rule in rules
    )


def _results(policy: GatePolicy, evidence: Evidence) -> Iterator[RuleResult]:
    if policy.max_rate is not None:
        yield _rate(policy.max_rate, evidence)
    if policy.max_expected is not None:
        yield _expected(policy, policy.max_expected, evidence)
    if policy.max_recited is not None:
        n_recited = int((evidence.recited & evidence.counts).sum())
        yield _result(
            "MEM003",
            n_recited,
            policy.max_recited,
            f"the teacher recites {n_recited:,} {evidence.noun}, "
            f"at most {policy.max_recited:,} allowed",
        )
    if policy.max_verified is not None:
        yield _verified(policy.max_verified, evidence)
    yield _unscored(policy.max_bad_rows, evidence)
    yield from _sensitive(policy, evidence)


def _result(
    rule: str, observed: float, limit: float, message: str, *, otherwise: Status = "pass"
) -> RuleResult:
    # Not `observed <= limit` alone: a comparison with NaN must not pass.
    status = otherwise if observed <= limit else "fail"
    return RuleResult(rule, status, observed, limit, message)


def _rate(limit: float, evidence: Evidence) -> RuleResult:
    n_flagged = int((evidence.run.is_flagged & evidence.counts).sum())
    n_scored = int(evidence.run.is_scored.sum())
    rate = n_flagged / max(1, n_scored)  # a cascade may have left every row out
    return _result(
        "MEM001",
        rate,
        limit,
        f"{n_flagged:,} {evidence.noun} of {n_scored:,} scored are flagged ({rate:.3%}), "
        f"at most {limit:.3%} allowed",
    )


def _expected(policy: GatePolicy, limit: float, evidence: Evidence) -> RuleResult:
    expected, guarantee = evidence.expected, evidence.guarantee
    # The limit stands as it was given: 2,500 rounded to "2.5e+03" is another number.
    allowed = f"at most {limit:,.10g} allowed"
    mean = f"{expected.mean:,.1f} {evidence.noun} are expected to be memorized"
    if policy.expected_bound == "mean":
        message = f"{mean}, {allowed}; compared: the mean, as the policy says"
        return _result("MEM002", expected.mean, limit, message)
    if not expected.mean <= limit:
        message = f"{mean}, {allowed}; compared: the mean, and the upper bound is higher still"
        return _result("MEM002", expected.mean, limit, message)
    message = (
        f"up to {expected.high:,} {evidence.noun} may be memorized (expected {expected.mean:,.1f}), "
        f"{allowed}; compared: the upper end of the 95% interval"
    )
    if guarantee.status == "underpowered":
        message += f", which is no bound here: {'; '.join(guarantee.reasons)}"
        return RuleResult("MEM002", "inconclusive", float(expected.high), limit, message)
    return _result("MEM002", float(expected.high), limit, message)


def _verified(limit: int, evidence: Evidence) -> RuleResult:
    verified = evidence.verified
    if verified is None:
        return RuleResult(
            "MEM004",
            "inconclusive",
            None,
            limit,
            f"no verification was given, at most {limit:,} verified examples allowed",
        )
    n_found = int((verified.recited & evidence.counts).sum())
    n_asked = int((verified.looked_at & evidence.counts).sum())
    n_rows = int(evidence.counts.sum())
    message = (
        f"the distilled student recites {n_found:,} of {n_asked:,} {evidence.noun} that it was "
        f"trained on, of {n_rows:,} in all; at most {limit:,} allowed"
    )
    if verified.is_sample:
        message += ", and only a sample was trained on"
    otherwise: Status = "inconclusive" if verified.is_sample else "pass"
    return _result("MEM004", n_found, limit, message, otherwise=otherwise)


def sensitive_rows(policy: GatePolicy, run: Run) -> NDArray[np.bool_]:
    """Return (n_rows,) whether a row is at risk with what the policy asks about of what it holds."""
    found = run.sensitivity
    if found is None or (policy.max_sensitive is None and policy.max_secrets is None):
        return np.zeros(run.n_rows, dtype=np.bool_)
    if policy.max_sensitive is None:
        return found.secrets_at_risk(run.is_flagged)
    return found.sensitive_at_risk(run.is_flagged)


def _sensitive(policy: GatePolicy, evidence: Evidence) -> Iterator[RuleResult]:
    found, is_flagged = evidence.run.sensitivity, evidence.run.is_flagged
    asked = (
        ("MEM006", policy.max_sensitive, "at risk hold personal data or a secret"),
        ("MEM007", policy.max_secrets, "hold a secret that is at risk"),
    )
    for rule, limit, what in asked:
        if limit is None:
            continue
        if found is None:
            message = f"the run was not searched for what is sensitive, at most {limit:,} allowed"
            yield RuleResult(rule, "inconclusive", None, limit, message)
            continue
        at_risk = found.secrets_at_risk if rule == "MEM007" else found.sensitive_at_risk
        n_found = int((at_risk(is_flagged) & evidence.counts).sum())
        yield _result(
            rule, n_found, limit, f"{n_found:,} {evidence.noun} {what}, at most {limit:,} allowed"
        )


def _unscored(limit: int, evidence: Evidence) -> RuleResult:
    """Bad rows break no limit, but nothing is known about them either."""
    outcomes = evidence.run.outcomes
    n_bad = outcomes.total() - sum(outcomes[name] for name in _KNOWN)
    noun = "row" if n_bad == 1 else "rows"
    message = f"{n_bad:,} {noun} could not be used, at most {limit:,} allowed"
    status: Status = "pass" if n_bad <= limit else "inconclusive"
    return RuleResult("MEM005", status, n_bad, limit, message)
