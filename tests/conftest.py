"""Tiny models, built once: no download, nothing learnt, the same from the same seed."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Beside other workers, the threads of a tiny model wait for each other most of the time. Set
# before torch is imported, and for the programs that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("memaudit", settings.default, deadline=None)
settings.load_profile("memaudit")


def save_tiny_model(folder, *, seed=0, first_token="!", n_positions=256):
    """Save a GPTNeoX of one layer and a tokenizer with one token a byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=256,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=n_positions,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters.insert(0, letters.pop(letters.index(first_token)))
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory):
    """The folder of a teacher."""
    return save_tiny_model(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory):
    """The folder of a model with the teacher's vocabulary and other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("student"), seed=1)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The files of a run that went through in one go."""
    from support.fake_run import contents, fake_audit

    out = tmp_path_factory.mktemp("reference") / "run"
    fake_audit(out)
    return contents(out)


@pytest.fixture
def left(tmp_path):
    """The folder of a run that was interrupted after four chunks of eleven."""
    from support.fake_run import Interrupted, InterruptedEngine, audit_with

    with pytest.raises(Interrupted):
        audit_with(InterruptedEngine(4), tmp_path / "run")
    return tmp_path / "run"
