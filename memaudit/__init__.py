"""memaudit: predict, before a distillation, which examples a student would memorize."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memaudit.audit import audit_corpus
    from memaudit.corpus import CorpusOptions
    from memaudit.errors import MemauditError
    from memaudit.runs.options import AuditOptions
    from memaudit.runs.results import AuditResult

__version__ = "0.1.0"

__all__ = [
    "AuditOptions",
    "AuditResult",
    "CorpusOptions",
    "MemauditError",
    "__version__",
    "audit_corpus",
]

_HOMES = {
    "AuditOptions": "memaudit.runs.options",
    "AuditResult": "memaudit.runs.results",
    "CorpusOptions": "memaudit.corpus",
    "MemauditError": "memaudit.errors",
    "audit_corpus": "memaudit.audit",
}


def __getattr__(name: str) -> object:
    # Importing these here would make `memaudit --help` wait for numpy and more, 0.2 s.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
