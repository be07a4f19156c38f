"""What must not change the scores, and what a second thread brings.

The `hf` engine scores the same windows in several batch sizes and orders; then with one thread
and with two, in turn.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.windows import read_windows, write_windows

if TYPE_CHECKING:
    from memaudit.engines.hf import HfEngine

_BATCH_TOKENS = (100, 400, 1024, 4096)
_THREADS = (1, 2)


def main() -> None:
    """Measure, and write a line for each comparison."""
    arguments = _parser().parse_args()
    import torch

    from memaudit.engines.hf import HfEngine
    from memaudit.engines.models import ModelOptions, load_model

    if not arguments.windows_file.exists():
        write_windows(
            arguments.windows_file, arguments.model, arguments.texts,
            n_windows=arguments.windows, prefix_len=50, suffix_len=50,
        )  # fmt: skip
    windows = list(read_windows(arguments.windows_file).token_ids[: arguments.windows])
    model = load_model(arguments.model, ModelOptions(dtype="float32", device="cpu")).model
    torch.set_num_threads(1)
    usual = _scores(HfEngine(model), windows)
    for batch_tokens in _BATCH_TOKENS:
        found = _scores(HfEngine(model, batch_tokens=batch_tokens), windows)
        _say_gap(f"batches of {batch_tokens} tokens", found, usual)
    order = np.random.default_rng(0).permutation(len(windows))
    shuffled = _scores(HfEngine(model), [windows[i] for i in order])
    _say_gap("shuffled", shuffled[:, np.argsort(order)], usual)
    _say_threads(HfEngine(model), windows, arguments.rounds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder that save_pretrained wrote")
    parser.add_argument("--texts", nargs="+", default=[], help="corpora the windows are cut from")
    parser.add_argument("--windows", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--windows-file", type=Path, required=True, help="made if it is missing")
    parser.add_argument("--rounds", type=int, default=5, help="of each number of threads")
    return parser


def _scores(engine: "HfEngine", windows: list[NDArray[np.int32]]) -> NDArray[np.float64]:
    """Return (3, n_windows, n_predicted): log-probability, is-argmax, entropy."""
    scores = [score.teacher for score in engine.score(windows)]
    rows: Any = [
        [s.logprobs for s in scores],
        [s.is_argmax for s in scores],
        [s.entropy for s in scores],
    ]
    return np.array(rows, dtype=np.float64)


def _say_gap(name: str, found: NDArray[np.float64], usual: NDArray[np.float64]) -> None:
    gaps = np.abs(found - usual)
    sys.stdout.write(
        f"{name}: largest difference of log-probability {gaps[0].max():.1e}, of entropy "
        f"{gaps[2].max():.1e} nats, argmax flips {int(gaps[1].sum())} of {gaps[1].size}\n"
    )


def _say_threads(engine: "HfEngine", windows: list[NDArray[np.int32]], rounds: int) -> None:
    import torch

    ratios = []
    for _ in range(rounds):
        seconds = []
        for n_threads in _THREADS:
            torch.set_num_threads(n_threads)
            start = time.perf_counter()
            engine.score(windows)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    sys.stdout.write(
        f"two threads against one: {statistics.median(ratios):.2f} times as fast, "
        f"{min(ratios):.2f} to {max(ratios):.2f} over {rounds} rounds\n"
    )


if __name__ == "__main__":
    main()
