"""The split of the sample corpora: what is tested was never trained on."""

from pathlib import Path

import pytest

from study.heavy.texts import CORPORA, shared_rate, shingles, texts_of_role

SAMPLE_DATA = Path(__file__).parents[3] / "sample_data"


def test_equal_texts_share_everything_and_unrelated_ones_nothing():
    """The measure of likeness at its two ends."""
    seen = set(shingles("one two three four five six seven"))

    assert shared_rate("One two three four five six seven", seen) == 1
    assert shared_rate("a b c d e f g", seen) == 0


def test_a_short_text_is_one_shingle():
    """Fewer than five words must not divide by zero."""
    assert len(list(shingles("two words"))) == 1
    assert len(list(shingles(""))) == 1


def test_roles_share_no_text_and_no_near_duplicate():
    """A classifier judged on text it was fitted on would look better than it is."""
    train = {text for corpus in CORPORA for text in texts_of_role(SAMPLE_DATA, corpus, "train")}
    seen = {shingle for text in train for shingle in shingles(text)}

    for role in ("calibration", "test"):
        held_out = [t for corpus in CORPORA for t in texts_of_role(SAMPLE_DATA, corpus, role)]
        assert len(held_out) > 1000
        assert not train.intersection(held_out)
        assert max(shared_rate(text, seen) for text in held_out) <= 0.3


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_role_has_enough_text(corpus):
    """A cell draws several hundred examples."""
    for role in ("train", "calibration", "test"):
        assert len(texts_of_role(SAMPLE_DATA, corpus, role)) > 500
