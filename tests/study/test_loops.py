"""The study's own training loop: its gradients are those of the definitions."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from memaudit.distillation.losses import NO_TARGET, soft_label_loss, soft_loss
from memaudit.distillation.methods import on_policy_loss
from memaudit.objectives import Divergence, Objective
from study import loops
from study.models import new_model
from study.recipe import Schedule, Size

VOCABULARY = 50


@pytest.fixture
def models():
    """A teacher and a student of other widths."""
    return tuple(
        new_model("gpt-neox", Size(hidden=hidden, layers=1), VOCABULARY, seed)
        for hidden, seed in ((64, 1), (32, 2))
    )


def make_windows(n=6, length=9):
    """Random token ids."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (n, length)).astype(np.int32)


@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("temperature", [None, 1.0, 2.0])
def test_gradients_equal_those_of_the_plain_loss(models, temperature, first, monkeypatch):
    """The loop never builds a loss from logits: its gradients are written down by hand."""
    monkeypatch.setattr(loops, "_TILE", 7)  # several tiles, the last one shorter
    teacher, student = models
    windows = make_windows()
    ids = torch.from_numpy(windows).long()
    labels = None if temperature is None else loops.soft_labels(teacher, windows, temperature)

    told = None if labels is None else (labels, torch.arange(len(ids)))
    loops._step(student, ids, told, first)

    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    logits = student(input_ids=ids).logits[:, first - 1 : -1].flatten(0, 1)
    if temperature is None:
        loss = cross_entropy(logits, ids[:, first:].flatten())
    else:
        with torch.no_grad():
            told = teacher(input_ids=ids).logits[:, first - 1 : -1].flatten(0, 1) / temperature
        loss = temperature**2 * kl_div(
            (logits / temperature).log_softmax(-1),
            told.log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
    loss.backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "divergence", [Divergence("reverse-kl"), Divergence("jsd"), Divergence(top_k=5)], ids=str
)
def test_gradients_of_other_divergences_are_those_of_the_package(models, divergence, monkeypatch):
    """Tile by tile, too."""
    monkeypatch.setattr(loops, "_TILE", 7)
    teacher, student = models
    windows = make_windows()
    ids = torch.from_numpy(windows).long()
    labels = replace(loops.soft_labels(teacher, windows, 2.0), divergence=divergence)

    loops._step(student, ids, (labels, torch.arange(len(ids))))

    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    with torch.no_grad():
        told = teacher(input_ids=ids).logits[:, :-1].flatten(0, 1)
    logits = student(input_ids=ids).logits[:, :-1].flatten(0, 1)
    soft_label_loss(logits, told, 2.0, divergence).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_model(models):
    """A cell that is trained again, on another machine, is the same cell."""
    trained = []
    for _ in range(2):
        model = new_model("qwen3", Size(hidden=32, layers=1), VOCABULARY, 1)
        schedule = Schedule(epochs=1.5, learning_rate=1e-3)
        loops.train(model, make_windows(), schedule, rows=np.arange(6), seed=3)
        trained.append(loops.head_of(model))
    torch.testing.assert_close(*trained, rtol=0, atol=0)
    assert not model.training


def test_what_is_not_said_to_be_bfloat16_is_the_plain_loop_to_the_bit(models, monkeypatch):
    """Cells that are there were trained by it, and may be trained again."""
    teacher, _ = models
    windows, schedule = make_windows(), Schedule(epochs=8, learning_rate=1e-3, batch_size=4)

    def trained():
        student = new_model("gpt-neox", Size(32, 1), VOCABULARY, 2)
        labels = loops.soft_labels(teacher, windows, 2.0)
        loops.train(student, windows, schedule, rows=np.arange(6), seed=1, labels=labels)
        return student.state_dict()

    found = trained()
    monkeypatch.setattr(loops, "_product", torch.mm)
    monkeypatch.setattr(loops, "_autocast", lambda *given: nullcontext())

    assert all(torch.equal(found[name], tensor) for name, tensor in trained().items())


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_bfloat16_learns_and_its_gradients_are_nearly_those_of_float32(models, temperature):
    """As on a GPU: matrix products in bfloat16, weights and optimizer in float32."""
    teacher, student = models
    windows, told, gradients = make_windows(), None, []
    ids = torch.from_numpy(windows).long()
    for dtype in (torch.float32, torch.bfloat16):
        if temperature is not None:
            labels = loops.soft_labels(teacher, windows, temperature, dtype)
            assert labels.hiddens.dtype == labels.head.dtype == dtype
            told = (labels, torch.arange(len(ids)))
        student.zero_grad()
        loops._step(student, ids, told, dtype=dtype)
        assert {p.grad.dtype for p in student.parameters()} == {torch.float32}
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
    gap = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 0 < gap < 0.02

    def loss():
        logits = student(input_ids=ids).logits[:, :-1]
        if temperature is None:
            return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
        told_logits = teacher(input_ids=ids).logits[:, :-1]
        return soft_label_loss(logits, told_logits, temperature).item()

    before, schedule = loss(), Schedule(epochs=60, learning_rate=3e-3)
    options = {"labels": None if told is None else told[0], "dtype": torch.bfloat16}
    loops.train(student, windows, schedule, rows=np.arange(6), seed=1, **options)

    assert loss() < 0.8 * before
    assert {p.dtype for p in student.parameters()} == {torch.float32}


def test_the_learning_rate_warms_up_and_ends_at_a_tenth():
    """As in the regime: 3 % of the steps up, then a cosine."""
    rates = [loops._rate(step, 1000) for step in range(1000)]

    assert rates[0] == pytest.approx(1 / 30)
    assert rates[30] == max(rates) == 1
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def on_policy(teacher, windows, share):
    """Labels of which a share of the steps sees the student's own text only."""
    divergence = Divergence("reverse-kl", on_policy=share)
    labels = loops.soft_labels(teacher, windows, 1.0)
    return replace(labels, divergence=divergence, teacher=teacher)


def test_a_step_on_policy_is_that_of_the_package(models):
    """The student's own text, and the loss over what it wrote."""
    teacher, student = models
    windows = make_windows()
    ids = torch.from_numpy(windows).long()
    torch.manual_seed(1)
    loops._step(student, ids, (on_policy(teacher, windows, 1.0), torch.arange(len(ids))), 4)
    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()

    targets = ids.clone()
    targets[:, :4] = NO_TARGET
    loss = soft_loss(teacher, Objective("soft", 1.0), Divergence("reverse-kl"))
    torch.manual_seed(1)
    on_policy_loss(loss, 1.0)(student, {"input_ids": ids, "labels": targets}).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_student_on_policy_never_learns_a_suffix_and_goes_on_after_a_stop(
    models, tmp_path, monkeypatch
):
    """Other suffixes, or a stop in the middle: the same student, bit for bit."""
    teacher, _ = models
    windows, others = make_windows(), make_windows()
    others[:, 4:] = others[:, 4:][::-1]
    schedule, step = Schedule(epochs=8, learning_rate=1e-3), loops._step

    def student_of(texts, **options):
        _, student = (new_model("gpt-neox", Size(32, 1), VOCABULARY, 2) for _ in range(2))
        labels = on_policy(teacher, texts, 1.0)
        rows = np.repeat(np.arange(6), 11)
        loops.train(student, texts, schedule, rows=rows, seed=1, labels=labels, first=4, **options)
        return student.state_dict()

    whole, left = student_of(windows), iter(range(5))
    monkeypatch.setattr(loops, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loops, "_step", lambda *given: (next(left), step(*given)))
    with pytest.raises(StopIteration):
        student_of(windows, checkpoint=tmp_path / "checkpoint")
    monkeypatch.setattr(loops, "_step", step)
    for again in (student_of(others), student_of(windows, checkpoint=tmp_path / "checkpoint")):
        assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
