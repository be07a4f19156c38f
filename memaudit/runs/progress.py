"""How far a run has come: a value, so that whoever shows it chooses how."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run."""

    stage: str
    """Rows are read first (`read`), then windows are scored (`score`)."""

    done: int
    """Rows read, or distinct windows scored."""

    total: int | None
    """How many there are; None while that is not known."""

    seconds: float
    """Since the stage began."""

    @property
    def unit(self) -> str:
        """What is counted."""
        return "rows" if self.stage == "read" else "windows"

    @property
    def rate(self) -> float:
        """Done per second; 0 at the start."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left at this rate; None while that cannot be told."""
        if self.total is None or self.rate == 0:
            return None
        return (self.total - self.done) / self.rate
