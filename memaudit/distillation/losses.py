"""The losses a model is trained by, as functions of the model and a batch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memaudit.objectives import Objective

if TYPE_CHECKING:
    from torch import Tensor

NO_TARGET = -100
"""Label of a position that is not trained on: torch's own `ignore_index`."""

Batch = dict[str, "Tensor"]
"""`input_ids` (B, T) int64, and `labels` of the same shape, `NO_TARGET` where there is padding."""

LossFunction = Callable[[Any, Batch], "Tensor"]
"""From a model and a batch to the mean over the batch's predictions, in nats."""


def cross_entropy_loss(model: Any, batch: Batch) -> "Tensor":
    """Return the mean negative log-probability of the batch's next tokens."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(predictions(model, batch).float(), targets(batch))


def soft_loss(teacher: Any, objective: Objective) -> LossFunction:
    """Return the loss of a student that learns the teacher's soft labels.

    Args:
        teacher: called as `teacher(input_ids=..., use_cache=False).logits`, without gradients.
        objective: its temperature and cross-entropy share.
    """
    import torch
    from torch.nn.functional import cross_entropy

    share = objective.cross_entropy_share

    def loss(model: Any, batch: Batch) -> "Tensor":
        with torch.no_grad():
            teacher_logits = predictions(teacher, batch)
        logits = predictions(model, batch)
        soft = soft_label_loss(logits, teacher_logits, objective.temperature)
        if share == 0:
            return soft
        return (1 - share) * soft + share * cross_entropy(logits.float(), targets(batch))

    return loss


def soft_label_loss(
    student_logits_NV: "Tensor", teacher_logits_NV: "Tensor", temperature: float
) -> "Tensor":
    """Return T² · KL(teacher ‖ student), both softened by the temperature T.

    The factor keeps the size of the gradient when T changes (Hinton et al. 2015,
    arXiv:1503.02531, section 2). Vocabulary rows that only one model has are left out of both
    softmaxes: they belong to no token.

    Args:
        student_logits_NV: (N predictions, V vocabulary).
        teacher_logits_NV: the same N; V may differ.
        temperature: above 0.

    Returns:
        the mean over the N predictions, nats.
    """
    from torch.nn.functional import kl_div

    n_rows = min(student_logits_NV.shape[-1], teacher_logits_NV.shape[-1])
    student_logits, teacher_logits = (
        logits[..., :n_rows].float() / temperature
        for logits in (student_logits_NV, teacher_logits_NV)
    )
    divergence = kl_div(
        student_logits.log_softmax(dim=-1),
        teacher_logits.log_softmax(dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def predictions(model: Any, batch: Batch) -> "Tensor":
    """Return (N, V) logits of the positions that have a next token."""
    logits_BTV: Tensor = model(input_ids=batch["input_ids"], use_cache=False).logits
    return logits_BTV[:, :-1][batch["labels"][:, 1:] != NO_TARGET]


def targets(batch: Batch) -> "Tensor":
    """Return (N,) the next tokens of those positions."""
    labels_BS = batch["labels"][:, 1:]
    return labels_BS[labels_BS != NO_TARGET]
