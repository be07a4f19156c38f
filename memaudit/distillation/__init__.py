"""Distillation: fine-tune a model on examples, or teach it what a teacher says about them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit.objectives import DEFAULT_EPOCHS
from memaudit.text import number_of

TrainingExample = NDArray[np.int32] | tuple[NDArray[np.int32], int]
"""Token ids, each (T,); with a number, so many of them at the start are read and not learnt."""


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How a model is trained; the loss is the function's own."""

    epochs: float = DEFAULT_EPOCHS
    """Passes over the examples, above 0."""

    learning_rate: float = 5e-5
    """Peak, of AdamW; reached after `warmup_share` of the steps, then a cosine to zero."""

    batch_size: int = 32
    """Examples in one optimizer step, on all devices together."""

    warmup_share: float = 0.05
    """Of the steps, in [0, 1]."""

    weight_decay: float = 0.0
    seed: int = 0
    """Of the order of the examples, and of dropout where the model has it."""

    gradient_accumulation: int = 1
    """Parts that a batch is run in: the same step, up to rounding, in less memory."""

    bf16: bool = False
    """Run in bfloat16 under autocast; the weights and the optimizer stay as they are."""

    on_cpu: bool = False
    """Train on the CPU even where there is a GPU."""

    save_every: int | None = None
    """Steps between checkpoints in the work folder, from which a killed training goes on. None
    writes none."""

    on_step: Callable[[int, int], None] | None = None
    """Told the steps done and their total, after each step."""

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.learning_rate > 0):
            raise ValueError("epochs and learning_rate must be above 0")
        if min(self.batch_size, self.gradient_accumulation) < 1:
            raise ValueError("batch_size and gradient_accumulation must be at least 1")
        if self.save_every is not None and self.save_every < 1:
            raise ValueError(f"save_every must be at least 1, got {self.save_every}")

    def n_steps(self, n_examples: int) -> int:
        """Return the optimizer steps of a training on so many examples, at least 1."""
        # Rounded up: the last batch of an epoch may be a small one, and is a step.
        return max(1, round(-(-n_examples // self.batch_size) * self.epochs))

    def n_passes(self, n_examples: int) -> float:
        """Return how often each example is learnt: not the epochs, for steps are rounded."""
        return self.n_steps(n_examples) / -(-n_examples // self.batch_size)

    def n_at_once(self, n_devices: int = 1) -> int:
        """Return the examples that a device holds at one time."""
        return -(-self.batch_size // (self.gradient_accumulation * n_devices))

    @property
    def settings(self) -> dict[str, float]:
        """All but the seed that decides the result, by the names under which documents keep it."""
        return {
            "epochs": float(self.epochs),
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "gradient_accumulation": self.gradient_accumulation,
            "warmup_share": self.warmup_share,
            "weight_decay": self.weight_decay,
            "bf16": self.bf16,
        }


MAIN_SETTINGS = ("epochs", "learning_rate", "batch_size")
"""Those by which people tell trainings apart."""


def in_words(settings: Mapping[str, Any]) -> str:
    """Return them, of the settings of a document."""
    epochs, rate, batch_size = (settings[name] for name in MAIN_SETTINGS)
    step = number_of(batch_size, "example")
    return f"{number_of(epochs, 'epoch')}, learning rate {rate:g}, {step} per step"
