"""A gate's findings as SARIF 2.1.0, for code scanning: no text of the corpus, no snippet."""

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from memaudit import __version__
from memaudit.gate.result import RULES, Finding, GateResult
from memaudit.reports.locations import Location, find_location
from memaudit.text import json_text, safe_text, shown_path

MAX_RESULTS = 1000
"""Code scanning shows 5,000 of a run; nobody reads that many."""

_SUMMARY = "MEM000"
_POLICY = "pyproject.toml"
_DESCRIPTIONS = {
    _SUMMARY: ("gate-verdict", "The verdict of the gate over the whole corpus."),
    "MEM001": ("", "A student would probably memorize this example."),
    "MEM002": ("", "More examples are expected to be memorized than the policy allows."),
    "MEM003": ("", "The teacher recites this example word for word."),
    "MEM004": ("", "A student that was really distilled recites this example."),
    "MEM005": ("", "Rows of the corpus could not be used, so nothing is known about them."),
    "MEM006": ("", "An example at risk holds personal data or a secret."),
    "MEM007": ("", "An example holds a secret that is at risk."),
    "MEM008": ("", "Too few rows of the corpus were scored."),
    "MEM009": ("", "Too few rows have tokens that a student is trained on in a window."),
    "MEM010": ("", "The run is older than the policy allows, or nobody knows how old."),
}
_HELP = (
    "Remove the example, or keep one copy of it, with 'memaudit filter'; then predict again. "
    "The policy of the gate says how much is allowed."
)


def render_sarif(result: GateResult, *, root: str) -> str:
    """Return the findings, worst first and at most 1,000, and one summary.

    Args:
        result: of a gate, with fingerprints.
        root: absolute folder of the project.
    """
    failed = {rule.id for rule in result.failed}
    if failed & {"MEM002", "MEM006", "MEM007"}:
        failed.add("MEM001")
    findings = [_result(finding, failed, result, root) for finding in result.findings]
    run: dict[str, Any] = {
        "tool": {"driver": _driver()},
        "automationDetails": {"id": "memaudit/gate/"},
        "columnKind": "utf16CodeUnits",
        "invocations": [{"executionSuccessful": True, "exitCode": result.exit_code}],
        "results": [_summary(result, root), *findings[: MAX_RESULTS - 1]],
    }
    document = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [run],
    }
    return json_text(document, indent=1) + "\n"


def _driver() -> dict[str, Any]:
    return {
        "name": "memaudit",
        "organization": "memaudit",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [
            {
                "id": rule,
                "name": _pascal(name or RULES[rule]),
                "shortDescription": {"text": text},
                "fullDescription": {"text": text},
                "help": {"text": _HELP},
                "defaultConfiguration": {"level": "warning"},
                "properties": {"precision": "medium", "tags": ["memorization", "privacy"]},
            }
            for rule, (name, text) in _DESCRIPTIONS.items()
        ],
    }


def _result(finding: Finding, failed: set[str], result: GateResult, root: str) -> dict[str, Any]:
    location = find_location(finding.address, root) or _policy_location(result, root)
    example = safe_text(finding.example_id, 100)
    return {
        "ruleId": finding.rule,
        "ruleIndex": list(_DESCRIPTIONS).index(finding.rule),
        "level": "error" if finding.rule in failed else "warning",
        "message": {
            "text": f"Example '{_plain(example)}': memorized with probability "
            f"{finding.probability:.1%}; {_plain(safe_text(finding.reason))}."
        },
        "locations": [_physical(location)],
        "partialFingerprints": {"memauditRow/v1": str(finding.fingerprint)},
        "rank": round(100 * finding.probability, 3),
    }


def _summary(result: GateResult, root: str) -> dict[str, Any]:
    broken = result.failed + result.inconclusive
    said = "; ".join(f"{rule.id}: {rule.message}" for rule in broken) or "every rule passes"
    level = {"pass": "note", "fail": "error", "inconclusive": "warning"}[result.verdict]
    return {
        "ruleId": _SUMMARY,
        "ruleIndex": 0,
        "level": level,
        "message": {
            "text": _plain(safe_text(f"{result.n_findings:,} examples in all; {said}.", 4000))
        },
        "locations": [_physical(_policy_location(result, root))],
        "partialFingerprints": {"memauditRow/v1": "summary"},
    }


def _policy_location(result: GateResult, root: str) -> Location:
    """Return where to point to when no line of a file is meant."""
    name = PurePosixPath(shown_path(result.policy.source or _POLICY))
    if name.is_absolute():
        name = name.relative_to(root) if name.is_relative_to(root) else PurePosixPath(name.name)
    return Location(str(name), 1)


def _physical(location: Location) -> dict[str, Any]:
    uri = quote(location.path.removeprefix("/"), safe="/")
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": uri or _POLICY},
            "region": {"startLine": location.line},
        }
    }


def _plain(text: str) -> str:
    """Return text in which nothing is read as a link or a placeholder."""
    for letter in "[]{}":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _pascal(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))
