"""Models of two layers from a seed, a tokenizer for them, and what they say computed naively."""

import copy
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

FAMILIES = ("gpt_neox", "olmo2", "qwen3", "llama", "gemma3", "gemma3_soft_cap")
N_TOKENS = 300
"""Tokens that windows are made of; the models have more rows than that."""


def make_model(family, *, seed=0, vocab_size=320, positions=256):
    """A model whose predictions are far from uniform; a copy, which a test may change."""
    return copy.deepcopy(_made(family, seed, vocab_size, positions))


@cache
def _made(family, seed, vocab_size, positions):
    import transformers as hf

    common = {
        "vocab_size": vocab_size,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    grouped = {**common, "num_key_value_heads": 2}
    head_dim = {**grouped, "head_dim": 12}
    soft_cap = {"final_logit_softcapping": 3.0, "sliding_window": 8}
    makers = {
        "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**common)),
        "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**grouped)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**head_dim)),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped)),
        "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**head_dim)),
        "gemma3_soft_cap": lambda: hf.Gemma3ForCausalLM(
            hf.Gemma3TextConfig(**head_dim, **soft_cap)
        ),
        "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**grouped, logit_scale=0.25)),
        "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**grouped, logits_scaling=4.0)),
    }
    return sharp_model(makers[family], seed).eval().requires_grad_(False)


def sharp_model(make, seed):
    """A model from a seed whose predictions are far from uniform."""
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
            elif name.endswith("norm.weight") and "layers" not in name:
                parameter.add_(1.0)  # the last one: sharper predictions
    return model


def make_windows(n, *, longest=40, seed=0):
    """Windows of 2 to `longest` tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest + 1, n)
    return [rng.integers(0, N_TOKENS, length).astype(np.int32) for length in lengths]


@torch.inference_mode()
def naive_log_softmax(model, window, bos_token_id=None):
    """(S, V) float64 log-probabilities, from one sequence with all its logits in float32."""
    bos = [] if bos_token_id is None else [bos_token_id]
    token_ids = torch.tensor([[*bos, *window.tolist()]])
    logits = model(input_ids=token_ids, use_cache=False).logits[0, len(bos) : -1]
    return logits.double().log_softmax(dim=-1).numpy()


def naive_scores(log_softmax, window):
    """Log-probability, is-argmax and entropy, each (S,), by their definitions."""
    logprobs = log_softmax[np.arange(len(window) - 1), window[1:]]
    entropy = -(np.exp(log_softmax) * log_softmax).sum(axis=1)
    return logprobs, logprobs >= log_softmax.max(axis=1), entropy


def naive_margin(log_softmax, window):
    """(S,) log-probability of the own token minus the largest of the others, by its definition."""
    others = log_softmax.copy()
    rows = np.arange(len(window) - 1)
    others[rows, window[1:]] = -np.inf
    return log_softmax[rows, window[1:]] - others.max(axis=1)


def naive_kl(teacher, reference):
    """(S,) KL(teacher ‖ reference) of two (S, V) log-softmaxes, by its definition."""
    return (np.exp(teacher) * (teacher - reference)).sum(axis=1)


def save_tokenizer(folder, *, bos=False, merges=(("a", "b"),), lowercase=False, swap=None):
    """Save a byte-level tokenizer; token ids are the bytes' in a fixed order, then merges."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    if swap:
        i, j = swap
        tokens[i], tokens[j] = tokens[j], tokens[i]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens(["<s>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", len(tokens))]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)


def save_model(folder, *, family="llama", vocab_size=320, **tokenizer_settings):
    """Save a model and a tokenizer into a new folder."""
    make_model(family, vocab_size=vocab_size).save_pretrained(folder)
    save_tokenizer(folder, **tokenizer_settings)
    return Path(folder)


def edit_json(path, **changes):
    """Change top-level keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
