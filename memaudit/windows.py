"""Windows: the runs of tokens that are scored, each a prefix and the suffix that must not leak."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

WindowPolicy = Literal["auto", "first", "tile", "answers"]
"""Which windows of an example are scored.

`first`: one at its start, as in the paper. `answers`: one for each answer, where the loss is: what
precedes it and how it begins. `tile`: all that fit in a row, of an example with answers those of
the answers. `auto`: `answers` where there are answers, else `first`; a run is one of the others.
"""

Turns = Literal["all", "last"]
"""Of which answers of an example windows are cut."""

MIN_SUFFIX_LEN = 16
"""Tokens of the shortest answer that is scored, unless said otherwise."""

NO_TOKEN = -1
"""Stands in a window for what a short context or a short answer lacks: in front and at the end.

So every window has one length and splits at one place, and equal ones are equal byte by byte.
"""


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

    @property
    def settings(self) -> dict[str, int]:
        """By the names of the options, under which documents keep them."""
        return {"prefix_tokens": self.prefix_len, "suffix_tokens": self.suffix_len}

    @classmethod
    def of_settings(cls, document: Mapping[str, Any]) -> Self:
        """Return what a document keeps under these names."""
        return cls(document["prefix_tokens"], document["suffix_tokens"])


SHAPE_OPTIONS = "--prefix-tokens and --suffix-tokens"
"""What a shape is chosen with, for hints."""


@dataclass(frozen=True, slots=True)
class WindowChoice:
    """Which windows of a row are cut."""

    shape: WindowShape = field(default_factory=WindowShape)
    """Tokens of a window; of context and answer at most."""

    policy: WindowPolicy = "auto"
    turns: Turns = "all"
    min_suffix_len: int = MIN_SUFFIX_LEN
    """Shorter answers are not scored."""

    def __post_init__(self) -> None:
        if self.min_suffix_len < 1:
            raise ValueError(f"min_suffix_len must be at least 1, got {self.min_suffix_len}")


def cut_windows(
    token_ids: Sequence[int], shape: WindowShape, policy: WindowPolicy = "first"
) -> Iterator[NDArray[np.int32]]:
    """Yield the windows of one example without answers, as `windows_of` does.

    An example shorter than a window yields none: under the definition of Carlini et al.
    (arXiv:2202.07646) it cannot be extracted. A rest too short for a window is left out.
    """
    return windows_of(token_ids, None, WindowChoice(shape, policy))


def windows_of(
    token_ids: Sequence[int], answers: tuple[tuple[int, int], ...] | None, choice: WindowChoice
) -> Iterator[NDArray[np.int32]]:
    """Yield the windows of an example, given as `encode_examples` gives it.

    Of one with answers the suffixes lie in those: at the start of each, or all of it in parts.

    Yields:
        (shape.length,) token ids, `NO_TOKEN` where there is none.
    """
    prefix_len, length = choice.shape.prefix_len, choice.shape.length
    for start, end in risky_spans(len(token_ids), answers, choice):
        if answers is None or choice.policy == "first":
            yield np.asarray(token_ids[start:end], dtype=np.int32)
            continue
        context, suffix = token_ids[max(0, start - prefix_len) : start], token_ids[start:end]
        window = np.full(length, NO_TOKEN, dtype=np.int32)
        window[prefix_len - len(context) : prefix_len] = context
        window[prefix_len : prefix_len + len(suffix)] = suffix
        yield window


def risky_spans(
    n_tokens: int, answers: tuple[tuple[int, int], ...] | None, choice: WindowChoice
) -> Iterator[tuple[int, int]]:
    """Yield where begins and ends what must not leak of each window of `windows_of`, in tokens.

    Of an answer its own tokens: what precedes it is context. Of other text the whole window.
    """
    shape, tiled = choice.shape, choice.policy == "tile"
    if answers is None or choice.policy == "first":
        # Empty where a text is too short; so is its first entry.
        starts = range(0, n_tokens - shape.length + 1, shape.length)
        for start in starts if tiled else starts[:1]:
            yield start, start + shape.length
        return
    # A shape with shorter suffixes than the minimum would have no window at all.
    shortest = min(choice.min_suffix_len, shape.suffix_len)
    for first, end in answers if choice.turns == "all" else answers[-1:]:
        # An answer at the very start of the text lends its first token as context.
        begin = max(first, 1)
        for start in range(begin, end, shape.suffix_len) if tiled else (begin,):
            stop = min(end, start + shape.suffix_len)
            if stop - start >= shortest:
                yield start, stop


def without_padding(window: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the tokens of a window: (T,) with T >= 2."""
    tokens: NDArray[np.int32] = window[window != NO_TOKEN]
    return tokens


def context_len(window: NDArray[np.int32], shape: WindowShape) -> int:
    """Return how many tokens precede the suffix, at least 1."""
    return int((window[: shape.prefix_len] != NO_TOKEN).sum())


def window_key(window: NDArray[np.int32]) -> bytes:
    """Return 16 bytes that are equal for equal windows, and for no others in practice."""
    # 128 bits: that two of a billion different windows have one key has a chance of about 1
    # in 10^21.
    return blake2b(window.tobytes(), digest_size=16).digest()
