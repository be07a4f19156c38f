"""Sets and perplexities, known on paper; and what a model recites."""

import math

import numpy as np
import pytest
from support.scratch import PREFIX_LEN, markov_windows, scratch_model

from memaudit.engines.hf import HfEngine
from memaudit.verification.extraction import (
    Extraction,
    check_generation,
    extract,
    extraction_sets,
    sampled_counts,
)
from memaudit.windows import WindowShape

SHAPE = WindowShape(PREFIX_LEN, PREFIX_LEN)


def test_every_combination_has_its_set():
    """Eight of them; what teacher and baseline recite is easy whatever the student does."""
    flags = [bool(i & bit) for bit in (4, 2, 1) for i in range(8)]
    teacher, baseline, student = np.array(flags).reshape(3, 8)

    sets = extraction_sets({"teacher": teacher, "baseline": baseline, "student": student})

    assert sets == [
        "none",
        "new",
        "baseline_only",
        "baseline_and_student",
        "teacher_only",
        "inherited",
        "easy",
        "easy",
    ]


def test_perplexity_is_that_of_all_tokens_together():
    """Two windows of 3 predictions, 6 nats each on average: e to the 2."""
    nats = np.array([3.0, 9.0, 100.0])
    found = Extraction(np.zeros(3, np.bool_), nats, np.zeros(3), np.full(3, 3))

    assert found.perplexity(np.array([True, True, False])) == pytest.approx(math.exp(2))
    assert found.perplexity(np.zeros(3, np.bool_)) is None


def test_extraction_is_the_engines_answer():
    """Whatever the chunks: here they are not full."""
    model, windows = scratch_model(), np.stack(markov_windows(150))
    told = []

    found = extract(HfEngine(model), windows, shape=SHAPE, on_chunk=told.append)

    scores = [score.teacher for score in HfEngine(model).score(list(windows))]
    assert told == [128, 150]
    assert found["extracted"].tolist() == [bool(s.is_argmax[7:].all()) for s in scores]
    assert found["nats"] == pytest.approx([-s.logprobs.sum() for s in scores], rel=1e-5)


def markov_model():
    """A model that looks at the last token alone, and the chain that it is: (V, V) probabilities."""
    import torch

    model = scratch_model()
    with torch.no_grad():
        for name, parameter in model.gpt_neox.layers.named_parameters():
            if "dense" in name:  # what the layers add to their input
                parameter.zero_()
        model.lm_head.weight *= 140
        states = model.gpt_neox.final_layer_norm(model.gpt_neox.embed_in.weight)
        return model, (states @ model.lm_head.weight.T).double().softmax(dim=-1).numpy()


def test_what_samples_reveal_of_a_markov_chain_has_its_closed_form():
    """A suffix is as likely as its transitions together, and n samples reveal it with 1 - (1 - p)^n."""
    model, chain = markov_model()
    rng = np.random.default_rng(0)
    windows = rng.integers(len(chain), size=(300, SHAPE.length), dtype=np.int32)
    for i in range(1, SHAPE.length):
        windows[:, i] = [rng.choice(len(chain), p=chain[token]) for token in windows[:, i - 1]]

    found = extract(HfEngine(model), windows, shape=SHAPE, on_chunk=lambda n: None)
    one = Extraction(**found, n_predictions=np.full(len(windows), 15))
    counts = sampled_counts({"student": one}, np.ones(len(windows), np.bool_))

    p = chain[windows[:, PREFIX_LEN - 1 : -1], windows[:, PREFIX_LEN:]].prod(axis=1)
    assert np.exp(found["suffix_logprobs"]) == pytest.approx(p, rel=1e-4)
    expected = {str(n): int((1 - (1 - p) ** n >= 0.5).sum()) for n in (1, 10, 100, 1000)}
    assert counts == {"student": expected}
    assert 0 < expected["1"] < expected["10"] < expected["100"] < expected["1000"] < 300


def constant_model():
    """A model that says token 3 whatever it has read."""
    import torch

    model = scratch_model()
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight.zero_()
        model.gpt_neox.final_layer_norm.bias.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[3] = 1.0
    return model


@pytest.mark.parametrize(("n", "n_recited"), [(4, 2), (5, 3), (100, 6)])
def test_half_of_the_windows_checked_are_recited_ones(n, n_recited):
    """Where nothing is recited, nothing can disagree."""
    windows = np.stack(markov_windows(20))
    windows[:6, PREFIX_LEN:] = 3
    windows[6:, -1] = 4
    is_extracted = np.arange(20) < 6

    check = check_generation(
        constant_model(),
        windows,
        is_extracted,
        n=n,
        shape=SHAPE,
        bos_token_id=None,
        seed=0,
    )

    assert check.windows == min(n, 20)
    assert check.extracted_one_pass == check.extracted_generated == n_recited
    assert check.disagreements == 0
