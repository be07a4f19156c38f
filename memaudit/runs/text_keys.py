"""Which texts of a corpus are equal, and whether they have changed: digests, never the texts."""

import hashlib

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Example

_TEXT_KEY_LEN = 16


class RawDigest:
    """SHA-256 of the rows of a chat corpus before they were rendered: it needs no model."""

    def __init__(self) -> None:
        self._hash, self._has_messages = hashlib.sha256(), False

    def add(self, row: Example | BadRow) -> None:
        """Count the next row."""
        self._has_messages |= row.raw_digest is not None
        if row.raw_digest is not None:
            self._hash.update(row.raw_digest)
        else:  # among messages there may be rows of plain text
            text = row.text.encode() if isinstance(row, Example) else b""
            self._hash.update(hashlib.sha256(text).digest())

    @property
    def value(self) -> str | None:
        """In hexadecimal. None: no row held messages."""
        return self._hash.hexdigest() if self._has_messages else None


def text_key(row: Example | BadRow) -> bytes:
    """Return 16 bytes that are equal for equal texts with equal answers, and for nothing else."""
    if isinstance(row, BadRow):
        return b"bad row ".ljust(_TEXT_KEY_LEN // 2) + row.row.to_bytes(_TEXT_KEY_LEN // 2)
    key = hashlib.blake2b(row.text.encode(), digest_size=_TEXT_KEY_LEN)
    key.update(msgspec.json.encode(row.answers))
    return key.digest()


def number_texts(keys: bytes) -> NDArray[np.int64]:
    """Return (n_rows,) the first row that has the same text; for each row, its key is given.

    It says which rows are equal and nothing else: unlike a digest, nobody can try texts out on it.
    """
    by_row = np.frombuffer(keys, dtype=f"S{_TEXT_KEY_LEN}")
    _, first, inverse = np.unique(by_row, return_index=True, return_inverse=True)
    found: NDArray[np.int64] = first[inverse]
    return found
