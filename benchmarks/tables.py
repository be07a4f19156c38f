"""Tables of a comparison in Markdown, and the figures in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    """Of the rounds."""

    least: float
    """Of the rounds."""

    largest: float
    """Of the rounds."""

    def __str__(self) -> str:
        """Return the median, and the range in brackets."""
        return f"{self.median:.2f} ({self.least:.2f}-{self.largest:.2f})"


@dataclass(frozen=True, slots=True)
class Errors:
    """How far a path's numbers are from float64, on the windows that both have."""

    n_windows: int
    """Compared."""

    largest: dict[str, float]
    """Of each array in nats: `logprobs`, `entropy`, `kl_divergence`, and `window_logprob` for a
    path that gives only the sum, as mean per token."""

    mean: dict[str, float]
    """The same, mean."""

    flips: int | None
    """Tokens that are the argmax here and not there, or the other way round. None: not given."""


@dataclass(frozen=True, slots=True)
class Row:
    """One path."""

    name: str
    n_windows: int
    batch_size: int
    wall_rate: float
    """Tokens of the windows, prefixes included, per second."""
    cpu_rate: float
    """The same per second of processor time."""
    ratio: Spread | None
    """Processor-time rate over that of lm-eval in float32, by rounds."""
    ratio_same: Spread | None
    """Over that of lm-eval in the same dtype, by rounds."""
    share_of_peak: Spread | None
    """FLOPs per second of processor time, of what matrix products at the same shapes reach in
    the same round."""
    loaded_rss: int
    """Peak of resident memory once the model is loaded, bytes."""
    peak_rss: int
    """The same at the end."""
    n_models: int
    """Of the weights' size in it."""
    errors: Errors | None


@dataclass(frozen=True, slots=True)
class Extraction:
    """What one way to generate says, beside the one pass."""

    name: str
    n_windows: int
    batch_size: int
    cost: Spread
    """Processor time over that of one scoring pass, by rounds."""
    n_extracted: int
    n_extracted_one_pass: int
    """Of the same windows."""
    disagreements: list[int]
    """Windows on which they part: after another number of recited tokens where both say it."""
    gaps: list[float]
    """For each of them, how far the two best logits are apart there, nats."""


def fact_lines(facts: dict[str, Any]) -> list[str]:
    """Return date, processor, versions, peaks and command."""
    versions: dict[str, set[str]] = {}
    for of_path in facts["versions"].values():
        for package, version in of_path.items():
            versions.setdefault(package, set()).add(version)
    shown = ", ".join(f"{name} {' / '.join(sorted(versions[name]))}" for name in sorted(versions))
    peaks = ", ".join(f"{name} {peak}" for name, peak in facts["gemm_peak_gflops"].items())
    n_tokens, prefix_len = facts["window"]
    return [
        f"{facts['date']} · {facts['processor']} · {shown}",
        "",
        f"Windows of {prefix_len} + {n_tokens - prefix_len} tokens, "
        f"{facts['gflops_per_window']:.1f} GFLOP each; peak of matrix products at the model's "
        f"shapes, one by one at their best batch and tile sizes, GFLOP/s: {peaks}. Weights "
        f"{facts['weights_bytes'] / _MIB:.0f} MiB. System load {facts['load'][0]:.1f} to "
        f"{facts['load'][1]:.1f}.",
        "",
        f"    {facts['command']}",
    ]


def scoring_table(rows: list[Row], facts: dict[str, Any]) -> list[str]:
    """Return the table of the paths that score."""
    columns: dict[str, Callable[[Row], str]] = {
        "path": lambda row: row.name,
        "windows": lambda row: str(row.n_windows),
        "batch": lambda row: str(row.batch_size or "own"),
        "tokens/s": lambda row: f"{row.wall_rate:.0f}",
        "tokens/CPU s": lambda row: f"{row.cpu_rate:.0f}",
        "÷ lm-eval fp32": lambda row: str(row.ratio or ""),
        "÷ lm-eval, same dtype": lambda row: str(row.ratio_same or ""),
        "of GEMM peak": lambda row: str(row.share_of_peak or ""),
        "peak RSS, MiB": lambda row: f"{row.peak_rss / _MIB:.0f}",
        "above weights": lambda row: _above_weights(row, facts["weights_bytes"]),
        "largest, mean error of log-probability": lambda row: _error(row.errors),
        "of entropy": lambda row: _other_error("entropy", row.errors),
        "of KL": lambda row: _other_error("kl_divergence", row.errors),
        "argmax flips": _flips,
    }
    costs = [f"{cost} times ({name})" for name, cost in facts["kl_cost"].items() if cost]
    note = f"A reference of the same size costs, beside the teacher alone: {', '.join(costs)}."
    return [*_table(columns, rows), *(["", note] if costs else [])]


def _above_weights(row: Row, weights: int) -> str:
    """Return MiB beyond the weights in the dtype that they have in memory."""
    in_memory = weights * row.n_models // (2 if "bf16" in row.name else 1)
    return f"{(row.peak_rss - in_memory) / _MIB:.0f}"


def _error(errors: Errors | None) -> str:
    if errors is None:
        return ""
    for name, note in (("logprobs", ""), ("window_logprob", " (mean of a window)")):
        if name in errors.largest:
            return f"{errors.largest[name]:.1e}, {errors.mean[name]:.1e}{note}"
    return ""


def _other_error(name: str, errors: Errors | None) -> str:
    if errors is None or name not in errors.largest:
        return ""
    return f"{errors.largest[name]:.1e}, {errors.mean[name]:.1e}"


def _flips(row: Row) -> str:
    if row.errors is None or row.errors.flips is None:
        return ""
    return f"{row.errors.flips} in {row.errors.n_windows} windows"


def generating_table(rows: list[Extraction], facts: dict[str, Any]) -> list[str]:
    """Return the table of the paths that generate, and what deciding without them costs."""
    added = facts["extraction_added"]
    columns: dict[str, Callable[[Extraction], str]] = {
        "path": lambda row: row.name,
        "windows": lambda row: str(row.n_windows),
        "batch": lambda row: str(row.batch_size),
        "cost ÷ scoring pass": lambda row: str(row.cost),
        "extracted": lambda row: str(row.n_extracted),
        "by one pass": lambda row: str(row.n_extracted_one_pass),
        "disagreements": lambda row: str(len(row.disagreements)),
        "gaps of the two best logits there": lambda row: ", ".join(f"{g:.1e}" for g in row.gaps),
    }
    lines = _table(columns, rows)
    if added is not None:
        lines += ["", f"Deciding what is extracted adds {added:.4%} to the scoring pass."]
    return lines


def _table(columns: "dict[str, Callable[[Any], str]]", rows: list[Any]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows]
