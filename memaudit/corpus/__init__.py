"""Corpora: rows in, one outcome each; an `Example` if it can be used, a `BadRow` if it cannot."""

from memaudit.corpus.base import (
    BadRow,
    Conversation,
    CorpusOptions,
    CorpusShape,
    Example,
    Rendered,
    RenderMessages,
    corpus_of,
)
from memaudit.corpus.reader import read_corpus

__all__ = [
    "BadRow",
    "Conversation",
    "CorpusOptions",
    "CorpusShape",
    "Example",
    "RenderMessages",
    "Rendered",
    "corpus_of",
    "read_corpus",
]
