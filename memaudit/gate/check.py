"""The gate: a finished run held to a policy. This file shows the whole flow.

Anything that cannot be settled is an error, not a pass. The order of the checks matters:

1. The run was read back and verified by `read_run`. Everything below relies on that.
2. If a signature is asked for, it must hold: of a forged run nothing else needs to be looked at.
3. Its scores must be trusted: finite, and from a classifier and a cascade that the policy allows.
   This comes before any rule, because a rule that passes on a forged probability says nothing.
4. It must have scored what the policy asks for: with another column or an untrained teacher
   every limit holds.
5. Its corpus must be the one at hand, if one was given, and windows that are scored again must
   have the scores that it says. This is slow, so it comes after what can
   refuse the run for free, and before the rules, which speak of that corpus.
6. Known examples are set aside and verified ones are matched. Both change what the rules count.
7. Each rule passes, fails, or has no evidence to be judged by.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from memaudit.classifier import load_classifier, shipped_classifiers_dir
from memaudit.errors import ClassifierError, UsageError
from memaudit.gate import Rescoring
from memaudit.gate.identity import (
    Baseline,
    baseline_of,
    known_rows,
    one_time_key,
    read_baseline,
    window_hashes,
)
from memaudit.gate.policy import EffectivePolicy, GatePolicy
from memaudit.gate.rescore import rescore
from memaudit.gate.result import Finding, GateResult, Guarantee, Level, Verdict
from memaudit.gate.rules import (
    Evidence,
    apply_rules,
    judged,
    require_scope,
    rows_by_level,
    scope_rules,
)
from memaudit.labels import PARTS, read_verified_rows
from memaudit.metrics import ExpectedCount
from memaudit.prefilter import make_prefilter
from memaudit.runs.run import Run, read_run
from memaudit.runs.signature import Signature, require_signature
from memaudit.runs.unchanged import require_same_corpus
from memaudit.text import number_of, safe_text

# 0.9 ** 29 is 0.047: had a tenth been missed, 29 would be found in a row in under 5 % of cases.
MIN_POSITIVES = 29
"""Memorized examples in calibration below which no recall of 90 % can be vouched for at 95 %."""

MIN_RUNS = 10
"""Calibration runs below which their spread says little about the next one."""

_CONFIDENCE = 0.975  # the upper end of a two-sided interval of 95 %
_ASSUMES = (
    "the corpus and the distillation are like the classifier's calibration runs, whose counts "
    "differed from expectation by as much as the next one's will"
)


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

    rescoring: Rescoring | None = None
    """Windows that are scored again, to see whether the run's scores are what it says; needs
    `data`."""

    verify_keys: tuple[str, ...] = ()
    """Public keys in hexadecimal, of which one must have signed the run. None: no one needs to."""


def check_gate(
    run: Run, policy: EffectivePolicy, inputs: GateInputs, *, n_worst: int = 1000
) -> GateResult:
    """Hold a run to a policy.

    Raises:
        UsageError, OutputError, CorpusError: something is missing, incomplete, changed, stale or
            of something else.
        ClassifierError: the classifier is not one that is allowed, or a score is not finite.
    """
    # Who vouches for the files is settled before anything that is read from them.
    signature = _signature(run, policy.policy, inputs)
    # Numbers before rules: with NaN among the features, comparisons below would pass by accident.
    n_broken = int((~np.isfinite(run.risks.X)).any(axis=1).sum())
    broken = "window of the run has", "windows of the run have"
    if n_broken or not np.isfinite(run.probabilities[run.is_scored]).all():
        raise ClassifierError(
            f"{number_of(n_broken, *broken)} a feature that is not a finite number",
            hint="the scores are broken: check that the model's weights hold no NaN",
        )
    # Then what made the probabilities: a classifier or a screen of one's own could flag nothing.
    _require_models(run, policy.policy)
    found = judged(run, signature)
    require_scope(found, policy.policy, has_data=inputs.data is not None)
    # The corpus is read once all that is cheap holds; to score windows again reads it as well.
    if inputs.rescoring is not None:
        if inputs.data is None:
            raise UsageError("to score windows again needs the corpus", hint="name it with --data")
        found = msgspec.structs.replace(found, rescored=rescore(run, inputs.data, inputs.rescoring))
    elif inputs.data is not None:
        require_same_corpus(run, inputs.data)
    evidence, baseline = _evidence(run, inputs, policy)
    rules = (*apply_rules(policy.policy, evidence, found), *scope_rules(found, policy.policy))
    findings, n_findings = _findings(evidence, policy.policy, inputs.key, n_worst)
    statuses = {rule.status for rule in rules}
    verdict: Verdict = "fail" if "fail" in statuses else "pass"
    # What cannot be judged outranks what was found: nobody knows what else there is.
    if "inconclusive" in statuses and policy.policy.inconclusive == "fail":
        verdict = "inconclusive"
    return GateResult(
        verdict=verdict,
        rules=rules,
        guarantee=evidence.guarantee,
        findings=findings,
        n_findings=n_findings,
        counts={
            "rows": run.n_rows,
            **{name: run.outcomes[name] for name in ("scored", "screened", "too_short", "bad")},
            "counted": int(evidence.counts.sum()),
            "flagged": evidence.count(run.is_flagged),
            "recited": evidence.count(run.is_recited),
        },
        policy=policy,
        judged=found,
        provenance=_provenance(evidence, baseline),
    )


def _signature(run: Run, policy: GatePolicy, inputs: GateInputs) -> Signature | None:
    """Return the signature of a run once it holds; None if nobody asks for one."""
    if policy.signers is None and not inputs.verify_keys:
        return None
    allowed = set(inputs.verify_keys if policy.signers is None else policy.signers)
    # Who runs the gate may ask for less than the policy allows, never for more.
    # If none is left, nothing passes: no run is signed with a key of an empty set.
    keys = allowed & set(inputs.verify_keys or allowed)
    if inputs.verification is not None:
        require_signature(inputs.verification, keys, PARTS)
    return require_signature(run.folder, keys)


def _require_models(run: Run, policy: GatePolicy) -> None:
    """Refuse a classifier that is not allowed, and a cascade that memaudit would not have made."""
    classifier, objective = run.manifest.classifier, run.manifest.inputs.objective
    if classifier.objective != objective.kind:
        raise ClassifierError(
            f"classifier {classifier.name} was fitted on students that learned by "
            f"{classifier.objective} labels, the run expects {objective.kind}",
            hint="predict anew with a classifier of the right objective",
        )
    if policy.classifier_digest not in (None, classifier.digest):
        raise ClassifierError(
            f"classifier {classifier.name} has the digest {classifier.digest[:12]}, the policy "
            f"pins {safe_text(str(policy.classifier_digest)[:12])}",
            hint="predict anew with the classifier that is pinned",
        )
    is_allowed = policy.allow_custom_classifier or policy.classifier_digest is not None
    if not is_allowed:
        shipped = shipped_classifiers_dir() / classifier.name
        # By digest: anybody can give a classifier a shipped name.
        with suppress(ClassifierError):
            is_allowed = shipped.is_dir() and load_classifier(shipped).digest == classifier.digest
    if not is_allowed:
        raise ClassifierError(
            f"classifier {classifier.name} does not come with memaudit",
            hint="pin its digest in the policy as classifier-digest, or allow any with "
            f"--allow-custom-classifier; its digest is {classifier.digest}",
        )
    cascade, inputs = run.manifest.prefilter, run.manifest.inputs
    if cascade is None:
        is_known = inputs.cascade_digest is None and run.outcomes["screened"] == 0
    else:
        is_known = False
        with suppress(UsageError):
            known = make_prefilter(classifier, cascade.survival).digest
            is_known = known == cascade.digest == inputs.cascade_digest
    if not is_known:  # it could leave everything out
        raise ClassifierError(
            "what screened the corpus before it was scored does not come with memaudit",
            hint="predict anew, or without --survival",
        )


def _evidence(
    run: Run, inputs: GateInputs, policy: EffectivePolicy
) -> tuple[Evidence, Baseline | None]:
    """Return what rules are held against, and what is known and does not count, if anything is."""
    counts, baseline, pinned = run.is_scored, None, policy.policy.baseline_digest
    if inputs.baseline is not None:
        if inputs.baseline.is_dir():
            # Both sides are hashed now, and no hash is kept: any key will do.
            key = one_time_key()
            baseline = baseline_of(read_run(inputs.baseline), key)
        else:
            assert inputs.key is not None, "a baseline file needs its key"
            key = inputs.key
            baseline = read_baseline(inputs.baseline, key, pinned_digest=pinned)
        # A pinned policy that names no baseline allows none: a baseline hides findings, so choosing
        # one would be a way to weaken the policy.
        if (policy.is_pinned or pinned is not None) and baseline.digest != pinned:
            raise UsageError(
                f"the baseline has the digest {baseline.digest}, the policy pins "
                f"{pinned or 'none'}",
                hint="leave out --baseline, or pin its digest in the policy as baseline-digest",
            )
        counts = counts & ~known_rows(run, baseline, key)
    windows, copies = np.unique(run.worst_windows[counts], return_counts=True)
    probabilities = run.risks.window_probabilities[windows]
    # Copies of a text are memorized together, so they make one term of the count.
    expected = run.manifest.classifier.expected_count(probabilities, copies)
    verified = None if inputs.verification is None else read_verified_rows(inputs.verification, run)
    guarantee, is_new_only = _guarantee(run, expected), baseline is not None
    return Evidence(run, counts, expected, guarantee, verified, is_new_only), baseline


def _guarantee(run: Run, expected: ExpectedCount) -> Guarantee:
    """Return the bound that a classifier's calibration allows for this run."""
    classifier = run.manifest.classifier
    path = shipped_classifiers_dir() / classifier.name / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        card = {}
    reasons = []
    # The card of a namesake would vouch for what it has never seen.
    if card.get("digest") != classifier.digest:
        reasons.append("how the classifier was calibrated is not known here")
    else:
        n_runs, n_memorized = card["level"]["runs"], card["level"]["memorized"]
        if n_memorized < MIN_POSITIVES:
            reasons.append(
                f"{number_of(n_memorized, 'memorized example')} in calibration, at least "
                f"{MIN_POSITIVES} are needed"
            )
        if n_runs < MIN_RUNS:
            runs = number_of(n_runs, "calibration run")
            reasons.append(f"{runs}, at least {MIN_RUNS} are needed")
    if n_screened := run.outcomes["screened"]:
        screened = "row was screened out and is", "rows were screened out and are"
        reasons.append(f"{number_of(n_screened, *screened)} not counted")
    if outside := run.risks.unfamiliar:
        name, rate = max(outside.items(), key=lambda item: item[1])
        reasons.append(
            f"{rate:.0%} of the scored rows are unlike those the classifier was trained on, "
            f"in {name}"
        )
    status: Literal["holds", "underpowered"] = "underpowered" if reasons else "holds"
    return Guarantee(status, expected.high, _CONFIDENCE, _ASSUMES, tuple(reasons))


def _findings(
    evidence: Evidence, policy: GatePolicy, key: bytes | None, n_worst: int
) -> tuple[tuple[Finding, ...], int]:
    """Return the worst findings, and how many there are in all.

    Rows with equal worst windows are one finding, named by the first. Stronger evidence comes
    first, and a row belongs to the strongest level alone.
    """
    run, left = evidence.run, evidence.counts.copy()
    found: list[tuple[Level, int, int, int]] = []
    for level, is_in in rows_by_level(policy, evidence):
        rows = np.flatnonzero(is_in & left)
        left &= ~is_in
        windows, first, copies = np.unique(
            run.worst_windows[rows], return_index=True, return_counts=True
        )
        # By risk, then by place: the same run is listed in the same order each time.
        order = np.lexsort((first, -run.risks.window_probabilities[windows])).tolist()
        found += [(level, int(windows[i]), int(rows[first[i]]), int(copies[i])) for i in order]
    # Cut before ids are read and hashes made: millions of rows may be findings.
    listed = found[:n_worst]
    fingerprints: list[str] | list[None] = [None] * len(listed)
    if key is not None:
        fingerprints = window_hashes(run.risks, [one[1] for one in listed], key)[0]
    findings = []
    for (level, window, row, n_rows), fingerprint in zip(listed, fingerprints, strict=True):
        source = run.row(row)
        finding = Finding(
            example_id=source.example_id,
            row=source.row,
            address=source.address,
            rows=n_rows,
            level=level,
            probability=float(run.probabilities[row]),
            reason=run.risks.reason(window),
            fingerprint=fingerprint,
        )
        findings.append(finding)
    return tuple(findings), len(found)


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
        "verification_digest": None if verified is None else verified.result.labels_digest,
        "baseline_digest": None if baseline is None else baseline.digest,
        "memaudit_version": manifest.names.memaudit_version,
    }
