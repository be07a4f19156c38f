"""The `hf` engine: any causal LM that transformers loads, on a CPU or a GPU."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memaudit.engines.head import Head, read_head, score_position_pairs, score_positions
from memaudit.errors import ModelError
from memaudit.scores import TokenScores, WindowScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH_TOKENS_CPU = 1024
_BATCH_TOKENS_CUDA = 16_384
_PROBE_LEN = 8


class HfEngine:
    """An `Engine` on one or two models of transformers.

    They run in evaluation mode, and are left as they were. Build the engine after training: a
    head that is not float32 is copied. The two models must share a vocabulary
    (`check_same_vocabulary`); rows that only one of them has are left out of the divergence, see
    `score_position_pairs`.
    """

    def __init__(
        self,
        teacher: "PreTrainedModel",
        reference: "PreTrainedModel | None" = None,
        *,
        bos_token_id: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        """Check that the heads are understood.

        Args:
            teacher: the model whose windows are scored.
            reference: scored beside it, on the same device.
            bos_token_id: put in front of every window as context, never scored.
            batch_tokens: tokens run at once, padding included; the scores do not depend on it.
                None: 1,024 on a CPU, 16,384 on a GPU.

        Raises:
            ModelError: a model is not causal, or its logits are no linear map of its last
                hidden state.
        """
        self._models = [teacher] if reference is None else [teacher, reference]
        self._device = teacher.device
        if any(model.device != self._device for model in self._models):
            raise ValueError("teacher and reference must be on the same device")
        self._name = f"hf-{str(teacher.dtype).removeprefix('torch.')}"
        self._bos = [] if bos_token_id is None else [bos_token_id]
        on_cpu = self._device.type == "cpu"
        self._batch_tokens = batch_tokens or (_BATCH_TOKENS_CPU if on_cpu else _BATCH_TOKENS_CUDA)
        with _evaluation(self._models):
            self._heads = [_checked_head(model) for model in self._models]

    @property
    def name(self) -> str:
        """`hf-float32` or `hf-bfloat16`."""
        return self._name

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Return the scores of each window, in the order given.

        Args:
            windows: token ids, each (T,) with T >= 2; lengths may differ.

        Raises:
            ModelError: a window is too long for a model or holds ids it does not have, a score
                is not finite, or memory does not suffice for a single window.
        """
        self._check_windows(windows)
        scores: dict[int, WindowScores] = {}
        with _evaluation(self._models):
            for batch in self._batches(windows):
                found = self._score_batch([windows[i] for i in batch])
                scores.update(zip(batch, found, strict=True))
        return [scores[i] for i in range(len(windows))]

    def _check_windows(self, windows: Sequence[NDArray[np.int32]]) -> None:
        if not windows:
            return
        if min(map(len, windows)) < 2:
            raise ValueError("a window must have at least 2 tokens")
        n_tokens = max(map(len, windows)) + len(self._bos)
        lowest = min([*self._bos, *(window.min() for window in windows)])
        highest = max([*self._bos, *(window.max() for window in windows)])
        for model, head in zip(self._models, self._heads, strict=True):
            limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            if limit is not None and n_tokens > limit:
                raise ModelError(
                    f"a window has {n_tokens} tokens, {type(model).__name__} reads at most {limit}",
                    hint="choose a shorter prefix or suffix",
                )
            if lowest < 0 or highest >= head.n_rows:
                raise ModelError(
                    f"token ids run from {lowest} to {highest}, "
                    f"{type(model).__name__} has rows for 0 to {head.n_rows - 1}",
                    hint="use the tokenizer that belongs to the model",
                )

    def _batches(self, windows: Sequence[NDArray[np.int32]]) -> Iterator[list[int]]:
        """Yield indices of windows of similar length."""
        batch: list[int] = []
        for index in sorted(range(len(windows)), key=lambda i: len(windows[i])):
            padded_len = len(windows[index]) + len(self._bos)
            if batch and (len(batch) + 1) * padded_len > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _score_batch(self, windows: list[NDArray[np.int32]]) -> list[WindowScores]:
        """Score a batch; if memory does not suffice, its halves."""
        try:
            scores_CN = self._run(windows)
        except torch.OutOfMemoryError as error:
            if len(windows) == 1:
                raise ModelError(
                    f"not enough memory on {self._device} for one window of {len(windows[0])} tokens",
                    hint="choose a smaller model, bfloat16 or --device cpu",
                ) from error
        else:
            ends = np.cumsum([len(window) - 1 for window in windows])
            return [_window_scores(part) for part in np.split(scores_CN, ends[:-1], axis=1)]
        half = len(windows) // 2
        return self._score_batch(windows[:half]) + self._score_batch(windows[half:])

    @torch.inference_mode()
    def _run(self, windows: list[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Return (3 or 7, N) scores of all predicted tokens, one window after the other."""
        token_ids_BT = _pad([np.concatenate([self._bos, window]) for window in windows])
        lengths_B = torch.tensor([len(window) + len(self._bos) for window in windows])
        # Position t predicts token t + 1. The last has no next token; with a BOS in front, the
        # first would predict a window's first token, which has no score.
        positions_T = torch.arange(token_ids_BT.shape[1])
        is_scored_BT = (positions_T >= len(self._bos)) & (positions_T < lengths_B[:, None] - 1)
        rows_N, columns_N = is_scored_BT.nonzero(as_tuple=True)
        target_ids_N = token_ids_BT[rows_N, columns_N + 1].to(self._device)
        token_ids_BT = token_ids_BT.to(self._device)
        rows_N, columns_N = rows_N.to(self._device), columns_N.to(self._device)
        hiddens = [_hidden(model, token_ids_BT)[rows_N, columns_N] for model in self._models]
        if len(hiddens) == 1:
            scores_CN = score_positions(self._heads[0], hiddens[0], target_ids_N)
        else:
            heads = (self._heads[0], self._heads[1])
            scores_CN = score_position_pairs(heads, (hiddens[0], hiddens[1]), target_ids_N)
        scores = scores_CN.float().cpu().numpy()
        if not np.isfinite(scores).all():
            raise ModelError(
                "a score is not a finite number: weights are broken, or too large for the dtype",
                hint="load the model in float32, or get its files again",
            )
        return scores


@contextmanager
def _evaluation(models: list["PreTrainedModel"]) -> Iterator[None]:
    """Switch dropout off, and back to what it was."""
    were_training = [model.training for model in models]
    for model in models:
        model.train(False)
    try:
        yield
    finally:
        for model, was_training in zip(models, were_training, strict=True):
            model.train(was_training)


def _pad(windows: list[NDArray[np.int32]]) -> Tensor:
    """Return (B, T) int64, padded on the right: a causal model never looks there."""
    tensors = [torch.as_tensor(window, dtype=torch.int64) for window in windows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def _hidden(model: "PreTrainedModel", token_ids_BT: Tensor) -> Tensor:
    """Return (B, T, H) the last hidden states, after the final normalisation."""
    hidden_BTH: Tensor = model.base_model(input_ids=token_ids_BT, use_cache=False)[0]
    return hidden_BTH


def _window_scores(scores_CS: NDArray[np.float32]) -> WindowScores:
    teacher = _token_scores(scores_CS[:3])
    if len(scores_CS) == 3:
        return WindowScores(teacher)
    return WindowScores(teacher, _token_scores(scores_CS[3:6]), scores_CS[6])


def _token_scores(scores_3S: NDArray[np.float32]) -> TokenScores:
    return TokenScores(scores_3S[0], scores_3S[1].astype(np.bool_), scores_3S[2])


@torch.inference_mode()
def _checked_head(model: "PreTrainedModel") -> Head:
    """Return the head, once it has given the model's own logits on a few tokens."""
    head = read_head(model)
    name = type(model).__name__
    if model.base_model is model:
        raise ModelError(f"{name} has no body apart from its head", hint="use another model")
    token_ids_BT = torch.arange(2 * _PROBE_LEN, device=model.device) % head.n_rows
    token_ids_BT = token_ids_BT.reshape(2, _PROBE_LEN)
    token_ids_BT[1, : _PROBE_LEN // 2] = token_ids_BT[0, : _PROBE_LEN // 2]
    hidden_BTH = _hidden(model, token_ids_BT).float()
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    same_prefix_BTH = hidden_BTH[:, : _PROBE_LEN // 2]
    if not _close(same_prefix_BTH[0], same_prefix_BTH[1], tolerance):
        raise ModelError(
            f"{name} is not causal: a token changes the predictions before it",
            hint="use a causal language model",
        )
    expected_BTV = model(input_ids=token_ids_BT, use_cache=False).logits.float()
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
