"""The summary tells the truth in few words, and no corpus can speak through it."""

import dataclasses
import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.fake_run import audit_rows
from support.fakes import make_classifier, make_models, make_rows
from support.report_runs import with_results

from memaudit.corpus import Example
from memaudit.metrics import ExpectedCount
from memaudit.reports.page import plain
from memaudit.reports.predict import notes, summary_page, verdict
from memaudit.reports.terminal import print_page
from memaudit.runs.options import AuditOptions
from memaudit.windows import WindowShape

OPTIONS = AuditOptions(shape=WindowShape(4, 4))


def make_result(rows=None, known=("recited!",), **options):
    """The result of auditing rows, by default one of each kind."""
    return audit_rows(
        rows or make_rows("recited!", "recited!", "unknown!", "short", None),
        make_models(*known),
        make_classifier(),
        options=dataclasses.replace(OPTIONS, **options),
    )


def summary(result, capsys, monkeypatch, width=80, color="never"):
    """What is printed for a result on a terminal of this width."""
    monkeypatch.setenv("COLUMNS", str(width))
    print_page(summary_page(result), color=color)
    return capsys.readouterr().out


def test_the_verdict_comes_first(capsys, monkeypatch):
    """Who reads one sentence must have read the right one."""
    result = with_results(
        make_result(),
        expected=ExpectedCount(18.3, 7, 41),
        flagged=23,
        flagged_distinct=23,
        flagged_windows=23,
    )

    first_sentence = " ".join(summary(result, capsys, monkeypatch).split("\n\n")[0].split())
    assert first_sentence == (
        "23 of 5 examples are at risk: expect 18 (7 to 41) to be memorized by a student distilled "
        "from demo-teacher by soft labels at T = 2."
    )


def test_equal_texts_are_counted_once_beside_it():
    """Thousands of copies of one licence header are one finding."""
    result = with_results(
        make_result(),
        flagged=23,
        flagged_distinct=4,
        flagged_windows=4,
        expected_distinct=ExpectedCount(3.14, 1, 6),
    )

    assert plain(verdict(result)).endswith(
        "Counting equal texts once, 4 are at risk: expect 3.1 (1 to 6)."
    )


def test_one_example_is_at_risk_in_good_english():
    """Small counts are common: they keep a decimal and the singular."""
    result = with_results(make_result(), expected=ExpectedCount(1.26, 0, 3), flagged=1)

    assert plain(verdict(result)).startswith(
        "1 of 5 examples is at risk: expect 1.3 (0 to 3) to be"
    )


def test_the_summary_holds_what_it_rests_on(capsys, monkeypatch):
    """Outcomes, the worst by id with the reason in words, the classifier, the engine."""
    lines = [
        " ".join(line.split()) for line in summary(make_result(), capsys, monkeypatch).split("\n")
    ]

    for expected in (
        "examples 5",
        "scored 3 in 2 distinct windows of 4 + 4 tokens",
        "too short 1 no window of 8 tokens: cannot be extracted as defined",
        "bad 1 could not be used",
        "1 id-0 99.8% occurs 2 times, teacher recites it, low entropy",
    ):
        assert expected in lines
    assert any(line.startswith("classifier by-heart, ") for line in lines)
    assert any(line.startswith("engine reciting, ") for line in lines)


def test_where_the_table_is_stands_in_the_summary(tmp_path, capsys, monkeypatch):
    """The next step starts from that file."""
    result = audit_rows(
        make_rows("recited!"), make_models(), make_classifier(), out=tmp_path, options=OPTIONS
    )

    unfolded = summary(result, capsys, monkeypatch, width=400)
    assert f"risk table  {tmp_path / 'risk.parquet'}" in unfolded


def test_unfamiliar_features_are_told():
    """Extrapolated probabilities are not to be read as numbers."""
    result = make_result()
    assert not any("unlike" in note for note in notes(result))

    result = with_results(result, unfamiliar={"zlib_entropy": 0.051})
    assert any("5% in zlib entropy. " in note for note in notes(result))


def test_text_of_the_corpus_is_announced(capsys, monkeypatch):
    """Whoever passes the summary on must know what is in it."""
    assert "unknown!" not in summary(make_result(), capsys, monkeypatch)

    shown = summary(make_result(show_text=4), capsys, monkeypatch)
    assert "unkn" in shown
    assert "unknown!" not in shown
    assert "contain text of the corpus" in shown


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(capsys, monkeypatch, width):
    """A line that wraps by itself breaks the table."""
    rows = [Example(0, "a/very/long/path/" * 20, "c:1", "recited!"), *make_rows("unknown!")]

    lines = summary(make_result(rows, show_text=8), capsys, monkeypatch, width).splitlines()
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("text", ["[red]x[/red]", "[/]", ":smile:", "[link=file:///etc/passwd]x"])
def test_markup_in_ids_is_shown_as_it_is(capsys, monkeypatch, text):
    """An id is data: it neither colours nor links nor crashes."""
    result = make_result([Example(0, text, "c:1", "recited!")])

    assert text in summary(result, capsys, monkeypatch, width=120)


RESULT = make_result()
ALLOWED = re.compile(r"\x1b\[[0-9;]*m|\n")


@given(st.text(min_size=1))
def test_nothing_untrusted_steers_the_terminal(text):
    """Ids and texts are written by strangers; only our own colours come through."""
    worst = dataclasses.replace(RESULT.worst[0], example_id=text, reason=text, text=text)
    names = dataclasses.replace(RESULT.names, teacher=text, engine=text)
    result = with_results(RESULT, worst=(worst,), names=names)

    shown = io.StringIO()
    stdout, sys.stdout = sys.stdout, shown
    try:
        print_page(summary_page(result), color="always")
    finally:
        sys.stdout = stdout
    rest = ALLOWED.sub("", shown.getvalue())
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", rest)


@pytest.mark.parametrize(
    ("color", "colored"), [("always", True), ("never", False), ("auto", False)]
)
def test_colour_can_be_chosen(capsys, monkeypatch, color, colored):
    """A file gets no colours unless asked for."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert ("\x1b[" in summary(make_result(), capsys, monkeypatch, color=color)) == colored


def test_consoles_of_the_tests_are_as_wide_as_asked(monkeypatch):
    """The widths above would otherwise test nothing."""
    monkeypatch.setenv("COLUMNS", "40")
    assert Console(file=io.StringIO()).width == 40


def test_texts_that_share_a_window_are_not_called_equal():
    """Documents with one header are no copies: a reader must not take them for duplicates."""
    result = with_results(make_result(), flagged=32, flagged_distinct=32, flagged_windows=1)

    said = plain(verdict(result))
    assert "equal texts" not in said
    assert said.endswith("The 32 different texts at risk share 1 window of 8 tokens.")
