"""The losses, against their closed forms."""

import math

import numpy as np
import pytest
import torch
from support.scratch import markov_windows, scratch_model

from memaudit.distillation import soft_label_loss
from memaudit.distillation.losses import cross_entropy_loss, soft_loss
from memaudit.objectives import Objective


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


def test_rows_that_belong_to_no_token_have_no_say():
    """Models of one family pad their vocabulary to different sizes."""
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, n, generator=rng) for n in (9, 12))

    loss = soft_label_loss(student, teacher, 2.0)

    assert torch.equal(loss, soft_label_loss(student, teacher[:, :9], 2.0))


def batch_of(windows):
    """Windows of one length, all trained on."""
    token_ids = torch.tensor(np.stack(windows), dtype=torch.int64)
    return {"input_ids": token_ids, "labels": token_ids}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_cross_entropy_is_mixed_in(share):
    """The loss is linear in the share between its two ends."""
    teacher, student = scratch_model(64, 2, seed=0), scratch_model(seed=1)
    batch = batch_of(markov_windows(4))

    mixed = soft_loss(teacher, Objective("soft", 2.0, share))(student, batch)
    soft = soft_loss(teacher, Objective("soft", 2.0))(student, batch)
    plain = cross_entropy_loss(student, batch)

    assert mixed.item() == pytest.approx((1 - share) * soft.item() + share * plain.item(), rel=1e-6)


def test_no_gradient_reaches_the_teacher():
    """It is the student that learns."""
    teacher, student = scratch_model(seed=0), scratch_model(seed=1)

    soft_loss(teacher, Objective())(student, batch_of(markov_windows(4))).backward()

    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())
