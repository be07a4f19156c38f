"""The dry run of an audit: the corpus is read, a few windows are scored, nothing is written."""

import re
import tempfile
import time
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from memaudit.cost import AuditPlan, ModelSizes, Sample
from memaudit.engines import is_elsewhere
from memaudit.engines.head import output_layer
from memaudit.engines.locating import adapter_of
from memaudit.engines.models import DEFAULT_OPTIONS as DEFAULT_MODEL_OPTIONS
from memaudit.engines.models import ModelOptions, base_options, open_model
from memaudit.engines.tokenizer import Tokenizer, load_tokenizer
from memaudit.errors import UsageError
from memaudit.features import FEATURE_SETS, feature_set_name
from memaudit.prefilter import make_prefilter
from memaudit.progress import ReportProgress
from memaudit.runs.chunks import ChunkPlan
from memaudit.runs.counting import available_memory, count_exposure
from memaudit.runs.models import AuditModels, ModelSources, load_models
from memaudit.runs.opening import AuditRequest, asks_exposure, open_inputs, open_request, read_rows
from memaudit.runs.options import DEFAULT_OPTIONS, AuditOptions
from memaudit.runs.reading import DistinctWindows, RowWindows
from memaudit.runs.scoring import ChunkWork, windows_to_score

_SAMPLE_SECONDS, _SAMPLE_SECONDS_AT_MOST = 5.0, 30.0
"""For a sample: CPU time of each thread, and time on the clock."""


def load_sizes(
    source: str, options: ModelOptions = DEFAULT_MODEL_OPTIONS
) -> tuple[ModelSizes, Tokenizer]:
    """Read the sizes of a model from its config, without its weights, and load its tokenizer.

    Raises:
        ModelError: as for `load_model`, except for faults that only the weights show.
    """
    adapter = adapter_of(source, options)
    if adapter is not None:
        # Merged into its base when it is loaded, an adapter adds no weights.
        return load_sizes(adapter.base, base_options(adapter, options))
    with open_model(source, options) as (_, folder, where):
        tokenizer = load_tokenizer(folder, where, options.add_special_tokens)
        config = AutoConfig.from_pretrained(folder, **where)
        with torch.device("meta"):  # shapes without memory
            model: Any = AutoModelForCausalLM.from_config(
                config, trust_remote_code=options.trust_remote_code
            )
    embeddings, head = model.get_input_embeddings(), output_layer(model)
    config = model.config.get_text_config()
    hidden, n_heads = config.hidden_size, config.num_attention_heads
    feed_forward = getattr(config, "intermediate_size", None) or 4 * hidden
    # By identity: where the head shares the weights of the embeddings they count once.
    apart = {id(layer.weight): layer.weight.numel() for layer in (embeddings, head)}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = ModelSizes(
        source=source,
        parameters=parameters,
        body_parameters=parameters - sum(apart.values()),
        head_parameters=head.weight.numel(),
        layers=config.num_hidden_layers,
        attention_width=n_heads * (getattr(config, "head_dim", None) or hidden // n_heads),
        activation_width=6 * hidden + 3 * feed_forward,
    )
    return sizes, tokenizer


def plan_audit(  # audit_corpus, and when it began
    teacher: str | PathLike[str],
    data: object,
    *,
    student: str | PathLike[str] | None = None,
    baseline: str | PathLike[str] | None = None,
    options: AuditOptions = DEFAULT_OPTIONS,
    progress: ReportProgress | None = None,
    started: tuple[float, float] | None = None,
) -> AuditPlan:
    """Say what `audit_corpus` would do and need with the same arguments.

    The corpus is read whole; a few windows are scored if the models fit into memory. `started`
    holds the readings of `time.monotonic` and `time.process_time` from which on times count.
    None: from now on, so that importing this module is left out.

    Raises:
        UsageError, CorpusError, ModelError, ClassifierError: as for `audit_corpus`.
    """
    started = started or _now()
    request = open_request(teacher, data, student, baseline, options)
    if is_elsewhere(request.sources.teacher):
        raise UsageError(
            "a dry run measures this machine, and the teacher is captured or an endpoint",
            hint="run it on a part of the corpus to see how long that takes",
        )
    sources, role, options = request.sources, request.sources.role, request.options
    sizes, tokenizer = load_sizes(sources.teacher, options.model)
    models = {"teacher": sizes}
    if sources.reference is not None and role is not None:
        models[role], _ = load_sizes(sources.reference, options.model)
    # Rows are read as an audit reads them, which asks models for no more than the tokenizer.
    unloaded = AuditModels(tokenizer, lambda plan, works: iter(()), "none", sources.teacher)
    reading = _now()
    inputs = open_inputs(request, lambda: unloaded)
    with (
        DistinctWindows(options.shape.length) as windows,
        read_rows(inputs, windows, None, progress) as read,
    ):
        chunks = _chunk_plan(request, len(windows))
        if chunks.epochs is not None:
            count_exposure(chunks, range(chunks.n_chunks), windows, read.tokens, progress)
        reading_seconds, _ = _since(reading)
        plan, kept = _counted(request, read.cuts, chunks, windows, tokenizer, models)
        plan = replace(plan, reading_seconds=reading_seconds)
        available = available_memory()
        # Half a plan is better than a machine that swaps.
        fits = plan.device != "cpu" or available is None or plan.model_memory("cpu") <= available
        if len(kept) == 0 or not fits:
            return plan
        return replace(plan, sample=_run_sample(sources, chunks, windows, kept, started))


def _chunk_plan(request: AuditRequest, n_windows: int) -> ChunkPlan:
    """Return the chunks that an audit would have, without a place for them."""
    role, options = request.sources.role, request.options
    return ChunkPlan(
        folder=Path(),
        fingerprint="",
        shape=options.shape,
        role=role,
        objective=options.objective,
        features=FEATURE_SETS[feature_set_name(role)],
        n_windows=n_windows,
        chunk_size=options.chunk_size_on("cuda" if _on_gpu(options) else "cpu"),
        prefilter=request.prefilter,
        epochs=options.epochs if asks_exposure(request) else None,
    )


def _on_gpu(options: AuditOptions) -> bool:
    return options.model.device != "cpu" and torch.cuda.is_available()


def _counted(
    request: AuditRequest,
    cuts: RowWindows,
    chunks: ChunkPlan,
    windows: DistinctWindows,
    tokenizer: Tokenizer,
    models: dict[str, ModelSizes],
) -> tuple[AuditPlan, NDArray[np.int64]]:
    """Return the plan as far as no model is asked, and the windows that the teacher has to read."""
    options, kept, n_out_of_reach = request.options, windows_to_score(chunks, windows, tokenizer), 0
    if request.prefilter is None:
        bound = replace(chunks, prefilter=make_prefilter(request.classifier, 1.0))
        n_out_of_reach = len(windows) - len(windows_to_score(bound, windows, tokenizer))
    plan = AuditPlan(
        outcomes=dict(cuts.outcomes),
        windows=len(cuts.windows),
        distinct_windows=chunks.n_windows,
        screened_windows=chunks.n_windows - len(kept),
        out_of_reach_windows=n_out_of_reach,
        asks_reference=chunks.prefilter is not None and chunks.prefilter.needs_reference,
        window_tokens=chunks.shape.length,
        features=len(chunks.features),
        chunks=chunks.n_chunks,
        dtype=options.model.dtype,
        device="cuda" if _on_gpu(options) else "cpu",
        workers=options.workers if options.ray is None else options.ray.replicas,
        models=models,
        extra_tokens=int(tokenizer.bos_token_id is not None),
    )
    return plan, kept


def _run_sample(
    sources: ModelSources,
    chunks: ChunkPlan,
    windows: DistinctWindows,
    kept: NDArray[np.int64],
    started: tuple[float, float],
) -> Sample:
    """Load the models; score windows from all over the corpus, ever more, for some seconds."""
    loading = _now()
    n_threads = sources.options.threads or max(
        1, torch.get_num_threads() // max(1, sources.options.n_elsewhere)
    )
    alone = replace(sources.options, threads=n_threads, workers=1, ray=None)
    models = load_models(replace(sources, options=alone))
    seconds_before, cpu_seconds_before = _since(started)

    def score(n: int) -> tuple[float, float]:
        """Return how long a chunk of windows takes, its features and its file included."""
        # From all over the corpus: its files may differ in how long their windows are.
        chosen = kept[np.linspace(0, len(kept) - 1, n).astype(np.int64)]
        token_ids = np.stack([windows.window(int(index)) for index in chosen])
        counted = None if windows.exposure is None else windows.exposure[chosen]
        work = ChunkWork(0, token_ids, windows.occurrences[chosen], counted)
        with tempfile.TemporaryDirectory(prefix="memaudit-") as folder:
            plan = replace(chunks, folder=Path(folder), features=models.features, prefilter=None)
            begun = _now()
            for _ in models.score(replace(plan, n_windows=n, chunk_size=n), iter([work])):
                pass
            return _since(begun)

    score(1)  # what happens only once is not timed
    n, limit, sampling = 1, min(len(kept), chunks.chunk_size), _now()
    seconds, cpu_seconds = score(n)
    while n < limit:
        # By CPU time: on a busy machine a sample of one window would tell of the other processes.
        spent_seconds, spent_cpu_seconds = _since(sampling)
        is_last = spent_cpu_seconds + 2 * cpu_seconds > n_threads * _SAMPLE_SECONDS
        if is_last or spent_seconds + 2 * seconds > _SAMPLE_SECONDS_AT_MOST:
            break
        n = min(2 * n, limit)
        seconds, cpu_seconds = score(n)
    # Not ru_maxrss: a child begins with the peak of the process that started it.
    status = Path("/proc/self/status")
    peaks = re.findall(r"^VmHWM:\s*(\d+)", status.read_text() if status.exists() else "", re.M)
    on_gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return Sample(
        windows=n,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        seconds_before=seconds_before,
        cpu_seconds_before=cpu_seconds_before,
        total_seconds=_since(loading)[0],
        memory=1024 * int(peaks[0]) + on_gpu if peaks else None,
        compile_choice=models.settle and models.settle(models, windows).compile_choice,
    )


def _now() -> tuple[float, float]:
    """Return seconds on the clock, and CPU seconds of this process."""
    return time.monotonic(), time.process_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    now = _now()
    return now[0] - start[0], now[1] - start[1]
