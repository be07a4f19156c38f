"""Training: the losses in closed form, and a real distillation in miniature."""

import math

import numpy as np
import pytest
import torch

from memaudit.distillation import TrainingOptions, distil, fine_tune, soft_label_loss
from memaudit.engines.hf import HfEngine
from memaudit.memorization import extracted
from memaudit.study.miniature import new_model
from memaudit.study.recipe import MiniatureSize

PREFIX_LEN = 8
VOCABULARY = 64


def test_soft_label_loss_has_its_closed_form():
    """Two tokens, one even and one certain: KL is log 2 by hand."""
    even = torch.zeros(3, 2)
    certain = torch.tensor([[60.0, 0.0]] * 3)

    loss = soft_label_loss(even, certain, temperature=1.0)

    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_soft_label_loss_is_t_squared_times_the_divergence(temperature):
    """Against the definition, summed by hand in float64."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 7))
    p = np.exp(teacher / temperature)
    q = np.exp(student / temperature)
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()

    loss = soft_label_loss(torch.tensor(student), torch.tensor(teacher), temperature)

    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_equal_logits_have_no_loss():
    """A student that has become its teacher has nothing left to learn."""
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))

    assert soft_label_loss(logits, logits, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_temperature_must_be_positive(tmp_path):
    """Zero would divide by it."""
    model = new_model(MiniatureSize(32, 1), VOCABULARY, seed=0)

    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        distil(model, model, [], TrainingOptions(), temperature=0, work_dir=tmp_path)


def markov_windows(seed):
    """32 sequences of 16 tokens, where each token has four likely followers."""
    rng = np.random.default_rng(seed)
    followers = rng.integers(VOCABULARY, size=(VOCABULARY, 4))
    windows = []
    for _ in range(32):
        tokens = [int(rng.integers(VOCABULARY))]
        while len(tokens) < 2 * PREFIX_LEN:
            tokens.append(int(followers[tokens[-1], rng.integers(4)]))
        windows.append(np.array(tokens, dtype=np.int32))
    return windows


def n_extracted(model, windows):
    """Return how many windows the model reproduces."""
    return sum(extracted(score.teacher, PREFIX_LEN) for score in HfEngine(model).score(windows))


def test_a_distilled_student_memorizes_something_and_less_than_its_baseline(tmp_path):
    """The effect that the whole tool rests on, with three real trainings."""
    windows = markov_windows(seed=0)
    repeats = [1, 1, 2, 4, 8, 1, 1, 16] * 4
    examples = [w for w, count in zip(windows, repeats, strict=True) for _ in range(count)]
    teacher = new_model(MiniatureSize(64, 2), VOCABULARY, seed=0)
    baseline, student = (new_model(MiniatureSize(32, 1), VOCABULARY, seed=1) for _ in range(2))
    before = student.get_input_embeddings().weight.detach().clone()

    fine_tune(teacher, examples, TrainingOptions(8, 5e-3, batch_size=8), work_dir=tmp_path)
    fine_tune(baseline, examples, TrainingOptions(8, 8e-3, batch_size=8), work_dir=tmp_path)
    distil(student, teacher, examples, TrainingOptions(8, 8e-3, batch_size=8), work_dir=tmp_path)

    assert not torch.equal(before, student.get_input_embeddings().weight)
    assert 0 < n_extracted(student, windows) < len(windows)
    assert n_extracted(student, windows) < n_extracted(baseline, windows)


def test_training_is_repeatable(tmp_path):
    """Same seed, same weights: a study can be run again."""
    windows = markov_windows(seed=1)
    models = [new_model(MiniatureSize(32, 1), VOCABULARY, seed=1) for _ in range(2)]
    for model in models:
        fine_tune(model, windows, TrainingOptions(1, 1e-3, seed=5), work_dir=tmp_path)

    first, second = (model.get_input_embeddings().weight for model in models)
    assert torch.equal(first, second)


def test_training_stops_when_asked(tmp_path):
    """The question is asked after every second epoch, and one yes is enough."""
    asked = []

    def stop(model):
        asked.append(model)
        return len(asked) == 2

    model = new_model(MiniatureSize(32, 1), VOCABULARY, seed=1)
    options = TrainingOptions(20, 1e-3, stop_when=stop)
    fine_tune(model, markov_windows(seed=1), options, work_dir=tmp_path)

    assert len(asked) == 2


def test_padding_is_not_trained_on(tmp_path):
    """A short example beside a long one counts only its own tokens."""
    windows = [window[:length] for window, length in zip(markov_windows(0), (16, 9), strict=False)]
    model = new_model(MiniatureSize(32, 1), VOCABULARY, seed=1)
    before = HfEngine(model).score(windows)[1].teacher.logprobs.sum()

    fine_tune(model, windows, TrainingOptions(10, 5e-3), work_dir=tmp_path)

    assert HfEngine(model).score(windows)[1].teacher.logprobs.sum() > before
