"""A gate in the log of a GitHub job: annotations for the worst, a line for the verdict."""

from memaudit.gate.result import Finding, GateResult
from memaudit.reports.locations import find_location
from memaudit.text import inert, safe_text

MAX_ANNOTATIONS = 10
"""Of one kind and step; GitHub drops the others."""


def render_annotations(result: GateResult, *, root: str) -> str:
    """Return workflow commands; nothing of the corpus can make one of its own.

    Args:
        result: of a gate.
        root: absolute folder of the project.
    """
    kind = "notice" if result.verdict == "pass" else "error"
    broken = result.failed + result.inconclusive
    said = "; ".join(f"{rule.id} {rule.message}" for rule in broken) or "every rule passes"
    lines = [f"::{kind} title=memaudit gate::{_data(f'{result.verdict}: {said}', 2000)}"]
    if result.verdict != "pass":
        worst = result.findings[: MAX_ANNOTATIONS - 1]
        lines += [_annotation(finding, root) for finding in worst]
    return "\n".join(lines) + "\n"


def _annotation(finding: Finding, root: str) -> str:
    properties = {"title": f"{finding.rule} {finding.level}"}
    location = find_location(finding.address, root)
    if location is not None:
        properties = {"file": location.path, "line": str(location.line), **properties}
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    message = (
        f"example '{safe_text(finding.example_id, 100)}' is memorized with probability "
        f"{finding.probability:.1%}: {safe_text(finding.reason)}"
    )
    return f"::error {listed}::{_data(message)}"


def _data(text: str, max_len: int = 1000) -> str:
    shown = inert(safe_text(text, max_len))
    return shown.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
