"""Outlines of models: their tokenizer and their shapes, without a single weight."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memaudit.engines.models import DEFAULT_OPTIONS, ModelOptions, open_model
from memaudit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from memaudit.engines.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """What of a model decides how much work it is."""

    source: str
    """As the user named it."""

    tokenizer: "Tokenizer"
    """The model's own."""

    parameters: int
    """Each counted once."""

    body_parameters: int
    """Without embeddings and head; of a mixture of experts all of them."""

    head_parameters: int
    """Of the output layer, wherever they are stored."""

    layers: int
    """Transformer blocks."""

    hidden: int
    """Width of the residual stream."""

    intermediate: int
    """Width of the feed-forward part; 4 times the other where the config does not say."""

    attention_width: int
    """Heads times their size."""


def load_outline(source: str, options: ModelOptions = DEFAULT_OPTIONS) -> ModelOutline:
    """Load the tokenizer of a model, and tell the sizes of its weights from its config.

    Raises:
        ModelError: as for `load_model`, but for what only the weights can show.
    """
    with open_model(source, options) as (_, folder, where):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from memaudit.engines.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(folder, where)
        config = AutoConfig.from_pretrained(folder, **where)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(
                config, trust_remote_code=options.trust_remote_code
            )
    return _outline(source, tokenizer, skeleton)


def _outline(source: str, tokenizer: "Tokenizer", skeleton: "PreTrainedModel") -> ModelOutline:
    untyped: Any = skeleton
    embeddings, head = untyped.get_input_embeddings(), untyped.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise ModelError(
            f"{type(skeleton).__name__} has no linear output layer",
            hint="use a causal language model",
        )
    apart = {id(layer.weight): layer.weight.numel() for layer in (embeddings, head)}
    parameters = sum(parameter.numel() for parameter in untyped.parameters())
    config: Any = skeleton.config.get_text_config()
    hidden, n_heads = config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or hidden // n_heads
    return ModelOutline(
        source=source,
        tokenizer=tokenizer,
        parameters=parameters,
        body_parameters=parameters - sum(apart.values()),
        head_parameters=head.weight.numel(),
        layers=config.num_hidden_layers,
        hidden=hidden,
        intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
        attention_width=n_heads * head_size,
    )
