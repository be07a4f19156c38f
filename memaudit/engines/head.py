"""The output head: from hidden states to scores, without ever holding all logits at once.

Suffixes: N positions, H hidden size, V rows of the vocabulary, v rows of one tile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from memaudit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TILE_POSITIONS = {"cpu": 1024, "cuda": 4096}
TILE_ROWS = {"cpu": 256, "cuda": 8192}
"""By device. On a CPU the fastest of those tried: a tile and its exponentials fit into the cache of
a core (1 MiB each), and matrix products are still large enough."""
_NOTHING_YET = -1e30
"""Below every logit, and finite, so that 0 times it is 0."""


@dataclass(frozen=True, slots=True)
class Head:
    """A linear map to logits, with what some families do to the logits after it."""

    weight: Tensor
    """(V, H) float32."""

    bias: Tensor | None
    """(V,) float32."""

    scale: float
    """Factor on the logits: Cohere multiplies, Granite divides."""

    soft_cap: float | None
    """Gemma squeezes the logits into (-soft_cap, soft_cap) with tanh. None: it does not."""

    is_bfloat16: bool = False
    """The numbers of the weight are all numbers of bfloat16."""

    @property
    def n_rows(self) -> int:
        """Rows of the softmax; often more than the tokenizer has tokens."""
        return self.weight.shape[0]

    def logits(self, hidden_NH: Tensor, start: int, stop: int) -> Tensor:
        """Return the logits of the rows from start to stop.

        Returns:
            (N, stop - start) float32.
        """
        logits_Nv = hidden_NH @ self.weight[start:stop].T
        if self.bias is not None:
            logits_Nv += self.bias[start:stop]
        if self.scale != 1.0:
            logits_Nv *= self.scale
        if self.soft_cap is not None:
            logits_Nv.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits_Nv


def read_head(model: "PreTrainedModel", device: torch.device | None = None) -> Head:
    """Return the head of a causal LM; float32 weights are shared with it, others copied.

    Args:
        model: may be split over devices, and its head lie on a disk.
        device: where the head goes. None: it stays.

    Raises:
        ModelError: the model has no linear output layer.
    """
    untyped: Any = model
    layer = untyped.get_output_embeddings()
    if not isinstance(getattr(layer, "weight", None), Tensor):
        raise ModelError(
            f"{type(model).__name__} has no linear output layer",
            hint="use a causal language model",
        )
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    with align_module_device(layer):  # here for a moment, if it is elsewhere
        bias = getattr(layer, "bias", None)
        return Head(
            weight=layer.weight.detach().to(device).float(),
            bias=None if bias is None else bias.detach().to(device).float(),
            scale=scale,
            soft_cap=getattr(config, "final_logit_softcapping", None),
            is_bfloat16=layer.weight.dtype == torch.bfloat16,
        )


class _Softmax:
    """One softmax for each position, summed up tile by tile.

    Sums are shifted by the largest logit so far, so they neither overflow nor cancel; over a
    tile they are float32, over tiles float64.
    """

    def __init__(self, target_ids_N: Tensor) -> None:
        self._target_ids_N = target_ids_N
        n, device = len(target_ids_N), target_ids_N.device
        self.largest_N = torch.full((n,), _NOTHING_YET, dtype=torch.float32, device=device)
        self.target_N = torch.full((n,), _NOTHING_YET, dtype=torch.float32, device=device)
        self.rival_N = torch.full((n,), _NOTHING_YET, dtype=torch.float32, device=device)
        self.mass_N = torch.zeros(n, dtype=torch.float64, device=device)
        self.moment_N = torch.zeros(n, dtype=torch.float64, device=device)

    def add(
        self, logits_Nv: Tensor, start: int, *, product_Nv: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Take in the rows from `start` on.

        Args:
            logits_Nv: shifted in place.
            start: row of the first one.
            product_Nv: is written over, and may be the logits. None: memory is taken for it.

        Returns:
            (N, v) exp of the shifted logits; (N,) how far the shift moved since the last tile.
        """
        # The target's logit is read from the same product as its rivals, so that no rounding
        # of another product comes between them; equal rows may still differ across tiles.
        column_N = self._target_ids_N - start
        here_N = (column_N >= 0) & (column_N < logits_Nv.shape[1])
        column_N1 = column_N.clamp(0, logits_Nv.shape[1] - 1)[:, None]
        found_N = logits_Nv.gather(1, column_N1)[:, 0]
        self.target_N = torch.where(here_N, found_N, self.target_N)

        # The target leaves its tile while the best rival is looked for: one search finds both.
        without_N = found_N.masked_fill(here_N, _NOTHING_YET)
        logits_Nv.scatter_(1, column_N1, without_N[:, None])
        self.rival_N = torch.maximum(self.rival_N, logits_Nv.amax(dim=1))
        logits_Nv.scatter_(1, column_N1, found_N[:, None])
        largest_N = torch.maximum(self.rival_N, self.target_N)
        moved_N = self.largest_N.double() - largest_N.double()
        self.largest_N = largest_N
        logits_Nv -= largest_N[:, None]
        exp_Nv = logits_Nv.exp()
        decay_N = moved_N.exp()
        self.moment_N = decay_N * (self.moment_N + self.mass_N * moved_N)
        self.mass_N = decay_N * self.mass_N + exp_Nv.sum(dim=1)
        self.moment_N += torch.mul(exp_Nv, logits_Nv, out=product_Nv).sum(dim=1)
        return exp_Nv, moved_N

    def scores(self) -> Tensor:
        """Return (4, N) float64: log-probability, 1 where the target is a best one, entropy, margin."""
        log_mass_N = self.mass_N.log()
        logprob_N = self.target_N.double() - self.largest_N.double() - log_mass_N
        entropy_N = log_mass_N - self.moment_N / self.mass_N
        is_best_N = (self.target_N >= self.largest_N).double()
        margin_N = self.target_N.double() - self.rival_N.double()
        return torch.stack([logprob_N, is_best_N, entropy_N.clamp(min=0), margin_N])


def score_positions(head: Head, hidden_NH: Tensor, target_ids_N: Tensor) -> Tensor:
    """Return what one model says about the targets.

    Args:
        head: of the model.
        hidden_NH: its last hidden states, any float dtype.
        target_ids_N: int64, the token that follows each position.

    Returns:
        (4, N) float64: log-probability in nats, is-argmax as 0 or 1, entropy in nats, margin over
        the best other token in nats.
    """
    tiles = []
    for part in _position_tiles(target_ids_N):
        softmax = _Softmax(target_ids_N[part])
        hidden_nH = hidden_NH[part].float()
        with _fast_products(allowed=_is_lossless(head, hidden_NH[part])):
            for start, stop in _row_tiles(head, 0, head.n_rows):
                logits_nv = head.logits(hidden_nH, start, stop)
                softmax.add(logits_nv, start, product_Nv=logits_nv)
        tiles.append(softmax.scores())
    return torch.cat(tiles, dim=1)


def score_position_pairs(
    heads: tuple[Head, Head], hiddens: tuple[Tensor, Tensor], target_ids_N: Tensor
) -> Tensor:
    """Return what teacher and reference say, and how far they are apart.

    The two may differ in rows that no token uses. Log-probability and entropy are of each
    model's own softmax; the divergence is between the two restricted to the rows that both
    have, each scaled to sum to 1.

    Args:
        heads: of teacher and reference.
        hiddens: (N, H) of each, any float dtype; H may differ.
        target_ids_N: int64.

    Returns:
        (9, N) float64: four rows as `score_positions` for the teacher, four for the
        reference, KL(teacher ‖ reference) in nats.
    """
    tiles = []
    for part in _position_tiles(target_ids_N):
        parts = [hidden_NH[part] for hidden_NH in hiddens]
        hidden_parts = (parts[0].float(), parts[1].float())
        allowed = all(map(_is_lossless, heads, parts))
        with _fast_products(allowed=allowed):
            tiles.append(_score_pair_tile(heads, hidden_parts, target_ids_N[part]))
    return torch.cat(tiles, dim=1)


def _score_pair_tile(
    heads: tuple[Head, Head], hiddens: tuple[Tensor, Tensor], target_ids_N: Tensor
) -> Tensor:
    teacher, reference = _Softmax(target_ids_N), _Softmax(target_ids_N)
    n_common = min(heads[0].n_rows, heads[1].n_rows)
    cross_N = torch.zeros_like(teacher.mass_N)  # of exp(teacher) and shifted reference logits
    for start, stop in _row_tiles(heads[0], 0, n_common):
        logits_Nv = heads[1].logits(hiddens[1], start, stop)
        _, moved_reference_N = reference.add(logits_Nv, start, product_Nv=None)
        mass_before_N = teacher.mass_N
        of_teacher_Nv = heads[0].logits(hiddens[0], start, stop)
        exp_Nv, moved_N = teacher.add(of_teacher_Nv, start, product_Nv=of_teacher_Nv)
        cross_N = moved_N.exp() * (cross_N + mass_before_N * moved_reference_N)
        cross_N += exp_Nv.mul_(logits_Nv).sum(dim=1)
    kl_N = (teacher.moment_N - cross_N) / teacher.mass_N
    kl_N += reference.mass_N.log() - teacher.mass_N.log()
    for softmax, head, hidden_NH in zip((teacher, reference), heads, hiddens, strict=True):
        for start, stop in _row_tiles(head, n_common, head.n_rows):
            logits_Nv = head.logits(hidden_NH, start, stop)
            softmax.add(logits_Nv, start, product_Nv=logits_Nv)
    return torch.cat([teacher.scores(), reference.scores(), kl_N.clamp(min=0)[None]])


def _position_tiles(target_ids_N: Tensor) -> list[slice]:
    size = TILE_POSITIONS[target_ids_N.device.type]
    return [slice(start, start + size) for start in range(0, len(target_ids_N), size)]


def _row_tiles(head: Head, start: int, stop: int) -> list[tuple[int, int]]:
    size = TILE_ROWS[head.weight.device.type]
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def _is_lossless(head: Head, hidden_NH: Tensor) -> bool:
    """Return whether all that is multiplied are numbers of bfloat16."""
    if hidden_NH.dtype == torch.bfloat16 or not head.is_bfloat16:
        return head.is_bfloat16
    return bool((hidden_NH.bfloat16() == hidden_NH).all())


@contextmanager
def _fast_products(*, allowed: bool) -> Iterator[None]:
    """Let float32 matrix products run on units for bfloat16 or TF32, several times as fast.

    They round what they multiply, and sum in float32. Numbers of bfloat16 are not changed by that,
    and the product of two of them is a number of float32: nothing is lost.

    Args:
        allowed: False makes sure of float32, whatever the process has chosen.
    """
    backends: dict[Any, str] = {
        torch.backends.mkldnn.matmul: "bf16",  # type: ignore[attr-defined]  # not in its types
        torch.backends.cuda.matmul: "tf32",
    }
    before = {backend: backend.fp32_precision for backend in backends}
    try:
        for backend, fast in backends.items():
            backend.fp32_precision = fast if allowed else "ieee"
        yield
    finally:
        for backend, precision in before.items():
            backend.fp32_precision = precision
