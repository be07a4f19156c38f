"""GitHub annotations: commands to the runner, and none that a corpus makes."""

import re

from support.hostile_gates import CONTROL, hostile_results, make_finding, make_result

from memaudit.reports.ci import SourceRoot, render_annotations

_COMMAND = re.compile(r"::(error|notice) (?:[a-z]+=[^,:\r\n]*)(?:,[a-z]+=[^,:\r\n]*)*::[^\r\n]*")


def test_a_finding_is_told_at_its_line():
    """That is where a pull request shows it."""
    first, second = render_annotations(
        make_result([make_finding("a:b,c", "data/a,b.jsonl:3")]), root=SourceRoot("/repo")
    ).splitlines()

    assert first.startswith("::error title=memaudit gate::fail: MEM001 5 examples")
    assert first.endswith("(50%25)")
    assert second == (
        "::error file=data/a%2Cb.jsonl,line=3,title=MEM001 predicted::"
        "example 'a:b,c' is memorized with probability 87.5%25: occurs 3 times"
    )


def test_ten_of_a_kind_are_told():
    """The runner drops the eleventh."""
    told = render_annotations(
        make_result([make_finding(f"row-{i}") for i in range(50)]), root=SourceRoot("/repo")
    )

    assert len(told.splitlines()) == 10


def test_a_gate_that_passes_says_so_and_no_more():
    """An annotation for what is allowed would train people to look away."""
    told = render_annotations(
        make_result([make_finding()], verdict="pass"), root=SourceRoot("/repo")
    )

    assert told.startswith("::notice title=memaudit gate::pass")
    assert len(told.splitlines()) == 1


def test_no_hostile_string_makes_a_command():
    """10,000 of them: every line is one of ours, from its start to its end."""
    for result in hostile_results():
        told = render_annotations(result, root=SourceRoot("/repo"))

        assert not CONTROL.search(told)
        lines = told.split("\n")
        assert lines.pop() == ""
        assert len(lines) == (1 if result.verdict == "pass" else 10)
        assert all(_COMMAND.fullmatch(line) for line in lines)
        assert "##[" not in told
