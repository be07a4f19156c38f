"""SARIF: what code scanning shows; valid whatever the corpus holds."""

import json
import os
import re
import shutil
import subprocess

import pytest
from support.hostile_gates import CONTROL, hostile_results, make_finding, make_result

from memaudit.reports.ci import MAX_RESULTS, SourceRoot, render_sarif

_URI = re.compile(r"(?:[A-Za-z0-9._~/-]|%[0-9A-F]{2})+")


def results(result, root="/repo"):
    """Return the results of the document."""
    return json.loads(render_sarif(result, root=SourceRoot(root)))["runs"][0]["results"]


def test_a_finding_stands_at_its_line(tmp_path):
    """That is where a reviewer sees it."""
    summary, found = results(make_result([make_finding()]))

    place = found["locations"][0]["physicalLocation"]
    assert place == {
        "artifactLocation": {"uri": "data/corpus.jsonl"},
        "region": {"startLine": 17},
    }
    assert (found["ruleId"], found["level"]) == ("MEM001", "error")
    # The second is the one that GitHub heeds.
    assert found["partialFingerprints"] == {
        "memauditRow/v1": "0" * 32,
        "primaryLocationLineHash": "0" * 32,
    }
    assert "1 example in all" in summary["message"]["text"]


@pytest.mark.parametrize(
    ("address", "uri", "line"),
    [
        ("/repo/data/c.jsonl:3", "data/c.jsonl", 3),
        ("/elsewhere/c.jsonl:3", "c.jsonl", 3),
        ("data/c.parquet:900", "data/c.parquet", 1),
        ("a b/ü%.csv:2", "a%20b/%C3%BC%25.csv", 2),
        ("c.jsonl:99999999999999", "c.jsonl", 1),
        ("stdin:4", "policy.toml", 1),
        ("org/name:4", "policy.toml", 1),
    ],
)
def test_a_place_is_relative_to_the_repository(address, uri, line):
    """Code scanning refuses or misplaces anything else."""
    finding = make_finding(address=address)

    _, found = results(make_result([finding], source="policy.toml"))

    place = found["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == (uri, line)


def test_there_are_a_thousand_results_at_most():
    """More are dropped by the reader, and not from the end."""
    found = results(make_result([make_finding(f"row-{i}") for i in range(3000)]))

    assert len(found) == MAX_RESULTS
    assert "3,000 examples in all" in found[0]["message"]["text"]
    assert "row-998" in found[-1]["message"]["text"]


def test_no_hostile_string_makes_an_invalid_document():
    """10,000 of them: JSON, plain messages, relative and encoded places."""
    for result in hostile_results():
        text = render_sarif(result, root=SourceRoot("/repo"))

        assert not CONTROL.search(text)
        for found in json.loads(text)["runs"][0]["results"]:
            assert not CONTROL.search(found["message"]["text"])
            assert not re.search(r"[\[\]{}]", found["message"]["text"])
            uri = found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
            assert _URI.fullmatch(uri), uri
            assert not uri.startswith("/")


MULTITOOL = os.environ.get("SARIF_MULTITOOL") or shutil.which("Sarif.Multitool")


@pytest.mark.slow
@pytest.mark.skipif(MULTITOOL is None, reason="Sarif.Multitool is not on this machine")
def test_the_validator_of_the_format_finds_nothing(tmp_path):
    """By the rules of the format and those of GitHub; it exits 0 whatever it finds."""
    hostile = [result for _, result in zip(range(3), hostile_results(300), strict=False)]
    for number, result in enumerate([make_result(), make_result([make_finding()]), *hostile]):
        path, found = tmp_path / f"{number}.sarif", tmp_path / f"{number}-found.sarif"
        path.write_text(render_sarif(result, root=SourceRoot("/repo")))
        rules = ["--rule-kind", "Sarif;Ghas", "--level", "Error;Warning;Note", "--kind", "Fail"]
        command = [str(MULTITOOL), "validate", str(path), "-o", str(found), *rules]
        subprocess.run(command, check=True, capture_output=True, timeout=100)

        complaints = json.loads(found.read_text())["runs"][0]["results"]

        serious = {found["ruleId"] for found in complaints if found.get("level") != "note"}
        assert serious <= {"SARIF2005"}  # the project has no home page yet
