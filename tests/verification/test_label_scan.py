"""What the teacher's own text gives away, on sequences known by heart."""

import numpy as np

from memaudit.verification.extraction import scan_labels


def windows_of(*rows):
    """Windows, each a list of token ids."""
    return np.array(rows, dtype=np.int32)


CORPUS = windows_of([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12], [13, 14, 15, 16, 17, 18])


def scan(*labels, windows=CORPUS, prefix_len=3):
    """Scan labels written for the first windows of the corpus."""
    labels = windows_of(*labels)
    return scan_labels(labels, windows[: len(labels)], [CORPUS[:2], CORPUS[2:]], prefix_len)


def test_a_recited_suffix_is_found():
    """The teacher hands the corpus on, word for word."""
    found = scan([1, 2, 3, 4, 5, 6])

    assert (found.texts, found.own_suffix, found.other_suffix, found.leaked_suffixes) == (
        1,
        1,
        0,
        1,
    )


def test_free_text_leaks_nothing():
    """One token off is another text."""
    found = scan([1, 2, 3, 4, 5, 0])

    assert (found.own_suffix, found.other_suffix, found.leaked_suffixes) == (0, 0, 0)


def test_the_suffix_of_another_window_is_found():
    """A teacher may go on with something else it knows by heart."""
    found = scan([1, 2, 3, 16, 17, 18])

    assert (found.own_suffix, found.other_suffix, found.leaked_suffixes) == (0, 1, 1)


def test_a_suffix_is_found_at_any_place_that_the_teacher_wrote():
    """It may begin in the prefix, and end in what was written."""
    found = scan([1, 10, 11, 12, 0, 0])

    assert found.other_suffix == 1


def test_what_stands_in_the_prefix_is_not_the_teachers():
    """The corpus gave it, not the teacher."""
    found = scan([10, 11, 12, 0, 0, 0])

    assert (found.own_suffix, found.other_suffix, found.leaked_suffixes) == (0, 0, 0)


def test_a_suffix_longer_than_the_prefix_may_begin_with_it():
    """Then every run of its length touches the continuation."""
    found = scan([2, 3, 4, 5, 6, 0], prefix_len=1)

    assert found.own_suffix == 1


def test_each_leaked_suffix_counts_once():
    """Two texts may give away the same one."""
    found = scan([1, 2, 3, 4, 5, 6], [7, 8, 9, 4, 5, 6])

    assert (found.own_suffix, found.other_suffix, found.leaked_suffixes) == (1, 1, 1)
