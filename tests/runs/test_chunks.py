"""Chunks: what is read is what was written, bit for bit, or it is not read."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memaudit.errors import OutputError
from memaudit.objectives import Objective
from memaudit.runs.chunks import ChunkPlan, read_chunk, read_matrix, sort_chunks, write_chunk
from memaudit.runs.sealed_parquet import DamagedFileError
from memaudit.windows import WindowShape

FEATURES = ("log_occurrences", "teacher_perplexity", "zlib_entropy")
X = np.random.default_rng(0).normal(size=(20, len(FEATURES)))


def make_plan(folder, *, n_windows=20, chunk_size=8, fingerprint="f" * 64):
    """A plan of three chunks."""
    return ChunkPlan(
        folder=folder,
        fingerprint=fingerprint,
        shape=WindowShape(4, 4),
        role=None,
        objective=Objective(),
        features=FEATURES,
        n_windows=n_windows,
        chunk_size=chunk_size,
    )


@pytest.fixture
def plan(tmp_path):
    """Its chunks are there."""
    plan = make_plan(tmp_path)
    for chunk in range(plan.n_chunks):
        windows = plan.windows_of(chunk)
        write_chunk(plan, chunk, X[windows.start : windows.stop])
    return plan


@given(n_windows=st.integers(1, 10_000), chunk_size=st.integers(1, 10_000))
def test_chunks_hold_every_window_once_and_in_order(tmp_path_factory, n_windows, chunk_size):
    """No window lost, none doubled, whatever the numbers."""
    plan = make_plan(tmp_path_factory.getbasetemp(), n_windows=n_windows, chunk_size=chunk_size)

    windows = [window for chunk in range(plan.n_chunks) for window in plan.windows_of(chunk)]

    assert windows == list(range(n_windows))
    assert all(len(plan.windows_of(chunk)) > 0 for chunk in range(plan.n_chunks))
    assert all(w in plan.windows_of(plan.chunk_of(w)) for w in {0, n_windows // 2, n_windows - 1})


def test_floats_come_back_as_they_were(plan):
    """Rounding once would make a resumed run differ from one that was not interrupted."""
    assert plan.n_chunks == 3
    np.testing.assert_array_equal(read_matrix(plan), X, strict=True)
    assert sort_chunks(plan, range(3)) == ([], [])


def test_a_chunk_that_is_written_twice_is_the_same_file(plan):
    """So whoever scores a chunk a second time does no harm."""
    before = plan.path(1).read_bytes()
    write_chunk(plan, 1, X[8:16])

    assert plan.path(1).read_bytes() == before


def test_a_chunk_is_read_under_its_own_name_alone(plan):
    """A file that was renamed, or copied from another run, holds other windows' features."""
    plan.path(1).write_bytes(plan.path(0).read_bytes())
    with pytest.raises(DamagedFileError, match="another chunk"):
        read_chunk(plan, 1)

    with pytest.raises(DamagedFileError, match="another run"):
        read_chunk(replace(plan, fingerprint="e" * 64), 0)

    plan.path(2).unlink()
    with pytest.raises(FileNotFoundError):
        read_chunk(plan, 2)
    assert sort_chunks(plan, range(3)) == ([2], [1])


def test_a_chunk_that_cannot_be_read_is_not_taken_for_a_damaged_one(plan):
    """A disk that fails to answer for a moment must not cost the chunks on it."""
    plan.path(0).unlink()
    plan.path(0).mkdir()

    with pytest.raises(OutputError, match="cannot be read"):
        sort_chunks(plan, range(3))


def check_bits(plan, places):
    """Flip each of the bits in a chunk's file and see that it is not read."""
    path = plan.path(0)
    content = path.read_bytes()
    for place in places:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedFileError):
            read_chunk(plan, 0)
    path.write_bytes(content)
    assert len(read_chunk(plan, 0)) == 8


def flips(plan, n, seed):
    """Bits spread over a chunk's file, its last 64 among them: the footer's length and mark."""
    n_bits = 8 * plan.path(0).stat().st_size
    return [*random.Random(seed).sample(range(n_bits - 64), n - 20), *range(n_bits - 20, n_bits)]


def test_a_flipped_bit_is_found(plan):
    """60 of them, in pages, footer, seal and marks."""
    check_bits(plan, flips(plan, 60, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_300_flipped_bits_are_found(plan, seed):
    """300 other ones at each of three seeds."""
    check_bits(plan, flips(plan, 300, seed))


@pytest.mark.slow
def test_every_bit_of_a_chunk_counts(plan):
    """All of them, to leave nothing to chance."""
    check_bits(plan, range(8 * plan.path(0).stat().st_size))


def test_a_chunk_cut_off_anywhere_is_found(plan):
    """What a file system may leave of a file after a power cut."""
    path = plan.path(0)
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFileError):
            read_chunk(plan, 0)
