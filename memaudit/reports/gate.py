"""A gate on a terminal: the verdict first, then rule by rule, then the worst examples."""

from typing import TextIO

from rich.table import Table
from rich.text import Text

from memaudit.gate.result import GateResult
from memaudit.reports.style import make_console
from memaudit.text import safe_text

_LISTED = 10
_STYLES = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}
_VERDICTS = {
    "pass": "The gate passes",
    "fail": "The gate fails",
    "inconclusive": "The gate cannot be decided, which fails it",
}


def print_gate(result: GateResult, stream: TextIO, *, color: str = "auto") -> None:
    """Print what a gate found.

    Args:
        result: of a gate.
        stream: where to.
        color: `auto`, `always` or `never`.
    """
    console = make_console(stream, color)
    n_broken = len(result.failed) + len(result.inconclusive)
    console.print(
        Text.assemble(
            (_VERDICTS[result.verdict], _STYLES[result.verdict]),
            f": {n_broken} of {len(result.rules)} rules do not hold" if n_broken else "",
        )
    )
    console.print()
    console.print(_rules(result))
    if result.findings:
        console.print()
        console.print(Text(f"Worst of {result.n_findings:,} distinct examples", style="bold"))
        console.print(_findings(result))
    console.print()
    console.print(Text(safe_text(_guarantee(result), 2000), style="dim"))
    console.print(Text(safe_text(result.judged.in_words, 5000), style="dim"))
    console.print(Text(safe_text(_provenance(result), 5000), style="dim"))


def _rules(result: GateResult) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for rule in result.rules:
        status = Text(rule.status, style=_STYLES[rule.status])
        message = Text(safe_text(rule.message, 2000))
        table.add_row(status, Text(f"{rule.id} {rule.name}"), message)
    return table


def _findings(result: GateResult) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("id", overflow="fold", max_width=40)
    table.add_column("where", overflow="fold", max_width=40)
    table.add_column("evidence", no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("reason")
    for finding in result.findings[:_LISTED]:
        table.add_row(
            Text(safe_text(finding.example_id, 64)),
            Text(safe_text(finding.address, 300)),
            Text(finding.level),
            Text(f"{finding.probability:.1%}"),
            Text(safe_text(finding.reason)),
        )
    return table


def _guarantee(result: GateResult) -> str:
    guarantee = result.guarantee
    if guarantee.status == "holds":
        return (
            f"At {guarantee.confidence:.1%} confidence at most {guarantee.upper:,} are memorized, "
            f"if {guarantee.assumes}."
        )
    return f"No upper bound can be promised (underpowered): {'; '.join(guarantee.reasons)}."


def _provenance(result: GateResult) -> str:
    policy = result.policy
    where = "flags" if policy.source is None else f"{policy.source}, {str(policy.digest)[:12]}"
    pinned = ", pinned" if policy.is_pinned else ""
    return (
        f"run {str(result.provenance['run'])[:12]}, classifier {result.provenance['classifier']}, "
        f"policy from {where}{pinned}"
    )
