"""Compiled models: torch fuses what stands between the matrix products of a block.

Matrix products stay what they are. What is between them reads and writes all hidden states a dozen
times a block; fused, twice or thrice. One block is compiled, and its code serves them all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from memaudit.errors import ModelError

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


def compile_blocks(model: "PreTrainedModel") -> None:
    """Let the blocks of a model be compiled when they first run, for sequences of any length."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    body: Module = model.base_model
    blocks: list[Module] = []
    blocks += [each for each in body.modules() if isinstance(each, GradientCheckpointingLayer)]
    for block in blocks or [body]:
        block.compile(dynamic=True)


@contextmanager
def compilation_errors(model: "PreTrainedModel") -> Iterator[None]:
    """Turn what torch raises when a model cannot be compiled into one sentence."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        raise ModelError(
            f"{type(model).__name__} cannot be compiled here: {type(error).__name__}",
            hint="is there a C++ compiler? Leave out --compile to run without",
        ) from error
