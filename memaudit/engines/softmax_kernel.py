"""A tile of logits is taken into softmax statistics in one pass: a Triton kernel for CUDA.

What the statistics are, and the tiled code that is the oracle of this, see `head.take_in`. Each
program of the kernel has one position, and holds its whole row of the tile in registers.
"""
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs
# ruff: noqa: ANN001, ANN202, PLR0913, PLR0917  # a kernel's types are those of its call

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from memaudit.engines.head import NOTHING_YET, TILE_ROWS

_N_WARPS = 16
"""Of a program: a thread holds 16 of 8,192 columns of each model, and spills none."""


def take_in(
    before_KN: Tensor, target_ids_N: Tensor, logits: Sequence[Tensor], start: int
) -> Tensor:
    """Do what `head.take_in` does, in one pass, and leave the logits as they are.

    Returns:
        (K, N) float64, as `before_KN`.
    """
    target_ids_N, before_KN = target_ids_N.contiguous(), before_KN.contiguous()
    tiles = [logits_Nv.contiguous() for logits_Nv in logits]
    n_positions, n_columns = tiles[0].shape
    # Not in place: a warp could write what a slower one has not read yet.
    after_KN = torch.empty_like(before_KN)
    # Triton launches on the current device, which may be another than theirs.
    with torch.cuda.device_of(after_KN):
        kernel[(n_positions,)](
            tiles[0], tiles[-1], target_ids_N, before_KN, after_KN,
            start, n_positions, n_columns,
            NOTHING=NOTHING_YET, BLOCK=TILE_ROWS[after_KN.device.type], IS_PAIR=len(tiles) == 2,
            num_warps=_N_WARPS, enable_fp_fusion=False,  # releases of Triton have other defaults
        )  # fmt: skip
    return after_KN


@triton.jit
def kernel(
    logits, of_reference, target_ids, before, after,
    start, n_positions, n_columns,
    NOTHING: tl.constexpr, BLOCK: tl.constexpr, IS_PAIR: tl.constexpr,
) -> None:  # fmt: skip
    """Take a tile in; of a single model `of_reference` is not read."""
    position = tl.program_id(0).to(tl.int64)
    own = (tl.load(target_ids + position) - start).to(tl.int32)
    # Each row of the statistics lies n_positions numbers behind the one before.
    tile, before, after = position * n_columns, before + position, after + position
    exp, _, moved, mass = _take_in_row(
        logits + tile, before, after, own, n_positions, n_columns, NOTHING, BLOCK
    )
    if IS_PAIR:
        row = of_reference + tile
        its_before, its_after = before + 5 * n_positions, after + 5 * n_positions
        _, shifted, its_moved, _ = _take_in_row(
            row, its_before, its_after, own, n_positions, n_columns, NOTHING, BLOCK
        )
        cross = tl.load(before + 10 * n_positions)
        cross = tl.exp(moved) * (cross + mass * its_moved)
        tl.store(after + 10 * n_positions, cross + tl.sum(exp * shifted, 0))


@triton.jit
def _take_in_row(
    row, before, after, own, n_positions, n_columns, NOTHING: tl.constexpr, BLOCK: tl.constexpr
):
    """Return exp of the shifted logits, these, how far the shift moved, and the mass before."""
    columns = tl.arange(0, BLOCK)
    # The last tile is narrower than a block. exp(NOTHING) is 0, and so is its product with NOTHING,
    # where that of -inf would be NaN.
    logit = tl.load(row + columns, mask=columns < n_columns, other=NOTHING)
    is_here = (own >= 0) & (own < n_columns)
    found = tl.load(row + own, mask=is_here, other=0.0).to(tl.float64)
    target = tl.where(is_here, found, tl.load(before + n_positions))
    best_other = tl.max(tl.where(columns == own, NOTHING, logit), 0).to(tl.float64)
    rival = tl.maximum(tl.load(before + 2 * n_positions), best_other)
    largest = tl.maximum(rival, target)
    moved = tl.load(before) - largest
    shifted = logit - largest.to(tl.float32)
    exp = tl.exp(shifted)
    # What is carried on is float64, as loaded; sums over the tile are float32: see head.take_in.
    mass = tl.load(before + 3 * n_positions)
    moment = tl.exp(moved) * (tl.load(before + 4 * n_positions) + mass * moved)
    tl.store(after, largest)
    tl.store(after + n_positions, target)
    tl.store(after + 2 * n_positions, rival)
    tl.store(after + 3 * n_positions, tl.exp(moved) * mass + tl.sum(exp, 0))
    tl.store(after + 4 * n_positions, moment + tl.sum(exp * shifted, 0))
    return exp, shifted, moved, mass
