"""A gate as a JUnit report: one test case for each rule."""

import re
from xml.etree import ElementTree

from memaudit.gate.result import GateResult, RuleResult
from memaudit.text import inert, safe_text

_LISTED = 10
# Beyond what is written out already, XML 1.0 has no place for these two.
_NOT_XML = re.compile("[\ufffe\uffff]")


def render_junit(result: GateResult) -> str:
    """Return the report: broken rules fail, those without evidence are errors."""
    suite = ElementTree.Element(
        "testsuite",
        {
            "name": "memaudit gate",
            "tests": str(len(result.rules)),
            "failures": str(len(result.failed)),
            "errors": str(len(result.inconclusive)),
            "skipped": "0",
            "time": "0",
        },
    )
    for rule in result.rules:
        suite.append(_case(rule))
    if result.findings:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(_listed(result))
    suites = ElementTree.Element("testsuites", {"name": "memaudit"})
    suites.append(suite)
    ElementTree.indent(suites)
    content: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return inert(content.decode() + "\n")


def _case(rule: RuleResult) -> ElementTree.Element:
    name = f"{rule.id} {rule.name}"
    case = ElementTree.Element(
        "testcase", {"classname": "memaudit.gate", "name": name, "time": "0"}
    )
    if rule.status != "pass":
        tag = "failure" if rule.status == "fail" else "error"
        message = _xml(rule.message)
        found = ElementTree.SubElement(case, tag, {"message": message, "type": rule.status})
        found.text = message
    return case


def _listed(result: GateResult) -> list[str]:
    lines = [f"{result.n_findings:,} examples, the worst first"]
    lines += [
        f"{finding.rule} {finding.probability:.1%} {_xml(finding.example_id)} "
        f"at {_xml(finding.address)}"
        for finding in result.findings[:_LISTED]
    ]
    return lines


def _xml(text: str) -> str:
    """Return text in which every character may stand in XML 1.0."""
    return _NOT_XML.sub(lambda match: f"\\u{ord(match.group()):04x}", safe_text(text, 1000))
