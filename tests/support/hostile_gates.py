"""Gates whose ids, addresses and names try to break out of what they are shown in."""

import re
from itertools import islice

import numpy as np

from memaudit.gate.policy import EffectivePolicy, GatePolicy
from memaudit.gate.result import Finding, GateResult, Guarantee, Judged, RuleResult

N_STRINGS = 10_000
"""Hostile strings that every format is fed."""

CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
"""What no output may hold; a line feed is the layout's own."""

_PAYLOADS = (
    "\x1b]0;pwned\x07", "\x1b[2J", "\x9b31m", "\u202egnp.exe", "a\u200bb", "\r\n::error::x",
    "\n::set-output name=a::b", "::stop-commands::t", "##[error]x", "%0A::error::x", "%25",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</testcase><failure>",
    "]]>", "<!--", "&#0;", "&amp;", "\x00", "\ufffe", "\uffff", "\ud800", "\U000e0041",
    "[x](javascript:alert(1))", "![](http://evil.example/x.png)", "http://evil.example/?q=",
    "`", "``", "```\n# heading", "| a | b |", "\\|", "\\", "*bold*", "~~~", "@everyone", "#1",
    "[/red]", "[link=file:///etc/passwd]x[/link]", ":smile:", "{0}", "{{7*7}}", "%s%n",
    "../../etc/passwd", "https://x", "file:///etc", "C:\\x", "a,b:c;d", "'\"", "=cmd|'/c calc'!A1",
    "\u2066", "\u0085", "\x0b\x0c", "\t", " ", "", "日本語", "🙂", "e\u0301" * 20, "x" * 3000,
)  # fmt: skip


def hostile_strings(seed=0):
    """Yield strings made of payloads and any characters, lone surrogates among them."""
    rng = np.random.default_rng(seed)
    while True:
        pieces = [str(_PAYLOADS[i]) for i in rng.integers(len(_PAYLOADS), size=rng.integers(1, 4))]
        codes = rng.integers(0, (0x80, 0x3000, 0x110000)[rng.integers(3)], size=rng.integers(0, 9))
        yield "".join([*pieces, *map(chr, codes.tolist())])


def make_result(findings=(), *, verdict="fail", source=None, reasons=()):
    """Return what a gate found, with these findings."""
    status = "holds" if not reasons else "underpowered"
    rules = (
        RuleResult("MEM001", verdict, 0.5, 0.1, "5 examples of 10 scored are flagged (50%)"),
        RuleResult("MEM005", "pass", 0, 0, "rows that could not be used: 0"),
    )
    return GateResult(
        verdict=verdict,
        rules=rules,
        guarantee=Guarantee(status, 3, 0.975, "all is alike", tuple(reasons)),
        findings=tuple(findings),
        n_findings=len(findings),
        counts={"rows": 10},
        policy=EffectivePolicy(GatePolicy(max_rate=0.1), source, "ab" * 32 if source else None),
        judged=make_judged(source or "teacher"),
        provenance={"run": "cd" * 32, "classifier": "by-heart", "corpus_digest": "ef" * 32},
    )


def make_judged(name="teacher", **changes):
    """Return what a run scored, with names that anybody may have chosen."""
    given = {
        "teacher": name, "teacher_digest": "0" * 64, "text_column": name, "layout": "auto",
        "mapping": (), "windows": "first", "prefix_tokens": 50, "suffix_tokens": 50,
        "objective": "soft", "temperature": 2.0, "alpha": 0.0, "settings": (f"map={name}",), "rows": 10, "scored": 9,
        "with_answers": None, "looked_at": None, "out_of_range_share": 0.0, "date": None, "signed_by": None,
    }  # fmt: skip
    return Judged(**(given | changes))


def make_finding(example_id="row-1", address="data/corpus.jsonl:17", reason="occurs 3 times"):
    """Return a finding."""
    return Finding(example_id, 16, address, 3, "predicted", 0.875, reason, "0" * 32)


def hostile_results(a_result=100):
    """Yield gates that hold all hostile strings between them, `a_result` strings in each."""
    strings = hostile_strings()
    for number in range(N_STRINGS // a_result):
        given = list(islice(strings, a_result))
        thirds = zip(given[::3], given[1::3], given[2::3], strict=False)
        findings = [
            make_finding(example_id, f"{path}.jsonl:{number}", reason)
            for example_id, path, reason in thirds
        ]
        verdict = ("fail", "inconclusive", "pass")[number % 3]
        yield make_result(findings, verdict=verdict, source=given[0], reasons=given[1:2])
