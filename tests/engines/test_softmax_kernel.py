"""The kernel for CUDA against the tiled code: compiled where there is a GPU, else interpreted."""

import os
import subprocess
import sys

import pytest
import torch

from memaudit.engines import head
from memaudit.engines.head import Head, score_heads

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":  # read when Triton is imported
    if "triton" in sys.modules and not os.environ.get("TRITON_INTERPRET"):
        pytest.skip("Triton compiles already: run this file alone", allow_module_level=True)
    os.environ.setdefault("TRITON_INTERPRET", "1")
kernel = pytest.importorskip("memaudit.engines.softmax_kernel", exc_type=ImportError)


def tiles_of(widths, n_positions, n_models, scale=9.0):
    """Random logits, a tile for each width, each of one or two models."""
    generator = torch.Generator().manual_seed(0)
    shape = (n_models, n_positions, sum(widths))
    logits = torch.randn(shape, generator=generator) * scale
    return [list(tile) for tile in logits.to(DEVICE).split(list(widths), dim=2)]


def by_both(tiles, targets):
    """Return the statistics of tiles by the kernel, and by the tiled code."""
    target_ids = torch.tensor(targets, device=DEVICE)
    found = []
    for function in (kernel.take_in, head.take_in):
        state, start = head._nothing_yet(target_ids, len(tiles[0])), 0
        for tile in tiles:
            state = function(state, target_ids, [each.clone() for each in tile], start)
            start += tile[0].shape[1]
        found.append(state)
    return found


def assert_same(found, expected):
    """Logits are the same numbers, sums are those of another order."""
    for first in range(0, len(expected) - 1, 5):
        torch.testing.assert_close(
            found[first : first + 3], expected[first : first + 3], rtol=0, atol=0
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize("scale", [0.1, 30.0])
@pytest.mark.parametrize("widths", [(256, 256, 100), (37, 256), (1,), (5, 1, 250)])
def test_the_kernel_agrees_with_the_tiled_code(widths, scale, n_models):
    """Targets in each tile, first and last in it, and in none; the largest logit in any tile."""
    ends = torch.tensor(widths).cumsum(0).tolist()
    targets = [0, ends[0] - 1, ends[-1] - 1, ends[-1], ends[-1] // 2, 999]

    found, expected = by_both(tiles_of(widths, len(targets), n_models, scale), targets)

    assert_same(found, expected)


@pytest.mark.parametrize("n_models", [1, 2])
def test_one_position_alone_is_a_tile_too(n_models):
    """The last window of a run may be as short as that."""
    assert_same(*by_both(tiles_of((256, 9), 1, n_models), [200]))


def test_ties_are_ties_within_a_tile_and_across_tiles():
    """A target that is as probable as another counts as a best one: equal, not nearly equal."""
    tiles = [[torch.full((3, width), 2.5, device=DEVICE)] for width in (256, 100)]

    found, expected = by_both(tiles, [0, 255, 300])

    assert_same(found, expected)
    scores = head._scores(found)
    assert scores[1].tolist() == [1, 1, 1]
    assert scores[3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("least", [-1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("n_models", [1, 2])
def test_rows_that_a_model_rules_out_weigh_nothing(least, n_models):
    """Some models give tokens that they never use a logit far below all others."""
    tiles = tiles_of((256, 256, 64), 4, n_models)
    for logits in (*tiles[0], *(each[:, ::2] for each in tiles[2])):
        logits.fill_(least)

    assert_same(*by_both(tiles, [0, 300, 512, 575]))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, which interprets
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_comes_out_as_none(bad):
    """Broken weights must be refused, whoever sums up; other positions are not touched."""
    tiles = tiles_of((256, 100), 4, 1)
    tiles[0][0][1, 7] = bad
    tiles[1][0][2, 3] = bad

    for state in by_both(tiles, [0, 7, 259, 300]):
        finite = head._scores(state).isfinite().all(dim=0)
        assert finite.tolist() == [True, False, False, True]


def test_sums_over_tiles_are_of_float64():
    """Float32 would lose what one token adds to a hundred million: a vocabulary has many tiles."""
    large = 1e9 + 1  # no number of float32
    rows = [0, 0, 0, large, -large, 0, 0, 0, large, -large, -large]
    before = torch.tensor(rows, dtype=torch.float64, device=DEVICE)[:, None]
    logits = torch.full((1, 1), -1e-3, device=DEVICE)
    targets = torch.tensor([9], device=DEVICE)

    found = kernel.take_in(before, targets, [logits.clone(), logits.clone()], 0)
    expected = head.take_in(before, targets, [logits.clone(), logits.clone()], 0)

    torch.testing.assert_close(found - before, expected - before, rtol=1e-3, atol=0)


def test_a_tile_that_lies_across_memory_is_read_as_it_is():
    """Products lie row by row; what does not must not be misread."""
    (logits,) = tiles_of((50,), 6, 1)
    across = [logits[0].T.contiguous().T]

    assert_same(*by_both([across], [0, 9, 20, 30, 40, 49]))


@pytest.fixture
def fused(monkeypatch):
    """Let heads be summed up by the kernel here, too."""
    monkeypatch.setattr(head, "take_in_on", lambda device: kernel.take_in)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_scores_by_the_kernel_are_exact(soft_cap):
    """Through heads of every kind, of different sizes, against softmaxes in float64."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 12, generator=generator).to(DEVICE)
    heads = [
        Head(
            torch.randn(n, 12, generator=generator).to(DEVICE),
            bias=torch.randn(n, generator=generator).to(DEVICE),
            scale=2.0,
            soft_cap=soft_cap,
        )
        for n in (600, 530)
    ]
    targets = torch.tensor([0, 255, 256, 500, 529], device=DEVICE)

    single = score_heads([heads[0]], [hidden], targets)
    pair = score_heads((heads[0], heads[1]), (hidden, hidden), targets)

    logits = [each.logits(hidden, 0, each.n_rows).double() for each in heads]
    for found, of_model in ((single, logits[0]), (pair[:4], logits[0]), (pair[4:8], logits[1])):
        log_softmax = of_model.log_softmax(dim=1)
        own = of_model.gather(1, targets[:, None])
        best = of_model.amax(dim=1, keepdim=True)
        others = of_model.scatter(1, targets[:, None], -torch.inf).amax(dim=1, keepdim=True)
        expected = [
            log_softmax.gather(1, targets[:, None])[:, 0],
            (own >= best)[:, 0].double(),
            -(log_softmax.exp() * log_softmax).sum(dim=1),
            (own - others)[:, 0],
        ]
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=2e-5)
    p, q = (of_model[:, :530].log_softmax(dim=1) for of_model in logits)
    torch.testing.assert_close(pair[8], (p.exp() * (p - q)).sum(dim=1), rtol=0, atol=2e-5)


def test_the_kernel_passes_the_check_that_it_is_held_to():
    """Once in each process, on the GPU itself; here at the sizes of a CPU."""
    assert head._largest_gap(kernel.take_in, DEVICE) <= head._KERNEL_TOLERANCE / 3


_COMPILE = """
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from memaudit.engines.head import NOTHING_YET, TILE_ROWS
from memaudit.engines.softmax_kernel import _N_WARPS, kernel

numbers = ("start", "n_positions", "n_columns")
types = ["*fp32", "*fp32", "*i64", "*fp64", "*fp64", "i32", "i32", "i32"] + 3 * ["constexpr"]
options = {"num_warps": _N_WARPS, "enable_fp_fusion": False}
for is_pair, generation, ones in product((False, True), (80, 90), (False, True)):
    constants = {"NOTHING": NOTHING_YET, "BLOCK": TILE_ROWS["cuda"], "IS_PAIR": is_pair}
    signature = dict(zip(kernel.arg_names, types, strict=True))
    if ones:  # Triton compiles a number that is 1 into the kernel
        constants |= dict.fromkeys(numbers, 1)
        signature |= dict.fromkeys(numbers, "constexpr")
    source, target = ASTSource(kernel, signature, constants), GPUTarget("cuda", generation, 32)
    compiled = triton.compile(source, target=target, options=options)
    stack = [line for line in compiled.asm["ptx"].splitlines() if ".local" in line]
    print(len(compiled.asm["cubin"]) > 0, stack)
"""


@pytest.mark.slow
@pytest.mark.ci
def test_the_kernel_compiles_for_gpus_that_are_not_here(tmp_path):
    """Triton brings NVIDIA's assembler along: what it refuses is found without a device."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == 8 * ["True []"]


@pytest.mark.gpu
def test_a_gpu_uses_the_kernel_and_has_the_scores_of_the_tiled_code(monkeypatch):
    """At the sizes of a run: full tiles of positions and rows, the last ones cut off."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, 64, generator=generator).cuda() for n in (20_001, 19_000)]
    heads = [Head(weight, bias=None, scale=1.0, soft_cap=None) for weight in weights]
    hidden = torch.randn(4099, 64, generator=generator).cuda()
    targets = torch.randint(0, 19_000, (4099,), generator=generator).cuda()
    assert head.is_fused(hidden.device)

    by_kernel = score_heads((heads[0], heads[1]), (hidden, hidden), targets)
    monkeypatch.setattr(head, "take_in_on", lambda device: head.take_in)
    tiled = score_heads((heads[0], heads[1]), (hidden, hidden), targets)

    torch.testing.assert_close(by_kernel, tiled, rtol=0, atol=head._KERNEL_TOLERANCE)
