"""Figures of a comparison, from what the workers measured."""

import json
import math
import platform
import re
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gemm import Shapes, peak_rate, read_shapes
from benchmarks.tables import (
    Errors,
    Extraction,
    Row,
    Spread,
    fact_lines,
    generating_table,
    scoring_table,
)
from benchmarks.windows import Windows, read_windows

_PEER = "lm-eval fp32"
_OURS = "memaudit hf fp32"
_TRUTH = "truth (float64)"
_GENERATING = ("generate, one by one", "generate, batches", "PrivacyGuard generation")
_KL = ", KL"
_BF16 = ("avx512_bf16", "amx_bf16")

Record = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


def write_report(folder: Path, model: Path, records: list[Record], command: str) -> str:
    """Write `results.json` and `results.md` in the folder.

    Args:
        folder: of the comparison.
        model: whose shapes count.
        records: all lines that were measured.
        command: as it was called.

    Returns:
        the Markdown.
    """
    shapes = read_shapes(str(model))
    windows = read_windows(folder / "windows.npz")
    slices = _slices(records)
    answers = {
        name: _answers(folder, name, slices[name], len(windows.token_ids)) for name in slices
    }
    peaks = {dtype: _peaks(answers, slices, shapes, windows, dtype) for dtype in ("fp32", "bf16")}
    rows = [
        _row(name, records, slices, answers, windows, peaks, shapes)
        for name in slices
        if not name.startswith("gemm") and name not in (_TRUTH, *_GENERATING)
    ]
    extraction = [
        _extraction(name, slices, answers, windows, model) for name in _GENERATING if name in slices
    ]
    facts = _facts(records, command, windows, model)
    facts["gflops_per_window"] = shapes.window_flops(windows.token_ids.shape[1]) / 1e9
    facts["gemm_peak_gflops"] = {
        dtype: _spread([peak / 1e9 for peak in by_round.values()])
        for dtype, by_round in peaks.items()
        if by_round
    }
    facts["kl_cost"] = {
        name: _ratio(slices, name.removesuffix(_KL), name) for name in slices if name.endswith(_KL)
    }
    facts["extraction_added"] = _added_cost(answers, slices)
    results = {
        **facts,
        "scoring": [asdict(row) for row in rows],
        "extraction": [asdict(row) for row in extraction],
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1, default=asdict) + "\n")
    text = "\n".join(
        [
            *fact_lines(facts),
            "",
            *scoring_table(rows, facts),
            "",
            *generating_table(extraction, facts),
        ]
    )
    (folder / "results.md").write_text(text + "\n")
    return text + "\n"


def _facts(records: list[Record], command: str, windows: Windows, model: Path) -> dict[str, Any]:
    """Return under what conditions was measured."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command,
        "processor": _processor(),
        "weights_bytes": (model / "model.safetensors").stat().st_size,
        "window": [len(windows.token_ids[0]), windows.prefix_len],
        "versions": {r["name"]: r["versions"] for r in records if r["kind"] == "loaded"},
        "pilots": _pilots(records),
        "load": [min(r["load"] for r in records), max(r["load"] for r in records)],
    }


def _slices(records: list[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] == "slice":
            found.setdefault(record["name"], []).append(record)
    return found


def _answers(folder: Path, name: str, slices: list[Record], n_windows: int) -> Arrays:
    """Return a path's arrays over all windows, NaN where it was not asked."""
    found: Arrays = {"asked": np.zeros(n_windows, dtype=np.bool_)}
    for record in slices:
        start, stop = record["start"], record["stop"]
        found["asked"][start:stop] = True
        with np.load(folder / f"{name}-{record['round']}.npz") as arrays:
            for key, part in arrays.items():
                if len(part.shape) == 0 or key == "rates":
                    found[key] = np.concatenate([found.get(key, part[None][:0]), part[None]])
                    continue
                if key not in found:
                    found[key] = np.full((n_windows, *part.shape[1:]), np.nan)
                found[key][start:stop] = part
    return found


def _peaks(
    answers: dict[str, Arrays],
    slices: dict[str, list[Record]],
    shapes: Shapes,
    windows: Windows,
    dtype: str,
) -> dict[int, float]:
    """Return the peak of each round in which it was measured, FLOPs per second."""
    name = f"gemm {dtype}"
    if name not in slices:
        return {}
    n_tokens = windows.token_ids.shape[1]
    pairs = zip(slices[name], answers[name]["rates"], strict=True)
    return {record["round"]: peak_rate(shapes, rates, n_tokens) for record, rates in pairs}


def _row(
    name: str,
    records: list[Record],
    slices: dict[str, list[Record]],
    answers: dict[str, Arrays],
    windows: Windows,
    peaks: dict[str, dict[int, float]],
    shapes: Shapes,
) -> Row:
    n_tokens = windows.token_ids.shape[1]
    n_windows = sum(record["stop"] - record["start"] for record in slices[name])
    cpu = sum(record["cpu"] for record in slices[name])
    n_models = 2 if name.endswith(_KL) else 1
    dtype = "bf16" if "bf16" in name else "fp32"
    flops = shapes.window_flops(n_tokens) * n_models
    loaded = [r["loaded_rss"] for r in records if r["kind"] == "loaded" and r["name"] == name]
    return Row(
        name=name,
        n_windows=n_windows,
        batch_size=slices[name][-1]["batch_size"],
        wall_rate=n_windows * n_tokens / sum(record["wall"] for record in slices[name]),
        cpu_rate=n_windows * n_tokens / cpu,
        ratio=_ratio(slices, name, _PEER),
        ratio_same=_ratio(slices, name, f"lm-eval {dtype}"),
        share_of_peak=_share(slices[name], flops, peaks[dtype]),
        loaded_rss=max(loaded),
        peak_rss=max(record["peak_rss"] for record in slices[name]),
        n_models=n_models,
        errors=_errors(answers[name], answers.get(_TRUTH)),
    )


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _share(slices: list[Record], flops: float, peaks: dict[int, float]) -> Spread | None:
    """Return FLOPs per second over the peak of the same round, or of all where it has none."""
    if not peaks:
        return None
    usual = statistics.median(peaks.values())
    return _spread(
        [
            flops / seconds / peaks.get(index, usual)
            for index, seconds in _seconds_per_window(slices).items()
        ]
    )


def _seconds_per_window(slices: list[Record]) -> dict[int, float]:
    return {r["round"]: r["cpu"] / (r["stop"] - r["start"]) for r in slices}


def _ratio(slices: dict[str, list[Record]], name: str, other: str) -> Spread | None:
    """Return how many times as fast it is as the other."""
    mine = _seconds_per_window(slices[name])
    theirs = _seconds_per_window(slices.get(other, []))
    ratios = [theirs[index] / mine[index] for index in mine if index in theirs]
    return _spread(ratios) if ratios else None


def _errors(found: Arrays, truth: Arrays | None) -> Errors | None:
    if truth is None:
        return None
    both = found["asked"] & truth["asked"]
    gaps: Arrays = {
        name: np.abs(found[name][both] - truth[name][both])
        for name in ("logprobs", "entropy", "kl_divergence")
        if name in found
    }
    if "window_logprob" in found:
        sums = truth["logprobs"][both].sum(axis=1)
        n_predicted = truth["logprobs"].shape[1]
        gaps["window_logprob"] = np.abs(found["window_logprob"][both] - sums) / n_predicted
    flips = None
    if "is_argmax" in found:
        flips = int((found["is_argmax"][both] != truth["is_argmax"][both]).sum())
    return Errors(
        n_windows=int(both.sum()),
        largest={name: float(np.nanmax(gap)) for name, gap in gaps.items() if gap.size},
        mean={name: float(np.nanmean(gap)) for name, gap in gaps.items() if gap.size},
        flips=flips,
    )


def _extraction(
    name: str,
    slices: dict[str, list[Record]],
    answers: dict[str, Arrays],
    windows: Windows,
    model: Path,
) -> Extraction:
    ours, theirs = answers[_OURS], answers[name]
    both = ours["asked"] & theirs["asked"]
    key = "recited" if "recited" in theirs else "extracted"
    parted = np.flatnonzero(both & (ours[key] != theirs[key]))
    gaps = []
    if key == "recited":
        firsts = np.minimum(ours[key][parted], theirs[key][parted]).astype(int)
        contexts = [
            windows.token_ids[index][: windows.prefix_len + first]
            for index, first in zip(parted, firsts, strict=True)
        ]
        gaps = list(_gaps_of_best(model, contexts))
    cost = _ratio(slices, _OURS, name)
    assert cost is not None
    return Extraction(
        name=name,
        n_windows=int(both.sum()),
        batch_size=slices[name][-1]["batch_size"],
        cost=cost,
        n_extracted=int(theirs["extracted"][both].sum()),
        n_extracted_one_pass=int(ours["extracted"][both].sum()),
        disagreements=parted.tolist(),
        gaps=gaps,
    )


def _gaps_of_best(model: Path, contexts: list[NDArray[np.int32]]) -> Iterator[float]:
    """Yield how far the two best logits after each context are apart, by the model in float64."""
    if not contexts:
        return
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded = loaded.double().eval()
    with torch.inference_mode():
        for context in contexts:
            logits_TV = loaded(torch.as_tensor(context, dtype=torch.int64)[None]).logits[0]
            best, second = logits_TV[-1].topk(2).values.tolist()
            yield best - second


def _added_cost(answers: dict[str, Arrays], slices: dict[str, list[Record]]) -> float | None:
    """Return the share that deciding what is extracted adds to scoring."""
    if _OURS not in slices:
        return None
    seconds = float(answers[_OURS]["seconds_extraction"].sum())
    scoring: float = sum(record["cpu"] for record in slices[_OURS]) - seconds
    return seconds / scoring


def _pilots(records: list[Record]) -> dict[str, dict[str, float]]:
    """Return for each path the processor seconds of each batch size that was tried, at best."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        if record["kind"] == "pilot":
            sizes = found.setdefault(record["name"], {})
            size = str(record["batch_size"])
            sizes[size] = min(record["cpu"], sizes.get(size, math.inf))
    return found


def _processor() -> str:
    """Return its name, and which instructions for bfloat16 it has."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = [flag for flag in _BF16 if flag in text]
    return (
        f"{name[1] if name else platform.processor()}, {', '.join(flags) or 'no bf16 instructions'}"
    )
