"""Windows: the runs of tokens that are scored, each a prefix and the suffix that must not leak."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WindowPolicy = Literal["first", "tile"]
"""`first`: one window at the start of the example, as in the paper. `tile`: all that fit in a row."""


@dataclass(frozen=True, slots=True)
class WindowShape:
    """How long a window is, and where it splits."""

    prefix_len: int = 50
    """Tokens that the model is given. At least 1: the first token has no prediction."""

    suffix_len: int = 50
    """Tokens that the model must reproduce. At least 1."""

    def __post_init__(self) -> None:
        if self.prefix_len < 1 or self.suffix_len < 1:
            raise ValueError(
                "prefix_len and suffix_len must be at least 1, "
                f"got {self.prefix_len} and {self.suffix_len}"
            )

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.prefix_len + self.suffix_len


def cut_windows(
    token_ids: Sequence[int], shape: WindowShape, policy: WindowPolicy = "first"
) -> Iterator[NDArray[np.int32]]:
    """Yield the windows of one example.

    An example shorter than a window yields none: under the definition of Carlini et al.
    (arXiv:2202.07646) it cannot be extracted. A rest too short for a window is left out.

    Yields:
        (shape.length,) token ids.
    """
    starts = range(0, len(token_ids) - shape.length + 1, shape.length)
    for start in starts[:1] if policy == "first" else starts:
        yield np.asarray(token_ids[start : start + shape.length], dtype=np.int32)


def window_key(window: NDArray[np.int32]) -> bytes:
    """Return 16 bytes that are equal for equal windows, and for no others in practice."""
    return blake2b(window.tobytes(), digest_size=16).digest()
