"""Real trainings in miniature: what each method teaches."""

import numpy as np
import pytest
import torch
from support.scratch import PREFIX_LEN, markov_windows, repeated, scratch_model

from memaudit.distillation import TrainingOptions
from memaudit.distillation.methods import distil, fine_tune, generate_hard_labels
from memaudit.engines.hf import HfEngine
from memaudit.memorization import extracted
from memaudit.objectives import Objective


def n_extracted(model, windows):
    """Return how many windows the model reproduces."""
    return sum(extracted(score.teacher, PREFIX_LEN) for score in HfEngine(model).score(windows))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher that was trained on the windows, and they."""
    windows = markov_windows()
    teacher = scratch_model(64, 2)
    options = TrainingOptions(8, 5e-3, batch_size=8)
    work_dir = tmp_path_factory.mktemp("teacher")
    fine_tune(teacher, repeated(windows), options, work_dir=work_dir)
    return teacher, windows


def distilled(teacher, windows, work_dir, objective, **changes):
    """A student, trained by the objective."""
    student = scratch_model(seed=1)
    options = TrainingOptions(8, 8e-3, batch_size=8, **changes)
    distil(
        student,
        teacher,
        repeated(windows),
        options,
        objective=objective,
        prefix_len=PREFIX_LEN,
        work_dir=work_dir,
    )
    return student


def same_weights(a, b):
    """Return whether two models are equal bit for bit."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_distilled_student_memorizes_something_and_less_than_its_baseline(taught, tmp_path):
    """The effect that the whole tool rests on, with three real trainings."""
    teacher, windows = taught
    baseline = scratch_model(seed=1)

    fine_tune(
        baseline, repeated(windows), TrainingOptions(8, 8e-3, batch_size=8), work_dir=tmp_path
    )
    student = distilled(teacher, windows, tmp_path, Objective())

    assert 0 < n_extracted(student, windows) < len(windows)
    assert n_extracted(student, windows) < n_extracted(baseline, windows)


def test_cross_entropy_is_fine_tuning(taught, tmp_path):
    """The control of every comparison: no word of the teacher's."""
    teacher, windows = taught
    tuned = scratch_model(seed=1)

    fine_tune(tuned, repeated(windows), TrainingOptions(8, 8e-3, batch_size=8), work_dir=tmp_path)
    student = distilled(teacher, windows, tmp_path, Objective("cross-entropy"))

    assert same_weights(student, tuned)


def test_hard_labels_teach_what_the_teacher_says(taught, tmp_path):
    """The student is fine-tuned on the teacher's continuations, and on nothing else."""
    teacher, windows = taught
    tuned = scratch_model(seed=1)
    labels = generate_hard_labels(teacher, repeated(windows), PREFIX_LEN)

    fine_tune(tuned, labels, TrainingOptions(8, 8e-3, batch_size=8), work_dir=tmp_path)
    student = distilled(teacher, windows, tmp_path, Objective("hard"))

    assert same_weights(student, tuned)


@pytest.mark.slow
@pytest.mark.ci
def test_the_temperature_matters(taught, tmp_path):
    """Two temperatures, two students."""
    teacher, windows = taught

    students = [distilled(teacher, windows, tmp_path, Objective("soft", t)) for t in (1.0, 4.0)]

    assert not same_weights(*students)


class Wrapper(torch.nn.Module):
    """A teacher that is no model of transformers."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.n_calls = 0

    def forward(self, input_ids, use_cache):
        self.n_calls += 1
        return self.model(input_ids=input_ids, use_cache=use_cache)


@pytest.mark.slow
@pytest.mark.ci
def test_any_module_with_logits_can_teach(taught, tmp_path):
    """Whoever keeps a teacher's logits need not run it again."""
    teacher, windows = taught
    wrapper = Wrapper(teacher)

    student = distilled(wrapper, windows, tmp_path, Objective())

    assert wrapper.n_calls > 0
    assert same_weights(student, distilled(teacher, windows, tmp_path, Objective()))


def test_hard_labels_keep_prefix_and_length(taught):
    """The teacher's words begin where the real prefix ends, and go on as long as the example."""
    teacher, windows = taught
    examples = [windows[0], windows[1][:12], windows[2][:PREFIX_LEN], windows[0]]

    labels = generate_hard_labels(teacher, examples, PREFIX_LEN)

    assert [len(label) for label in labels] == [16, 12, 8, 16]
    for example, label in zip(examples, labels, strict=True):
        assert np.array_equal(example[:PREFIX_LEN], label[:PREFIX_LEN])
    assert np.array_equal(labels[0], labels[3])
    assert np.array_equal(labels[2], examples[2])


def test_hard_labels_are_the_corpus_where_the_teacher_recites_it(taught):
    """Extraction by one pass and hard labels speak of the same continuation."""
    teacher, windows = taught
    labels = generate_hard_labels(teacher, windows, PREFIX_LEN)
    recited = [extracted(s.teacher, PREFIX_LEN) for s in HfEngine(teacher).score(windows)]

    assert 0 < sum(recited) < len(windows)
    equal = [np.array_equal(*pair) for pair in zip(labels, windows, strict=True)]
    assert equal == recited


def test_hard_labels_need_a_prefix(taught):
    """There is nothing to continue."""
    with pytest.raises(ValueError, match="prefix_len must be at least 1, got 0"):
        generate_hard_labels(taught[0], taught[1], 0)
