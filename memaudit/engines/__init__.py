"""Engines: what runs a model over windows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import MissingDependency, UsageError, is_installed
from memaudit.scores import WindowScores

EngineName = Literal["auto", "hf", "vllm"]


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How vLLM is run, where it runs the models."""

    tensor_parallel: int = 1
    """GPUs that share each model, at least 1."""

    gpu_memory_share: float = 0.8
    """Of each GPU's memory, in (0, 1): for weights and caches. The rest is for the heads."""

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1 or not 0 < self.gpu_memory_share < 1:
            raise ValueError(
                "tensor_parallel must be at least 1 and gpu_memory_share between 0 and 1, "
                f"got {self.tensor_parallel} and {self.gpu_memory_share}"
            )

    def shared_by(self, n_parameters: Sequence[int]) -> "list[VllmOptions]":
        """Return how each of several models is run beside the others: its memory goes by its size."""
        # And something for each: caches need memory however small the model is.
        sizes = [n + 0.1 * sum(n_parameters) for n in n_parameters]
        shares = [self.gpu_memory_share * size / sum(sizes) for size in sizes]
        return [replace(self, gpu_memory_share=share) for share in shares]


DEFAULT_VLLM_OPTIONS = VllmOptions()


# Names and options stand here, where commands read them without waiting for torch.
ENDPOINT = "endpoint"
"""What an engine on an endpoint calls itself: what computes there is not known."""

CAPTURED = "captured"
"""The teacher whose log-probabilities are in the corpus, and the engine that reads them there."""

API_KEY = "MEMAUDIT_API_KEY"
"""The environment variable with the key of an endpoint."""


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """How a teacher behind an HTTP endpoint is asked."""

    tokenizer: str | None = None
    """Folder or hub id of its tokenizer. None: the served model's name is one."""

    served_model: str | None = None
    """Its name there. None: the only one that is served."""

    n_requests: int = 8
    """In flight at once, at least 1."""

    captured_temperature: float = 1.0
    """At which axolotl prepared what it captured, above 0."""

    def __post_init__(self) -> None:
        if self.n_requests < 1:
            raise ValueError(f"n_requests must be at least 1, got {self.n_requests}")


def is_endpoint(source: str) -> bool:
    """Whether a model is named by the address of an HTTP endpoint."""
    return source.lower().startswith(("http://", "https://"))


def is_elsewhere(source: str) -> bool:
    """Whether a teacher is none that can be loaded: behind an endpoint, or captured."""
    return source == CAPTURED or is_endpoint(source)


COMPILED = "compiled"
"""In the name of an engine whose models are compiled."""

FUSED = "-fused"
"""Ends the name of an engine whose softmax is summed up by the kernel for CUDA."""


def engine_name(kind: str, dtype: str, *, compiled: bool | None, fused: bool = False) -> str:
    """Return what reports call an engine: all of it that a score's rounding depends on."""
    return "-".join([kind, dtype, *([COMPILED] if compiled else [])]) + FUSED * fused


def engine_to_try(name: EngineName, vllm: VllmOptions, *, elsewhere: bool) -> EngineName:
    """Return the engine that was asked for, before any model is known.

    Returns:
        `auto` if models and devices decide between the two.

    Raises:
        UsageError: the options ask for what no engine does.
        MissingDependency: vLLM is asked for, and is not installed.
    """
    if name == "hf" and vllm.tensor_parallel > 1:
        raise UsageError(
            "the hf engine does not spread a model over several GPUs",
            hint="use --engine vllm, or leave out --tensor-parallel",
        )
    # Only vLLM spreads a model as --tensor-parallel says, so `auto` is vLLM with it.
    if name == "auto" and vllm.tensor_parallel == 1:
        return "auto" if is_installed("vllm") and not elsewhere else "hf"
    if name == "hf":
        return "hf"
    if elsewhere:
        raise UsageError(
            "the vllm engine runs in one process, without workers and without Ray",
            hint="use --tensor-parallel N, or one run a GPU with --shard I/N",
        )
    if not is_installed("vllm"):
        raise MissingDependency("vllm", needed_for="the vllm engine", extra="vllm")
    return "vllm"


class Engine(Protocol):
    """Runs the teacher, and a reference if it has one, over windows.

    The scores of a window do not depend on the windows beside it, on their order or on the
    batch size, but for the rounding of float32: at most 1e-5 nats on miniature models, and
    3.3e-5 measured on one of 135 million parameters. The same windows in the same order have the
    same scores to the bit.
    """

    @property
    def name(self) -> str:
        """What ran, for reports: `hf-float32`."""
        ...

    @property
    def reference_alone(self) -> "Engine":
        """An engine whose teacher is the reference of this one; there must be one."""
        ...

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Return the scores of each window, in the order given.

        Args:
            windows: token ids, each (T,) with T >= 2; lengths may differ.

        Raises:
            ModelError: a window is too long for a model or holds ids it does not have, a score is
                not finite, memory does not suffice for a single window, or what runs it fails.
        """
        ...
