"""Models from random weights, and a tiny corpus that they can memorize."""

import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

PREFIX_LEN = 8
VOCABULARY = 64

_REPEATS = (1, 1, 2, 4, 8, 1, 1, 16)


def scratch_model(hidden=32, layers=1, *, seed=0, vocabulary=VOCABULARY, dropout=0.0):
    """Return an untrained GPTNeoX model."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 32),
        max_position_embeddings=64,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoXForCausalLM(config).eval()


def markov_windows(n=32, seed=0):
    """Return sequences of 8 + 8 tokens, where each token has four likely followers."""
    rng = np.random.default_rng(seed)
    followers = rng.integers(VOCABULARY, size=(VOCABULARY, 4))
    windows = []
    for _ in range(n):
        tokens = [int(rng.integers(VOCABULARY))]
        while len(tokens) < 2 * PREFIX_LEN:
            tokens.append(int(followers[tokens[-1], rng.integers(4)]))
        windows.append(np.array(tokens, dtype=np.int32))
    return windows


def repeated(windows):
    """Return a training set with some of the windows once and others up to 16 times."""
    return [w for i, w in enumerate(windows) for _ in range(_REPEATS[i % len(_REPEATS)])]
