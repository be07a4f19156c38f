"""Shards: which of a run's chunks are one's own, settled without a word between machines."""

import re

import msgspec

from memaudit.errors import UsageError
from memaudit.text import safe_text


class Shard(msgspec.Struct, frozen=True):
    """One of several equal parts of the chunks of a run."""

    index: int
    """From 0, below `count`."""

    count: int
    """How many parts there are."""

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def owns(self, chunk: int) -> bool:
        """Whether a chunk is in this part: they are dealt out like cards."""
        return chunk % self.count == self.index


def parse_shard(value: str) -> Shard:
    """Return the shard that `i/N` names.

    Raises:
        UsageError: it has another form, or i is not below N.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value, re.ASCII)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(
            f"a shard is i/N with i from 0 to N - 1, got {safe_text(value)}",
            hint="the first of three is 0/3, the last 2/3",
        )
    return Shard(int(match[1]), int(match[2]))


def chunk_ranges(chunks: list[int]) -> str:
    """Return ascending numbers in short: `0-3, 7`; at most ten ranges."""
    ranges: list[list[int]] = []
    for chunk in chunks:
        if ranges and chunk == ranges[-1][1] + 1:
            ranges[-1][1] = chunk
        else:
            ranges.append([chunk, chunk])
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in ranges[:10]]
    return ", ".join(shown + ["…"] * (len(ranges) > 10))
