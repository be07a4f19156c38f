"""How far a long piece of work has come."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of an audit or a verification."""

    stage: str
    """Such as `read` or `score`."""

    unit: str
    """What is counted: `rows`, `windows` or `steps`."""

    done: int
    total: int | None
    """How many there are; None while that is not known."""

    seconds: float
    """Since the stage began, or went on."""

    start: int = 0

    @property
    def rate(self) -> float:
        """Done per second; 0 at the start."""
        return (self.done - self.start) / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left at this rate; None while that cannot be told."""
        if self.total is None or self.rate == 0:
            return None
        return (self.total - self.done) / self.rate


def short_number(number: float) -> str:
    """Return three or so digits: `7.5`, `84`, `8.4k`, `1.2M`."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"


def clock(seconds: float) -> str:
    """Return `mm:ss`, or `h:mm:ss` from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


ReportProgress = Callable[[Progress], None]
"""Is told now and then how far the work has come."""


def begin_stage(
    stage: str, unit: str, progress: ReportProgress | None
) -> Callable[[int, int | None], None]:
    """Return what turns done and total into the `Progress` of a stage that begins now."""
    started, first = time.monotonic(), list[int]()

    def report(done: int, total: int | None) -> None:
        # Steps come one by one, so the first one told says where a training went on.
        first.append(done - 1 if unit == "steps" else 0)
        if progress is not None:
            progress(Progress(stage, unit, done, total, time.monotonic() - started, first[0]))

    return report


_listeners: list[Callable[[str, int], None]] = []


def tell(what: str, n: int = 0) -> None:
    """Say what is being done, such as `load gpt2`, or that `n` more of a stage are done.

    For what lies too deep to be handed a `ReportProgress`, such as the batches of an engine.
    """
    for listener in _listeners:
        listener(what, n)


@contextmanager
def listening(listener: Callable[[str, int], None]) -> Iterator[None]:
    """Hear meanwhile what is told in this process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
