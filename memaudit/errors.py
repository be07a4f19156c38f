"""The errors a user can cause or meet; each says what is wrong and what to do.

MemauditError
├── CorpusError           a corpus, a file of it or a row of it
├── ModelError            a model folder, its weights, its tokenizer
├── ClassifierError       a classifier file, or features that do not fit it
├── OutputError           a place that cannot be written
├── UsageError            options that contradict each other
└── MissingDependency     an optional package that is not installed
"""

import traceback
from importlib.util import find_spec


class MemauditError(Exception):
    """An expected failure: exit code 2, no traceback."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CorpusError(MemauditError):
    """A corpus cannot be read as asked."""


class ModelError(MemauditError):
    """A model cannot be loaded, or two models cannot be compared."""


class ClassifierError(MemauditError):
    """A classifier cannot be loaded, or does not fit the features at hand."""


class OutputError(MemauditError):
    """A result cannot be written."""


class UsageError(MemauditError):
    """The options given do not go together."""


class MissingDependency(MemauditError):  # noqa: N818  named for what it says
    """An optional package is needed and is not installed."""

    def __init__(self, package: str, *, needed_for: str, extra: str | None = None) -> None:
        """Say which extra brings it. None: all but the light set for a gate has it."""
        brought_by = f"'memaudit-distill[{extra}]'" if extra else "memaudit-distill"
        super().__init__(
            f"{needed_for} needs the package {package}, which is not installed",
            hint=f"pip install {brought_by}",
        )


def is_installed(module: str) -> bool:
    """Whether a package is there; a folder of its name where Python was started is none.

    Such folders are common: trackers and vLLM write into one.
    """
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


class WorkerError(RuntimeError):
    """Another process crashed; the message holds its `traceback_of`."""


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an error and of those that led to it, without what they say.

    What a library says of an error may quote the text that it failed at.
    """
    told = f"{type(error).__name__}\n"
    if isinstance(error, WorkerError):
        told = f"{told.strip()}: {error}\n"
    told = "".join(
        ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__), told]
    )
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return told if before is None else f"{traceback_of(before)}\nWhich led to:\n\n{told}"
