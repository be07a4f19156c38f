"""What a filter did, or would do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from memaudit.filtering.options import FilterOptions
from memaudit.filtering.selection import Outlook

SCHEMA_VERSION = 1
"""Of the manifest and the JSON document; goes up when a reader of the old one would misread."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file of the corpus, before or after."""

    name: str
    """Its path as given, safe to show."""

    sha256: str
    """Of its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """What a filter did. No text of the corpus is in it."""

    options: FilterOptions
    """What was asked."""

    run: str
    """Fingerprint of the run whose predictions were used."""

    texts_digest: str
    """Of the corpus, as in the run."""

    classifier: str
    """Its name."""

    classifier_digest: str
    """Whose probabilities they are."""

    rows: int
    """Rows of the corpus."""

    removed: int
    """Rows that go."""

    removed_copies: int
    """Of these, in whose place another row is kept."""

    unscored_kept: int
    """Rows that stay though nothing is known of them: too short or bad."""

    before: Outlook
    """What is expected of the corpus as it is."""

    after: Outlook
    """What is expected of what stays."""

    text_bytes: int
    """UTF-8 bytes of the texts of the corpus."""

    removed_text_bytes: int
    """UTF-8 bytes of the texts that go."""

    tokens: int | None = None
    """Of the teacher, in the corpus, if its tokenizer was given."""

    removed_tokens: int | None = None
    """Tokens that go."""

    out: Path | None = None
    """The filtered corpus; None if nothing was written."""

    inputs: tuple[FileDigest, ...] = ()
    """Files that were filtered."""

    outputs: tuple[FileDigest, ...] = ()
    """Files that were written."""

    @property
    def kept(self) -> int:
        """Rows that stay."""
        return self.rows - self.removed

    @property
    def removed_text_share(self) -> float:
        """Of the bytes of text."""
        return self.removed_text_bytes / max(1, self.text_bytes)

    def document(self) -> dict[str, Any]:
        """Return the result as one JSON document; keys are never renamed within a version."""
        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        return {
            "schema_version": SCHEMA_VERSION,
            **plain,
            "kept": self.kept,
            "removed_text_share": self.removed_text_share,
        }
