"""Corpora: rows in, one outcome each; an `Example` if it can be used, a `BadRow` if it cannot."""

from memaudit.corpus.base import BadRow, CorpusOptions, CorpusShape, Example
from memaudit.corpus.reader import read_corpus

__all__ = ["BadRow", "CorpusOptions", "CorpusShape", "Example", "read_corpus"]
