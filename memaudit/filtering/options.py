"""What is filtered, and how."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from memaudit.errors import UsageError

Strategy = Literal["drop", "deduplicate", "downsample"]
"""What happens to a risky example: gone, one copy is kept, or a few are."""


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """Which rows are too risky, and what happens to them. Without a limit: the flagged ones."""

    max_probability: float | None = None
    """Rows above it are too risky, in [0, 1]."""

    top: int | None = None
    """So many of the riskiest rows are too risky."""

    expected_at_most: float | None = None
    """As few rows as possible are too risky: the upper end of the 95 % interval of the number
    memorized comes down to this."""

    strategy: Strategy = "drop"
    """What happens to them."""

    max_copies: int = 1
    """Copies of a risky window that `downsample` keeps, at least 1."""

    near_duplicates: float | None = None
    """For `deduplicate`: of texts at least this similar to a risky one, one is kept, in (0, 1]."""

    def __post_init__(self) -> None:
        limits = [self.max_probability, self.top, self.expected_at_most]
        if sum(limit is not None for limit in limits) > 1:
            raise UsageError(
                "more than one limit, expected at most one",
                hint="give --max-probability, --top or --expected-at-most",
            )
        if any(limit is not None and not (math.isfinite(limit) and limit >= 0) for limit in limits):
            raise UsageError("a limit is not a number of at least 0")
        if self.max_probability is not None and self.max_probability > 1:
            raise UsageError(f"expected a probability, got {self.max_probability:g}")
        if self.strategy not in get_args(Strategy) or self.max_copies < 1:
            raise ValueError(f"expected a strategy of {get_args(Strategy)} and max_copies >= 1")
        if self.max_copies > 1 and self.strategy != "downsample":
            raise UsageError(
                f"--max-copies goes with --strategy downsample, got {self.strategy}",
                hint="leave out one of the two",
            )
        if self.near_duplicates is not None and self.strategy != "deduplicate":
            raise UsageError(
                f"--near-duplicates goes with --strategy deduplicate, got {self.strategy}",
                hint="leave out one of the two",
            )
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise UsageError(f"expected a similarity in (0, 1], got {self.near_duplicates:g}")

    @property
    def in_words(self) -> str:
        """Why a row is too risky."""
        if self.max_probability is not None:
            return f"probability above {self.max_probability:g}"
        if self.top is not None:
            return f"among the {self.top} riskiest"
        if self.expected_at_most is not None:
            return f"for at most {self.expected_at_most:g} expected"
        return "flagged"
