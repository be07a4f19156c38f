"""How a distillation is verified."""

from dataclasses import dataclass, field
from typing import Literal

from memaudit.distillation import TrainingOptions
from memaudit.engines.models import ModelOptions
from memaudit.errors import UsageError
from memaudit.objectives import Divergence, Objective
from memaudit.windows import MIN_SUFFIX_LEN, Turns, WindowChoice, WindowPolicy, WindowShape


@dataclass(frozen=True, slots=True)
class VerificationOptions:
    """How a distillation is verified."""

    objective: Objective = field(default_factory=Objective)
    divergence: Divergence = field(default_factory=Divergence)
    """How the loss of soft labels measures the distance from the teacher."""

    training: TrainingOptions = field(default_factory=TrainingOptions)
    """Of baseline and student alike. Its seed also draws the sample and the held-out windows."""

    shape: WindowShape = field(default_factory=WindowShape)
    """Tokens of prefix and suffix."""

    windows: WindowPolicy = "auto"
    """Which windows of a row are trained on and asked for; with predictions, those are."""

    turns: Turns = "all"
    """Of which answers of a conversation, likewise."""

    min_suffix_len: int = MIN_SUFFIX_LEN
    """Tokens of the shortest answer, likewise."""

    sample: int | None = None
    """Rows to train on and to verify, drawn at random. None: all."""

    held_out_share: float = 0.1
    """Of the distinct windows, kept from baseline and student to measure perplexity, in [0, 1)."""

    on_bad_row: Literal["error", "skip"] = "error"
    """Whether a row that cannot be used ends the verification, or is counted and left out."""

    check_generate: int = 0
    """Windows that teacher and student really continue, to check the one pass against."""

    keep_models: bool = False
    """Whether the trained models stay in the folder."""

    model: ModelOptions = field(default_factory=ModelOptions)
    """How models are loaded: in float32, whatever they are trained in."""

    threads: int | None = None
    """CPU threads of torch in this process. None leaves them as they are."""

    @property
    def window_choice(self) -> WindowChoice:
        """Which windows are cut."""
        return WindowChoice(self.shape, self.windows, self.turns, self.min_suffix_len)

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample < 1:
            raise ValueError(f"sample must be at least 1, got {self.sample}")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"held_out_share must be in [0, 1), got {self.held_out_share}")
        if self.objective.kind != "soft" and self.divergence.settings:
            raise UsageError(
                f"{' and '.join(self.divergence.settings)} mean nothing with the objective "
                f"{self.objective.kind}: no distance from the teacher is measured",
                hint="leave them out, or choose --objective soft",
            )
        if self.check_generate < 0:
            raise ValueError(f"check_generate must be at least 0, got {self.check_generate}")
        if self.model.dtype != "float32":
            raise ValueError("models are loaded in float32, for extraction is decided in it")


DEFAULT_OPTIONS = VerificationOptions()
"""Three epochs of soft labels at temperature 2, all rows, a tenth of the windows held out."""
