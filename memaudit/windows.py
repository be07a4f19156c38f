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
    """Yield the windows of one example.

    An example shorter than a window yields none: under the definition of Carlini et al.
    (arXiv:2202.07646) it cannot be extracted. A rest too short for a window is left out.

    Yields:
        (shape.length,) token ids.
    """
    for start in window_starts(len(token_ids), shape, policy):
        yield np.asarray(token_ids[start : start + shape.length], dtype=np.int32)


def window_starts(n_tokens: int, shape: WindowShape, policy: WindowPolicy) -> range:
    """Return where `cut_windows` begins the windows of so many tokens."""
    # Empty where a text is too short; so is its first entry.
    starts = range(0, n_tokens - shape.length + 1, shape.length)
    return starts if policy == "tile" else starts[:1]


def cut_answers(
    token_ids: Sequence[int],
    answers: Sequence[tuple[int, int]],
    shape: WindowShape,
    *,
    tiled: bool = False,
    min_suffix_len: int = MIN_SUFFIX_LEN,
) -> Iterator[NDArray[np.int32]]:
    """Yield windows whose suffixes lie in answers: the start of each, or all of it in parts.

    An answer at the very start of the text lends its first token as context.

    Args:
        token_ids: of the example.
        answers: where each begins and ends, in tokens.
        shape: the longest context and suffix.
        tiled: whether answers are covered to their end, rather than at their start alone.
        min_suffix_len: a shorter suffix gives no window.

    Yields:
        (shape.length,) token ids, `NO_TOKEN` where there is none.
    """
    for start, end in answer_suffixes(answers, shape, tiled=tiled, min_suffix_len=min_suffix_len):
        suffix, context = token_ids[start:end], token_ids[max(0, start - shape.prefix_len) : start]
        window = np.full(shape.length, NO_TOKEN, dtype=np.int32)
        window[shape.prefix_len - len(context) : shape.prefix_len] = context
        window[shape.prefix_len : shape.prefix_len + len(suffix)] = suffix
        yield window


def answer_suffixes(
    answers: Sequence[tuple[int, int]], shape: WindowShape, *, tiled: bool, min_suffix_len: int
) -> Iterator[tuple[int, int]]:
    """Yield where the suffixes of the windows that `cut_answers` yields begin and end."""
    # A shape with shorter suffixes than the minimum would have no window at all.
    shortest = min(min_suffix_len, shape.suffix_len)
    for first, end in answers:
        begin = max(first, 1)
        for start in range(begin, end, shape.suffix_len) if tiled else (begin,):
            stop = min(end, start + shape.suffix_len)
            if stop - start >= shortest:
                yield start, stop


def windows_of(
    token_ids: Sequence[int], answers: tuple[tuple[int, int], ...] | None, choice: WindowChoice
) -> Iterator[NDArray[np.int32]]:
    """Yield the windows of an example, given as `encode_examples` gives it."""
    if answers is None or choice.policy == "first":
        return cut_windows(token_ids, choice.shape, choice.policy)
    return cut_answers(
        token_ids,
        answers if choice.turns == "all" else answers[-1:],
        choice.shape,
        tiled=choice.policy == "tile",
        min_suffix_len=choice.min_suffix_len,
    )


def risky_spans(
    token_ids: list[int], answers: tuple[tuple[int, int], ...] | None, choice: WindowChoice
) -> list[tuple[int, int]]:
    """Return what must not leak of each window that `windows_of` yields, in tokens.

    Of an answer its own tokens: what precedes it is context. Of other text the whole window.
    """
    shape = choice.shape
    if answers is None or choice.policy == "first":
        starts = window_starts(len(token_ids), shape, choice.policy)
        return [(start, start + shape.length) for start in starts]
    answers = answers if choice.turns == "all" else answers[-1:]
    tiled = choice.policy == "tile"
    suffixes = answer_suffixes(answers, shape, tiled=tiled, min_suffix_len=choice.min_suffix_len)
    return list(suffixes)


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
