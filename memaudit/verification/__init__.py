"""Verification: really distil, see what the student recites, compare with what was predicted."""

from memaudit.labels import VerificationResult
from memaudit.verification.distilled import verify_distilled
from memaudit.verification.examples import VerificationOptions
from memaudit.verification.run import verify_distillation

__all__ = [
    "VerificationOptions",
    "VerificationResult",
    "verify_distillation",
    "verify_distilled",
]
