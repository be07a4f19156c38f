"""Choosing an engine."""

import pytest

from memaudit.engines import choose_engine
from memaudit.errors import UsageError


@pytest.mark.parametrize("name", ["auto", "hf"])
def test_auto_is_the_embedded_engine(name):
    """It runs wherever torch does."""
    assert choose_engine(name) == "hf"


def test_an_engine_that_is_not_there_is_refused_with_what_to_use():
    """Better than to run another engine than the one asked for."""
    with pytest.raises(UsageError, match="vllm") as caught:
        choose_engine("vllm")

    assert "--engine hf" in caught.value.hint
