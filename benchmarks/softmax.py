"""How long a tile of logits takes to be made and summed up: by the kernel, and by the tiled code.

    python -m benchmarks.softmax --hidden 2048

Times are multiples of the matrix products alone. Where the device sums products of bfloat16 in float32,
a head in bfloat16 is timed against its copy in float32 as well. Without a GPU there is the tiled code alone.
"""

import argparse
import sys

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from memaudit.engines import head


def main() -> None:
    """Measure tiles of one model and of two, in rounds that try each way in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048, help="size of a hidden state")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = (head.TILE_POSITIONS[device.type], head.TILE_ROWS[device.type])
    hidden_NH, weight_vH = (torch.randn(n, arguments.hidden, device=device) for n in shape)
    target_ids_N = torch.arange(shape[0], device=device) % shape[1]
    functions: dict[str, head.TakeIn] = {"tiled": head.take_in}
    if head.is_fused(device):
        functions["kernel"] = head.take_in_on(device)

    def products(n_models: int) -> list[Tensor]:
        return [hidden_NH @ weight_vH.T for _ in range(n_models)]

    for n_models in (1, 2):
        state_KN = head._nothing_yet(target_ids_N, n_models)
        names = {"n": n_models, "products": products, "state": state_KN, "ids": target_ids_N}
        for _ in range(arguments.rounds):
            alone = Timer("products(n)", globals=names).timeit(20).mean
            for name, take_in in functions.items():
                call = "take_in(state, ids, products(n), 0)"
                whole = Timer(call, globals=names | {"take_in": take_in}).timeit(20).mean
                sys.stdout.write(f"{n_models} x {shape} on {device}: {name} {whole / alone:.2f}\n")
    if head.sums_in_float32(device):
        for _ in range(arguments.rounds):
            _say_gain(hidden_NH.bfloat16(), weight_vH.bfloat16(), target_ids_N)


def _say_gain(hidden_NH: Tensor, weight_vH: Tensor, target_ids_N: Tensor) -> None:
    seconds = []
    for weight in (weight_vH.float(), weight_vH):
        own = head.Head(weight, bias=None, scale=1.0, soft_cap=None, is_bfloat16=True)
        names = {"score": head.score_heads, "own": own, "h": hidden_NH, "ids": target_ids_N}
        seconds.append(Timer("score([own], [h], ids)", globals=names).timeit(20).mean)
    sys.stdout.write(
        f"a head in bfloat16: {seconds[0] / seconds[1]:.2f} times as fast as its copy\n"
    )


if __name__ == "__main__":
    main()
