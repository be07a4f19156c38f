"""Speed, memory and rounding of the `hf` engine on a model of your own, in float32 and bfloat16.

Each dtype runs in a process of its own, so that the peaks of memory do not mix. The yardstick is
a naive loop: one window at a time, all logits, log-softmax in float64.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import CorpusOptions, Example, read_corpus
from memaudit.engines.tokenizer import Tokenizer
from memaudit.features import FEATURE_SETS, window_features
from memaudit.scores import TokenScores, WindowScores
from memaudit.windows import WindowShape, cut_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Dtype = Literal["float32", "bfloat16"]

_SHAPE = WindowShape(50, 50)
_N_NAIVE = 40
_N_WARM_UP = 4
_BYTES_PER_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Job:
    """What one process is to measure."""

    model: str
    """As `memaudit predict --teacher` takes it."""

    data: str
    """A corpus."""

    rows: int
    """How many rows of it are read."""

    threads: int | None
    """Threads of torch. None: its own choice."""

    dtype: Dtype
    """Of the model's body."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out of one dtype."""

    scores: list[TokenScores]
    """Of every window."""

    features: NDArray[np.float64]
    """(n_windows, n_features), the columns in the order of the feature set `teacher`."""

    seconds: float
    """Wall time of scoring all windows."""

    seconds_naive: float
    """Wall time of the naive loop over the first windows."""

    n_naive: int
    """How many windows the naive loop ran on."""

    loaded_rss: int
    """Peak of the resident memory when the model was loaded, bytes."""

    peak_rss: int
    """The same after scoring, before the naive loop, bytes."""

    naive_gap: float
    """Largest difference of a log-probability from the naive loop's, nats."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the windows, prefixes included, per second of scoring."""
        return len(self.scores) * _SHAPE.length / self.seconds

    @property
    def speed_up(self) -> float:
        """How many times as fast as the naive loop, per token."""
        return self.tokens_per_second * self.seconds_naive / (self.n_naive * _SHAPE.length)


def main() -> None:
    """Measure both dtypes, one after the other, and show them side by side."""
    arguments = _parser().parse_args()
    jobs = [
        Job(arguments.model, arguments.data, arguments.rows, arguments.threads, dtype)
        for dtype in ("float32", "bfloat16")
    ]
    full, half = (_measure_apart(job) for job in jobs)
    lines = [
        *_speed_lines("float32", full),
        *_speed_lines("bfloat16", half),
        *_rounding_lines(full, half),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    parser.add_argument("--data", required=True, help="corpus, such as sample_data/wiki.jsonl.zst")
    parser.add_argument("--rows", type=int, default=300, help="rows read (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its choice)")
    return parser


def _measure_apart(job: Job) -> Measured:
    """Measure in a process that has done nothing before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(_measure, job).result()


def _measure(job: Job) -> Measured:
    import torch

    from memaudit.engines.hf import HfEngine
    from memaudit.engines.models import ModelOptions, load_model

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    loaded = load_model(job.model, ModelOptions(dtype=job.dtype, device="cpu"))
    loaded_rss = _peak_rss()
    windows = list(_windows(job, loaded.tokenizer))
    if not windows:
        sys.exit(f"no row of {job.data} has {_SHAPE.length} tokens")
    engine = HfEngine(loaded.model)
    engine.score(windows[:_N_WARM_UP])
    start = time.perf_counter()
    scores = engine.score(windows)
    scored = time.perf_counter()
    peak_rss = _peak_rss()
    naive_start = time.perf_counter()
    naive = [_naive_scores(loaded.model, window) for window in windows[:_N_NAIVE]]
    naive_end = time.perf_counter()
    return Measured(
        scores=[score.teacher for score in scores],
        features=_features(scores, windows, loaded.tokenizer),
        seconds=scored - start,
        seconds_naive=naive_end - naive_start,
        n_naive=len(naive),
        loaded_rss=loaded_rss,
        peak_rss=peak_rss,
        naive_gap=_largest_gap(scores, naive),
    )


def _windows(job: Job, tokenizer: Tokenizer) -> Iterator[NDArray[np.int32]]:
    """Yield the first window of every row that has one."""
    rows = islice(read_corpus(CorpusOptions(job.data)), job.rows)
    texts = [row.text for row in rows if isinstance(row, Example)]
    for token_ids in tokenizer.encode(texts):
        yield from cut_windows(token_ids, _SHAPE)


def _naive_scores(model: "PreTrainedModel", window: NDArray[np.int32]) -> TokenScores:
    """Score one window with all its logits at once."""
    import torch

    with torch.inference_mode():
        token_ids_1T = torch.as_tensor(window, dtype=torch.int64)[None]
        logits_SV = model(input_ids=token_ids_1T, use_cache=False).logits[0, :-1]
        log_softmax_SV = logits_SV.double().log_softmax(dim=-1)
        logprobs_S = log_softmax_SV.gather(1, token_ids_1T[0, 1:, None])[:, 0]
        is_argmax_S = logprobs_S >= log_softmax_SV.amax(dim=1)
        entropy_S = -(log_softmax_SV.exp() * log_softmax_SV).sum(dim=1)
    return TokenScores(logprobs_S.float().numpy(), is_argmax_S.numpy(), entropy_S.float().numpy())


def _largest_gap(scores: list[WindowScores], naive: list[TokenScores]) -> float:
    return max(
        float(np.abs(score.teacher.logprobs - expected.logprobs).max())
        for score, expected in zip(scores, naive, strict=False)  # the naive ones are the first few
    )


def _features(
    scores: list[WindowScores], windows: list[NDArray[np.int32]], tokenizer: Tokenizer
) -> NDArray[np.float64]:
    rows = []
    for score, window in zip(scores, windows, strict=True):
        token_ids = window.tolist()
        text, suffix_text = tokenizer.decode([token_ids, token_ids[_SHAPE.prefix_len :]])
        features = window_features(
            score,
            prefix_len=_SHAPE.prefix_len,
            text=text,
            suffix_text=suffix_text,
            occurrences=1,
        )
        rows.append([features[name] for name in FEATURE_SETS["teacher"]])
    return np.array(rows)


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_RSS_UNIT


def _speed_lines(dtype: Dtype, measured: Measured) -> list[str]:
    return [
        f"{dtype}: {len(measured.scores)} windows of {_SHAPE.length} tokens",
        f"  {measured.tokens_per_second:.0f} tokens/s, "
        f"{measured.speed_up:.2f} x the naive loop over the first {measured.n_naive}",
        f"  peak RSS {measured.peak_rss / 2**20:.0f} MiB, "
        f"{measured.loaded_rss / 2**20:.0f} MiB of it while loading",
        f"  largest difference of log-probability from the naive loop {measured.naive_gap:.2g} nats",
    ]


def _rounding_lines(full: Measured, half: Measured) -> list[str]:
    pairs = list(zip(full.scores, half.scores, strict=True))
    logprob_gaps = np.concatenate([np.abs(a.logprobs - b.logprobs) for a, b in pairs])
    entropy_gaps = np.concatenate([np.abs(a.entropy - b.entropy) for a, b in pairs])
    flips = np.concatenate([a.is_argmax != b.is_argmax for a, b in pairs])
    feature_gaps = np.abs(full.features - half.features)
    return [
        "bfloat16 against float32, absolute difference:",
        _gap_line("log-probability per token", logprob_gaps),
        _gap_line("entropy per token", entropy_gaps),
        f"  {'is-argmax, tokens that flip':32}{int(flips.sum())} of {flips.size}",
        *(
            _gap_line(name, column)
            for name, column in zip(FEATURE_SETS["teacher"], feature_gaps.T, strict=True)
            if name.startswith("teacher_")
        ),
    ]


def _gap_line(name: str, gaps: NDArray[np.floating]) -> str:
    return f"  {name:32}largest {gaps.max():<10.4g}mean {gaps.mean():.4g}"


if __name__ == "__main__":
    main()
