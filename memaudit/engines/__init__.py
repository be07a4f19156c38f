"""Engines: what runs a model over windows."""

from typing import Literal

from memaudit.errors import UsageError

EngineName = Literal["auto", "hf", "vllm"]


def choose_engine(name: EngineName) -> Literal["hf"]:
    """Return the engine to use; auto is `hf`.

    Raises:
        UsageError: vLLM is asked for.
    """
    if name == "vllm":
        raise UsageError("the vllm engine is not in this release", hint="use --engine hf")
    return "hf"
