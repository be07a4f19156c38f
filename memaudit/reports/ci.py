"""A gate for CI systems: SARIF for code scanning, JUnit for test reports, GitHub's annotations.

None of them holds text of the corpus; ids and addresses are written so that nothing in them acts.
"""

import os
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from memaudit import __version__
from memaudit.corpus.discovery import has_known_ending
from memaudit.gate.result import RULES, GateResult
from memaudit.reports.gate import gate_markdown
from memaudit.reports.words import percent
from memaudit.text import inert, json_text, number_of, safe_text, shown_path

_WITHOUT_LINES = (".parquet", ".arrow", ".feather")
MAX_RESULTS = 1000
"""Code scanning shows 5,000 of a run; nobody reads that many."""

# A rule such as MEM005 names no example: without a result of its own its failure would show
# nowhere in code scanning.
_SUMMARY = "MEM000"
_CORPUS = "corpus"
"""What is pointed to when neither the policy nor the corpus is a file."""
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
    "The policy of the gate says how much is allowed. All rules: docs/gate.md#rules."
)

_JUNIT_LISTED = 10
# Beyond what is written out already, XML 1.0 has no place for these two.
_NOT_XML = re.compile("[\ufffe\uffff]")

MAX_ANNOTATIONS = 10
"""Of one kind and step; GitHub drops the others."""


@dataclass(frozen=True, slots=True)
class Location:
    """A line of a file."""

    path: str
    """Relative to the folder of the project, safe to show."""
    line: int
    """From 1; 1 where the format has no lines."""


@dataclass(frozen=True, slots=True)
class SourceRoot:
    """From where code scanning takes paths: the top of the repository.

    A run names files as they were named to `predict`, which may have worked in another folder, or
    on another machine.
    """

    folder: str
    here: tuple[str, ...] = ()
    """Folders in which `predict` may have worked, absolute, the likeliest first."""
    moved: tuple[str, str] | None = None
    """How the corpus was named to `predict`, and where it is now, if that was said."""

    def path(self, name: str) -> PurePosixPath:
        """Return the path of a file from the top; of one that is not found, the best guess."""
        if self.moved is not None and self.moved[0] and name.startswith(self.moved[0]):
            name = self.moved[1] + name.removeprefix(self.moved[0])
        top = PurePosixPath(self.folder)
        # By name alone: a corpus that is a link out of the top still has its place below it.
        places = [PurePosixPath(os.path.normpath(Path(here, name))) for here in self.here or ("/",)]
        inside = [place for place in places if place.is_relative_to(top)]
        # Not Path's own: names are from the run, and of one that is too long it cannot be asked.
        if there := [place for place in inside if os.path.exists(place)]:  # noqa: PTH110
            return there[0].relative_to(top)
        # Its end is looked for below the top: what comes before is of another machine or folder.
        parts = [part for part in PurePosixPath(name).parts if part != "/"]
        # With one of them a name could lead out of the repository.
        if ".." not in parts:
            for start in range(len(parts)):
                end = PurePosixPath(*parts[start:])
                if os.path.isfile(top / end):  # noqa: PTH113
                    return end
        if inside:
            return inside[0].relative_to(top)
        return PurePosixPath(places[0].name if PurePosixPath(name).is_absolute() else name)


def source_root(
    result: GateResult, run_folder: Path, data: str | None, given: Path | str | None
) -> SourceRoot:
    """Return the top of the repository that code scanning takes paths from.

    Git itself is not asked: it would read the settings of a checkout that may be hostile.

    Args:
        result: names the corpus as it was named to `predict`.
        run_folder: of the run.
        data: the corpus, as it is named now.
        given: the top, if it was said.
    """
    here = Path.cwd()
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        given = given or os.environ.get(name)
    repositories = (folder for folder in (here, *here.parents) if (folder / ".git").exists())
    top = Path(given).resolve() if given else next(repositories, here)
    corpus = result.provenance["corpus"]
    moved = (corpus, data) if corpus and data else None
    # A run mostly lies below the folder that predict worked in.
    folders = (here, *run_folder.resolve().parents)
    return SourceRoot(str(top), tuple(map(str, folders)), moved)


def render(result: GateResult, root: SourceRoot, output_format: str) -> str:
    """Return a result in a format: sarif, junit, github, markdown or json."""
    match output_format:
        case "sarif":
            return render_sarif(result, root=root)
        case "junit":
            return render_junit(result)
        case "github":
            return render_annotations(result, root=root)
        case "markdown":
            return gate_markdown(result)
        case _:
            return json_text(result.document()) + "\n"


def find_location(address: str, root: SourceRoot) -> Location | None:
    """Return the file and line of `<file>:<line or row>`; None if the row is not from a file."""
    name, _, place = address.rpartition(":")
    if not has_known_ending(name):
        return None
    path = root.path(shown_path(name))
    has_lines = not any(ending in path.name.lower() for ending in _WITHOUT_LINES)
    # Anything may stand behind the colon: `isdigit` takes '²' too, which `int` refuses, and
    # Python raises at thousands of digits.
    is_number = place.isascii() and place.isdigit() and len(place) < 10
    return Location(str(path), max(1, int(place)) if has_lines and is_number else 1)


def render_sarif(result: GateResult, *, root: SourceRoot) -> str:
    """Return the findings, worst first and at most 1,000, and one summary."""
    failed = {rule.id for rule in result.failed}
    # Findings of these rules carry the id of their level, MEM001, and are errors if one is broken.
    if failed & {"MEM002", "MEM006", "MEM007"}:
        failed.add("MEM001")
    whole = _policy_location(result, root)
    broken = result.failed + result.inconclusive
    said = "; ".join(f"{rule.id}: {rule.message}" for rule in broken) or "every rule passes"
    said = safe_text(f"{number_of(result.n_findings, 'example')} in all; {said}.", 4000)
    level = {"pass": "note", "fail": "error", "inconclusive": "warning"}[result.verdict]
    # Code scanning asks for a place in a file, also where the corpus as a whole is meant.
    results = [_result(_SUMMARY, level, said, whole, "summary")]
    for finding in result.findings[: MAX_RESULTS - 1]:
        level = "error" if finding.rule in failed else "warning"
        said = (
            f"Example '{safe_text(finding.example_id, 100)}': memorized with probability "
            f"{percent(finding.probability)}; {safe_text(finding.reason)}."
        )
        location = find_location(finding.address, root) or whole
        found = _result(finding.rule, level, said, location, str(finding.fingerprint))
        # SARIF ranks from 0 to 100.
        results.append({**found, "rank": round(100 * finding.probability, 3)})
    run: dict[str, Any] = {
        "tool": {"driver": _driver()},
        # Code scanning takes the part before the last slash for a category: an upload replaces
        # the earlier one of the same category, and not those of other tools.
        "automationDetails": {"id": "memaudit/gate/"},
        "columnKind": "utf16CodeUnits",
        # True whatever the verdict: False is for a tool that did not come to its end.
        "invocations": [{"executionSuccessful": True, "exitCode": result.exit_code}],
        "results": results,
    }
    document = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [run],
    }
    return json_text(document, indent=1) + "\n"


def _driver() -> dict[str, Any]:
    # A help URI must be absolute, and code scanning refuses a document with another one: without a
    # site the help says which page of the documentation it is.
    try:
        urls = metadata("memaudit-distill").get_all("Project-URL") or ()
    except PackageNotFoundError:
        urls = ()
    site = dict(url.split(", ", 1) for url in urls).get("Documentation")
    help_uri = {"helpUri": f"{site.rstrip('/')}/gate.html#rules"} if site else {}
    return {
        "name": "memaudit",
        "organization": "memaudit",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [
            {
                "id": rule,
                "name": "".join(map(str.capitalize, (name or RULES[rule]).split("-"))),
                "shortDescription": {"text": text},
                "fullDescription": {"text": text},
                "help": {"text": _HELP},
                **help_uri,
                "defaultConfiguration": {"level": "warning"},
                "properties": {"precision": "medium", "tags": ["memorization", "privacy"]},
            }
            for rule, (name, text) in _DESCRIPTIONS.items()
        ],
    }


def _result(
    rule: str, level: str, text: str, location: Location, fingerprint: str
) -> dict[str, Any]:
    # SARIF reads `[text](1)` as a link to a place and `{0}` as a placeholder, in plain text too.
    for letter in "[]{}":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    # A URI without a leading slash is taken from the top of the repository; with one it leaves it.
    uri = quote(location.path.removeprefix("/"), safe="/") or _CORPUS
    place = {"artifactLocation": {"uri": uri}, "region": {"startLine": location.line}}
    return {
        "ruleId": rule,
        "ruleIndex": list(_DESCRIPTIONS).index(rule),
        "level": level,
        "message": {"text": text},
        "locations": [{"physicalLocation": place}],
        # By what a reader of several documents knows a finding again after its row has moved.
        # GitHub heeds its own name alone, and would fill in a hash of the line without it.
        "partialFingerprints": {
            "memauditRow/v1": fingerprint,
            "primaryLocationLineHash": fingerprint,
        },
    }


def _policy_location(result: GateResult, root: SourceRoot) -> Location:
    """Return where to point to when no line of a file is meant: the policy, or else the corpus."""
    if result.policy.source is not None:
        return Location(str(root.path(shown_path(result.policy.source))), 1)
    for address in (finding.address for finding in result.findings):
        if location := find_location(address, root):
            return Location(location.path, 1)
    return Location(str(root.path(shown_path(result.provenance.get("corpus") or _CORPUS))), 1)


def render_junit(result: GateResult) -> str:
    """Return the report: broken rules fail, those without evidence are errors."""
    suites = ElementTree.Element("testsuites", {"name": "memaudit"})
    failures, errors = f"{len(result.failed)}", f"{len(result.inconclusive)}"
    counts = {"tests": f"{len(result.rules)}", "failures": failures, "errors": errors}
    named = {"name": "memaudit gate", **counts, "skipped": "0", "time": "0"}
    suite = ElementTree.SubElement(suites, "testsuite", named)
    for rule in result.rules:
        named = {"classname": "memaudit.gate", "name": f"{rule.id} {rule.name}", "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", named)
        if rule.status != "pass":
            tag, message = "failure" if rule.status == "fail" else "error", _xml(rule.message)
            said = {"message": message, "type": rule.status}
            ElementTree.SubElement(case, tag, said).text = message
    if result.findings:
        lines = [f"{number_of(result.n_findings, 'example')}, the worst first"]
        lines += [
            f"{finding.rule} {percent(finding.probability)} {_xml(finding.example_id)} "
            f"at {_xml(finding.address)}"
            for finding in result.findings[:_JUNIT_LISTED]
        ]
        ElementTree.SubElement(suite, "system-out").text = "\n".join(lines)
    ElementTree.indent(suites)
    # ElementTree escapes markup. It does not escape what XML has no place for: `_xml` does.
    content: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    # Jobs print such a file when it says that something failed: no line of it may be a command.
    return inert(content.decode() + "\n")


def _xml(text: str) -> str:
    """Return text in which every character may stand in XML 1.0."""
    return _NOT_XML.sub(lambda match: f"\\u{ord(match.group()):04x}", safe_text(text, 1000))


def render_annotations(result: GateResult, *, root: SourceRoot) -> str:
    """Return workflow commands; nothing of the corpus can make one of its own."""
    kind = "notice" if result.verdict == "pass" else "error"
    broken = result.failed + result.inconclusive
    said = "; ".join(f"{rule.id} {rule.message}" for rule in broken) or "every rule passes"
    lines = [f"::{kind} title=memaudit gate::{_data(f'{result.verdict}: {said}', 2000)}"]
    # One less, for the verdict is an annotation too. A gate that passes points at nothing: marks
    # on what is allowed teach people to look away.
    for finding in result.findings[: MAX_ANNOTATIONS - 1] if result.verdict != "pass" else ():
        properties = {"title": f"{finding.rule} {finding.level}"}
        if location := find_location(finding.address, root):
            properties = {"file": location.path, "line": str(location.line), **properties}
        # A colon or a comma would end the value of a property.
        escaped = {key: _data(value).replace(":", "%3A") for key, value in properties.items()}
        listed = ",".join(f"{key}={value.replace(',', '%2C')}" for key, value in escaped.items())
        message = (
            f"example '{safe_text(finding.example_id, 100)}' is memorized with probability "
            f"{percent(finding.probability)}: {safe_text(finding.reason)}"
        )
        lines.append(f"::error {listed}::{_data(message)}")
    return "\n".join(lines) + "\n"


def _data(text: str, max_len: int = 1000) -> str:
    shown = inert(safe_text(text, max_len))
    # The percent sign first: the escapes of the other two begin with one.
    return shown.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
