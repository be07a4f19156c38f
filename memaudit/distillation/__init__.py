"""Distillation: fine-tune a model on examples, or teach it what a teacher says about them."""
