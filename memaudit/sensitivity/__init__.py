"""What must not leak: personal data and secrets, found by detectors that are optional packages.

Found are places and kinds; no function here hands out what stands there.
"""

from memaudit.sensitivity.detector import Detector, detector_versions, load_detector
from memaudit.sensitivity.evidence import (
    SENSITIVITY_COLUMNS,
    is_secret_at_risk,
    secret_argmax_rate,
    sensitivity_counts,
)
from memaudit.sensitivity.kinds import (
    KINDS,
    NAMES_MODEL,
    PERSONAL_KINDS,
    SECRET_KINDS,
    Kind,
    SensitiveSpan,
)
from memaudit.sensitivity.rows import (
    RowSensitivity,
    SensitivitySummary,
    row_sensitivity,
    summarise,
)

__all__ = [
    "KINDS",
    "NAMES_MODEL",
    "PERSONAL_KINDS",
    "SECRET_KINDS",
    "SENSITIVITY_COLUMNS",
    "Detector",
    "Kind",
    "RowSensitivity",
    "SensitiveSpan",
    "SensitivitySummary",
    "detector_versions",
    "is_secret_at_risk",
    "load_detector",
    "row_sensitivity",
    "secret_argmax_rate",
    "sensitivity_counts",
    "summarise",
]
