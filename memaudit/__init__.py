"""memaudit: predict, before a distillation, which examples a student would memorize."""

__version__ = "0.1.0"
