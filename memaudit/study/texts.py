"""The texts of a study: sample corpora, split so that no role sees another's."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from memaudit.corpus import CorpusOptions, Example, read_corpus
from memaudit.study.recipe import Role

CORPORA = ("prose", "wiki", "mixed")
"""Files of the sample data."""

_BLOCK = 20
_ROLES: tuple[Role, ...] = ("train",) * 5 + ("calibration",) * 2 + ("test",) * 3
_SHINGLE_WORDS = 5
_MAX_SHARED = 0.3


def read_sample(folder: Path, corpus: str) -> list[str]:
    """Return the texts of one sample corpus, in order."""
    rows = read_corpus(CorpusOptions(source=str(folder / f"{corpus}.jsonl.zst")))
    return [row.text for row in rows if isinstance(row, Example)]


def texts_of_role(folder: Path, corpus: str, role: Role) -> list[str]:
    """Return the texts that cells of a role may draw from.

    Runs of neighbouring paragraphs go to one role together, for neighbours are alike. A text is
    left out when an earlier role, of any corpus, holds more than 30 % of its 5-word shingles.
    """
    order: tuple[Role, ...] = ("train", "calibration", "test")
    earlier = order[: order.index(role)]
    own = _split(read_sample(folder, corpus))[role]
    if not earlier:
        return own
    seen = set[int]()
    for other in CORPORA:
        by_role = _split(read_sample(folder, other))
        seen.update(shingle for r in earlier for text in by_role[r] for shingle in shingles(text))
    return [text for text in own if shared_rate(text, seen) <= _MAX_SHARED]


def _split(texts: Sequence[str]) -> dict[Role, list[str]]:
    by_role: dict[Role, list[str]] = defaultdict(list)
    for index, text in enumerate(texts):
        by_role[_ROLES[index // _BLOCK % len(_ROLES)]].append(text)
    return by_role


def shingles(text: str) -> Iterator[int]:
    """Yield a hash of each run of five words, case folded."""
    words = text.casefold().split()
    for start in range(max(1, len(words) - _SHINGLE_WORDS + 1)):
        yield hash(tuple(words[start : start + _SHINGLE_WORDS]))


def shared_rate(text: str, seen: set[int]) -> float:
    """Return the share of the text's shingles that are among those seen, in [0, 1]."""
    own = list(shingles(text))
    return sum(shingle in seen for shingle in own) / len(own)


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
