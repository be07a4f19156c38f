"""A plan on a terminal says what is measured and what is derived."""

import dataclasses

import pytest
from support.planning_documents import MODEL, PLAN, SAMPLED, changed

from memaudit.reports.predict import plan_page
from memaudit.reports.terminal import print_page
from memaudit.reports.words import duration


def printed(plan, capsys, monkeypatch):
    """What a terminal of 80 columns shows."""
    monkeypatch.setenv("COLUMNS", "80")
    print_page(plan_page(plan), color="never")
    return " ".join(capsys.readouterr().out.split())


def test_a_plan_says_first_that_it_is_one(capsys, monkeypatch):
    """Nobody should look for a risk table."""
    assert printed(PLAN, capsys, monkeypatch).startswith("Nothing was written: this is a plan.")


def test_times_on_gpus_are_marked_as_derived(capsys, monkeypatch):
    """They have not been measured, and must not be quoted as if they had."""
    text = printed(PLAN, capsys, monkeypatch)

    assert "derived, not measured: 40% of the published dense peak" in text
    assert all(name in text for name in ("T4", "L4", "A100-80", "H100"))


def test_the_time_here_comes_with_its_rate_and_what_it_took_to_tell(capsys, monkeypatch):
    """Or with why there is none."""
    assert "here 7.0 s at 20 tokens/s, 10 s of CPU time; the sample took 9.0 s" in printed(
        SAMPLED, capsys, monkeypatch
    )
    assert "not measured: not enough memory" in printed(PLAN, capsys, monkeypatch)
    nothing = changed(screened_windows=10)
    assert "not measured: nothing to score" in printed(nothing, capsys, monkeypatch)


def test_a_name_of_a_model_cannot_command_the_terminal(capsys, monkeypatch):
    """It comes from the command line of who knows whom."""
    evil = changed(models={"teacher": dataclasses.replace(MODEL, source="\x1b[31m")})

    print_page(plan_page(evil), color="never")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.04, "0.0 s"), (4.21, "4.2 s"), (600, "10 min"), (7200, "2.0 h"), (1e6, "11.6 days")],
)
def test_durations_read_as_people_say_them(seconds, told):
    """A plan may span seconds and months."""
    assert duration(seconds) == told
