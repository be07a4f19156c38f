"""Objectives refuse what means nothing."""

import pytest

from memaudit.objectives import Objective


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "softly"}, "kind must be one of .*, got softly"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be above 0, got inf"),
        ({"cross_entropy_share": 1.5}, r"cross_entropy_share must be in \[0, 1\], got 1.5"),
        ({"cross_entropy_share": -0.1}, r"cross_entropy_share must be in \[0, 1\], got -0.1"),
    ],
)
def test_an_objective_without_meaning_is_refused(settings, message):
    """A typo must not become a training of an hour."""
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


def test_the_default_is_the_papers():
    """Soft labels at temperature 2, nothing mixed in."""
    assert Objective() == Objective("soft", 2.0, 0.0)
