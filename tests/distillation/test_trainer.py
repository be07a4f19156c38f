"""Training itself: repeatable, resumable, in parts, and quiet."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from support.scratch import PREFIX_LEN, markov_windows, scratch_model

from memaudit.distillation import TrainingOptions, distil, fine_tune
from memaudit.engines.hf import HfEngine
from memaudit.errors import ModelError
from memaudit.objectives import Objective


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


def test_a_training_that_diverges_says_so(tmp_path):
    """Rather than that a model is broken, an hour later."""
    with pytest.raises(ModelError, match=r"diverged: after \d+ steps a weight is not a finite"):
        trained(markov_windows(), tmp_path, learning_rate=1e30)


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
    distil(
        scratch_model(),
        teacher,
        markov_windows(),
        options,
        objective=Objective("hard"),
        prefix_len=PREFIX_LEN,
        work_dir=tmp_path,
    )
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
    from memaudit.distillation.trainer import _collate  # loads the Trainer

    batch = _collate([(np.array([5, 6, 7, 8], np.int32), 3), np.array([9, 10], np.int32)])

    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8], [9, 10, -100, -100]]
