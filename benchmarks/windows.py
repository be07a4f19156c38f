"""Windows that every path reads alike: token ids, and texts that encode to exactly these ids."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from memaudit.engines.tokenizer import Tokenizer

_ENCODED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Windows:
    """Some windows of one length."""

    token_ids: NDArray[np.int32]
    """(N, T)"""

    prefixes: list[str]
    """N texts of the prefixes, for a peer that reads text only."""

    suffixes: list[str]
    """N texts of the suffixes."""

    prefix_len: int
    """Tokens of a window before its suffix."""

    def part(self, start: int, stop: int) -> "Windows":
        """Return the windows from start to stop."""
        return Windows(
            self.token_ids[start:stop],
            self.prefixes[start:stop],
            self.suffixes[start:stop],
            self.prefix_len,
        )


def write_windows(
    path: Path, model: str, corpora: list[str], *, n_windows: int, prefix_len: int, suffix_len: int
) -> int:
    """Cut the first window of every row that has one, equal ones once, and save them.

    Left out is a window whose two texts do not encode to its ids again: a peer that takes text
    would be asked about other tokens.

    Args:
        path: file to write.
        model: folder whose tokenizer is used.
        corpora: read one after the other.
        n_windows: at most.
        prefix_len: tokens.
        suffix_len: tokens.

    Returns:
        how many were found.
    """
    from memaudit.engines.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(model), {"local_files_only": True})
    found = list(islice(_windows(tokenizer, corpora, prefix_len, suffix_len), n_windows))
    texts = [json.dumps(row[1:]) for row in found]
    np.savez(
        path,
        token_ids=np.array([row[0] for row in found], dtype=np.int32),
        texts=np.array(texts),
        prefix_len=prefix_len,
    )
    return len(found)


def read_windows(path: Path) -> Windows:
    """Return what `write_windows` saved."""
    with np.load(path) as arrays:
        texts = [json.loads(text) for text in arrays["texts"]]
        return Windows(
            arrays["token_ids"],
            [prefix for prefix, _ in texts],
            [suffix for _, suffix in texts],
            int(arrays["prefix_len"]),
        )


def _windows(
    tokenizer: "Tokenizer", corpora: list[str], prefix_len: int, suffix_len: int
) -> Iterator[tuple[NDArray[np.int32], str, str]]:
    from memaudit.windows import WindowShape, cut_windows, window_key

    seen: set[bytes] = set()
    for texts in _texts(corpora):
        for row in tokenizer.encode(texts):
            for window in cut_windows(row, WindowShape(prefix_len, suffix_len)):
                if (key := window_key(window)) in seen:
                    continue
                seen.add(key)
                ids = window.tolist()
                prefix, suffix = tokenizer.decode([ids[:prefix_len], ids[prefix_len:]])
                again = tokenizer.encode([prefix, suffix, prefix + suffix])
                if again == [ids[:prefix_len], ids[prefix_len:], ids]:
                    yield window, prefix, suffix


def _texts(corpora: list[str]) -> Iterator[list[str]]:
    from memaudit.corpus import CorpusOptions, Example, read_corpus

    for corpus in corpora:
        rows = (row for row in read_corpus(CorpusOptions(corpus)) if isinstance(row, Example))
        while texts := [row.text for row in islice(rows, _ENCODED_AT_ONCE)]:
            yield texts
