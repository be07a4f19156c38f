"""A gate in Markdown, for a comment or a job's summary; what is untrusted stands in code spans."""

from memaudit.gate.result import GateResult
from memaudit.text import inert, safe_text

MAX_BYTES = 900_000
"""GitHub drops a job's summary beyond 1 MiB."""

_LISTED = 50
_MARKS = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "⚠️ inconclusive"}


def render_markdown(result: GateResult) -> str:
    """Return the verdict, the rules, the worst examples and what it rests on."""
    lines = [f"## memaudit gate: {_MARKS[result.verdict]}", "", *_rules(result), ""]
    if result.findings:
        lines += [*_findings(result), ""]
    lines += [_guarantee(result), "", *_provenance(result)]
    return cut(inert("\n".join(lines) + "\n"), MAX_BYTES)


def code_span(text: str, max_len: int = 100) -> str:
    """Return untrusted text as code in which nothing is markup, in a table's cell too."""
    shown = safe_text(text, max_len).replace("`", "\\u0060").replace("|", "\\u007c")
    return f"`{shown}`" if shown.strip() else "` `"


def cut(text: str, max_bytes: int) -> str:
    """Return as many whole lines as fit."""
    if len(text.encode()) <= max_bytes:
        return text
    kept, size = [], 0
    for line in text.splitlines(keepends=True):
        size += len(line.encode())
        if size > max_bytes - 100:
            break
        kept.append(line)
    return "".join(kept) + "\n_cut: there is more_\n"


def _rules(result: GateResult) -> list[str]:
    lines = ["| rule | status | what was found |", "|---|---|---|"]
    for rule in result.rules:
        name, message = f"{rule.id} {rule.name}", rule.message
        lines.append(f"| {name} | {_MARKS[rule.status]} | {code_span(message, 1000)} |")
    return lines


def _findings(result: GateResult) -> list[str]:
    shown = result.findings[:_LISTED]
    lines = [
        f"### The worst {len(shown):,} of {result.n_findings:,} distinct examples",
        "",
        "| example | where | evidence | probability | reason |",
        "|---|---|---|---:|---|",
    ]
    for finding in shown:
        cells = (
            code_span(finding.example_id),
            code_span(finding.address, 300),
            finding.level,
            f"{finding.probability:.1%}",
            code_span(finding.reason),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _guarantee(result: GateResult) -> str:
    guarantee = result.guarantee
    if guarantee.status == "holds":
        return (
            f"At {guarantee.confidence:.1%} confidence at most {guarantee.upper:,} examples are "
            f"memorized, if {guarantee.assumes}."
        )
    reasons = code_span("; ".join(guarantee.reasons), 1000)
    return f"No upper bound can be promised (underpowered): {reasons}."


def _provenance(result: GateResult) -> list[str]:
    names = ("run", "corpus_digest", "teacher_digest", "classifier", "classifier_digest")
    found = {name: result.provenance.get(name) for name in names}
    found["policy_digest"] = result.policy.digest
    return [
        f"- {name.replace('_', ' ')}: {code_span(value)}" for name, value in found.items() if value
    ]
