"""The gate: a finished run held to a policy. This file shows the whole flow.

1. The run is read back whole and verified; nothing that could be stale is believed.
2. Its classifier must be one that comes with memaudit, or one that the policy allows.
3. What a verification found, and which examples are known, is matched with its rows.
4. Each rule passes, fails, or has no evidence to be judged by.

Anything that cannot be settled is an error, not a pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import UsageError
from memaudit.gate.guarantee import count_expected, make_guarantee
from memaudit.gate.identity import (
    Baseline,
    baseline_of,
    known_rows,
    one_time_key,
    read_baseline,
    window_hashes,
)
from memaudit.gate.policy import EffectivePolicy, GatePolicy
from memaudit.gate.result import Finding, GateResult, Level, RuleResult, Verdict
from memaudit.gate.rules import Evidence, apply_rules, recited_rows, sensitive_rows
from memaudit.gate.soundness import require_sound
from memaudit.gate.verified import read_verification
from memaudit.runs.finished import FinishedRun, read_finished_run
from memaudit.runs.same_corpus import require_same_corpus


@dataclass(frozen=True, slots=True)
class GateInputs:
    """What a gate looks at beside the run."""

    verification: Path | None = None
    """Folder of a verification of the same."""

    data: str | None = None
    """The corpus as it is now: must be the one that was scored."""

    baseline: Path | None = None
    """Folder of an earlier run, or a baseline file: what is in it does not count."""

    key: bytes | None = None
    """Of the project; needed for a baseline file and for fingerprints of findings."""


@dataclass(frozen=True, slots=True)
class _FoundWindow:
    """A distinct window that a rule speaks of."""

    window: int
    row: int
    copies: int
    level: Level


def check_gate(
    run: FinishedRun, policy: EffectivePolicy, inputs: GateInputs, *, n_worst: int = 1000
) -> GateResult:
    """Hold a run to a policy.

    Args:
        run: read back whole.
        policy: what is allowed.
        inputs: what else is looked at.
        n_worst: findings listed, at least 0.

    Raises:
        UsageError, OutputError, CorpusError: something is missing, incomplete, changed, stale or
            of something else.
        ClassifierError: the classifier is not one that is allowed, or a score is not finite.
    """
    require_sound(run, policy.policy)
    if inputs.data is not None:
        require_same_corpus(run, inputs.data)
    counts, baseline = _counted(run, inputs, policy)
    evidence = _evidence(run, inputs, counts, is_new_only=baseline is not None)
    rules = apply_rules(policy.policy, evidence)
    found = _findings(evidence, policy.policy)
    return GateResult(
        verdict=_verdict(rules, policy.policy),
        rules=rules,
        guarantee=evidence.guarantee,
        findings=tuple(_listed(run, found[:n_worst], inputs.key)),
        n_findings=len(found),
        counts=_counts(evidence),
        policy=policy,
        provenance=_provenance(evidence, baseline),
    )


def _counted(
    run: FinishedRun, inputs: GateInputs, policy: EffectivePolicy
) -> tuple[NDArray[np.bool_], Baseline | None]:
    """Return (n_rows,) the scored rows that count, and what is known, if anything is."""
    if inputs.baseline is None:
        return run.is_scored, None
    if inputs.baseline.is_dir():
        key = one_time_key()
        baseline = baseline_of(read_finished_run(inputs.baseline), key)
    else:
        assert inputs.key is not None, "a baseline file needs its key"
        key, baseline = inputs.key, read_baseline(inputs.baseline, inputs.key)
    pinned = policy.policy.baseline_digest
    if (policy.is_pinned or pinned is not None) and baseline.digest != pinned:
        raise UsageError(
            f"the baseline has the digest {baseline.digest}, the policy pins {pinned or 'none'}",
            hint="leave out --baseline, or pin its digest in the policy as baseline-digest",
        )
    return run.is_scored & ~known_rows(run, baseline, key), baseline


def _evidence(
    run: FinishedRun, inputs: GateInputs, counts: NDArray[np.bool_], *, is_new_only: bool
) -> Evidence:
    expected = count_expected(run, counts)
    verified = None if inputs.verification is None else read_verification(inputs.verification, run)
    return Evidence(
        run=run,
        counts=counts,
        recited=recited_rows(run),
        expected=expected,
        guarantee=make_guarantee(run, expected),
        verified=verified,
        is_new_only=is_new_only,
    )


def _verdict(rules: tuple[RuleResult, ...], policy: GatePolicy) -> Verdict:
    """What cannot be judged outranks what was found: nobody knows what else there is."""
    statuses = {rule.status for rule in rules}
    if "inconclusive" in statuses and policy.inconclusive == "fail":
        return "inconclusive"
    return "fail" if "fail" in statuses else "pass"


def _levels(evidence: Evidence, policy: GatePolicy) -> dict[Level, NDArray[np.bool_]]:
    """Return the rows of each level that the policy asks about, the strongest level first."""
    levels: dict[Level, NDArray[np.bool_]] = {}
    if policy.max_verified is not None and evidence.verified is not None:
        levels["verified"] = evidence.verified.recited & evidence.counts
    if policy.max_recited is not None:
        levels["recited"] = evidence.recited & evidence.counts
    predicted = sensitive_rows(policy, evidence.run)
    if policy.max_rate is not None or policy.max_expected is not None:
        predicted |= evidence.run.is_flagged
    levels["predicted"] = predicted & evidence.counts
    return levels


def _findings(evidence: Evidence, policy: GatePolicy) -> list[_FoundWindow]:
    """Return every finding, the worst first: of rows with equal worst windows, the first."""
    run, left = evidence.run, evidence.counts.copy()
    found: list[_FoundWindow] = []
    for level, is_in in _levels(evidence, policy).items():
        rows = np.flatnonzero(is_in & left)
        left &= ~is_in
        windows, first, copies = np.unique(
            run.worst_windows[rows], return_index=True, return_counts=True
        )
        order = np.lexsort((first, -run.judgement.window_probabilities[windows]))
        found += [
            _FoundWindow(int(windows[i]), int(rows[first[i]]), int(copies[i]), level)
            for i in order.tolist()
        ]
    return found


def _listed(run: FinishedRun, found: list[_FoundWindow], key: bytes | None) -> Iterator[Finding]:
    fingerprints: list[str] | list[None] = [None] * len(found)
    if key is not None:
        fingerprints = window_hashes(run.judgement, [one.window for one in found], key)[0]
    for one, fingerprint in zip(found, fingerprints, strict=True):
        source = run.row(one.row)
        yield Finding(
            example_id=source.example_id,
            row=source.row,
            address=source.address,
            rows=one.copies,
            level=one.level,
            probability=float(run.probabilities[one.row]),
            reason=run.judgement.reason(one.window),
            fingerprint=fingerprint,
        )


def _counts(evidence: Evidence) -> dict[str, int]:
    found = evidence.run.outcomes
    outcomes = {name: found[name] for name in ("scored", "screened", "too_short", "bad")}
    return {
        "rows": evidence.run.n_rows,
        **outcomes,
        "counted": int(evidence.counts.sum()),
        "flagged": int((evidence.run.is_flagged & evidence.counts).sum()),
        "recited": int((evidence.recited & evidence.counts).sum()),
    }


def _provenance(evidence: Evidence, baseline: Baseline | None) -> dict[str, str | None]:
    manifest, verified = evidence.run.manifest, evidence.verified
    return {
        "run": manifest.inputs.fingerprint,
        "corpus_digest": manifest.inputs.texts_digest,
        "rows_digest": manifest.inputs.rows_digest,
        "corpus": str(manifest.inputs.corpus.get("source", "")) or None,
        "teacher": manifest.names.teacher,
        "teacher_digest": manifest.inputs.teacher_digest,
        "reference_digest": manifest.inputs.reference_digest,
        "classifier": manifest.classifier.name,
        "classifier_digest": manifest.classifier.digest,
        "verification_digest": None if verified is None else verified.labels_digest,
        "baseline_digest": None if baseline is None else baseline.digest,
        "memaudit_version": manifest.names.memaudit_version,
    }
