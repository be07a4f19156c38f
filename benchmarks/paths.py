"""The ways to ask a model about windows that are compared: memaudit's own, and plain transformers.

Each loader is called once in a process of its own and returns the function that is timed. A peer's
packages are imported inside its loader, because no interpreter has them all.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.windows import Windows

if TYPE_CHECKING:
    from memaudit.engines import Engine
    from memaudit.engines.models import LoadedModel
    from memaudit.scores import WindowScores

Answers = dict[str, NDArray[Any]]
"""What a path found, for N windows of S predicted tokens. Those it can give of:

logprobs (N, S); is_argmax (N, S); entropy (N, S); kl_divergence (N, S), all per token;
window_logprob (N,), their sum, of a path that gives no more; recited (N,) how many tokens of the
suffix come out before the first wrong one; extracted (N,); seconds_extraction (), processor time
for deciding `extracted` once the scores are there; rates, see `gemm.measure_peaks`.
"""


@dataclass(frozen=True, slots=True)
class Models:
    """What a path loads."""

    teacher: str
    """Folder of the model that is asked."""

    reference: str
    """Folder of one of the same size that differs, for the KL."""

    dtype: str
    """Of the weights: `float32`, `bfloat16`."""


Run = Callable[[Windows, int], Answers]
"""Asks about windows, so many at once where the path lets one choose."""


def load_memaudit_hf(models: Models) -> Run:
    """Return memaudit's `hf` engine; the batch size is its own choice."""
    engine = _hf_engine(models, [models.teacher])
    return _engine_run(engine)


def load_memaudit_hf_compiled(models: Models) -> Run:
    """Return the same with the model compiled; that is done before the clock starts."""
    return _engine_run(_hf_engine(models, [models.teacher], compiled=True))


def load_memaudit_hf_pair(models: Models) -> Run:
    """Return the same with a reference of the teacher's size beside it, for the exact KL."""
    engine = _hf_engine(models, [models.teacher, models.reference])
    return _engine_run(engine)


def load_memaudit_vllm(models: Models) -> Run:
    """Return memaudit's `vllm` engine; the batch size is its own choice."""
    return _vllm_run(models, [models.teacher])


def load_memaudit_vllm_compiled(models: Models) -> Run:
    """Return the same with the model compiled; that is done in the warm-up."""
    return _vllm_run(models, [models.teacher], compiled=True)


def load_memaudit_vllm_pair(models: Models) -> Run:
    """Return the same with a reference of the teacher's size, for the exact KL."""
    return _vllm_run(models, [models.teacher, models.reference])


def load_naive(models: Models) -> Run:
    """Return a loop over the windows, all logits of one at a time."""
    return _naive_run([_plain_model(models.teacher, models.dtype)])


def load_truth(models: Models) -> Run:
    """Return the naive loop on two models in float64: the yardstick of the others' errors."""
    folders = (models.teacher, models.reference)
    return _naive_run([_plain_model(folder, "float32").double() for folder in folders])


def load_generate(models: Models) -> Run:
    """Return greedy generation from the prefixes by transformers."""
    import torch

    loaded = _plain_model(models.teacher, models.dtype)
    loaded.generation_config.eos_token_id = None  # a suffix may hold one, and goes on after it

    @torch.inference_mode()
    def run(windows: Windows, batch_size: int) -> Answers:
        found = []
        for start in range(0, len(windows.token_ids), batch_size):
            part = windows.token_ids[start : start + batch_size, : windows.prefix_len]
            prefix_BP = torch.as_tensor(part, dtype=torch.int64)
            found_BT = loaded.generate(
                prefix_BP,
                attention_mask=torch.ones_like(prefix_BP),
                do_sample=False,
                max_new_tokens=windows.token_ids.shape[1] - windows.prefix_len,
            )
            found.append(found_BT[:, windows.prefix_len :].numpy())
        is_true = np.concatenate(found) == windows.token_ids[:, windows.prefix_len :]
        return {"recited": n_recited(is_true), "extracted": is_true.all(axis=1)}

    return run


def load_gemm(models: Models) -> Run:
    """Return the measurement of the machine's peak at the model's shapes."""
    from benchmarks.gemm import measure_peaks, read_shapes

    shapes = read_shapes(models.teacher)
    return lambda _windows, _batch_size: {"rates": measure_peaks(shapes, models.dtype)}


def n_recited(is_true: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many entries of each row are true before the first that is not."""
    n_true: NDArray[np.int64] = np.cumprod(is_true, axis=1).sum(axis=1)
    return n_true


def write_reference(model: str, folder: Path) -> None:
    """Save a copy of a model whose weights are rounded coarsely, so that a KL is not 0."""
    import torch
    from transformers import AutoTokenizer

    loaded = _plain_model(model, "float32")
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.copy_(parameter.to(torch.float8_e5m2).float())
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def _hf_engine(models: Models, folders: list[str], *, compiled: bool = False) -> "Engine":
    from memaudit.engines.hf import HfEngine

    return HfEngine(*[loaded.model for loaded in _loaded(models, folders)], compiled=compiled)


def _loaded(models: Models, folders: list[str]) -> "list[LoadedModel]":
    from memaudit.engines.models import ModelOptions, load_model

    options: Any = ModelOptions(dtype=models.dtype, device="cpu")  # type: ignore[arg-type]
    return [load_model(folder, options) for folder in folders]


def _vllm_run(models: Models, folders: list[str], *, compiled: bool = False) -> Run:
    """Start the engine when the first windows tell how long they are: in the warm-up."""
    engines: list[Engine] = []

    def run(windows: Windows, _batch_size: int) -> Answers:
        if not engines:
            from memaudit.engines.vllm import load_vllm_engine

            n_tokens = windows.token_ids.shape[1]
            loaded = _loaded(models, folders)
            engines.append(load_vllm_engine(*loaded, window_len=n_tokens, compiled=compiled))
        return _engine_run(engines[0])(windows, 0)

    return run


def _engine_run(engine: "Engine") -> Run:
    return lambda windows, _: _engine_answers(
        engine.score(list(windows.token_ids)), windows.prefix_len
    )


def _engine_answers(scores: "list[WindowScores]", prefix_len: int) -> Answers:
    from memaudit.memorization import extracted

    start = time.process_time()
    is_extracted = [extracted(score.teacher, prefix_len) for score in scores]
    end = time.process_time()
    is_argmax = np.array([score.teacher.is_argmax for score in scores])
    answers: Answers = {
        "logprobs": np.array([score.teacher.logprobs for score in scores]),
        "is_argmax": is_argmax,
        "entropy": np.array([score.teacher.entropy for score in scores]),
        "recited": n_recited(is_argmax[:, prefix_len - 1 :]),
        "extracted": np.array(is_extracted),
        "seconds_extraction": np.array(end - start),
    }
    if scores[0].kl_divergence is not None:
        answers["kl_divergence"] = np.array([score.kl_divergence for score in scores])
    return answers


def _plain_model(model: str, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    return loaded.eval()


def _naive_run(models: list[Any]) -> Run:
    import torch

    @torch.inference_mode()
    def run(windows: Windows, _batch_size: int) -> Answers:
        rows: list[Answers] = []
        for window in windows.token_ids:
            token_ids_1T = torch.as_tensor(window, dtype=torch.int64)[None]
            both = [m(input_ids=token_ids_1T, use_cache=False).logits[0, :-1] for m in models]
            log_softmax_SV, *others = [logits.log_softmax(dim=-1) for logits in both]
            logprobs_S = log_softmax_SV.gather(1, token_ids_1T[0, 1:, None])[:, 0]
            probabilities_SV = log_softmax_SV.exp()
            row = {
                "logprobs": logprobs_S.numpy(),
                "is_argmax": (logprobs_S >= log_softmax_SV.amax(dim=1)).numpy(),
                "entropy": -(probabilities_SV * log_softmax_SV).sum(dim=1).numpy(),
            }
            for other_SV in others:
                gap_SV = log_softmax_SV - other_SV
                row["kl_divergence"] = (probabilities_SV * gap_SV).sum(dim=1).numpy()
            rows.append(row)
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    return run


def one_process_vllm() -> None:
    """Set what vLLM reads at import: one process, few threads, a small cache."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
