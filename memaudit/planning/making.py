"""Making a plan: the corpus is read and cut, the models are outlined, a few windows scored."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memaudit.audit import Progress, ReportProgress
from memaudit.classifier import check_zlib, find_classifier
from memaudit.corpus import CorpusOptions, read_corpus
from memaudit.engines.outlines import ModelOutline, load_outline
from memaudit.features import FEATURE_SETS, ReferenceRole
from memaudit.planning.costs import ModelCost
from memaudit.planning.plan import AuditPlan, Calibration
from memaudit.runs.chunks import ChunkPlan, feature_set_name
from memaudit.runs.models import AuditModels, ModelSources, load_models
from memaudit.runs.opening import allowed_rows, chosen_cascade, model_sources, reference_role
from memaudit.runs.options import DEFAULT_OPTIONS, AuditOptions
from memaudit.runs.reading import DistinctWindows, RowLog, RowWindows, cut_rows
from memaudit.runs.scoring import ChunkWork
from memaudit.runs.screening import windows_to_score
from memaudit.screening import Cascade

_CALIBRATION_SECONDS = 5.0


def plan_audit(
    teacher: str,
    data: str | Path | CorpusOptions,
    *,
    student: str | None = None,
    baseline: str | None = None,
    options: AuditOptions = DEFAULT_OPTIONS,
    progress: ReportProgress | None = None,
) -> AuditPlan:
    """Say what an audit of a corpus would do and need, and how long it would take.

    Args:
        teacher: as for `audit_corpus`, like all that is not explained.
        data: the corpus; it is read whole.
        student: a reference.
        baseline: another reference.
        options: of the audit that is planned.
        progress: called now and then.

    Raises:
        UsageError, CorpusError, ModelError, ClassifierError: as for `audit_corpus`.
    """
    role = reference_role(student, baseline)
    classifier = find_classifier(options.classifier, feature_set_name(role), options.objective.kind)
    check_zlib(classifier)
    cascade = chosen_cascade(classifier, options)
    names = [name for name in (teacher, student or baseline) if name is not None]
    outlines = [load_outline(name, options.model) for name in names]
    tokenizer = outlines[0].tokenizer
    corpus = data if isinstance(data, CorpusOptions) else CorpusOptions(str(data))
    rows = read_corpus(corpus, render_messages=tokenizer.render_messages)
    started = time.monotonic()
    with RowLog(None) as row_log, DistinctWindows(options.shape.length) as windows:
        cuts = cut_rows(
            allowed_rows(rows, options.on_bad_row),
            tokenizer,
            (row_log, windows),
            shape=options.shape,
            policy=options.windows,
            on_batch=_report_reading(started, progress),
        )
        chunks = _chunk_plan(role, len(windows), options, cascade)
        kept = windows_to_score(chunks, windows, tokenizer)
        plan = _plan(outlines, cuts, chunks, len(kept), options, time.monotonic() - started)
        if len(kept) == 0 or not _enough_memory(plan):
            return plan
        sources = model_sources(teacher, student, baseline, options)
        return replace(plan, calibration=_calibrate(sources, chunks, windows, kept))


def _chunk_plan(
    role: ReferenceRole | None, n_windows: int, options: AuditOptions, cascade: Cascade | None
) -> ChunkPlan:
    """Return the chunks that an audit would have, without a place for them."""
    return ChunkPlan(
        folder=Path(),
        fingerprint="",
        shape=options.shape,
        role=role,
        objective=options.objective,
        features=FEATURE_SETS[feature_set_name(role)],
        n_windows=n_windows,
        chunk_size=options.chunk_size,
        cascade=cascade,
    )


def _plan(
    outlines: Sequence[ModelOutline],
    cuts: RowWindows,
    chunks: ChunkPlan,
    n_kept: int,
    options: AuditOptions,
    reading_seconds: float,
) -> AuditPlan:
    """Put the plan together, but for the calibration."""
    has_bos = outlines[0].tokenizer.bos_token_id is not None
    roles = ("teacher", chunks.role)
    return AuditPlan(
        outcomes=dict(cuts.outcomes),
        windows=len(cuts.windows),
        distinct_windows=chunks.n_windows,
        screened_windows=chunks.n_windows - n_kept,
        asks_reference=chunks.cascade is not None and chunks.cascade.needs_reference,
        window_tokens=options.shape.length,
        extra_tokens=int(has_bos),
        features=len(chunks.features),
        chunk_size=options.chunk_size,
        dtype=options.model.dtype,
        on_gpu=_on_gpu(options.model.device),
        workers=options.workers if options.ray is None else options.ray.replicas,
        models=tuple(_cost(*pair) for pair in zip(roles, outlines, strict=False)),
        reading_seconds=reading_seconds,
    )


def _report_reading(started: float, progress: ReportProgress | None) -> Callable[[int], None]:
    def report(done: int) -> None:
        if progress is not None:
            progress(Progress("read", done, None, time.monotonic() - started))

    return report


def _cost(role: str | None, outline: ModelOutline) -> ModelCost:
    assert role is not None
    return ModelCost(
        role=role,
        source=outline.source,
        parameters=outline.parameters,
        head_parameters=outline.head_parameters,
        body_parameters=outline.body_parameters,
        layers=outline.layers,
        attention_width=outline.attention_width,
        activation_width=6 * outline.hidden + 3 * outline.intermediate,
    )


def _on_gpu(device: str) -> bool:
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _enough_memory(plan: AuditPlan) -> bool:
    """Whether this machine has the memory to load the models; True where it does not say."""
    meminfo = Path("/proc/meminfo")
    if plan.on_gpu or not meminfo.exists():
        return True
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return plan.model_memory(on_gpu=False) <= available


def _calibrate(
    sources: ModelSources, chunks: ChunkPlan, windows: DistinctWindows, kept: NDArray[np.int64]
) -> Calibration:
    """Load the models and score windows from all over the corpus, ever more, for some seconds."""
    import torch

    started = time.monotonic()
    n_processes = sources.workers if sources.ray is None else sources.ray.replicas
    n_threads = sources.threads or max(1, torch.get_num_threads() // n_processes)
    models = load_models(replace(sources, threads=n_threads, workers=1, ray=None))
    loading_seconds = time.monotonic() - started
    _seconds_to_score(models, chunks, windows, kept[:1])  # what happens once is not timed
    warm = time.monotonic()
    n_windows, seconds = 0, 0.0
    for n in _doubling(min(len(kept), chunks.chunk_size)):
        chosen = kept[np.linspace(0, len(kept) - 1, n).astype(np.int64)]
        n_windows, seconds = n, _seconds_to_score(models, chunks, windows, chosen)
        if time.monotonic() - warm + 2 * seconds > _CALIBRATION_SECONDS:
            break
    return Calibration(
        windows=n_windows,
        seconds=seconds,
        loading_seconds=loading_seconds,
        total_seconds=time.monotonic() - started,
    )


def _doubling(limit: int) -> list[int]:
    """Return 1, 2, 4, … and the limit."""
    powers = [2**i for i in range(limit.bit_length())]
    return powers + ([] if powers[-1] == limit else [limit])


def _seconds_to_score(
    models: AuditModels, chunks: ChunkPlan, windows: DistinctWindows, chosen: NDArray[np.int64]
) -> float:
    """Return how long a chunk of these windows takes, its features and its file included."""
    token_ids = np.stack([windows.window(int(index)) for index in chosen])
    work = ChunkWork(0, token_ids, windows.occurrences[chosen])
    with tempfile.TemporaryDirectory(prefix="memaudit-") as folder:
        plan = replace(
            chunks,
            folder=Path(folder),
            features=models.features,
            n_windows=len(chosen),
            chunk_size=len(chosen),
            cascade=None,
        )
        started = time.monotonic()
        for _ in models.score(plan, iter([work])):
            pass
        return time.monotonic() - started
