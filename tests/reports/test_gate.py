"""The gate on a terminal: readable, and nothing of a corpus steers it."""

import io
import json
import re

from support.hostile_gates import CONTROL, hostile_results, make_finding, make_result

from memaudit.reports.gate import gate_page
from memaudit.reports.terminal import print_page


def printed(result):
    """Return what is printed without colour."""
    stream = io.StringIO()
    print_page(gate_page(result), stream, color="never")
    return stream.getvalue()


def test_the_verdict_comes_first():
    """A log is read from the top, if at all."""
    text = printed(make_result([make_finding()]))

    assert text.startswith("The gate fails: 1 of 2 rules do not hold")
    assert "MEM001 flagged-rate" in text
    assert "row-1" in text
    assert "87.5%" in text


def test_an_undecided_gate_says_that_it_fails():
    """Inconclusive sounds harmless."""
    assert printed(make_result(verdict="inconclusive")).startswith(
        "The gate cannot be decided, so it fails"
    )


def test_no_hostile_string_reaches_a_terminal():
    """10,000 of them, in text and in JSON: no control character, no markup that is obeyed."""
    for result in hostile_results():
        text = printed(result)
        document = json.dumps(result.document(), sort_keys=True, allow_nan=False)

        assert not CONTROL.search(text)
        assert "##[" not in text
        assert not re.search(r"^\s*::", text, re.MULTILINE)
        assert not CONTROL.search(document)
        assert json.loads(document)["n_findings"] == result.n_findings
