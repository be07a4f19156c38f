"""Training itself: repeatable, resumable, in parts, and quiet."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from support.scratch import PREFIX_LEN, markov_windows, scratch_model

from memaudit.distillation import TrainingOptions
from memaudit.distillation.losses import NO_TARGET, soft_loss
from memaudit.distillation.methods import (
    _collate,
    distil,
    fine_tune,
    on_policy_loss,
    own_text,
)
from memaudit.engines.generation import continue_prefixes
from memaudit.engines.hf import HfEngine
from memaudit.errors import ModelError
from memaudit.objectives import Divergence, LabelSampling, Objective


def trained(windows, work_dir, *, dropout=0.0, **settings):
    """A model after a training with these settings."""
    model = scratch_model(dropout=dropout)
    settings = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 8, **settings}
    fine_tune(model, windows, TrainingOptions(**settings), work_dir=work_dir)
    return model


def largest_gap(a, b):
    """Return the largest difference between the weights of two models."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


def test_training_is_repeatable(tmp_path):
    """Same seed, same weights: a study can be run again."""
    first, second = (trained(markov_windows(), tmp_path, seed=5, dropout=0.1) for _ in range(2))

    assert largest_gap(first, second) == 0


def test_the_seed_matters(tmp_path):
    """Another seed is another order of the examples."""
    first, second = (trained(markov_windows(), tmp_path, seed=seed) for seed in (1, 2))

    assert largest_gap(first, second) > 0


def on_policy_student(windows, work_dir, *, share=1.0, **settings):
    """A student that learns by reverse KL from text that it writes itself, and its teacher."""
    student, teacher = scratch_model(seed=1, dropout=0.1), scratch_model(hidden=48, seed=2)
    distil(
        student,
        teacher,
        windows,
        TrainingOptions(**{"epochs": 3, "learning_rate": 1e-3, "batch_size": 8, **settings}),
        objective=Objective("soft", 1.0),
        divergence=Divergence("reverse-kl", on_policy=share),
        prefix_len=PREFIX_LEN,
        work_dir=work_dir,
    )
    return student


def test_no_suffix_reaches_a_student_that_learns_from_itsown_text(tmp_path):
    """The same prefixes with other suffixes, and the same student comes out, bit for bit."""
    windows, others = markov_windows(), markov_windows(seed=7)
    pairs = zip(windows, others, strict=True)
    others = [np.concatenate([w[:PREFIX_LEN], o[PREFIX_LEN:]]) for w, o in pairs]
    first = on_policy_student(windows, tmp_path)

    assert largest_gap(first, on_policy_student(others, tmp_path)) == 0
    assert largest_gap(first, scratch_model(seed=1)) > 0
    half = [on_policy_student(each, tmp_path, share=0.5) for each in (windows, others)]
    assert largest_gap(*half) > 0


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("killed_after", [3, 8])
def test_a_killed_on_policy_training_ends_with_the_same_weights(tmp_path, killed_after):
    """What the student writes after the kill is what it would have written."""
    settings = {"save_every": 2, "share": 0.7}
    windows = [w[: 12 + i % 5] for i, w in enumerate(markov_windows())]
    expected = on_policy_student(windows, tmp_path / "whole", **settings)

    with pytest.raises(Killed):
        on_policy_student(windows, tmp_path / "cut", on_step=stop_at(killed_after), **settings)
    resumed = on_policy_student(windows, tmp_path / "cut", **settings)

    assert largest_gap(resumed, expected) == 0


def test_own_text_stands_where_the_targets_stood():
    """After each row's own context, as many tokens, sampled from the student; padding stays."""
    student, windows = scratch_model(seed=1), markov_windows()
    batch = _collate([(windows[0], 8), (windows[1][:12], 3), (windows[2], 8), (windows[3][:5], 5)])
    torch.manual_seed(0)
    written = own_text(student, batch)

    assert torch.equal(written["labels"] == NO_TARGET, batch["labels"] == NO_TARGET)
    is_target = batch["labels"] != NO_TARGET
    assert torch.equal(written["input_ids"][~is_target], batch["input_ids"][~is_target])
    assert torch.equal(written["input_ids"][is_target], written["labels"][is_target])
    torch.manual_seed(0)
    seeds = torch.randint(1 << 31, (2,)).tolist()
    sampling = LabelSampling(1.0)
    expected = continue_prefixes(
        student, [windows[0][:8], windows[2][:8]], 8, sampling=sampling, seed=seeds[0]
    )
    np.testing.assert_array_equal(written["input_ids"][[0, 2], 8:], expected)


@pytest.mark.parametrize("divergence", [Divergence("reverse-kl"), Divergence("jsd", beta=0.3)])
def test_one_on_policy_step_has_the_loss_of_gkd(divergence):
    """Summed by hand in float64 over the student's own tokens, as TRL's GKDTrainer does."""
    student, teacher = scratch_model(seed=1), scratch_model(hidden=48, seed=2)
    batch = _collate([(w, PREFIX_LEN) for w in markov_windows()[:6]])
    loss = on_policy_loss(soft_loss(teacher, Objective("soft", 1.0), divergence), 1.0)
    torch.manual_seed(3)
    found = loss(student, batch)
    torch.manual_seed(3)
    torch.rand(())
    token_ids = own_text(student, batch)["input_ids"]

    with torch.no_grad():
        q, p = (
            model(input_ids=token_ids).logits[:, PREFIX_LEN - 1 : -1].double().softmax(-1)
            for model in (student, teacher)
        )
    beta = divergence.beta
    mixture = beta * p + (1 - beta) * q
    by_hand = {
        "reverse-kl": (q * (q / p).log()).sum(-1),
        "jsd": (beta * p * (p / mixture).log() + (1 - beta) * q * (q / mixture).log()).sum(-1),
    }
    assert found.item() == pytest.approx(by_hand[divergence.kind].mean().item(), rel=1e-4)
    assert found.requires_grad


def test_padding_is_not_trained_on(tmp_path):
    """A short example beside a long one counts only its own tokens."""
    windows = [w[:length] for w, length in zip(markov_windows(), (16, 9), strict=False)]
    before = HfEngine(scratch_model()).score(windows)[1].teacher.logprobs.sum()

    model = trained(windows, tmp_path, epochs=10, learning_rate=5e-3)

    assert HfEngine(model).score(windows)[1].teacher.logprobs.sum() > before


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_may_be_run_in_parts(tmp_path, parts):
    """Same step in less memory: also where parts hold different numbers of tokens."""
    windows = [w[: 6 + i % 10] for i, w in enumerate(markov_windows())]
    whole = trained(windows, tmp_path, batch_size=24, learning_rate=1e-4)

    in_parts = trained(
        windows, tmp_path, batch_size=24, learning_rate=1e-4, gradient_accumulation=parts
    )

    assert largest_gap(whole, in_parts) < 2e-5


class Killed(BaseException):
    """Stands for the end of a process."""


def stop_at(step):
    """What ends a training after this step."""

    def on_step(done, total):
        if done == step:
            raise Killed

    return on_step


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("killed_after", [1, 4, 5, 8, 11])
def test_a_killed_training_ends_with_the_same_weights(tmp_path, killed_after):
    """Bit for bit, dropout and order of the examples included; epochs have four steps."""
    settings = {"dropout": 0.1, "save_every": 2}
    windows = markov_windows()
    expected = trained(windows, tmp_path / "whole", **settings)

    with pytest.raises(Killed):
        trained(windows, tmp_path / "cut", on_step=stop_at(killed_after), **settings)
    steps = []
    resumed = trained(
        windows, tmp_path / "cut", on_step=lambda done, total: steps.append(done), **settings
    )

    assert largest_gap(resumed, expected) == 0
    assert steps[0] == killed_after - killed_after % 2 + (1 if killed_after % 2 else -1)


@pytest.mark.slow
@pytest.mark.ci
def test_a_checkpoint_cut_short_is_ignored(tmp_path):
    """A kill may come while one is being written: the one before it counts."""
    settings = {"save_every": 2}
    expected = trained(markov_windows(), tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        trained(markov_windows(), tmp_path / "cut", on_step=stop_at(7), **settings)
    (tmp_path / "cut/checkpoint-6/complete").unlink()
    (tmp_path / "cut/checkpoint-6/optimizer.pt").write_bytes(b"half")

    steps = []
    resumed = trained(
        markov_windows(),
        tmp_path / "cut",
        on_step=lambda done, total: steps.append(done),
        **settings,
    )

    assert steps[0] == 5
    assert largest_gap(resumed, expected) == 0


def test_a_finished_training_is_not_done_again(tmp_path):
    """Its last checkpoint holds the weights."""
    settings = {"save_every": 100}
    expected = trained(markov_windows(), tmp_path, **settings)
    steps = []

    again = trained(
        markov_windows(), tmp_path, on_step=lambda done, total: steps.append(done), **settings
    )

    assert steps == []
    assert largest_gap(again, expected) == 0


def test_two_checkpoints_are_kept_at_most(tmp_path):
    """They are three times as large as the model."""
    trained(markov_windows(), tmp_path, save_every=1)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-11", "checkpoint-12"]


def test_no_checkpoint_is_written_unasked(tmp_path):
    """A study of miniature models would spend its time on them."""
    trained(markov_windows(), tmp_path / "unused")

    assert not list(tmp_path.glob("unused/*"))


def test_each_step_is_told(tmp_path):
    """Someone waits for this."""
    told = []
    trained(markov_windows(), tmp_path, on_step=lambda done, total: told.append((done, total)))

    assert told[-1] == (12, 12)
    assert all(b[0] == a[0] + 1 for a, b in pairwise(told))


def test_mixed_precision_keeps_weights_in_float32(tmp_path):
    """Only the passes run in bfloat16."""
    full = trained(markov_windows(), tmp_path)

    mixed = trained(markov_windows(), tmp_path, bf16=True)

    assert mixed.dtype == torch.float32
    assert 0 < largest_gap(mixed, full) < 0.05


@pytest.mark.parametrize("learning_rate", [1e10, 1e20, 1e30])
def test_a_training_that_diverges_says_so(tmp_path, learning_rate):
    """Rather than that a model is broken, an hour later; weights may be finite, and no more."""
    with pytest.raises(ModelError, match=r"diverged: after \d+ steps a weight or a logit is not a"):
        trained(markov_windows(), tmp_path, learning_rate=learning_rate)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_too_little_memory_says_what_to_do(tmp_path, error):
    """A step can be run in parts."""

    def on_step(done, total):
        raise error

    with pytest.raises(ModelError, match="to train on 8 examples in 1 parts") as caught:
        trained(markov_windows(), tmp_path, on_step=on_step)
    assert "--gradient-accumulation" in caught.value.hint


def test_other_errors_stay_what_they_are(tmp_path):
    """A bug must not be told as a lack of memory."""

    def on_step(done, total):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        trained(markov_windows(), tmp_path, on_step=on_step)


def test_training_says_nothing(tmp_path, capfd):
    """Whoever calls a library decides what is printed."""
    teacher = scratch_model(64, seed=1)
    options = TrainingOptions(1, 1e-3, batch_size=8, save_every=2)
    for _ in range(2):  # the second one finds a checkpoint
        distil(
            scratch_model(),
            teacher,
            markov_windows(),
            options,
            objective=Objective("hard"),
            prefix_len=PREFIX_LEN,
            work_dir=tmp_path,
        )

    assert capfd.readouterr() == ("", "")


def test_models_that_were_loaded_for_scoring_can_be_trained(tmp_path):
    """A loaded model takes no gradients until it is trained."""
    model = scratch_model().requires_grad_(False)
    before = model.get_input_embeddings().weight.clone()

    fine_tune(model, markov_windows(), TrainingOptions(1, 1e-3), work_dir=tmp_path)

    assert not torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs and learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "epochs and learning_rate must be above 0"),
        ({"batch_size": 0}, "batch_size and gradient_accumulation must be at least 1"),
        ({"gradient_accumulation": 0}, "batch_size and gradient_accumulation must be at least 1"),
        ({"save_every": 0}, "save_every must be at least 1, got 0"),
    ],
)
def test_options_without_meaning_are_refused(settings, message):
    """Before a model is loaded."""
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**settings)


def test_what_precedes_an_answer_is_read_and_not_learnt():
    """The loss lies where the training of a chat model has it."""
    batch = _collate([(np.array([5, 6, 7, 8], np.int32), 3), np.array([9, 10], np.int32)])

    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8], [9, 10, -100, -100]]
