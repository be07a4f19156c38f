"""Miniature models: small networks of the families studied and their tokenizer, from scratch."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from study.recipe import Family, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
_HEAD_SIZE = 32


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> "PreTrainedTokenizerFast":
    """Return a byte-level BPE tokenizer: no text is out of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)


def cut_model(model: "PreTrainedModel", layers: int) -> "PreTrainedModel":
    """Return a model of evenly spaced layers of another one, all else shared with it."""
    from torch import nn

    whole: Any = model
    blocks = whole.model.layers
    kept = [i * len(blocks) // layers for i in range(layers)]
    chosen = [blocks[i] for i in kept]
    for i, block in enumerate(chosen):
        block.self_attn.layer_idx = i
    whole.model.layers = nn.ModuleList(chosen)
    whole.config.num_hidden_layers = layers
    if getattr(whole.config, "layer_types", None):
        whole.config.layer_types = [whole.config.layer_types[i] for i in kept]
    return model


def new_model(family: Family, size: Size, vocabulary_size: int, seed: int) -> "PreTrainedModel":
    """Return an untrained model with the family's architecture, its proportions in small."""
    import torch
    from transformers import (
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Olmo2Config,
        Olmo2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    n_heads = size.hidden // _HEAD_SIZE
    common: dict[str, Any] = {
        "vocab_size": vocabulary_size,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": n_heads,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    model: Any  # the families' own classes type `eval` differently
    if family == "gpt-neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**common, intermediate_size=4 * size.hidden))
    elif family == "olmo2":
        # Three matrices of 8/3 the width: as many parameters as two of four times the width.
        model = Olmo2ForCausalLM(Olmo2Config(**common, intermediate_size=size.hidden * 8 // 3))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common, intermediate_size=3 * size.hidden))
    else:
        model = Qwen3ForCausalLM(
            Qwen3Config(
                **common,
                intermediate_size=3 * size.hidden,
                num_key_value_heads=max(1, n_heads // 2),
                head_dim=_HEAD_SIZE,
                tie_word_embeddings=True,
            )
        )
    untrained: PreTrainedModel = model.eval()
    return untrained
