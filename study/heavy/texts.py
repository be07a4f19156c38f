"""The texts of a study: sample corpora, split so that no role sees another's."""

from collections import defaultdict
from collections.abc import Iterator, Set
from functools import cache
from pathlib import Path
from typing import Literal

from memaudit.corpus import CorpusOptions, Example, read_corpus
from study.recipe import Role

CORPORA = ("prose", "wiki", "mixed")
"""Files of the sample data."""

TextRole = Role | Literal["pretraining"]
"""What a text may be used for: bases are pretrained on text that no cell uses."""

_ORDER: tuple[TextRole, ...] = ("pretraining", "train", "calibration", "test")
_BLOCK = 20
_ROLES: tuple[TextRole, ...] = (
    ("pretraining",) * 6 + ("train",) * 5 + ("calibration",) * 4 + ("test",) * 5
)
_SHINGLE_WORDS = 5
_MAX_SHARED = 0.3


def read_sample(folder: Path, corpus: str) -> list[str]:
    """Return the texts of one sample corpus, in order."""
    rows = read_corpus(CorpusOptions(source=str(folder / f"{corpus}.jsonl.zst")))
    return [row.text for row in rows if isinstance(row, Example)]


@cache
def texts_of_role(folder: Path, corpus: str, role: TextRole) -> tuple[str, ...]:
    """Return the texts of a corpus that one role may use.

    Runs of neighbouring paragraphs go to one role together, for neighbours are alike. A text is
    left out when an earlier role, of any corpus, holds more than 30 % of its 5-word shingles.
    """
    own = _split(folder, corpus)[role]
    earlier = _ORDER[: _ORDER.index(role)]
    seen = set[int]().union(*(_shingles_of_role(folder, each) for each in earlier))
    return tuple(text for text in own if shared_rate(text, seen) <= _MAX_SHARED)


@cache
def _shingles_of_role(folder: Path, role: TextRole) -> frozenset[int]:
    texts = (text for corpus in CORPORA for text in _split(folder, corpus)[role])
    return frozenset(shingle for text in texts for shingle in shingles(text))


@cache
def _split(folder: Path, corpus: str) -> dict[TextRole, list[str]]:
    by_role: dict[TextRole, list[str]] = defaultdict(list)
    for index, text in enumerate(read_sample(folder, corpus)):
        by_role[_ROLES[index // _BLOCK % len(_ROLES)]].append(text)
    return by_role


def shingles(text: str) -> Iterator[int]:
    """Yield a hash of each run of five words, case folded."""
    words = text.casefold().split()
    for start in range(max(1, len(words) - _SHINGLE_WORDS + 1)):
        yield hash(tuple(words[start : start + _SHINGLE_WORDS]))


def shared_rate(text: str, seen: Set[int]) -> float:
    """Return the share of the text's shingles that are among those seen, in [0, 1]."""
    own = list(shingles(text))
    return sum(shingle in seen for shingle in own) / len(own)
