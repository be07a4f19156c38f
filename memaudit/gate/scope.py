"""What a run scored, with what, and whether that is what the policy asks for.

Limits alone can be kept by scoring something harmless: another column, an untrained teacher, a
temperature at which nothing is learned. So a policy can say what must have been scored.
"""

import math
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from memaudit.corpus.base import DEFAULT_TEMPLATE_DATE
from memaudit.errors import UsageError
from memaudit.gate.policy import GatePolicy
from memaudit.gate.result import Judged, RuleResult
from memaudit.runs.folder import read_summary
from memaudit.runs.manifest import AnswersRead, RunInputs
from memaudit.runs.run import Run
from memaudit.runs.unchanged import changed_tables
from memaudit.text import safe_text

_SECONDS_A_DAY = 86_400
_EQUAL = (
    "teacher_digest", "text_column", "layout", "windows", "prefix_tokens", "suffix_tokens",
    "objective",
)  # fmt: skip
_WITHIN = ("temperature", "alpha")
"""Fields of a policy that are held against fields of what was judged with the same names."""


def judged(run: Run) -> Judged:
    """Return what a run scored, with what."""
    inputs, outcomes = run.manifest.inputs, run.outcomes
    mapping = tuple(str(entry) for entry in inputs.corpus.get("mapping") or ())
    named = [entry.removeprefix("text=") for entry in mapping if entry.startswith("text=")]
    return Judged(
        teacher=run.manifest.names.teacher,
        teacher_digest=inputs.teacher_digest,
        text_column=str(inputs.corpus.get("text_column") or (named or ["text"])[-1]),
        layout=str(inputs.corpus.get("shape", "auto")),
        mapping=mapping,
        windows=inputs.windows,
        prefix_tokens=inputs.prefix_tokens,
        suffix_tokens=inputs.suffix_tokens,
        objective=inputs.objective.kind,
        temperature=inputs.objective.temperature,
        alpha=inputs.objective.cross_entropy_share,
        settings=tuple(f"{name}={value}" for name, value in _settings(inputs)),
        rows=run.n_rows,
        scored=outcomes["scored"] + outcomes["screened"],
        with_answers=None if inputs.answers is None else inputs.answers.rows,
        looked_at=None if inputs.answers is None else _looked_at(inputs.answers),
        out_of_range_share=max(run.risks.out_of_range.values(), default=0.0),
        date=run_date(run),
        changed_tables=tuple(changed_tables(run)),
        signed_by=None,
    )


def _settings(inputs: RunInputs) -> Iterator[tuple[str, object]]:
    """Yield what no other key of a policy speaks of, by the names of predict's options."""
    corpus, answers, exposure = inputs.corpus, inputs.answers, inputs.exposure
    columns = sorted(entry for entry in corpus.get("mapping") or () if entry[:5] != "text=")
    yield "add-special-tokens", corpus.get("add_special_tokens", "auto")
    yield "config-name", corpus.get("config") or "none"
    yield "epochs", "none" if exposure is None else exposure.epochs
    yield "map", " ".join(columns) or "none"
    yield "min-suffix", "none" if answers is None else answers.min_suffix_tokens
    yield "reference-digest", inputs.reference_digest or "none"
    yield "split", corpus.get("split") or "train"
    yield "survival", 1.0 if inputs.survival is None else inputs.survival
    yield "template-date", corpus.get("template_date", DEFAULT_TEMPLATE_DATE)
    yield "turns", "none" if answers is None else answers.turns


def _looked_at(answers: AnswersRead) -> int:
    """Return in how many rows a token that is trained on lies in the suffix of a window."""
    return answers.rows - answers.unseen_rows


def run_date(run: Run) -> str | None:
    """Return when the summary beside the run says that it was made."""
    try:
        document = read_summary(run.folder)
        if document["run"] != run.manifest.inputs.fingerprint:
            return None
        return datetime.fromisoformat(document["date"]).astimezone(UTC).isoformat()
    except (OSError, ValueError, TypeError, KeyError):
        return None


def policy_for(found: Judged, policy: GatePolicy, classifier_digest: str) -> GatePolicy:
    """Return a policy with the same limits that asks for what this run scored, and its corpus."""
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
    for asked in set(policy.settings or ()) - set(found.settings):
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
    if (limit := policy.max_age) is not None:
        yield _age(found.date, limit)


def _at_least(rule: str, share: float, limit: float, message: str) -> RuleResult:
    return RuleResult(rule, "pass" if share >= limit else "inconclusive", share, limit, message)


def _age(date: str | None, limit: float) -> RuleResult:
    if date is None:
        message = f"nobody knows when the run was made, at most {limit:g} days ago is required"
        return RuleResult("MEM010", "inconclusive", None, limit, message)
    seconds = (datetime.now(UTC) - datetime.fromisoformat(date)).total_seconds()
    days = seconds / _SECONDS_A_DAY
    message = f"the run was made {days:.1f} days ago, at most {limit:g} allowed"
    # A date in the future is wrong, and a clock may be a little behind.
    is_right = -1 <= days <= limit
    return RuleResult("MEM010", "pass" if is_right else "inconclusive", days, limit, message)
