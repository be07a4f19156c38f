"""The rules: what a policy asks, held against what the run scored and what was found.

Limits alone can be kept by scoring something harmless: another column, an untrained teacher, a
temperature at which nothing is learned. So a policy can say what must have been scored.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.corpus.base import DEFAULT_TEMPLATE_DATE
from memaudit.errors import UsageError
from memaudit.gate.policy import GatePolicy
from memaudit.gate.result import PARTS_OF_ROWS, Guarantee, Judged, Level, RuleResult, Verdict
from memaudit.labels import VerifiedRows
from memaudit.metrics import ExpectedCount
from memaudit.runs.folder import read_summary
from memaudit.runs.run import Run
from memaudit.runs.signature import Signature
from memaudit.runs.unchanged import changed_tables
from memaudit.text import number_of, safe_text

# Columns that were given another role are held against `settings`, under the name of the option.
_EQUAL = ("teacher_digest", *(name for name in PARTS_OF_ROWS if name != "mapping"), "objective")
_WITHIN = ("temperature", "alpha")
"""Fields of a policy that are held against fields of what was judged with the same names."""


def judged(run: Run, signature: Signature | None = None) -> Judged:
    """Return what a run scored, with what; who made it when, if a signature was verified."""
    inputs, outcomes = run.manifest.inputs, run.outcomes
    corpus, answers, exposure = inputs.corpus, inputs.answers, inputs.exposure
    mapping = tuple(str(entry) for entry in corpus.get("mapping") or ())
    named = [entry.removeprefix("text=") for entry in mapping if entry.startswith("text=")]
    # Sorted: the order of --map changes nothing that is scored, and must not break a policy.
    others = sorted(entry for entry in mapping if not entry.startswith("text="))
    # What no other key of a policy speaks of, by the names of predict's options.
    settings = {
        "add-special-tokens": corpus.get("add_special_tokens", "auto"),
        "config-name": corpus.get("config") or "none",
        "epochs": "none" if exposure is None else exposure.epochs,
        "map": " ".join(others) or "none",
        "min-suffix": "none" if answers is None else answers.min_suffix_tokens,
        "reference-digest": inputs.reference_digest or "none",
        "split": corpus.get("split") or "train",
        "survival": 1.0 if inputs.survival is None else inputs.survival,
        "template-date": corpus.get("template_date", DEFAULT_TEMPLATE_DATE),
        "turns": "none" if answers is None else answers.turns,
    }
    return Judged(
        teacher=run.manifest.names.teacher,
        teacher_digest=inputs.teacher_digest,
        text_column=str(corpus.get("text_column") or (named or ["text"])[-1]),
        layout=str(corpus.get("shape", "auto")),
        mapping=mapping,
        windows=inputs.windows,
        **inputs.shape.settings,
        objective=inputs.objective.kind,
        temperature=inputs.objective.temperature,
        alpha=inputs.objective.cross_entropy_share,
        settings=tuple(f"{name}={value}" for name, value in settings.items()),
        rows=run.n_rows,
        scored=outcomes["scored"] + outcomes["screened"],
        with_answers=None if answers is None else answers.rows,
        looked_at=None if answers is None else answers.rows - answers.unseen_rows,
        out_of_range_share=max(run.risks.out_of_range.values(), default=0.0),
        date=run_date(run) if signature is None else signature.signed.date,
        changed_tables=tuple(changed_tables(run)),
        signed_by=None if signature is None else signature.key,
    )


def run_date(run: Run) -> str | None:
    """Return when the summary beside the run says that it was made."""
    try:
        # Anybody can edit a summary: a date that is signed takes the place of this one.
        document = read_summary(run.folder)
        if document["run"] != run.manifest.inputs.fingerprint:
            return None
        return datetime.fromisoformat(document["date"]).astimezone(UTC).isoformat()
    except (OSError, ValueError, TypeError, KeyError):
        return None


def policy_for(found: Judged, policy: GatePolicy, classifier_digest: str) -> GatePolicy:
    """Return a policy with the same limits that asks for what this run scored, and its corpus."""
    # Rounded down: the run that the policy is made from must pass it.
    share = math.floor(100 * found.scored / max(1, found.rows)) / 100
    looked_at = None
    if found.looked_at is not None:
        looked_at = math.floor(100 * found.looked_at / max(1, found.with_answers or 0)) / 100
    return msgspec.structs.replace(
        policy,
        data="required",
        classifier_digest=classifier_digest,
        signers=policy.signers or ((found.signed_by,) if found.signed_by else None),
        settings=found.settings,
        min_scored_share=share,
        min_looked_at_share=looked_at,
        **{name: getattr(found, name) for name in _EQUAL},
        **{name: getattr(found, name) for name in _WITHIN if found.objective == "soft"},
    )


def require_scope(found: Judged, policy: GatePolicy, *, has_data: bool) -> None:
    """Refuse a run that scored something else than the policy asks for.

    Raises:
        UsageError: naming all that differs.
    """
    wrong = list(_differences(found, policy))
    if policy.data == "required" and not has_data:
        wrong.append("the corpus must be given, for the policy says data = 'required'")
    if wrong:
        raise UsageError(
            f"the run is not what the policy asks for: {safe_text('; '.join(wrong), 2000)}",
            hint="predict anew with what the policy asks for, or have the policy itself changed",
        )


def _differences(found: Judged, policy: GatePolicy) -> Iterator[str]:
    for name in _EQUAL:
        asked, got = getattr(policy, name), getattr(found, name)
        if asked is not None and got not in (asked if isinstance(asked, tuple) else (asked,)):
            yield f"{name.replace('_', ' ')} is {got}, not {_listed(asked)}"
    for name in _WITHIN:
        asked, got = getattr(policy, name), getattr(found, name)
        # Temperature and alpha are of soft labels alone: other objectives have no use for them.
        if asked is None or found.objective != "soft":
            continue
        low, high = asked if isinstance(asked, tuple) else (asked, asked)
        if not low <= got <= high:
            yield f"{name} is {got:g}, not {_listed(asked)}"
    # Sorted: a message that differs from call to call looks like another finding.
    for asked in sorted(set(policy.settings or ()) - set(found.settings)):
        name, _, value = asked.partition("=")
        got = dict(entry.split("=", 1) for entry in found.settings).get(name, "nothing known here")
        yield f"{name} is {got}, not {value}"
    others = [entry for entry in found.mapping if not entry.startswith("text=")]
    names_columns = any(entry.startswith("map=") for entry in policy.settings or ())
    if policy.text_column is not None and others and not names_columns:
        yield f"other columns were scored too: {', '.join(others)}"


def _listed(asked: object) -> str:
    return " or ".join(map(str, asked)) if isinstance(asked, tuple) else str(asked)


def scope_rules(found: Judged, policy: GatePolicy) -> Iterator[RuleResult]:
    """Yield what came of the shares and the age that the policy asks for.

    Too small a share, and too old a run, are evidence that is missing: nothing was found.
    """
    if (limit := policy.min_scored_share) is not None:
        share = found.scored / max(1, found.rows)
        message = (
            f"{found.scored:,} of {found.rows:,} rows were scored ({share:.1%}), "
            f"at least {limit:.1%} required"
        )
        yield _at_least("MEM008", share, limit, message)
    if (limit := policy.min_looked_at_share) is not None:
        if found.looked_at is None:
            message = "the run does not say in how many rows trained tokens were looked at"
            yield RuleResult("MEM009", "inconclusive", None, limit, message)
        else:
            share = found.looked_at / max(1, found.with_answers or 0)
            message = (
                f"in {found.looked_at:,} of {found.with_answers:,} rows with answers a token that "
                f"is trained on lies in a window ({share:.1%}), at least {limit:.1%} required"
            )
            yield _at_least("MEM009", share, limit, message)
    if (limit := policy.max_age) is not None and found.date is None:
        message = (
            f"nobody knows when the run was made, at most {number_of(limit, 'day')} ago is required"
        )
        yield RuleResult("MEM010", "inconclusive", None, limit, message)
    elif limit is not None and found.date is not None:
        days = (datetime.now(UTC) - datetime.fromisoformat(found.date)) / timedelta(days=1)
        message = f"the run was made {days:.1f} days ago, at most {limit:g} allowed"
        # A date in the future is wrong, and a clock may be a little behind.
        is_right = -1 <= days <= limit
        yield RuleResult("MEM010", "pass" if is_right else "inconclusive", days, limit, message)


def _at_least(rule: str, share: float, limit: float, message: str) -> RuleResult:
    return RuleResult(rule, "pass" if share >= limit else "inconclusive", share, limit, message)


_PREDICTED = ("MEM001", "MEM002", "MEM006", "MEM007")
"""Rules that rest on the classifier's probabilities."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that rules are held against."""

    run: Run
    counts: NDArray[np.bool_]
    """(n_rows,) scored rows that count: all, or the new ones."""

    expected: ExpectedCount
    """Of the rows that count."""

    guarantee: Guarantee
    verified: VerifiedRows | None
    is_new_only: bool
    """Whether known rows do not count."""

    @property
    def noun(self) -> str:
        """What is counted, one of them."""
        return "new example" if self.is_new_only else "example"

    def count(self, is_in: NDArray[np.bool_]) -> int:
        """Return how many of some rows count. `is_in`: (n_rows,)."""
        return int((is_in & self.counts).sum())


def apply_rules(policy: GatePolicy, evidence: Evidence, found: Judged) -> tuple[RuleResult, ...]:
    """Return what came of each rule on what was found, in the order of their ids."""
    rules = tuple(_results(policy, evidence))
    if found.out_of_range_share <= policy.max_out_of_range_share:
        return rules
    why = (
        f", and the prediction is a guess: {found.out_of_range_share:.0%} of the scored rows are unlike those "
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
    run, noun = evidence.run, evidence.noun
    if policy.max_rate is not None:
        n_flagged, n_scored = evidence.count(run.is_flagged), int(run.is_scored.sum())
        rate = n_flagged / max(1, n_scored)  # a cascade may have left every row out
        message = (
            f"{number_of(n_flagged, noun)} of {n_scored:,} scored "
            f"{'is' if n_flagged == 1 else 'are'} flagged ({rate:.3%}), "
            f"at most {policy.max_rate:.3%} allowed"
        )
        yield _result("MEM001", rate, policy.max_rate, message)
    if policy.max_expected is not None:
        yield _expected(policy, policy.max_expected, evidence)
    if policy.max_recited is not None:
        n_recited = evidence.count(run.is_recited)
        told = number_of(n_recited, noun)
        message = f"the teacher recites {told}, at most {policy.max_recited:,} allowed"
        yield _unless_screened(_result("MEM003", n_recited, policy.max_recited, message), run)
    if policy.max_verified is not None:
        yield _verified(policy.max_verified, evidence)
    # Bad rows break no limit, but nothing is known about them either. Of screened ones it is known
    # that they are unlikely to matter.
    known = sum(run.outcomes[name] for name in ("scored", "screened", "too_short"))
    n_bad, limit = run.outcomes.total() - known, policy.max_bad_rows
    message = f"{number_of(n_bad, 'row')} could not be used, at most {limit:,} allowed"
    yield RuleResult("MEM005", "pass" if n_bad <= limit else "inconclusive", n_bad, limit, message)
    yield from _sensitive(policy, evidence)


def _result(
    rule: str, observed: float, limit: float, message: str, *, otherwise: Verdict = "pass"
) -> RuleResult:
    # Not `observed <= limit` alone: a comparison with NaN must not pass.
    status = otherwise if observed <= limit else "fail"
    return RuleResult(rule, status, observed, limit, message)


def _unless_screened(rule: RuleResult, run: Run) -> RuleResult:
    """Return the result of a rule about what the teacher says, of which it was not asked everything."""
    if rule.status != "pass" or not run.n_screened_windows:
        return rule
    why = number_of(
        run.n_screened_windows,
        "distinct window was screened out, and the teacher has not read it",
        "distinct windows were screened out, and the teacher has not read them",
    )
    return replace(rule, status="inconclusive", message=f"{rule.message}; {why}")


def _expected(policy: GatePolicy, limit: float, evidence: Evidence) -> RuleResult:
    expected, guarantee = evidence.expected, evidence.guarantee
    # The limit stands as it was given: 2,500 rounded to "2.5e+03" is another number.
    allowed = f"at most {limit:,.10g} allowed"
    mean = f"{expected.mean:,.1f} {evidence.noun}s are expected to be memorized"
    if policy.expected_bound == "mean":
        message = f"{mean}, {allowed}; compared: the mean, as the policy says"
        return _unless_screened(_result("MEM002", expected.mean, limit, message), evidence.run)
    # Before the bound is asked for: no evidence brings a mean beyond the limit below it again.
    if not expected.mean <= limit:
        message = f"{mean}, {allowed}; compared: the mean, and the upper bound is higher still"
        return _result("MEM002", expected.mean, limit, message)
    message = (
        f"up to {number_of(expected.high, evidence.noun)} may be memorized "
        f"(expected {expected.mean:,.1f}), {allowed}; compared: the upper end of the 95% interval"
    )
    if guarantee.status == "underpowered":
        message += f", which is no bound here: {'; '.join(guarantee.reasons)}"
        return RuleResult("MEM002", "inconclusive", float(expected.high), limit, message)
    return _result("MEM002", float(expected.high), limit, message)


def _verified(limit: int, evidence: Evidence) -> RuleResult:
    verified = evidence.verified
    if verified is None:
        message = (
            f"no verification was given, at most {number_of(limit, 'verified example')} allowed"
        )
        return RuleResult("MEM004", "inconclusive", None, limit, message)
    n_found, n_asked = evidence.count(verified.recited), evidence.count(verified.looked_at)
    message = (
        f"the distilled student recites {n_found:,} of {number_of(n_asked, evidence.noun)} that it was "
        f"trained on, of {int(evidence.counts.sum()):,} in all; at most {limit:,} allowed"
    )
    if verified.is_sample:
        message += ", and only a sample was trained on"
    # A sample in which nothing is found says nothing about the rest.
    otherwise: Verdict = "inconclusive" if verified.is_sample else "pass"
    return _result("MEM004", n_found, limit, message, otherwise=otherwise)


def rows_by_level(
    policy: GatePolicy, evidence: Evidence
) -> Iterator[tuple[Level, NDArray[np.bool_]]]:
    """Yield (n_rows,) whether a row is what the policy has a limit for, the strongest level first."""
    run, found = evidence.run, evidence.run.sensitivity
    if policy.max_verified is not None and evidence.verified is not None:
        yield "verified", evidence.verified.recited
    if policy.max_recited is not None:
        yield "recited", run.is_recited
    predicted = np.zeros(run.n_rows, dtype=np.bool_)
    if policy.max_rate is not None or policy.max_expected is not None:
        predicted |= run.is_flagged
    # Secrets are sensitive as well, so the wider question covers both.
    if policy.max_sensitive is not None and found is not None:
        predicted |= found.sensitive_at_risk(run.is_flagged)
    elif policy.max_secrets is not None and found is not None:
        predicted |= found.secrets_at_risk(run.is_flagged)
    yield "predicted", predicted


def _sensitive(policy: GatePolicy, evidence: Evidence) -> Iterator[RuleResult]:
    found, is_flagged = evidence.run.sensitivity, evidence.run.is_flagged
    asked = (
        ("MEM006", policy.max_sensitive, " at risk", "personal data or a secret"),
        ("MEM007", policy.max_secrets, "", "a secret that is at risk"),
    )
    for rule, limit, which, what in asked:
        if limit is None:
            continue
        if found is None:
            message = f"the run was not searched for what is sensitive, at most {limit:,} allowed"
            yield RuleResult(rule, "inconclusive", None, limit, message)
            continue
        at_risk = found.secrets_at_risk if rule == "MEM007" else found.sensitive_at_risk
        n_found = evidence.count(at_risk(is_flagged))
        found_in = f"{number_of(n_found, evidence.noun)}{which}"
        holds = "holds" if n_found == 1 else "hold"
        message = f"{found_in} {holds} {what}, at most {limit:,} allowed"
        yield _result(rule, n_found, limit, message)
