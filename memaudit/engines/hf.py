"""The `hf` engine: any causal LM that transformers loads, on a CPU or a GPU."""

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from transformers.modeling_layers import GradientCheckpointingLayer

from memaudit.engines import Engine, engine_name
from memaudit.engines.head import Head, is_fused, read_head, score_heads
from memaudit.engines.window_io import check_windows, limits_of, split_scores
from memaudit.errors import ModelError
from memaudit.progress import tell
from memaudit.scores import WindowScores

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384}
"""Tokens run at once unless said otherwise, by kind of device; padding counts."""
_PROBE_LEN = 8
_TIMED_WINDOWS = 20
"""Scored each time: a batch of the usual windows on a CPU."""
_ROUNDS = 6
"""In each of which both ways are timed, one after the other."""
_COMPILING = 30.0
"""Seconds that compiling is taken to last until it has been done: 5 to 35 were measured."""
_AT_LEAST = 50
"""A run must take that many times as long as finding out: it costs 2 % of a run at most."""

_Later = Callable[[], list[WindowScores]]
"""Waits for the scores of a batch, and returns them."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@cache
def keep_freed_memory() -> None:
    """Let glibc keep what is freed: each block would give its memory back and fetch it again.

    The kernel clears every page that it hands out. Scores are the same to the bit.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        # Blocks above this size come from the kernel one by one, and go back to it at once.
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def compile_blocks(model: "PreTrainedModel") -> None:
    """Let the blocks of a model be compiled when they first run, for sequences of any length.

    torch fuses what stands between the matrix products of a block: unfused, that reads and writes
    all hidden states a dozen times a block. One block is compiled, and its code serves them all.
    """
    body: Module = model.base_model
    blocks: list[Module] = []
    blocks += [each for each in body.modules() if isinstance(each, GradientCheckpointingLayer)]
    for block in blocks or [body]:
        block.compile(dynamic=True)


def faster_engine(
    eager: Engine,
    compiled: Callable[[], Engine],
    models: Sequence["PreTrainedModel"],
    window: Callable[[int], NDArray[np.int32]],
    n_windows: int,
) -> tuple[Engine, str]:
    """Return what a run should score with, and in words why.

    Args:
        eager: runs the models as they are, on a CPU.
        compiled: compiles them, and returns what runs them then.
        models: those of both.
        window: gives one of the run by its number; some are timed.
        n_windows: how many there are.
    """
    # From all of the run: its first windows may be unlike the rest.
    places = np.linspace(0, n_windows - 1, _TIMED_WINDOWS, dtype=np.int64)
    windows = [window(int(place)) for place in places]

    def cost(engine: Engine, stance: str = "default") -> float:
        started = time.process_time()  # what other processes do changes it little
        with torch.compiler.set_stance(stance):
            engine.score(windows)
        return time.process_time() - started

    cost(eager)  # what happens only once is not timed
    each = cost(eager)
    total, needed = n_windows / len(windows) * each, _AT_LEAST * (_COMPILING + 2 * _ROUNDS * each)
    if total < needed:
        return eager, (
            f"not compiled: scoring takes some {total / 60:,.0f} minutes of CPU time, and whether "
            f"that helps is tried from {needed / 60:,.0f} on"
        )
    tell("compile, and time both ways")
    started = time.monotonic()  # other processes compile, too
    try:
        after = compiled()
        cost(after)
    except ModelError as error:
        _uncompile(models)
        return eager, f"not compiled: {error.message}"
    compiling = time.monotonic() - started
    # Both engines run the same modules, compiled by now: the stance tells which code is used. They
    # take turns, so that a processor that slows down slows both.
    seconds = np.array([(cost(eager, "force_eager"), cost(after)) for _ in range(_ROUNDS)])
    gain = float(seconds[:, 0].sum() / seconds[:, 1].sum())
    saved = total * (1 - 1 / gain)
    why = (
        f"compiled, the models are {gain:.2f} times as fast, in a run of some {total / 60:,.0f} "
        f"minutes of CPU time; compiling took {compiling:,.0f} seconds"
    )
    if saved > compiling:
        return after, f"compiled: {why}"
    _uncompile(models)
    return eager, f"not compiled: {why}"


def _uncompile(models: Sequence["PreTrainedModel"]) -> None:
    """Let models run as they were: torch has no opposite of `Module.compile`."""
    for model in models:
        for module in model.modules():
            module._compiled_call_impl = None


class HfEngine:
    """An `Engine` on one or two models of transformers.

    They run in evaluation mode, and are left as they were, but for being compiled where that is
    asked for. Build the engine after training: a head may be a copy. The two models must share a vocabulary
    (`check_same_vocabulary`); rows that only one of them has are left out of the divergence, see
    `score_heads`.
    """

    def __init__(
        self,
        teacher: "PreTrainedModel",
        reference: "PreTrainedModel | None" = None,
        *,
        bos_token_id: int | None = None,
        batch_tokens: int | None = None,
        compiled: bool = False,
    ) -> None:
        """Check that the heads are understood.

        Args:
            teacher: the model whose windows are scored.
            reference: scored beside it, on the same device.
            bos_token_id: put in front of every window as context, never scored.
            batch_tokens: tokens run at once, padding included; the scores do not depend on it.
                None: 2,048 on a CPU, 16,384 on a GPU.
            compiled: the models are compiled, which takes a while and needs a C++ compiler.

        Raises:
            ModelError: a model is not causal, its logits are no linear map of its last hidden
                state, or it cannot be compiled.
        """
        self._models = [teacher] if reference is None else [teacher, reference]
        self._device = teacher.device
        # A split model has no one device: accelerate brings each layer what it needs.
        is_split = any(hasattr(model, "hf_device_map") for model in self._models)
        if not is_split and any(model.device != self._device for model in self._models):
            raise ValueError("teacher and reference must be on the same device")
        dtype = str(teacher.dtype).removeprefix("torch.")
        # Such as hf-float32, hf-float32-compiled; on a GPU hf-bfloat16-fused.
        self.name = engine_name("hf", dtype, compiled=compiled, fused=is_fused(self._device))
        self._bos_token_id = bos_token_id
        self._bos = [] if bos_token_id is None else [bos_token_id]
        self._batch_tokens = batch_tokens or BATCH_TOKENS[self._device.type]
        # Dropout would make the two passes that are compared there differ.
        with evaluating(self._models):
            self._heads = [
                _checked_head(model, self._device, compiled=compiled) for model in self._models
            ]
        self._limits = [
            limits_of(model, head.n_rows)
            for model, head in zip(self._models, self._heads, strict=True)
        ]

    @cached_property
    def reference_alone(self) -> "HfEngine":
        """The same on the reference, where it is asked before the teacher."""
        _, reference = self._models
        # Not compiled again: a model is compiled in place, and was so where it was asked for.
        return HfEngine(reference, bos_token_id=self._bos_token_id, batch_tokens=self._batch_tokens)

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Return the scores of each window, see `Engine`."""
        check_windows(windows, self._bos, self._limits)
        if self._device.type == "cpu":
            keep_freed_memory()
        scores: dict[int, WindowScores] = {}
        with evaluating(self._models):
            batches = (
                (batch, self._launch([windows[i] for i in batch]))
                for batch in self._batches(windows)
            )
            # A GPU works on a batch while the next is made ready and queued. Behind the last is none.
            for (batch, found), _ in pairwise(chain(batches, [([], list)])):
                scores.update(zip(batch, found(), strict=True))
                tell("score", len(batch))
        return [scores[i] for i in range(len(windows))]

    def _batches(self, windows: Sequence[NDArray[np.int32]]) -> Iterator[list[int]]:
        """Yield indices of windows of similar length."""
        batch: list[int] = []
        # By length, for padding is run as well and takes as long as tokens.
        for index in sorted(range(len(windows)), key=lambda i: len(windows[i])):
            padded_len = len(windows[index]) - 1 + len(self._bos)
            if batch and (len(batch) + 1) * padded_len > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _launch(self, windows: list[NDArray[np.int32]]) -> _Later:
        """Let a batch be scored; if memory does not suffice, its halves.

        Returns:
            what waits for the scores and returns them.
        """
        try:
            scores_CN = self._run(windows)
            copy = scores_CN.to("cpu", non_blocking=True)  # from a GPU, into pinned memory
            done = torch.cuda.Event() if scores_CN.is_cuda else None
            if done is not None:
                done.record()
        except torch.OutOfMemoryError as error:
            if len(windows) == 1:
                raise ModelError(
                    f"not enough memory on {self._device} for one window of {len(windows[0])} tokens",
                    hint="choose a smaller model, bfloat16 or --device cpu",
                ) from error
        else:

            def wait() -> list[WindowScores]:
                if done is not None:
                    done.synchronize()
                return split_scores(copy.numpy(), windows)

            return wait
        # Not inside of the handler: there the error holds on to what the failed try has allocated.
        half = len(windows) // 2
        first, second = self._launch(windows[:half]), self._launch(windows[half:])
        return lambda: first() + second()

    @torch.inference_mode()
    def _run(self, windows: list[NDArray[np.int32]]) -> Tensor:
        """Return (4 or 9, N) float32 scores of all predicted tokens, window after window.

        On a GPU they are queued: nothing here waits for it.
        """
        # Position t predicts token t + 1. The last token predicts none and is not run; with a BOS
        # in front, the first position would predict a window's first token, which has no score.
        read = (np.concatenate([self._bos, window[:-1]]) for window in windows)
        tensors = [torch.as_tensor(token_ids, dtype=torch.int64) for token_ids in read]
        # Padded on the right: a causal model never looks there.
        token_ids_BT = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        lengths_B = torch.tensor([len(window) - 1 + len(self._bos) for window in windows])
        positions_T = torch.arange(token_ids_BT.shape[1])
        is_scored_BT = (positions_T >= len(self._bos)) & (positions_T < lengths_B[:, None])
        # Looked for on the CPU: a GPU would have to be waited for to know how many there are.
        places_N = self._to_device(is_scored_BT.flatten().nonzero()[:, 0])
        targets = np.concatenate([window[1:] for window in windows])
        target_ids_N = self._to_device(torch.as_tensor(targets, dtype=torch.int64))
        token_ids_BT = self._to_device(token_ids_BT)
        # The last layer of a split model may be on another device.
        hiddens = [
            _hidden(model, token_ids_BT).to(self._device).flatten(0, 1).index_select(0, places_N)
            for model in self._models
        ]
        return score_heads(self._heads, hiddens, target_ids_N).float()

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return tensor
        # Only out of pinned memory is a copy queued; out of any other it is waited for.
        return tensor.pin_memory().to(self._device, non_blocking=True)


@contextmanager
def evaluating(models: list["PreTrainedModel"]) -> Iterator[None]:
    """Switch dropout off, and back to what it was."""
    were_training = [model.training for model in models]
    for model in models:
        model.train(False)
    try:
        yield
    finally:
        for model, was_training in zip(models, were_training, strict=True):
            model.train(was_training)


def _hidden(model: "PreTrainedModel", token_ids_BT: Tensor) -> Tensor:
    """Return (B, T, H) the last hidden states, after the final normalisation."""
    # Nothing is generated from here, so keys and values would be kept for nobody.
    hidden_BTH: Tensor = model.base_model(input_ids=token_ids_BT, use_cache=False)[0]
    return hidden_BTH


@torch.inference_mode()
def _checked_head(model: "PreTrainedModel", device: torch.device, *, compiled: bool) -> Head:
    """Return the head on a device, once it has given the model's own logits on a few tokens."""
    head = read_head(model, device)
    name = type(model).__name__
    if model.base_model is model:
        raise ModelError(f"{name} has no body apart from its head", hint="use another model")
    if compiled:
        compile_blocks(model)
    token_ids_BT = torch.arange(2 * _PROBE_LEN, device=device) % head.n_rows
    token_ids_BT = token_ids_BT.reshape(2, _PROBE_LEN)
    # Two texts with one beginning: in a causal model its hidden states are the same in both.
    token_ids_BT[1, : _PROBE_LEN // 2] = token_ids_BT[0, : _PROBE_LEN // 2]
    # The first pass compiles, so a missing compiler is found before any window is read.
    try:
        hidden_BTH = _hidden(model, token_ids_BT).to(device, head.weight.dtype)
    except TorchDynamoException as error:
        raise ModelError(
            f"{name} cannot be compiled here: {type(error).__name__}",
            hint="is there a C++ compiler? Leave out --compile to run without",
        ) from error
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    same_prefix_BTH = hidden_BTH[:, : _PROBE_LEN // 2]
    if not _close(same_prefix_BTH[0], same_prefix_BTH[1], tolerance):
        raise ModelError(
            f"{name} is not causal: a token changes the predictions before it",
            hint="use a causal language model",
        )
    # What a family does with its logits is seen from them: no list of families would be complete.
    expected_BTV = model(input_ids=token_ids_BT, use_cache=False).logits.to(device).float()
    logits_NV = head.logits(hidden_BTH.flatten(0, 1), 0, head.n_rows)
    if not _close(logits_NV, expected_BTV.flatten(0, 1), tolerance):
        raise ModelError(
            f"the head of {name} is not a plain linear map of its last hidden state",
            hint="use a model without a custom head",
        )
    return head


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether they are equal but for rounding; NaN passes, `score` refuses it later."""
    if found.shape != expected.shape:
        return False
    gap = (found - expected).abs().max()
    return not bool(gap > tolerance * (1 + expected.abs().max()))
