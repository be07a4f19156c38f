"""Engines: what runs a model over windows."""

from importlib.util import find_spec
from typing import Literal

from memaudit.errors import MissingDependency, UsageError

EngineName = Literal["auto", "hf", "vllm"]


def choose_engine(name: EngineName) -> Literal["hf"]:
    """Return the engine to use; auto is `hf`.

    Raises:
        MissingDependency: vLLM is asked for and not installed.
        UsageError: vLLM is asked for and installed.
    """
    if name != "vllm":
        return "hf"
    if find_spec("vllm") is None:
        raise MissingDependency("vllm", needed_for="the vllm engine", extra="vllm")
    raise UsageError("the vllm engine is not available in this release", hint="use --engine hf")
