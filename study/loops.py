"""Training loops for small models on one core, without what a general trainer costs.

Suffixes: N predictions, H and D hidden sizes of student and teacher, V rows of the vocabulary.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memaudit.distillation.losses import FORWARD_KL, NO_TARGET, soft_label_loss
from memaudit.distillation.methods import own_text
from memaudit.objectives import Divergence
from study.recipe import Schedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TILE = 1024
"""Positions whose logits exist at a time: those of a batch of short windows."""
_WARM_UP = 0.03
_LAST = 0.1
_BETAS = (0.9, 0.98)
_CLIP = 1.0
_CHECKPOINT_SECONDS = 600.0
"""Of the clock: models that take less are trained in one go."""


@dataclass(frozen=True, slots=True)
class SoftLabels:
    """What a teacher says about each training window, short of its head."""

    hiddens: Tensor
    """(windows, L - 1, D) its last hidden states. The head is recomputed: it is 10 times cheaper
    than to keep the logits, and as exact."""

    head: Tensor
    """(V, D) of the same type: float32, or bfloat16."""

    temperature: float
    divergence: Divergence = FORWARD_KL
    teacher: "PreTrainedModel | None" = None
    """Asked in every step, where some are on policy: the student then writes from the first token
    that is learned. None: the hidden states say all."""


class _HeadLoss(torch.autograd.Function):
    """The loss of a linear head and its gradients, tile by tile.

    Soft labels q at temperature T: the loss is T² · KL(q ‖ p) up to a constant, so its gradient by the logits
    is T (p - q), with p the student's softmax at T. Next tokens: p at T = 1 less a 1 at the token.
    Other divergences are left to torch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_VH: Tensor,
        next_ids_N: Tensor,
        soft: "tuple[Tensor, Tensor, float, Divergence] | None",
        dtype: torch.dtype,
    ) -> Tensor:
        n = len(hidden_NH)
        grad_NH, grad_VH = torch.empty_like(hidden_NH), torch.zeros_like(head_VH)
        loss = hidden_NH.new_zeros(())
        hidden_NH, head_VH = hidden_NH.to(dtype), head_VH.to(dtype)
        for start in range(0, n, _TILE):
            part = slice(start, start + _TILE)
            logits = _product(hidden_NH[part], head_VH.T)
            if soft is None:
                tokens = next_ids_N[part]
                rows = torch.arange(len(logits), device=tokens.device)
                p = torch.softmax(logits, dim=-1)
                loss -= p[rows, tokens].clamp_min(1e-30).log().sum()
                p[rows, tokens] -= 1.0
            else:
                teacher_ND, teacher_head_VD, temperature, divergence = soft
                told = _product(teacher_ND[part], teacher_head_VD.T)
                if divergence == FORWARD_KL:
                    p = torch.softmax(logits.div_(temperature), dim=-1)
                    q = torch.softmax(told.div_(temperature), dim=-1)
                    p.sub_(q).mul_(temperature)
                else:
                    with torch.enable_grad():
                        logits.requires_grad_()
                        mean = soft_label_loss(logits, told, temperature, divergence)
                        (p,) = torch.autograd.grad(mean * len(logits), logits)
            if dtype == torch.float32:
                torch.mm(p, head_VH, out=grad_NH[part])
                grad_VH.addmm_(p.T, hidden_NH[part])
            else:
                p = p.to(dtype)
                grad_NH[part] = _product(p, head_VH)
                grad_VH += _product(p.T, hidden_NH[part])
        ctx.save_for_backward(grad_NH.div_(n), grad_VH.div_(n))
        return loss / n

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_NH, grad_VH = ctx.saved_tensors
        return grad_NH, grad_VH, None, None, None


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return a matrix product in float32: logits in bfloat16 would be off by a part in 256."""
    if left.is_cuda and left.dtype == torch.bfloat16:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def clock(model: "PreTrainedModel") -> float:
    """Return seconds that a stage is measured by: the processor's, or those of the wall beside a GPU."""
    return time.process_time() if model.device.type == "cpu" else time.monotonic()


def last_hidden(model: "PreTrainedModel", ids: Tensor) -> Tensor:
    """Return (B, L - 1, H): what the head sees at every position but the last."""
    body: Any = model.base_model
    hidden: Tensor = body(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return hidden


def _autocast(model: "PreTrainedModel", dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def head_of(model: "PreTrainedModel") -> Tensor:
    """Return the (V, H) weight of the output layer."""
    layer: Any = model.get_output_embeddings()
    weight: Tensor = layer.weight
    return weight


def soft_labels(
    teacher: "PreTrainedModel",
    windows: NDArray[np.int32],
    temperature: float,
    dtype: torch.dtype = torch.float32,
) -> SoftLabels:
    """Return what the students of a teacher learn from, on its device where there is room."""
    device, n_bytes = teacher.device, windows.size * head_of(teacher).shape[1] * dtype.itemsize
    fits = device.type == "cpu" or n_bytes < torch.cuda.mem_get_info(device)[0] / 4
    with torch.inference_mode(), _autocast(teacher, dtype):
        parts = [
            last_hidden(teacher, ids.to(device)).to(device if fits else "cpu", dtype)
            for ids in torch.from_numpy(windows).long().split(256)
        ]
        return SoftLabels(torch.cat(parts).clone(), head_of(teacher).to(dtype).clone(), temperature)


def train(  # noqa: PLR0913  # all in which one training differs from another
    model: "PreTrainedModel",
    windows: NDArray[np.int32],
    schedule: Schedule,
    *,
    rows: NDArray[np.intp],
    seed: int,
    labels: SoftLabels | None = None,
    first: int = 1,
    checkpoint: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Train a model in place, on the windows' own next tokens or on a teacher's soft labels.

    Args:
        model: float32, on the device on which it is trained.
        windows: (windows, L).
        schedule: epochs need not be whole.
        rows: which window each training row is; one may stand there several times.
        seed: decides the order of the rows, which is another in each epoch.
        labels: of the same windows. None: the next tokens.
        first: the first token of a window that is learned; those before it are only read.
        checkpoint: a file that is written now and then, and gone on from if it is there.
        dtype: of the matrix products, also of those of the labels. Weights and optimizer stay in float32.

    Returns:
        seconds (see `clock`) that went into the checkpoint gone on from.
    """
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(windows).long().to(model.device)
    n_rows = round(schedule.epochs * len(rows))
    epochs = [rng.permutation(rows) for _ in range(math.ceil(schedule.epochs))]
    order = torch.from_numpy(np.concatenate(epochs)[:n_rows])
    batches = order.split(schedule.batch_size) if n_rows else ()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, betas=_BETAS, fused=True
    )
    start, earlier, begun = 0, 0.0, clock(model)
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, mmap=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, earlier = state["step"], state["seconds"]
    model.train()
    written = time.monotonic()
    for step, batch in enumerate(batches):
        if step < start:
            continue
        if checkpoint is not None and time.monotonic() - written >= _CHECKPOINT_SECONDS:
            spent = clock(model) - begun + earlier
            _write_checkpoint(checkpoint, model, optimizer, step, spent)
            written = time.monotonic()
        torch.manual_seed(seed + (step << 32))  # of what is written: the same after a stop
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * _rate(step, len(batches))
        told = None if labels is None else (labels, batch)
        _step(model, ids[batch.to(ids.device)], told, first, dtype)
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return earlier


def _write_checkpoint(
    path: Path,
    model: "PreTrainedModel",
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    unfinished = path.with_name(f"{path.name}.part")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state | {"step": step, "seconds": seconds}, unfinished)
    unfinished.rename(path)


def _step(
    model: "PreTrainedModel",
    ids: Tensor,
    labels: tuple[SoftLabels, Tensor] | None,
    first: int = 1,
    dtype: torch.dtype = torch.float32,
) -> None:
    soft = None
    if labels is not None:
        told, batch = labels
        if told.teacher is None:
            hiddens = told.hiddens[batch.to(told.hiddens.device)].to(ids.device)
        else:
            ids = _own_text(model, ids, told.divergence, first)
            with torch.no_grad(), _autocast(told.teacher, dtype):
                hiddens = last_hidden(told.teacher, ids).to(dtype)
        hiddens = hiddens[:, first - 1 :].flatten(0, 1)
        soft = (hiddens, told.head, told.temperature, told.divergence)
    with _autocast(model, dtype):
        hidden = last_hidden(model, ids)[:, first - 1 :].float()
    apply: Any = _HeadLoss.apply
    apply(hidden.flatten(0, 1), head_of(model), ids[:, first:].flatten(), soft, dtype).backward()


def _own_text(
    model: "PreTrainedModel", ids: Tensor, divergence: Divergence, prefix_len: int
) -> Tensor:
    """Return windows that the model has ended itself, in the share of the steps on policy."""
    if float(torch.rand(())) >= divergence.on_policy:
        return ids
    labels = ids.clone()
    labels[:, :prefix_len] = NO_TARGET
    return own_text(model, {"input_ids": ids, "labels": labels})["input_ids"]


def _rate(step: int, n_steps: int) -> float:
    """Return the share of the highest learning rate: warm-up, then a cosine to a tenth."""
    warm_up = max(1, round(_WARM_UP * n_steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, n_steps - warm_up)
    return _LAST + (1 - _LAST) * (1 + math.cos(math.pi * done)) / 2
