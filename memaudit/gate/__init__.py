"""Gate: a finished run held to limits, for a job that must stop a release."""

from memaudit.gate.check import GateInputs, check_gate
from memaudit.gate.policy import EffectivePolicy, GatePolicy, effective_policy
from memaudit.gate.result import GateResult

__all__ = [
    "EffectivePolicy",
    "GateInputs",
    "GatePolicy",
    "GateResult",
    "check_gate",
    "effective_policy",
]
