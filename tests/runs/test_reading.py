"""Spools give back what they took, and leave nothing behind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memaudit.errors import OutputError
from memaudit.runs.reading import DistinctWindows, RowLog, RowOutcome

windows_of_four = st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), max_size=40)


@given(windows=windows_of_four, size=st.integers(1, 10))
def test_windows_come_back_once_each_with_their_count(windows, size):
    """Nothing is scored twice, and no occurrence is lost."""
    with DistinctWindows(4) as spool:
        indices = [spool.add(np.array(window, np.int32)) for window in windows]
        distinct = [window.tolist() for chunk in spool.chunks(size) for window in chunk]

        assert distinct == [list(window) for window in dict.fromkeys(map(tuple, windows))]
        assert [distinct[index] for index in indices] == windows
        assert spool.occurrences.tolist() == [windows.count(window) for window in distinct]
        assert [spool.window(i).tolist() for i in range(len(spool))] == distinct


@given(windows=windows_of_four)
def test_an_answer_counts_as_often_as_it_is_the_answer(windows):
    """Whatever was asked: a student learns it each time, from another context."""
    with DistinctWindows(4) as spool:
        indices = [spool.add(np.array(window, np.int32), counted_from=2) for window in windows]

        answers = [tuple(window[2:]) for window in windows]
        found = spool.occurrences[np.array(indices, dtype=np.int64)].tolist()
        assert found == [answers.count(answer) for answer in answers]


@given(
    ids=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20),
)
def test_rows_come_back_in_order_as_often_as_wanted(ids):
    """Ids are untrusted: line breaks in them must not break the spool."""
    rows = [RowOutcome(example_id, i, f"c:{i}", "bad", "why") for i, example_id in enumerate(ids)]
    with RowLog(None) as spool:
        for row in rows:
            spool.append(row)

        assert list(spool) == rows
        assert list(spool) == rows


def test_a_spool_has_no_name(tmp_path):
    """A crash leaves nothing behind, and nobody can open it by a path."""
    with DistinctWindows(2, tmp_path) as spool:
        spool.add(np.array([1, 2], np.int32))
        assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_gone_is_an_output_error(tmp_path):
    """Not a traceback about a temporary file."""
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        RowLog(tmp_path / "gone")
