"""What the machine could do at most: matrix products at a model's shapes, and its FLOPs."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS = (128, 512, 1024)
_HEAD_TILES = (1024, 4096)
_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Shapes:
    """The matrix products of one causal language model, for each token."""

    layers: tuple[tuple[int, int, int], ...]
    """How many, output size, input size: of the body's linear maps."""

    head: tuple[int, int]
    """Rows of the vocabulary, hidden size."""

    attention: int
    """FLOPs of one query with one key over all layers, values included."""

    def window_flops(self, n_tokens: int) -> float:
        """Return the FLOPs of one window: body for all tokens, head for all but the last.

        Attention is counted without the half that a causal mask leaves out.
        """
        body = sum(2 * n * outputs * inputs for n, outputs, inputs in self.layers)
        head = 2 * self.head[0] * self.head[1]
        attention = self.attention * n_tokens * (n_tokens + 1) / 2
        return body * n_tokens + head * (n_tokens - 1) + attention

    @property
    def products(self) -> list[tuple[int, int]]:
        """Distinct (output, input) sizes, the head's last."""
        body = {(outputs, inputs) for _, outputs, inputs in self.layers}
        return [*sorted(body), self.head]


def read_shapes(model: str) -> Shapes:
    """Return the shapes of a causal language model from its config, without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(model, local_files_only=True)
    with torch.device("meta"):
        built: Any = AutoModelForCausalLM.from_config(config)
    head = built.get_output_embeddings()
    linear = [m for m in built.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    counts = Counter((m.out_features, m.in_features) for m in linear)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shapes(
        layers=tuple((n, outputs, inputs) for (outputs, inputs), n in sorted(counts.items())),
        head=(head.out_features, head.in_features),
        attention=4 * config.num_attention_heads * head_dim * config.num_hidden_layers,
    )


def measure_peaks(shapes: Shapes, dtype: str) -> NDArray[np.float64]:
    """Return the best rate of each product over several batch and tile sizes.

    Returns:
        (n_products,) FLOPs per second of processor time, in the order of `Shapes.products`.
    """
    rates = []
    for outputs, inputs in shapes.products:
        is_head = (outputs, inputs) == shapes.head
        tiles = [tile for tile in _HEAD_TILES if tile < outputs] if is_head else []
        rates.append(
            max(_rate(rows, inputs, size, dtype) for size in [*tiles, outputs] for rows in _ROWS)
        )
    return np.array(rates)


def peak_rate(shapes: Shapes, rates: NDArray[np.float64], n_tokens: int) -> float:
    """Return FLOPs per second if every product of a window ran at its own best rate.

    Attention is given the rate that comes out for the rest.
    """
    by_product = dict(zip(shapes.products, rates, strict=True))
    flops = seconds = 0.0
    for n, outputs, inputs in shapes.layers:
        flops += 2 * n * outputs * inputs * n_tokens
        seconds += 2 * n * outputs * inputs * n_tokens / by_product[(outputs, inputs)]
    head = 2 * shapes.head[0] * shapes.head[1] * (n_tokens - 1)
    return float((flops + head) / (seconds + head / by_product[shapes.head]))


def _rate(rows: int, inputs: int, outputs: int, dtype: str) -> float:
    import torch

    left = torch.randn(rows, inputs).to(getattr(torch, dtype))
    weight = torch.randn(outputs, inputs).to(left.dtype)
    with torch.inference_mode():
        torch.nn.functional.linear(left, weight)
        n, start = 0, time.process_time()
        while (seconds := time.process_time() - start) < _SECONDS:
            torch.nn.functional.linear(left, weight)
            n += 1
    return 2.0 * rows * inputs * outputs * n / seconds
