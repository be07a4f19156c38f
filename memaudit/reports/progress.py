"""Progress on standard error: a bar on a terminal, else a plain line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from memaudit.progress import Progress
from memaudit.reports.terminal import make_console
from memaudit.reports.words import clock, short_number

_SECONDS_A_LINE = 10.0


@contextmanager
def show_progress(
    *, quiet: bool, color: str, start: str = ""
) -> Iterator[Callable[[Progress], None]]:
    """Give what shows the progress of a run, and tidy up after it.

    Args:
        quiet: show nothing.
        color: `auto`, `always` or `never`.
        start: what is done before there is anything to count, such as loading models: importing
            torch alone takes seconds in which nothing else would be shown.
    """
    console = make_console(sys.stderr, color)
    if quiet:
        yield lambda progress: None
    elif console.is_terminal and console.is_interactive:
        with _bars(console) as bars:
            yield _bar_updater(bars, start)
    else:
        if start:
            sys.stderr.write(f"{start}\n")
            sys.stderr.flush()
        yield _LinePrinter()


def progress_line(progress: Progress) -> str:
    """Return `score 120000/1000000 12.0% 8.4k windows/s eta 01:44`."""
    total, eta = progress.total, progress.eta_seconds
    parts = [progress.stage, str(progress.done) if total is None else f"{progress.done}/{total}"]
    if total:
        parts.append(f"{progress.done / total:.1%}")
    parts.append(f"{short_number(progress.rate)} {progress.unit}/s")
    if eta is not None:
        parts.append(f"eta {clock(eta)}")
    return " ".join(parts)


class _LinePrinter:
    """Prints a line every ten seconds, and one when a stage with a known end has ended."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS_A_LINE or progress.done == progress.total:
            self._last = now
            sys.stderr.write(progress_line(progress) + "\n")
            sys.stderr.flush()


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description}", style="bold"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[numbers]}", markup=False),
        console=console,
        transient=True,
    )


def _bar_updater(bars: Bars, start: str) -> Callable[[Progress], None]:
    tasks = {}
    first = bars.add_task(start, total=None, numbers="") if start else None

    def update(progress: Progress) -> None:
        if first is not None:
            bars.update(first, visible=False)
        if progress.stage not in tasks:
            tasks[progress.stage] = bars.add_task(progress.stage, numbers="")
        numbers = progress_line(progress).removeprefix(f"{progress.stage} ")
        bars.update(
            tasks[progress.stage],
            total=progress.total,
            completed=progress.done,
            numbers=numbers,
        )

    return update
