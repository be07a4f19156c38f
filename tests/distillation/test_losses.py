"""The losses, against their closed forms."""

import math

import numpy as np
import pytest
import torch
from support.scratch import markov_windows, scratch_model

from memaudit.distillation.losses import cross_entropy_loss, soft_label_loss, soft_loss
from memaudit.objectives import Divergence, Objective


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


def softened(logits, temperature):
    """Probabilities in float64."""
    powers = np.exp(logits / temperature)
    return powers / powers.sum(1, keepdims=True)


def kl(p, q):
    """The mean divergence of rows, by its definition."""
    return (p * np.log(p / q)).sum(1).mean()


def truncated(p, q, k, *, tail):
    """Both over the k tokens that p likes best; with a tail, the rest as one token."""
    order = np.argsort(-p, axis=1)
    p, q = (np.take_along_axis(x, order, axis=1) for x in (p, q))
    if tail:
        return (np.column_stack([x[:, :k], x[:, k:].sum(1)]) for x in (p, q))
    return (x[:, :k] / x[:, :k].sum(1, keepdims=True) for x in (p, q))


def by_hand(student, teacher, temperature, divergence):
    """The divergence times T squared, summed in float64."""
    q, p = softened(student, temperature), softened(teacher, temperature)
    if divergence.top_k is not None:
        p, q = truncated(p, q, divergence.top_k, tail=divergence.tail)
    beta = divergence.beta
    mixture = beta * p + (1 - beta) * q
    values = {
        "forward-kl": kl(p, q),
        "reverse-kl": kl(q, p),
        "jsd": beta * kl(p, mixture) + (1 - beta) * kl(q, mixture),
    }
    return temperature**2 * values[divergence.kind]


DIVERGENCES = [
    Divergence(),
    Divergence("reverse-kl"),
    *(Divergence("jsd", beta=beta) for beta in (0.1, 0.5, 0.9)),
    *(Divergence(top_k=k, tail=tail) for k in (1, 4, 16) for tail in (False, True)),
]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda one: str(one.settings))
def test_every_divergence_has_its_closed_form(divergence, temperature):
    """Trainers differ in the loss, and a student memorizes by the one it was trained with."""
    student, teacher = 2 * np.random.default_rng(1).normal(size=(2, 64, 33))

    loss = soft_label_loss(torch.tensor(student), torch.tensor(teacher), temperature, divergence)

    expected = by_hand(student, teacher, temperature, divergence)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda one: str(one.settings))
def test_equal_logits_have_no_loss(divergence):
    """A student that has become its teacher has nothing left to learn."""
    logits = torch.randn(4, 33, generator=torch.Generator().manual_seed(0))

    assert soft_label_loss(logits, logits, 2.0, divergence).item() == pytest.approx(0, abs=1e-6)


def test_all_tokens_are_no_truncation():
    """A K above the vocabulary asks for the whole of it."""
    student, teacher = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    whole = soft_label_loss(student, teacher, 1.0)

    for divergence in (Divergence(top_k=9), Divergence(top_k=50, tail=True)):
        assert torch.equal(soft_label_loss(student, teacher, 1.0, divergence), whole)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_losses_equal_those_of_trl(beta, temperature):
    """Whoever trains with TRL trains by these; it leaves the factor T squared out."""
    trl = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    student, teacher = 2 * torch.randn(2, 64, 33, generator=torch.Generator().manual_seed(0))
    ends = {0.0: Divergence(), 1.0: Divergence("reverse-kl")}
    divergence = ends.get(beta) or Divergence("jsd", beta=beta)

    ours = soft_label_loss(student, teacher, temperature, divergence) / temperature**2
    theirs = trl.GKDTrainer.generalized_jsd_loss(
        student, teacher, beta=beta, temperature=temperature, reduction="batchmean"
    )

    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_tokens_equal_those_of_trl(k, tail, temperature):
    """Its trainers that ask a teacher behind a server learn from the top tokens alone."""
    trl = pytest.importorskip("trl.experimental.server_distillation.server_distillation_trainer")
    student, teacher = 2 * torch.randn(2, 64, 33, generator=torch.Generator().manual_seed(0))

    divergence = Divergence(top_k=k, tail=tail)
    ours = soft_label_loss(student, teacher, temperature, divergence) / temperature**2

    softened = [(logits / temperature).log_softmax(dim=-1) for logits in (student, teacher)]
    ids = softened[1].topk(k).indices
    kept, mask = [each.gather(-1, ids) for each in softened], torch.ones_like(ids, dtype=torch.bool)
    if tail:
        (q, mask), (p, _) = (trl._add_tail_bucket(each, mask) for each in kept)
    else:
        q, p = (each.log_softmax(dim=-1) for each in kept)
    theirs = trl._jsd_divergence(q, p, 0.0, mask).sum(dim=-1).mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "backward-kl"},
        {"beta": 1.0},
        {"top_k": 0},
        {"kind": "jsd", "top_k": 4},
        {"tail": True},
    ],
)
def test_a_divergence_that_means_nothing_is_refused(wrong):
    """A setting that is ignored in silence makes another student than was asked for."""
    with pytest.raises(ValueError, match=r"kind|beta|top_k"):
        Divergence(**wrong)


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
