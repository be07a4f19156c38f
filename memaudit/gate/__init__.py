"""Gate: a finished run held to limits, for a job that must stop a release."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rescoring:
    """Windows of a run that are scored again, and with what."""

    windows: int
    """How many, at least 1; at most all are."""

    teacher: str
    """Folder or hub id."""

    reference: str | None = None
    """Student or baseline, if the run has one."""
