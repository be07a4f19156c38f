"""Distillation: fine-tune a model on examples, or teach it what a teacher says about them."""

from memaudit.distillation.losses import soft_label_loss
from memaudit.distillation.methods import (
    TrainingOptions,
    distil,
    fine_tune,
    generate_hard_labels,
    quiet_transformers,
)

__all__ = [
    "TrainingOptions",
    "distil",
    "fine_tune",
    "generate_hard_labels",
    "quiet_transformers",
    "soft_label_loss",
]
