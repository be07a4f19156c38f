"""What a model costs for a window, and what GPUs can do."""

from dataclasses import dataclass

UTILISATION = 0.4
"""Share of its peak that a GPU is taken to reach: an assumption, not a measurement."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its maker describes it; peaks are dense, without sparsity."""

    name: str
    """As people call it."""

    half_flops: float
    """Peak in bfloat16, per second; in float16 where it has no bfloat16."""

    single_flops: float
    """Peak in float32, per second, without TF32."""

    memory: int
    """Bytes."""


GPUS = (
    Gpu("T4", 65e12, 8.1e12, 16 * 10**9),
    Gpu("L4", 121e12, 30.3e12, 24 * 10**9),
    Gpu("A100-80", 312e12, 19.5e12, 80 * 10**9),
    Gpu("H100", 989e12, 67e12, 80 * 10**9),
)
"""Peaks by NVIDIA's data sheets: T4 (2019), L4 (2023), A100 80 GB SXM (2021), H100 SXM (2023)."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one model costs for one window."""

    role: str
    """`teacher`, `student` or `baseline`."""

    source: str
    """As given."""

    parameters: int
    """Each counted once."""

    head_parameters: int
    """Of the output layer, wherever they are stored."""

    body_parameters: int
    """Without embeddings and head; of a mixture of experts all of them, so an upper limit."""

    layers: int
    """Transformer blocks."""

    attention_width: int
    """Heads times their size."""

    activation_width: int
    """Numbers that a block keeps for a token at a time."""

    def body_flops(self, n_tokens: int) -> int:
        """Return the floating-point operations of the body for a window of so many tokens.

        2 for each weight and token, and 4 * layers * attention width for each pair of tokens, the
        masked ones included.
        """
        attention = 4 * self.layers * self.attention_width * n_tokens**2
        return 2 * self.body_parameters * n_tokens + attention

    def head_flops(self, n_tokens: int) -> int:
        """Return those of the head: 2 for each weight and predicted token."""
        return 2 * self.head_parameters * (n_tokens - 1)
