"""The output head: from hidden states to scores, without ever holding all logits at once.

Suffixes: N positions, H hidden size, V rows of the vocabulary, v rows of one tile.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from memaudit.errors import ModelError, is_installed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TILE_POSITIONS = {"cpu": 1024, "cuda": 4096}
# 8,192 is a power of two, as every block of Triton is: the kernel holds a row of a tile in one.
TILE_ROWS = {"cpu": 256, "cuda": 8192}
"""By device. On a CPU the fastest of those tried: a tile and its exponentials fit into the cache of
a core (1 MiB each), and matrix products are still large enough."""
NOTHING_YET = -1e30
"""Below every logit, and finite, so that 0 times it is 0."""
_KERNEL_TOLERANCE = 1e-4
"""Nats, of any score of a kernel. Rounding moves it by a tenth of that; a mistake by far more."""


class SoftmaxKernelWarning(RuntimeWarning):
    """The kernel for CUDA cannot be used."""


@dataclass(frozen=True, slots=True)
class Head:
    """A linear map to logits, with what some families do to the logits after it."""

    weight: Tensor
    """(V, H) float32; on CUDA bfloat16 where the model has it, see `sums_in_float32`."""

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

        Args:
            hidden_NH: float32, or bfloat16 if the weight is that too.
            start: the first row.
            stop: the row after the last.

        Returns:
            (N, stop - start) float32.
        """
        weight_vH = self.weight[start:stop]
        if hidden_NH.dtype == torch.bfloat16:
            logits_Nv = torch.mm(hidden_NH, weight_vH.T, out_dtype=torch.float32)
        else:
            # Where only the weight is bfloat16, on CUDA, this tile alone is copied.
            logits_Nv = hidden_NH @ weight_vH.float().T
        # Bias, scale, cap: families apply them so, and another order gives other probabilities.
        if self.bias is not None:
            logits_Nv += self.bias[start:stop]
        if self.scale != 1.0:
            logits_Nv *= self.scale
        if self.soft_cap is not None:
            logits_Nv.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits_Nv


def output_layer(model: "PreTrainedModel") -> Any:
    """Return the linear layer that makes logits of hidden states, or raise a `ModelError`."""
    untyped: Any = model
    layer = untyped.get_output_embeddings()
    if not isinstance(getattr(layer, "weight", None), Tensor):
        raise ModelError(
            f"{type(model).__name__} has no linear output layer", hint="use a causal language model"
        )
    return layer


def read_head(model: "PreTrainedModel", device: torch.device | None = None) -> Head:
    """Return the head of a causal LM; its weight is shared with it, or a copy in float32.

    Args:
        model: may be split over devices, and its head lie on a disk.
        device: where the head goes. None: it stays.

    Raises:
        ModelError: the model has no linear output layer.
    """
    layer = output_layer(model)
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    with align_module_device(layer):  # here for a moment, if it is elsewhere
        bias, weight = getattr(layer, "bias", None), layer.weight.detach().to(device)
        is_bfloat16 = weight.dtype == torch.bfloat16
        return Head(
            weight=weight if is_bfloat16 and sums_in_float32(weight.device) else weight.float(),
            bias=None if bias is None else bias.detach().to(device).float(),
            scale=scale,
            soft_cap=getattr(config, "final_logit_softcapping", None),
            is_bfloat16=is_bfloat16,
        )


@cache
def sums_in_float32(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 and gives what it summed in float32.

    The product of two such numbers is a number of float32, so a head need not be copied for that.
    PyTorch can do it on CUDA alone, and not on every device there: it is tried on a known product.
    """
    if device.type != "cuda":
        return False
    factor_NH = torch.linspace(-3, 3, 16 * 64).reshape(16, 64).bfloat16()
    on_device = factor_NH.to(device)
    try:
        found = torch.mm(on_device, on_device.T, out_dtype=torch.float32).cpu()
    except RuntimeError:
        return False
    # Sums that some build rounds to bfloat16 would be off by up to 0.2 %.
    return torch.allclose(found.double(), factor_NH.double() @ factor_NH.double().T, rtol=1e-5)


TakeIn = Callable[[Tensor, Tensor, Sequence[Tensor], int], Tensor]
"""Takes a tile into running statistics: of the statistics, the targets' ids, the tile's logits, of
the teacher or of teacher and reference, and the row of the first of them."""


def take_in(
    before_KN: Tensor, target_ids_N: Tensor, logits: Sequence[Tensor], start: int
) -> Tensor:
    """Take a tile into the statistics of one softmax for each position, or of two.

    Sums are shifted by the largest logit so far, so they neither overflow nor cancel; over a
    tile they are float32, over tiles float64. This is the oracle of `softmax_kernel.take_in`.

    Args:
        before_KN: float64. Of a softmax five rows: the largest logit, the target's, the best other
            one, and the sums of exp(x) and of x exp(x) over the shifted logits x. Of teacher and
            reference five each, and the sum of the teacher's exp(x) times the reference's x.
        target_ids_N: int64.
        logits: (N, v) float32, of one or two models; written over.
        start: row of the first column.

    Returns:
        (K, N) float64, as `before_KN`.
    """
    mass_before_N = before_KN[3]
    if len(logits) == 1:
        return _take_in_one(before_KN, target_ids_N, logits[0], start)[0]
    reference_5N, _, moved_reference_N = _take_in_one(
        before_KN[5:10], target_ids_N, logits[1], start, is_reference=True
    )
    teacher_5N, exp_Nv, moved_N = _take_in_one(before_KN[:5], target_ids_N, logits[0], start)
    # Of Σ exp(x) y so far, each exp(x) shrinks by the teacher's shift, and each y moves with the
    # reference's shift.
    cross_N = moved_N.exp() * (before_KN[10] + mass_before_N * moved_reference_N)
    cross_N += exp_Nv.mul_(logits[1]).sum(dim=1)
    return torch.cat([teacher_5N, reference_5N, cross_N[None]])


def _take_in_one(
    before_5N: Tensor,
    target_ids_N: Tensor,
    logits_Nv: Tensor,
    start: int,
    *,
    is_reference: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return statistics, (N, v) exp of the shifted logits, (N,) how far the shift moved.

    Of a reference the logits are shifted and the exponentials lost, else it is the other way round.
    """
    largest_before_N, target_N, rival_N, mass_N, moment_N = before_5N
    # The target's logit is read from the same product as its rivals, so that no rounding
    # of another product comes between them; equal rows may still differ across tiles.
    column_N = target_ids_N - start
    here_N = (column_N >= 0) & (column_N < logits_Nv.shape[1])
    # Where the target is in another tile, some column is read, and written back as it was.
    column_N1 = column_N.clamp(0, logits_Nv.shape[1] - 1)[:, None]
    found_N = logits_Nv.gather(1, column_N1)[:, 0]
    target_N = torch.where(here_N, found_N.double(), target_N)

    # The target leaves its tile while the best rival is looked for: one search finds both.
    without_N = found_N.masked_fill(here_N, NOTHING_YET)
    logits_Nv.scatter_(1, column_N1, without_N[:, None])
    rival_N = torch.maximum(rival_N, logits_Nv.amax(dim=1).double())
    logits_Nv.scatter_(1, column_N1, found_N[:, None])
    largest_N = torch.maximum(rival_N, target_N)
    moved_N = largest_before_N - largest_N
    logits_Nv -= largest_N.float()[:, None]
    exp_Nv = logits_Nv.exp()
    decay_N = moved_N.exp()
    # If the largest grows, every exp(x) so far shrinks by one factor, and every x moves with it.
    moment_N = decay_N * (moment_N + mass_N * moved_N)
    mass_N = decay_N * mass_N + exp_Nv.sum(dim=1)
    # No memory is taken for the product: it is written over what nobody needs any more.
    product_Nv = exp_Nv if is_reference else logits_Nv
    moment_N += torch.mul(exp_Nv, logits_Nv, out=product_Nv).sum(dim=1)
    return torch.stack([largest_N, target_N, rival_N, mass_N, moment_N]), exp_Nv, moved_N


def _nothing_yet(target_ids_N: Tensor, n_models: int) -> Tensor:
    """Return the statistics of no logits."""
    # In float32, sums over the 600 tiles of a large vocabulary put an entropy off by 9e-6 nats; in
    # float64 it is 1e-7.
    state_5N = torch.zeros(5, len(target_ids_N), dtype=torch.float64, device=target_ids_N.device)
    state_5N[:3] = NOTHING_YET
    # The sum over both models begins with zeros, too: those of the last row.
    return state_5N if n_models == 1 else torch.cat([state_5N, state_5N, state_5N[4:]])


def _scores(state_5N: Tensor) -> Tensor:
    """Return (4, N) float64: log-probability, 1 where the target is a best one, entropy, margin."""
    largest_N, target_N, rival_N, mass_N, moment_N = state_5N
    log_mass_N = mass_N.log()
    # -Σ p log p with log p = x - log mass, which rounding may leave just below 0. Of a tie the
    # target is a best one: either may be written.
    entropy_N = (log_mass_N - moment_N / mass_N).clamp(min=0)
    is_best_N = (target_N >= largest_N).double()
    logprob_N = target_N - largest_N - log_mass_N
    return torch.stack([logprob_N, is_best_N, entropy_N, target_N - rival_N])


@cache
def take_in_on(device: torch.device) -> TakeIn:
    """Return what takes tiles in on a device: on CUDA the kernel, if it agrees with the tiled code.

    Which of them it is does not depend on what is scored: a run that goes on has it again, and the
    engine's name says so.
    """
    if device.type != "cuda" or not is_installed("triton"):
        return take_in
    try:
        from memaudit.engines import softmax_kernel

        gap = _largest_gap(softmax_kernel.take_in, device)
    # Not narrower: besides Triton's own errors, which have no common base but this and no name where
    # its import fails, there are those of a C compiler, a linker, a driver and releases that do not
    # fit together. None is hidden: the warning names it, and the tiled code gives the same scores.
    except Exception as error:
        why = f"it fails with {type(error).__name__}"
    else:
        if gap <= _KERNEL_TOLERANCE:
            return softmax_kernel.take_in
        why = f"it is {gap:.2g} nats off, at most {_KERNEL_TOLERANCE:g} are allowed"
    warnings.warn(
        f"the softmax kernel is not used on {device}: {why}. Scores are as exact without, "
        "and take longer. Triton needs a C compiler and Python's headers",
        SoftmaxKernelWarning,
        stacklevel=2,
    )
    return take_in


def is_fused(device: torch.device) -> bool:
    """Whether the kernel takes tiles in on a device: it rounds otherwise in the last bits."""
    return take_in_on(device) is not take_in


def _largest_gap(of_kernel: TakeIn, device: torch.device) -> float:
    """Return how far scores by a kernel are from the tiled ones, nats; NaN if one is no number.

    Two models that differ in rows, with targets and largest logits in all tiles, the last of them
    cut off.
    """
    generator = torch.Generator().manual_seed(0)
    size = TILE_ROWS[device.type]
    rows = (2 * size + size // 7, 2 * size + size // 9)
    weights = [3 * torch.randn(n, 8, generator=generator).to(device) for n in rows]
    heads = [Head(weight, bias=None, scale=1.0, soft_cap=None) for weight in weights]
    hidden_N8 = torch.randn(64, 8, generator=generator).to(device)
    # Every token has a row in both models, so targets are taken from the rows of the smaller one.
    best_N = heads[0].logits(hidden_N8, 0, rows[1])[:, : rows[1]].argmax(dim=1)
    spread_N = torch.arange(0, 64, device=device) * rows[1] // 64
    target_ids_N = torch.where(spread_N % 2 == 0, best_N, spread_N)
    found, expected = (
        _score_tile(heads, (hidden_N8, hidden_N8), target_ids_N, function)
        for function in (of_kernel, take_in)
    )
    return float((found - expected).abs().max())


def score_heads(heads: Sequence[Head], hiddens: Sequence[Tensor], target_ids_N: Tensor) -> Tensor:
    """Return what a model says about the targets; or what teacher and reference say, and how apart.

    The two may differ in rows that no token uses. Log-probability and entropy are of each
    model's own softmax; the divergence is between the two restricted to the rows that both
    have, each scaled to sum to 1.

    Args:
        heads: of the model, or of teacher and reference.
        hiddens: (N, H) last hidden states of each, any float dtype; H may differ.
        target_ids_N: int64, the token that follows each position.

    Returns:
        (4, N) float64: log-probability in nats, is-argmax as 0 or 1, entropy in nats, margin over
        the best other token in nats. Of two models (9, N): those of the teacher, those of the
        reference, KL(teacher ‖ reference) in nats.
    """
    tiles, add = [], take_in_on(target_ids_N.device)
    size = TILE_POSITIONS[target_ids_N.device.type]
    for start in range(0, len(target_ids_N), size):
        part = slice(start, start + size)
        lossless, factors = [], []
        for head, hidden_NH in zip(heads, hiddens, strict=True):
            hidden_nH = hidden_NH[part]
            # Whether all that is multiplied are numbers of bfloat16. Some families normalise in float32
            # at the end: to round that would change scores. To look at them a GPU must be waited for.
            is_lossless = head.is_bfloat16 and (
                hidden_nH.dtype == torch.bfloat16 or bool((hidden_nH.bfloat16() == hidden_nH).all())
            )
            lossless.append(is_lossless)
            factors.append(hidden_nH.to(head.weight.dtype if is_lossless else torch.float32))
        with _fast_products(allowed=all(lossless)):
            tiles.append(_score_tile(heads, factors, target_ids_N[part], add))
    return torch.cat(tiles, dim=1)


def _score_tile(
    heads: Sequence[Head], hiddens: Sequence[Tensor], target_ids_N: Tensor, add: TakeIn
) -> Tensor:
    n_common = min(head.n_rows for head in heads)
    state_KN = _nothing_yet(target_ids_N, len(heads))
    for start, stop in _row_tiles(heads[0], 0, n_common):
        logits = [head.logits(h, start, stop) for head, h in zip(heads, hiddens, strict=True)]
        state_KN = add(state_KN, target_ids_N, logits, start)
    if len(heads) == 1:
        return _scores(state_KN)
    # Σ p (log p - log q), with log p = x - log mass and log q = y - log mass of the reference. It
    # is taken here, before the rows that only one of the two has.
    *states, cross_1N = state_KN.split([5, 5, 1])
    (mass_N, moment_N), (reference_mass_N, _) = (state_5N[3:] for state_5N in states)
    kl_N = (moment_N - cross_1N[0]) / mass_N
    kl_N += reference_mass_N.log() - mass_N.log()
    for index, (head, hidden_NH) in enumerate(zip(heads, hiddens, strict=True)):
        for start, stop in _row_tiles(head, n_common, head.n_rows):
            logits_Nv = head.logits(hidden_NH, start, stop)
            states[index] = add(states[index], target_ids_N, [logits_Nv], start)
    # Of two models that are the same, rounding may leave it just below 0.
    return torch.cat([*map(_scores, states), kl_N.clamp(min=0)[None]])


def _row_tiles(head: Head, start: int, stop: int) -> list[tuple[int, int]]:
    size = TILE_ROWS[head.weight.device.type]
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


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
