"""The detectors together, loaded where they are asked for and only there."""

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from memaudit.errors import MissingDependency
from memaudit.sensitivity.kinds import SensitiveSpan, without_overlaps

if TYPE_CHECKING:
    from memaudit.sensitivity.credentials import SecretDetector
    from memaudit.sensitivity.personal_data import PersonalDataDetector

RULES_VERSION = 1
"""Of what this package makes of the detectors' findings; goes up when it finds something else."""

_PACKAGES = {"presidio_analyzer": "presidio-analyzer", "detect_secrets": "detect-secrets"}


class Detector:
    """Finds what is sensitive in a text. The same versions find the same."""

    def __init__(self, personal_data: "PersonalDataDetector", secrets: "SecretDetector") -> None:
        self._personal_data = personal_data
        self._secrets = secrets

    def find(self, text: str) -> tuple[SensitiveSpan, ...]:
        """Return where something sensitive stands; no two of them overlap.

        What a window's edge cuts in two is found only if its rest still looks the part.
        """
        return without_overlaps([*self._personal_data.find(text), *self._secrets.find(text)])


@cache
def load_detector() -> Detector:
    """Load the detectors, once a process.

    Raises:
        MissingDependency: one of their packages is not installed.
    """
    _require_packages()
    from memaudit.sensitivity.credentials import SecretDetector
    from memaudit.sensitivity.personal_data import PersonalDataDetector

    return Detector(PersonalDataDetector(), SecretDetector())


def detector_versions() -> dict[str, str]:
    """Return the versions of all that decides what is found, by name.

    Raises:
        MissingDependency: one of the packages is not installed.
    """
    _require_packages()
    from memaudit.sensitivity import credentials, personal_data

    rules = {"sensitivity-rules": str(RULES_VERSION)}
    return rules | personal_data.versions() | credentials.versions()


def _require_packages() -> None:
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise MissingDependency(package, needed_for="--sensitive", extra="sensitive")
