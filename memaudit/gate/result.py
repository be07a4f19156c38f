"""What a gate found: a verdict, rule by rule, and the examples behind it."""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from memaudit.gate.policy import EffectivePolicy
from memaudit.text import number_of

SCHEMA_VERSION = 1
"""Of the JSON document; goes up when a reader of the old one would misread."""

Verdict = Literal["pass", "fail", "inconclusive"]
"""Of the gate, and of each rule. `inconclusive`: a rule has no evidence to be judged by, and of the
gate, that the policy lets that fail."""

PREDICATE_TYPE = "urn:memaudit:gate:v1"
"""What the predicate of a statement is."""

Level = Literal["predicted", "recited", "verified"]
"""What a finding rests on: a probability, the teacher's recital, or a distilled student's."""

RULES: dict[str, str] = {
    "MEM001": "flagged-rate",
    "MEM002": "expected-memorized",
    "MEM003": "recited-by-teacher",
    "MEM004": "verified-by-distillation",
    "MEM005": "unscored-rows",
    "MEM006": "sensitive-at-risk",
    "MEM007": "secrets-at-risk",
    "MEM008": "scored-share",
    "MEM009": "looked-at-share",
    "MEM010": "age-of-run",
}
"""Names by stable id."""

RULE_OF_LEVEL: dict[Level, str] = {"predicted": "MEM001", "recited": "MEM003", "verified": "MEM004"}
"""Id of the rule that a finding belongs to."""

PARTS_OF_ROWS = (
    "text_column", "layout", "mapping", "windows", "prefix_tokens", "suffix_tokens",
)  # fmt: skip
"""Fields of `Judged` that say what was scored of a row: runs that differ in one of them speak of
different things."""

_EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 1, "inconclusive": 2}


def found_share(n_windows: int) -> float:
    """Return what share of forged windows so many random ones would have shown, at 95 %."""
    # (1 - share) ** n = 0.05, for the share: about 3 / n, the rule of three.
    return float(1 - 0.05 ** (1 / max(1, n_windows)))


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule, held against the evidence."""

    id: str
    """Key of `RULES`."""

    status: Verdict
    observed: float | None
    """What was found; None if nothing could be."""

    limit: float
    message: str
    """In one sentence, numbers only."""

    @property
    def name(self) -> str:
        """In words."""
        return RULES[self.id]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """An upper bound on how many examples a student memorizes, where the data allow one."""

    status: Literal["holds", "underpowered"]
    """`underpowered`: the number below is no bound, for the reasons given."""

    upper: int
    """Upper end of the 95 % interval of the number memorized."""

    confidence: float
    """One-sided, of the upper end alone."""

    assumes: str
    """What must be true for it."""

    reasons: tuple[str, ...]
    """Why it is underpowered; none if it holds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An example that a rule of the policy speaks of; of rows with equal windows, the first."""

    example_id: str
    """As in the corpus: untrusted, so show it with `safe_text` only."""

    row: int
    """Ordinal in the corpus, from 0."""

    address: str
    """`<file>:<line or row>`, untrusted like the id."""

    rows: int
    """Rows with this window that count, itself among them."""

    level: Level
    probability: float
    reason: str
    """In words, such as "occurs 16 times"."""

    fingerprint: str | None = None
    """Keyed hash that stays the same when the row moves; None where no key was asked for."""

    @property
    def rule(self) -> str:
        """Id of the rule it belongs to."""
        return RULE_OF_LEVEL[self.level]


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What the run scored, with what: a verdict is about this and about nothing else."""

    teacher: str
    """Path or hub id, as given: untrusted."""

    teacher_digest: str
    text_column: str
    """Column that was scored; `text` where none was named."""

    layout: str
    """`--format` that the corpus was read with."""

    mapping: tuple[str, ...]
    """`--map` that it was read with: `prompt=question` and the like."""

    windows: str
    """`first` or `tile`."""

    prefix_tokens: int
    """Tokens of each window that the model was given."""

    suffix_tokens: int
    """Tokens of each window that were compared."""

    objective: str
    """What the student was taken to learn from."""

    temperature: float
    alpha: float
    """Weight of cross-entropy in the loss of soft labels."""

    settings: tuple[str, ...]
    """What else decides scores and probabilities and could be chosen to be harmless, such as
    `split=train`; `none` where a run has no use for it. Columns are untrusted."""

    rows: int
    scored: int
    """Rows that were scored, or that a cascade found unlikely to matter."""

    with_answers: int | None
    """Rows that say which of their tokens are trained on. None: the run does not say."""

    looked_at: int | None
    """Those of which such a token lies in the suffix of a window. None: the run does not say."""

    out_of_range_share: float
    """Scored rows beyond the range of a feature in training, for the feature that is worst."""

    date: str | None
    """When the run was made, as ISO 8601 in UTC; from the signature if there is one. None: unknown."""

    changed_tables: tuple[str, ...] = ()
    """Risk tables beside the run that do not say what the run says. The gate reads none of them."""

    rescored: int | None = None
    """Windows, chosen at random, that were scored again and agree. None: none were."""

    signed_by: str | None
    """Public key that signed it, once it was verified. None: unsigned, or not verified."""

    @property
    def in_words(self) -> str:
        """In a few sentences; teacher and column are untrusted, so show it with `safe_text` only."""
        recipe = self.objective
        if self.objective == "soft":
            recipe += f" labels at temperature {self.temperature:g}, alpha {self.alpha:g}"
        columns = ", ".join((f"column {self.text_column}", f"layout {self.layout}", *self.mapping))
        settings = ", ".join(one for one in self.settings if not one.endswith("=none"))
        signed = (
            f"signed by {self.signed_by[:12]}" if self.signed_by else "no signature was verified"
        )
        again = warning = ""
        if self.rescored is not None:
            again = (
                f" {number_of(self.rescored, 'random window was', 'random windows were')} scored "
                f"again without a difference; had {found_share(self.rescored):.1%} of all been "
                "forged, 19 times in 20 one would differ."
            )
        if self.changed_tables:
            changed = ", ".join(self.changed_tables)
            warning = f" Do not rely on {changed}: changed after the run was made."
        return (
            f"Judged: teacher {self.teacher} ({self.teacher_digest[:12]}); {columns}; "
            f"{self.windows} windows of {self.prefix_tokens} + {self.suffix_tokens} tokens; "
            f"{recipe}; {settings}. {self.scored:,} of {self.rows:,} rows were scored, "
            f"{self.out_of_range_share:.0%} of them are unlike the classifier's training data. "
            f"Made {self.date or 'at an unknown time'}, {signed}.{again}{warning}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """What a gate found. No text of the corpus is in it."""

    verdict: Verdict
    rules: tuple[RuleResult, ...]
    guarantee: Guarantee
    findings: tuple[Finding, ...]
    """The worst first, at most `n_worst` of them."""

    n_findings: int
    """All of them: distinct examples."""

    counts: dict[str, int]
    """Rows by outcome, `new` among them if a baseline was given."""

    policy: EffectivePolicy
    judged: Judged
    provenance: dict[str, str | None]
    """Run, corpus, models and classifier, by digest and name."""

    variables: tuple[str, ...] = ()
    """Names of the environment variables that the gate listened to."""

    @property
    def exit_code(self) -> int:
        """Of the process."""
        return _EXIT_CODES[self.verdict]

    @property
    def failed(self) -> tuple[RuleResult, ...]:
        """Rules that are broken."""
        return tuple(rule for rule in self.rules if rule.status == "fail")

    @property
    def inconclusive(self) -> tuple[RuleResult, ...]:
        """Rules without the evidence that they need."""
        return tuple(rule for rule in self.rules if rule.status == "inconclusive")

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document; keys are never renamed within a version."""
        findings: list[dict[str, Any]] = [msgspec.to_builtins(each) for each in self.findings]
        for document, finding in zip(findings, self.findings, strict=True):
            document.update(id=document.pop("example_id"), rule=finding.rule)
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "rules": [{**msgspec.to_builtins(rule), "name": rule.name} for rule in self.rules],
            "guarantee": msgspec.to_builtins(self.guarantee),
            "findings": findings,
            "n_findings": self.n_findings,
            "counts": dict(self.counts),
            "policy": msgspec.to_builtins(self.policy.policy),
            "policy_source": self.policy.source,
            "policy_digest": self.policy.digest,
            "policy_pinned": self.policy.is_pinned,
            "judged": msgspec.to_builtins(self.judged),
            "variables": list(self.variables),
            **self.provenance,
        }

    def statement(self) -> dict[str, Any]:
        """Return the verdict as an unsigned in-toto Statement v1 about the digest of the corpus."""
        rules = [
            {"id": rule.id, "status": rule.status, "observed": rule.observed, "limit": rule.limit}
            for rule in self.rules
        ]
        corpus = {"name": "corpus", "digest": {"sha256": self.provenance["corpus_digest"]}}
        return {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [corpus],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "verdict": self.verdict,
                "rules": rules,
                "guarantee": msgspec.to_builtins(self.guarantee),
                "policy": {
                    "settings": msgspec.to_builtins(self.policy.policy),
                    "digest": self.policy.digest,
                    "pinned": self.policy.is_pinned,
                },
                "judged": msgspec.to_builtins(self.judged),
                "run": self.provenance["run"],
                "digests": {
                    name.removesuffix("_digest"): value
                    for name, value in self.provenance.items()
                    if name.endswith("_digest")
                },
                "memaudit_version": self.provenance["memaudit_version"],
            },
        }
