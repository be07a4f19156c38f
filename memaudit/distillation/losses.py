"""The losses a model is trained by, as functions of the model and a batch."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from memaudit.objectives import Divergence, Objective

NO_TARGET = -100
"""Label of a position that is not trained on: torch's own `ignore_index`."""

FORWARD_KL = Divergence()

Batch = dict[str, Tensor]
"""`input_ids` (B, T) int64, and `labels` of the same shape, `NO_TARGET` where there is padding."""

LossFunction = Callable[[Any, Batch], Tensor]
"""From a model and a batch to the mean over the batch's predictions, in nats."""


def cross_entropy_loss(model: Any, batch: Batch) -> Tensor:
    """Return the mean negative log-probability of the batch's next tokens."""
    return cross_entropy(predictions(model, batch).float(), targets(batch))


def soft_loss(
    teacher: Any, objective: Objective, divergence: Divergence = FORWARD_KL
) -> LossFunction:
    """Return the loss of a student that learns the teacher's soft labels.

    Args:
        teacher: called as `teacher(input_ids=..., use_cache=False).logits`, without gradients.
        objective: its temperature and cross-entropy share.
        divergence: how the distance from the teacher is measured.
    """
    share = objective.cross_entropy_share

    def loss(model: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher_logits = predictions(teacher, batch)
        logits = predictions(model, batch)
        soft = soft_label_loss(logits, teacher_logits, objective.temperature, divergence)
        if share == 0:
            return soft
        return (1 - share) * soft + share * cross_entropy(logits.float(), targets(batch))

    return loss


def soft_label_loss(
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    temperature: float,
    divergence: Divergence = FORWARD_KL,
) -> Tensor:
    """Return T² times the divergence of teacher and student, both softened by the temperature T.

    The factor keeps the size of the gradient when T changes (Hinton et al. 2015,
    arXiv:1503.02531, section 2). Vocabulary rows that only one model has are left out of both
    softmaxes: they belong to no token.

    Args:
        student_logits_NV: (N predictions, V vocabulary).
        teacher_logits_NV: the same N; V may differ.
        temperature: above 0.
        divergence: see there.

    Returns:
        the mean over the N predictions, nats.
    """
    n_rows = min(student_logits_NV.shape[-1], teacher_logits_NV.shape[-1])
    # In float32: a softmax over 100,000 rows in bfloat16 loses the differences that are learned.
    student, teacher = (
        (logits[..., :n_rows].float() / temperature).log_softmax(dim=-1)
        for logits in (student_logits_NV, teacher_logits_NV)
    )
    if divergence.top_k is not None and divergence.top_k < n_rows:
        ids_NK, parts = teacher.topk(divergence.top_k, dim=-1).indices, []
        for logprobs in (student, teacher):
            kept = logprobs.gather(-1, ids_NK)
            if divergence.tail:
                # Summed over the other tokens: 1 minus the sum of the kept ones would round to 0.
                rest = logprobs.scatter(-1, ids_NK, -torch.inf).logsumexp(dim=-1, keepdim=True)
                parts.append(torch.cat([kept, rest], dim=-1))
            else:
                parts.append(kept.log_softmax(dim=-1))
        student, teacher = parts
    return _divergence(student, teacher, divergence) * temperature**2


def _divergence(student_NV: Tensor, teacher_NV: Tensor, divergence: Divergence) -> Tensor:
    """Return the mean over N of the divergence of two tables of log-probabilities, nats."""

    def kl(p: Tensor, q: Tensor) -> Tensor:
        # torch names its arguments the other way round: this is KL(p || q). "batchmean" divides by N;
        # "mean" would divide by the vocabulary as well.
        return kl_div(q, p, reduction="batchmean", log_target=True)

    match divergence.kind:
        case "forward-kl":
            return kl(teacher_NV, student_NV)
        case "reverse-kl":
            return kl(student_NV, teacher_NV)
        case "jsd":
            beta = divergence.beta
            # Mixed as logarithms: tokens that are unlikely under both would underflow.
            mixture = torch.logaddexp(teacher_NV + math.log(beta), student_NV + math.log1p(-beta))
            return beta * kl(teacher_NV, mixture) + (1 - beta) * kl(student_NV, mixture)


def predictions(model: Any, batch: Batch) -> Tensor:
    """Return (N, V) logits of the positions that have a next token."""
    logits_BTV: Tensor = model(input_ids=batch["input_ids"], use_cache=False).logits
    # Chosen before anything is cast to float32: padding costs as much as tokens, a vocabulary each.
    return logits_BTV[:, :-1][batch["labels"][:, 1:] != NO_TARGET]


def targets(batch: Batch) -> Tensor:
    """Return (N,) the next tokens of those positions."""
    labels_BS = batch["labels"][:, 1:]
    return labels_BS[labels_BS != NO_TARGET]
