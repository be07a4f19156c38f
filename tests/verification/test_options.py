"""Options refuse what means nothing, and progress knows its rate."""

import pytest

from memaudit.engines.models import ModelOptions
from memaudit.errors import UsageError
from memaudit.objectives import Divergence, Objective
from memaudit.progress import Progress
from memaudit.verification.examples import VerificationOptions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample": 0}, "sample must be at least 1, got 0"),
        ({"held_out_share": 1.0}, r"held_out_share must be in \[0, 1\), got 1.0"),
        ({"near_verbatim": 1.0}, r"near_verbatim must be in \(0, 1\), got 1.0"),
        ({"check_generate": -1}, "check_generate must be at least 0, got -1"),
        ({"model": ModelOptions(dtype="bfloat16")}, "extraction is decided in it"),
    ],
)
def test_options_without_meaning_are_refused(settings, message):
    """Before a model is loaded."""
    with pytest.raises(ValueError, match=message):
        VerificationOptions(**settings)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Objective("hard"), "on_policy mean nothing with the objective hard"),
        (Objective("soft", 1.0, 0.5), "only the teacher's soft labels can be learned"),
    ],
)
def test_text_of_the_student_is_learned_by_soft_labels_alone(objective, message):
    """Its own words as hard targets would teach it nothing."""
    with pytest.raises(UsageError, match=message):
        VerificationOptions(objective=objective, divergence=Divergence(on_policy=0.5))


def test_a_resumed_training_tells_the_time_that_is_left():
    """Steps of an earlier process say nothing about the speed of this one."""
    moment = Progress("student", "steps", done=60, total=100, seconds=5.0, start=50)

    assert moment.rate == 2.0
    assert moment.eta_seconds == 20.0


def test_without_an_end_or_a_rate_there_is_no_time_left():
    """Rather than a guess."""
    assert Progress("read", "rows", 10, None, 1.0).eta_seconds is None
    assert Progress("student", "steps", 0, 10, 0.0).eta_seconds is None
