"""Progress is for people who wait: on a terminal it moves, in a log it is a few plain lines."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memaudit.progress import Progress, clock, short_number, tell
from memaudit.reports import terminal as module
from memaudit.reports.terminal import progress_line, show_progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_line_says_how_far_how_fast_and_how_long():
    """The form that logs are searched for."""
    progress = Progress("score", "windows", 120_000, 1_000_000, 14.3)

    assert progress_line(progress) == "score 120000/1000000 12.0% 8.4k windows/s eta 01:45"


def test_an_unknown_total_is_left_out():
    """A stream has no end one could know."""
    assert progress_line(Progress("read", "rows", 1, None, 1.0)) == "read 1 row, 1.0 rows/s"
    assert progress_line(Progress("read", "rows", 5000, None, 2.0)) == "read 5000 rows, 2.5k rows/s"


def test_the_very_start_has_no_rate():
    """Division by zero would end a run for the sake of a bar."""
    assert (
        progress_line(Progress("score", "windows", 0, 10, 0.0)) == "score 0/10 0.0% 0.0 windows/s"
    )


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0.04, "0.0"), (7.46, "7.5"), (84.2, "84"), (8390, "8.4k"), (1.2e6, "1.2M")],
)
def test_rates_are_short(number, shown):
    """Nobody needs six digits of a rate."""
    assert short_number(number) == shown


@given(seconds=st.floats(0, 1e6))
def test_a_clock_reads_back(seconds):
    """Minutes and seconds stay below sixty."""
    *hours, minutes, second = map(int, clock(seconds).split(":"))

    assert max(minutes, second) < 60
    assert sum(hours) * 3600 + minutes * 60 + second == round(seconds)


def shown_by(stream, monkeypatch, *, quiet=False, steps=(1, 2, 3), start=""):
    """What a stage of three windows writes to a stream."""
    monkeypatch.setattr(sys, "stderr", stream)
    with show_progress(quiet=quiet, color="never", start=start) as report:
        for done in steps:
            report(Progress("score", "windows", done, 3, float(done)))
    return stream.getvalue()


def test_a_log_gets_a_line_at_the_end_of_a_stage(monkeypatch):
    """Not one for each chunk: a log of a day would be nothing else."""
    assert shown_by(io.StringIO(), monkeypatch) == "score 3/3 100.0% 1.0 windows/s eta 00:00\n"


def test_a_log_gets_a_line_every_ten_seconds(monkeypatch):
    """Silence looks like a hang."""
    moments = iter([0.0, 5.0, 10.0, 15.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(moments))

    lines = shown_by(io.StringIO(), monkeypatch, steps=(0, 1, 2)).splitlines()
    assert lines == ["score 1/3 33.3% 1.0 windows/s eta 00:02"]


def test_a_terminal_gets_a_bar_that_is_taken_away(monkeypatch):
    """What stays on the screen is the summary."""
    for name in ("CI", "NO_COLOR", "TERM", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    shown = shown_by(Terminal(), monkeypatch)

    assert "3/3 100.0%" in shown
    assert shown.endswith("\x1b[2K")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_what_comes_before_the_first_count_is_shown(monkeypatch, stream):
    """Importing torch takes seconds: an empty screen looks like a hang."""
    for name in ("CI", "NO_COLOR", "TERM", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert "load models" in shown_by(stream, monkeypatch, steps=(), start="load models")


def test_what_is_loaded_is_named(monkeypatch):
    """A large model takes minutes; its name is no markup."""
    for name in ("CI", "NO_COLOR", "TERM", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with show_progress(quiet=False, color="never", start="load models"):
        tell("load [bold]gpt2")

    assert "load [bold]gpt2" in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_is_silent(monkeypatch, stream):
    """Asked for nothing, we say nothing."""
    assert shown_by(stream, monkeypatch, quiet=True) == ""
