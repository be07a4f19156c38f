"""Miniature models on disk that vLLM's attention on a CPU can run: heads of 32."""

from support.tiny_models import save_tokenizer, sharp_model

FAMILIES = ("gpt_neox", "olmo2", "qwen3", "llama")


def save_vllm_model(folder, family, *, seed=0, bos=False):
    """Save a model of two layers whose predictions are far from uniform, and a tokenizer."""
    import transformers as hf

    common = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    grouped = {**common, "num_key_value_heads": 1}
    makers = {
        "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**common)),
        "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**grouped)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**grouped, head_dim=32)),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped, tie_word_embeddings=True)),
    }
    sharp_model(makers[family], seed).save_pretrained(folder)
    save_tokenizer(folder, bos=bos)
    return folder


def largest_gap(found, expected):
    """The largest difference between two engines' scores of one window, nats."""
    models = [(found.teacher, expected.teacher)]
    if found.reference is not None:
        models.append((found.reference, expected.reference))
    pairs = [(a.logprobs, b.logprobs) for a, b in models]
    pairs += [(a.entropy, b.entropy) for a, b in models]
    pairs.append((found.kl_divergence, expected.kl_divergence))
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return max(float(abs(a - b).max()) for a, b in known)
