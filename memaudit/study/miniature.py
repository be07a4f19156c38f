"""Miniature models: small GPTNeoX networks and their tokenizer, made from scratch."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from memaudit.study.recipe import MiniatureSize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_END_OF_TEXT = "<|endoftext|>"
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
        special_tokens=[_END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END_OF_TEXT)


def new_model(size: MiniatureSize, vocabulary_size: int, seed: int) -> "PreTrainedModel":
    """Return an untrained GPTNeoX model, the architecture of Pythia."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=vocabulary_size,
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // _HEAD_SIZE,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = GPTNeoXForCausalLM(config)
    model.eval()
    return model
