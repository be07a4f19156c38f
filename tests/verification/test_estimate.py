"""What a verification would cost: counted, not guessed; and nothing is done for it."""

import pytest
from support.verifying import make_miniatures, make_options

from memaudit.distillation import TrainingOptions
from memaudit.engines.models import load_model
from memaudit.objectives import Objective
from memaudit.verification.estimate import estimate_verification


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    """Teacher, student and corpus."""
    return make_miniatures(tmp_path_factory.mktemp("miniatures"))


def test_tokens_and_operations_are_counted(miniatures):
    """60 rows of 24 texts; a window is 16 tokens; 6 N a token trained on, 2 N a token read."""
    options = make_options(epochs=3, held_out_share=0)
    found = estimate_verification(**miniatures, options=options)

    sizes = {role: load_model(miniatures[role]).n_parameters for role in ("teacher", "student")}
    assert found.parameters == sizes
    assert (found.examples, found.training_examples, found.held_out) == (24, 60, 0)
    assert found.steps == 3 * 4
    assert found.training_tokens == 3 * 60 * 16
    assert found.scored_tokens == 24 * 16
    assert found.generated_tokens == 0
    teacher, student = sizes["teacher"], sizes["student"]
    assert found.flops == {
        "baseline": 6 * student * 2880,
        "student": (6 * student + 2 * teacher) * 2880,
        "extract": 2 * (teacher + 2 * student) * 384,
    }
    assert found.seconds.keys() == found.flops.keys()
    assert min(found.seconds.values()) > 0
    assert found.memory_bytes > 4 * (teacher + 5 * student)
    assert found.document()["total_flops"] == sum(found.flops.values())


def test_hard_labels_are_written_first(miniatures):
    """The teacher writes each suffix once; the student then learns without it."""
    options = make_options(objective=Objective("hard"), held_out_share=0)
    found = estimate_verification(**miniatures, options=options)

    teacher, student = found.parameters["teacher"], found.parameters["student"]
    assert found.generated_tokens == 24 * 8
    assert found.flops["hard labels"] == 2 * teacher * 24 * 16
    assert found.flops["student"] == 6 * student * found.training_tokens


def test_a_given_baseline_costs_no_training(miniatures):
    """It is only asked."""
    found = estimate_verification(
        **miniatures, baseline=miniatures["teacher"], options=make_options()
    )

    assert "baseline" not in found.flops


def test_a_baseline_takes_its_memory_given_or_not(miniatures):
    """It is still there while the student is trained; here both ways it has the student's size."""
    given, trained = (
        estimate_verification(**miniatures, baseline=baseline, options=make_options()).memory_bytes
        for baseline in (miniatures["student"], None)
    )

    assert given == trained


def test_a_step_in_parts_needs_less_memory(miniatures):
    """That is what it is for."""
    whole, parts = (
        estimate_verification(
            **miniatures,
            options=make_options(training=TrainingOptions(batch_size=16, gradient_accumulation=n)),
        ).memory_bytes
        for n in (1, 4)
    )

    assert parts < whole
