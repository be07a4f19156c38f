"""Windows decide which tokens are scored: none lost between them, none twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memaudit.windows import (
    WindowChoice,
    WindowShape,
    context_len,
    cut_windows,
    window_key,
    windows_of,
    without_padding,
)

laws = settings(deadline=None)
lengths = st.integers(1, 6)
token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=60)


def test_the_default_window_is_that_of_the_paper():
    """50 tokens given, 50 to reproduce."""
    shape = WindowShape()

    assert (shape.prefix_len, shape.suffix_len, shape.length) == (50, 50, 100)


def test_a_document_tells_the_shape_that_it_was_made_with():
    """Predictions and verifications are matched by it."""
    shape = WindowShape(3, 4)

    assert WindowShape.of_settings({"sample": None, **shape.settings}) == shape


@pytest.mark.parametrize(("prefix_len", "suffix_len"), [(0, 1), (1, 0), (-1, 5)])
def test_a_window_needs_a_prefix_and_a_suffix(prefix_len, suffix_len):
    """The first token has no prediction, and an empty suffix is always reproduced."""
    with pytest.raises(ValueError, match=f"got {prefix_len} and {suffix_len}"):
        WindowShape(prefix_len, suffix_len)


@laws
@given(token_ids, lengths, lengths)
def test_windows_tile_the_example(token_ids, prefix_len, suffix_len):
    """Joined again, the windows are the tokens, but for a rest too short to score."""
    shape = WindowShape(prefix_len, suffix_len)

    windows = list(cut_windows(token_ids, shape, "tile"))

    joined = [token for window in windows for token in window.tolist()]
    assert joined == token_ids[: len(joined)]
    assert len(token_ids) - len(joined) < shape.length
    assert {(window.shape, window.dtype) for window in windows} <= {
        ((shape.length,), np.dtype(np.int32))
    }


@laws
@given(token_ids, lengths, lengths)
def test_the_first_window_is_the_first_of_the_tiles(token_ids, prefix_len, suffix_len):
    """The two policies agree where both have a window."""
    shape = WindowShape(prefix_len, suffix_len)

    first = [window.tolist() for window in cut_windows(token_ids, shape)]

    tiles = [window.tolist() for window in cut_windows(token_ids, shape, "tile")]
    assert first == tiles[:1]


def test_an_example_one_token_short_has_no_window():
    """It cannot be extracted under the definition, and is counted as too short instead."""
    shape = WindowShape(2, 3)

    assert list(cut_windows(range(4), shape, "tile")) == []
    assert len(list(cut_windows(range(5), shape, "tile"))) == 1
    assert len(list(cut_windows(range(9), shape, "tile"))) == 1


@laws
@given(token_ids, token_ids)
def test_keys_are_equal_for_equal_windows_alone(one, other):
    """Occurrences are counted by key, across chunks and runs."""
    keys = [window_key(np.array(tokens, dtype=np.int32)) for tokens in (one, other)]

    assert (keys[0] == keys[1]) == (one == other)
    assert len(keys[0]) == 16


def test_the_key_of_a_slice_is_the_key_of_its_tokens():
    """A window may be a view of a longer array, or every other token of one."""
    tokens = np.arange(10, dtype=np.int32)

    assert window_key(tokens[2:5]) == window_key(np.array([2, 3, 4], dtype=np.int32))
    assert window_key(tokens[::2]) == window_key(np.array([0, 2, 4, 6, 8], dtype=np.int32))


def cut_answer(token_ids, answer, shape, policy="answers", min_suffix_len=16):
    """Windows of an example with one answer."""
    choice = WindowChoice(shape, policy, min_suffix_len=min_suffix_len)
    return windows_of(token_ids, (answer,), choice)


def test_a_window_in_an_answer_is_its_context_and_its_start():
    """What a student learns is the answer: the question is given, as it is when it is asked."""
    shape = WindowShape(3, 4)

    (window,) = cut_answer(list(range(10, 30)), (8, 18), shape)

    assert window.tolist() == [15, 16, 17, 18, 19, 20, 21]
    assert context_len(window, shape) == 3


def test_short_contexts_and_answers_are_filled_up():
    """All windows have one length and split at one place, so that equal ones are equal bytes."""
    shape = WindowShape(3, 4)

    (window,) = cut_answer([10, 11, 12], (1, 3), shape, min_suffix_len=2)

    assert window.tolist() == [-1, -1, 10, 11, 12, -1, -1]
    assert without_padding(window).tolist() == [10, 11, 12]
    assert context_len(window, shape) == 1
    assert list(cut_answer([10, 11, 12], (1, 3), shape, min_suffix_len=3)) == []


def test_an_answer_without_a_question_lends_its_first_token():
    """The first token of a text has no prediction."""
    (window,) = cut_answer([10, 11, 12, 13, 14], (0, 5), WindowShape(3, 4))

    assert window.tolist() == [-1, -1, 10, 11, 12, 13, 14]


@given(
    ids=st.lists(st.integers(0, 9), max_size=40),
    data=st.data(),
    shape=st.builds(WindowShape, st.integers(1, 6), st.integers(1, 6)),
)
def test_tiles_of_an_answer_cover_it_once(ids, data, shape):
    """Nothing that is trained on escapes, and nothing else is looked for."""
    start = data.draw(st.integers(0, len(ids)))
    end = data.draw(st.integers(start, len(ids)))

    windows = list(cut_answer(ids, (start, end), shape, "tile", min_suffix_len=1))

    suffixes = [without_padding(window[shape.prefix_len :]).tolist() for window in windows]
    assert [i for suffix in suffixes for i in suffix] == ids[max(start, 1) : end]
    for window in windows:
        assert len(window) == shape.length
        assert 1 <= context_len(window, shape) <= shape.prefix_len
