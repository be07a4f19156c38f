"""Shards: every chunk in exactly one of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memaudit.errors import UsageError
from memaudit.runs.manifest import Shard, chunk_ranges, parse_shard


@given(n_chunks=st.integers(0, 300), count=st.integers(1, 40))
def test_every_chunk_has_one_owner(n_chunks, count):
    """Machines that never talk to each other must neither skip nor repeat a chunk."""
    owners = [
        [index for index in range(count) if Shard(index, count).owns(chunk)]
        for chunk in range(n_chunks)
    ]

    assert all(len(found) == 1 for found in owners)
    sizes = [sum(found == [index] for found in owners) for index in range(count)]
    assert max(sizes) - min(sizes) <= 1


def test_a_shard_is_read_as_it_is_shown():
    """What status prints can be given to predict."""
    assert parse_shard("2/3") == Shard(2, 3)
    assert str(parse_shard("0/12")) == "0/12"


@pytest.mark.parametrize(
    "value", ["", "1", "3/3", "4/3", "-1/3", "0/0", "1/2/3", "a/b", "0 / 3", "٠/٣", "0/9999999999"]
)
def test_what_is_no_shard_is_refused(value):
    """A wrong part would be scored for hours before the merge finds out."""
    with pytest.raises(UsageError, match="a shard is i/N with i from 0 to N - 1"):
        parse_shard(value)


def test_numbers_are_told_as_ranges():
    """Thousands of missing chunks must fit on a line."""
    assert chunk_ranges([]) == ""
    assert chunk_ranges([0, 1, 2, 3, 7, 9, 10]) == "0-3, 7, 9-10"
    assert chunk_ranges(list(range(0, 40, 2))).endswith("16, 18, …")
