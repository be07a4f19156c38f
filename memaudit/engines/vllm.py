"""The `vllm` engine: vLLM runs the bodies of the models, and our own head reads their hidden states.

vLLM has the hidden states of every token (pooling task `token_embed`), after the final
normalisation, and the head of the `hf` engine makes scores of them: log-probabilities,
argmax, entropy and the divergence over the whole vocabulary are exact. The hidden states stay on the
device, and the head is there as well: vLLM hands over only where they are, because a hook on its
pooler has kept them. With `--tensor-parallel` the model runs in processes of its own, which a hook
of ours cannot reach back from, and they come through the memory of the host. Where it does not hand over
hidden states, `LogprobEngine` reads what vLLM itself says of the tokens of a prompt.

Teacher and reference stand side by side, each with its share of the device, and read the same
windows one after the other. The hidden states of at most `_CALL_TOKENS` tokens are held at once.

vLLM runs in this process, so it is given the windows in a fixed order and schedules them alike
each time: the same windows in the same order have the same scores to the bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memaudit.engines import DEFAULT_VLLM_OPTIONS, Engine, VllmOptions, engine_name
from memaudit.engines.canaries import TOLERANCES, Canaries, WatchedEngine, canary_windows
from memaudit.engines.head import Head, is_fused, read_head, score_heads
from memaudit.engines.hf import HfEngine
from memaudit.engines.models import LoadedModel
from memaudit.engines.vllm_start import (
    HiddenStates,
    VllmRefusedError,
    start_hidden_states,
    start_prompt_logprobs,
    vllm_version,
)
from memaudit.engines.window_io import (
    LogprobEngine,
    ModelLimits,
    OutsideEngine,
    check_windows,
    limits_of,
    split_scores,
)
from memaudit.errors import ModelError
from memaudit.progress import tell
from memaudit.scores import WindowScores

_CALL_TOKENS = 16_384
"""Tokens whose hidden states are held at once."""


@dataclass(frozen=True, slots=True)
class Body:
    """A model without its head, run by vLLM, and the head beside it."""

    hidden_states: HiddenStates
    head: Head
    """Its own copy of the weights."""

    limits: ModelLimits


class VllmEngine(OutsideEngine[Body]):
    """An `Engine` on one or two models that vLLM runs.

    The scores of a window depend on the windows beside it as little as those of `HfEngine`: on a
    CPU in float32 not at all.
    """

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Return the scores of each window, see `Engine`."""
        check_windows(windows, self._bos, [body.limits for body in self._models])
        scores: list[WindowScores] = []
        for start, stop in _calls([len(window) - 1 + len(self._bos) for window in windows]):
            scores += self._score_together(windows[start:stop])
            tell("score", stop - start)
        return scores

    @torch.inference_mode()
    def _score_together(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        device = self._models[0].head.weight.device
        targets_N = torch.from_numpy(np.concatenate([window[1:] for window in windows]))
        targets_N = targets_N.to(device, torch.int64)
        # Position t predicts token t + 1. The last token predicts none and is not run; with a BOS
        # in front, the first position would predict a window's first token, which has no score.
        prompts = [[*self._bos, *window[:-1].tolist()] for window in windows]
        hiddens = [self._hidden(body, prompts).to(device) for body in self._models]
        scores_CN = score_heads([body.head for body in self._models], hiddens, targets_N)
        return split_scores(scores_CN.float().cpu().numpy(), windows)

    # Apart, so that the states before they are put together are gone when the head runs.
    def _hidden(self, body: Body, prompts: list[list[int]]) -> Tensor:
        """Return (N, H) the hidden states that predict a window's tokens, one after the other."""
        found = body.hidden_states(prompts)
        for hidden_TH, prompt in zip(found, prompts, strict=True):
            # With a place more or less, scores would be those of other tokens.
            expected = (len(prompt), body.head.weight.shape[1])
            if tuple(hidden_TH.shape) != expected:
                raise ModelError(
                    f"vLLM gives hidden states of shape {tuple(hidden_TH.shape)} for "
                    f"{body.limits.name}, expected {expected}",
                    hint="use --engine hf",
                )
        return torch.cat([hidden_TH[len(self._bos) :] for hidden_TH in found])


def load_vllm_engine(
    teacher: LoadedModel,
    reference: LoadedModel | None = None,
    *,
    window_len: int,
    options: VllmOptions = DEFAULT_VLLM_OPTIONS,
    compiled: bool = False,
    falls_back: bool = True,
) -> WatchedEngine:
    """Let vLLM take over models that transformers has loaded, and hold it against them.

    The canaries are scored by the `hf` engine first; then the models' weights, but for a copy of
    their heads, are let go: they are not in memory twice. What is loaded can no longer run.

    Args:
        teacher: the model whose windows are scored.
        reference: scored beside it.
        window_len: tokens of the longest window.
        options: how vLLM runs.
        compiled: it compiles the models first.
        falls_back: if it does not hand over hidden states, its log-probabilities will do.

    Raises:
        VllmRefusedError: vLLM cannot run a model.
        ModelError: it disagrees about the canaries.
    """
    loaded = [teacher] if reference is None else [teacher, reference]
    tokenizer, bos_token_id = teacher.tokenizer, teacher.tokenizer.bos_token_id
    dtype = str(teacher.model.dtype).removeprefix("torch.")
    windows = canary_windows(tokenizer.encode, tokenizer.n_ids, window_len)
    trusted = HfEngine(*(each.model for each in loaded), bos_token_id=bos_token_id)
    canaries = Canaries(windows, tuple(trusted.score(windows)), TOLERANCES[dtype])
    del trusted  # holds on to the weights
    shares = options.shared_by([model.n_parameters for model in loaded])
    # Every model is let go before the first is taken over: that is when memory is shortest.
    parts = [_let_go(model, options) for model in loaded]
    kind, n_tokens = f"vllm-{vllm_version()}", window_len - 1 + (bos_token_id is not None)
    engine: Engine
    try:
        bodies = [
            Body(start_hidden_states(model, dtype, n_tokens, share, compiled), *part)
            for model, share, part in zip(loaded, shares, parts, strict=True)
        ]
    except VllmRefusedError:
        if not falls_back:
            raise
        bodies = []
    if bodies:
        fused = is_fused(bodies[0].head.weight.device)
        name = engine_name(kind, dtype, compiled=compiled, fused=fused)
        engine = VllmEngine(bodies, name=name, bos_token_id=bos_token_id)
    else:  # outside of the handler: the error holds on to what had been loaded
        models = [
            (start_prompt_logprobs(model, dtype, n_tokens + 1, share, compiled), limits)
            for model, share, (_, limits) in zip(loaded, shares, parts, strict=True)
        ]
        name = engine_name(f"{kind}-logprobs", dtype, compiled=compiled)
        engine = LogprobEngine(models, name=name, bos_token_id=bos_token_id)
    return WatchedEngine(engine, canaries)


def _let_go(loaded: LoadedModel, options: VllmOptions) -> tuple[Head, ModelLimits]:
    """Drop a model's weights, and return a copy of its head."""
    device = loaded.model.device
    if options.tensor_parallel > 1 and torch.cuda.is_available():
        device = torch.device("cuda")  # a model that several GPUs share was loaded on the CPU
    shared = read_head(loaded.model, device)
    bias = None if shared.bias is None else shared.bias.to(device, copy=True)
    head = replace(shared, weight=shared.weight.to(device, copy=True), bias=bias)
    limits = limits_of(loaded.model, head.n_rows)
    untyped: Any = loaded.model
    untyped.to("meta")
    if torch.cuda.is_available():
        # torch keeps what is freed, and vLLM asks the device how much is there.
        torch.cuda.empty_cache()
    return head, limits


def _calls(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of windows that are scored together, in their order."""
    start = n_tokens = 0
    for index, length in enumerate(lengths):
        if n_tokens and n_tokens + length > _CALL_TOKENS:
            yield start, index
            start, n_tokens = index, 0
        n_tokens += length
    if lengths:
        yield start, len(lengths)
