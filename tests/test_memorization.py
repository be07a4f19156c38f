"""Whether a suffix counts as reproduced."""

import numpy as np
import pytest

from memaudit.memorization import extracted
from memaudit.scores import TokenScores


def scores_of(is_argmax):
    """Return scores of which only the argmax flags matter."""
    n = len(is_argmax)
    zeros = np.zeros(n, dtype=np.float32)
    return TokenScores(zeros, np.array(is_argmax, dtype=np.bool_), zeros)


def test_all_suffix_tokens_must_be_argmax():
    """One token that greedy decoding would not choose ends the recitation."""
    assert extracted(scores_of([False, True, True]), prefix_len=2)
    assert not extracted(scores_of([True, True, False]), prefix_len=2)


@pytest.mark.parametrize("prefix_len", [1, 2, 3])
def test_what_the_model_says_about_the_prefix_does_not_matter(prefix_len):
    """The prefix is given, so the first prediction that counts is about token `prefix_len`."""
    is_argmax = [False] * (prefix_len - 1) + [True] * (4 - prefix_len)

    assert extracted(scores_of(is_argmax), prefix_len)
