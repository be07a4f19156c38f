"""Ctrl-C and SIGTERM: the first unwinds, so that half-written files are removed; the second leaves."""

import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


# No Exception: a library that catches those must not swallow Ctrl-C.
class Stopped(BaseException):
    """A signal arrived."""

    def __init__(self, number: int, *, hint: str | None = None) -> None:
        super().__init__(number)
        self.number = number
        self.hint = hint

    @property
    def message(self) -> str:
        """In one word."""
        return "interrupted" if self.number == signal.SIGINT else "terminated"

    @property
    def exit_code(self) -> int:
        """130 or 143, as shells have it."""
        return 128 + self.number


_arrived: list[int] = []
"""The signal that is being answered, if one is."""


def answer_signals() -> None:
    """Let signals raise `Stopped` from now on."""
    sys.unraisablehook = _raise_again
    for number in _SIGNALS:
        signal.signal(number, _stop)


def leave_at_signals() -> None:
    """Let signals end the process at once from now on."""
    for number in _SIGNALS:
        # Nothing is cleaned up any more: that may be what hangs.
        signal.signal(number, lambda number, _: os._exit(128 + number))


def raise_if_stopped() -> None:
    """Raise `Stopped` if it was raised before: a library may have caught and dropped it."""
    if _arrived:
        raise Stopped(_arrived[0])


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # From here on the next signal ends at once: what unwinds may hang.
    leave_at_signals()
    _arrived[:] = [number]
    raise Stopped(number)


def _raise_again(lost: "UnraisableHookArgs") -> None:
    """Send a signal again whose exception fell into a finalizer, where Python drops it."""
    if isinstance(lost.exc_value, Stopped):
        answer_signals()
        os.kill(os.getpid(), lost.exc_value.number)
    else:
        sys.__unraisablehook__(lost)
