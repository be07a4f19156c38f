"""What a student learns from its teacher: soft labels, text the teacher wrote, or the corpus."""

import math
from dataclasses import dataclass
from typing import Literal

ObjectiveKind = Literal["soft", "hard", "cross-entropy"]
"""`soft`: the teacher's distribution over the next token of the corpus. `hard`: the text with which
the teacher greedily continues prefixes of the corpus. `cross-entropy`: the corpus alone."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What a student is trained on.

    Temperature and cross-entropy share mean something for `soft` only, whose loss is

        (1 - share) * T**2 * KL(teacher_T || student_T) + share * cross-entropy

    Sources: Hinton et al. 2015 (arXiv:1503.02531), section 2; Borkar et al. 2026
    (arXiv:2601.15394), section 3, which uses no share.
    """

    kind: ObjectiveKind = "soft"
    """See there."""

    temperature: float = 2.0
    """Of both softmaxes, above 0."""

    cross_entropy_share: float = 0.0
    """Of the loss, in [0, 1]; often called alpha."""

    def __post_init__(self) -> None:
        if self.kind not in ("soft", "hard", "cross-entropy"):
            raise ValueError(f"kind must be soft, hard or cross-entropy, got {self.kind}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if not 0 <= self.cross_entropy_share <= 1:
            raise ValueError(
                f"cross_entropy_share must be in [0, 1], got {self.cross_entropy_share}"
            )
