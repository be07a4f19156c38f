"""JUnit: what every CI server shows; XML whatever the corpus holds."""

from xml.etree import ElementTree
from xml.parsers import expat

import pytest
from support.hostile_gates import CONTROL, hostile_results, make_finding, make_result

from memaudit.reports.ci import render_junit


def test_each_rule_is_a_case():
    """A broken rule fails, one without evidence is an error, and the counts agree."""
    suites = ElementTree.fromstring(render_junit(make_result([make_finding()])))

    (suite,) = suites
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    first, second = suite.findall("testcase")
    assert first.get("name") == "MEM001 flagged-rate"
    assert "5 examples of 10" in first.find("failure").get("message")
    assert list(second) == []
    assert "row-1 at data/corpus.jsonl:17" in suite.find("system-out").text


def test_a_rule_without_evidence_is_an_error():
    """It is not known to fail, and must not be shown as passing."""
    suites = ElementTree.fromstring(render_junit(make_result(verdict="inconclusive")))

    assert suites.find("testsuite").get("errors") == "1"
    assert suites.find("testsuite/testcase/error") is not None


def test_a_parser_of_the_format_reads_it():
    """Its own idea of the format, not ours."""
    junitparser = pytest.importorskip("junitparser")

    (suite,) = junitparser.JUnitXml.fromstring(render_junit(make_result()).encode())

    assert (suite.tests, suite.failures, suite.errors) == (2, 1, 0)
    assert [case.classname for case in suite] == ["memaudit.gate"] * 2


def test_no_hostile_string_makes_an_invalid_document():
    """10,000 of them: well-formed, and no element more than there should be."""
    for result in hostile_results():
        text = render_junit(result)

        assert not CONTROL.search(text)
        names = []
        parser = expat.ParserCreate()
        parser.StartElementHandler = lambda name, attributes, names=names: names.append(name)
        parser.Parse(text.encode(), True)
        expected = ["testsuites", "testsuite", "testcase"]
        expected += {"fail": ["failure"], "inconclusive": ["error"], "pass": []}[result.verdict]
        assert names == [*expected, "testcase", "system-out"]
