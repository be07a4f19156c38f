"""Distillation: fine-tune a model on examples, or teach it what a teacher says about them."""

from memaudit.distillation.hard_labels import generate_hard_labels
from memaudit.distillation.losses import soft_label_loss
from memaudit.distillation.methods import distil, fine_tune
from memaudit.distillation.options import TrainingOptions

__all__ = ["TrainingOptions", "distil", "fine_tune", "generate_hard_labels", "soft_label_loss"]
