"""How fast and how exact the engines are on the device that is here, on one model.

    python -m benchmarks.device MODEL --corpus sample_data/natural.jsonl.zst

Tokens per second, peak memory and the share of what the device reaches in one large matrix product of that
type; then how far scores of some windows are from those of the model in float64.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.benchmark import Timer

from benchmarks.gemm import read_shapes
from benchmarks.windows import read_windows, write_windows
from memaudit.engines.hf import HfEngine
from memaudit.engines.models import ModelOptions, load_model

if TYPE_CHECKING:
    from memaudit.engines import Engine
    from memaudit.engines.models import LoadedModel

_RUNS: tuple[tuple[Literal["bfloat16", "float32"], str], ...] = (
    ("bfloat16", "hf"),
    ("float32", "hf"),
    ("bfloat16", "hf-compiled"),
    ("bfloat16", "vllm"),
)
_LENGTH = 50
"""Tokens of a prefix, and of a suffix."""
_SIDE = {"cuda": 8192, "cpu": 1024}
"""Of the square matrices whose product is timed."""


def main() -> None:
    """Measure each engine that is installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--windows", type=int, default=8192, help="that are timed")
    parser.add_argument("--exact", type=int, default=200, help="windows that are scored in float64")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    windows = _windows(str(arguments.model), arguments.corpus, arguments.windows)
    truth = _truth(str(arguments.model), device, windows[: arguments.exact])
    flops = read_shapes(str(arguments.model)).window_flops(2 * _LENGTH)
    for dtype, kind in _RUNS:
        if kind == "vllm" and find_spec("vllm") is None:
            continue
        # One that fails, for want of a compiler for instance, does not stop the others.
        try:
            loaded = load_model(arguments.model, ModelOptions(dtype=dtype, device=device))
            engine = _engine(kind, loaded)
            rate = _windows_per_second(engine, windows, device)
            gaps = _gaps(engine, windows[: len(truth)], truth)
        except Exception as error:
            _say(f"{kind} {dtype}: {type(error).__name__}: {error}")
            continue
        share = rate * flops / _peak(dtype, device)
        _say(
            f"{engine.name}: {rate * 2 * _LENGTH:,.0f} tokens/s, {share:.1%} of the peak in {dtype}"
            f"{_memory(device)}; nats from float64: median {np.median(gaps):.1e}, "
            f"most {gaps.max():.1e}"
        )
        del loaded, engine
        gc.collect()


def _windows(model: str, corpus: str, n: int) -> list[NDArray[np.int32]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "windows.npz"
        write_windows(path, model, [corpus], n_windows=n, prefix_len=_LENGTH, suffix_len=_LENGTH)
        return list(read_windows(path).token_ids)


@torch.inference_mode()
def _truth(
    model: str, device: str, windows: Sequence[NDArray[np.int32]]
) -> list[NDArray[np.float64]]:
    """Return the log-probabilities of each window's tokens but the first, all in float64."""
    loaded = load_model(model, ModelOptions(device=device))
    double: Any = loaded.model.double()
    bos = loaded.tokenizer.bos_token_id
    found = []
    for window in windows:
        ids = torch.as_tensor([*([] if bos is None else [bos]), *window], device=device)[None]
        logprobs = double(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        found.append(logprobs.gather(1, ids[0, 1:, None])[1 - len(window) :, 0].cpu().numpy())
    return found


def _engine(kind: str, loaded: "LoadedModel") -> "Engine":
    bos = loaded.tokenizer.bos_token_id
    if kind == "vllm":
        from memaudit.engines.vllm import load_vllm_engine

        return load_vllm_engine(loaded, window_len=2 * _LENGTH)
    return HfEngine(loaded.model, bos_token_id=bos, compiled=kind == "hf-compiled")


def _windows_per_second(
    engine: "Engine", windows: Sequence[NDArray[np.int32]], device: str
) -> float:
    engine.score(windows[: len(windows) // 2])  # what is compiled or chosen at first
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    engine.score(windows)
    return len(windows) / (time.perf_counter() - start)


def _gaps(
    engine: "Engine",
    windows: Sequence[NDArray[np.int32]],
    truth: Sequence[NDArray[np.float64]],
) -> NDArray[np.float64]:
    found = [scores.teacher.logprobs for scores in engine.score(windows)]
    return np.abs(np.concatenate(found) - np.concatenate(truth))


def _peak(dtype: str, device: str) -> float:
    """Return the FLOP/s of one large product of random numbers."""
    n = _SIDE[device]
    left, right = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    call = Timer("left @ right", globals={"left": left, "right": right})
    call.timeit(3)
    return float(2 * n**3 / call.timeit(10).mean)


def _memory(device: str) -> str:
    return f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if device == "cuda" else ""


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
