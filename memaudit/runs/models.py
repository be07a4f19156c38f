"""The models of a run: loaded in this process, or in each worker."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from memaudit import __version__
from memaudit.classifier import RiskClassifier
from memaudit.engines import (
    CAPTURED,
    EndpointOptions,
    Engine,
    engine_name,
    engine_to_try,
    is_elsewhere,
    is_endpoint,
)
from memaudit.engines.canaries import WatchedEngine
from memaudit.engines.models import (
    LoadedModel,
    ModelOptions,
    check_same_vocabulary,
    cuts_alike,
    device_here,
    load_model,
    model_digest,
    open_tokenizer,
)
from memaudit.errors import ModelError, UsageError
from memaudit.features import ReferenceRole, exact_features, feature_set_name, is_aligned
from memaudit.progress import tell
from memaudit.runs.captured import score_captured
from memaudit.runs.manifest import ModelNames
from memaudit.runs.options import AuditOptions
from memaudit.runs.ray_executor import device_on_ray, score_on_ray, tasks_on_ray
from memaudit.runs.reading import HERE, DistinctWindows, Tasks, Tokenizer
from memaudit.runs.scoring import ScoreChunks, score_at_once, score_here
from memaudit.runs.workers import score_in_workers
from memaudit.text import safe_text
from memaudit.windows import without_padding

if TYPE_CHECKING:
    from memaudit.engines.endpoint import Endpoint, EndpointModel


def tasks_here() -> AbstractContextManager[Tasks]:
    """Give this process."""
    return nullcontext(HERE)


@dataclass(frozen=True, slots=True)
class AuditModels:
    """What scores a corpus: models, or a test's stand-in."""

    tokenizer: Tokenizer
    score: ScoreChunks
    """Runs the teacher, and the reference if there is a role for it, over chunks."""

    engine: str
    """What runs them: `hf-float32`."""

    teacher: str
    teacher_digest: str = ""
    reference: str | None = None
    reference_digest: str | None = None
    role: ReferenceRole | None = None
    logprobs_only: bool = False
    """The engine tells neither entropies nor divergences: features that need them are absent."""

    lacks_context: bool = False
    """Likewise of the tokens before a suffix."""

    device: str = "cpu"
    """`cpu`, or the kind of GPU."""

    threads: int | None = None
    """CPU threads of each process that scores. None: not settled by us."""

    unused: str | None = None
    """In words why the models may be others than those that were trained, see `LoadedModel`."""

    tasks: Callable[[], AbstractContextManager[Tasks]] = tasks_here
    """Gives what tokenises texts and counts grams, for the time that it is needed."""

    compile_choice: str | None = None
    """In words whether `settle` has compiled the models, and why."""

    settle: "Callable[[AuditModels, DistinctWindows], AuditModels] | None" = None
    """Finds out on windows whether compiling pays; returns these as they then are. None: settled."""

    canary: float | None = None
    """What a teacher whose files are not here says about the canaries: the mean log-probability of
    a token, nats. None: its digest says all."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the engine can tell, those of the corpus among them."""
        return exact_features(
            self.role, logprobs_only=self.logprobs_only, lacks_context=self.lacks_context
        )

    @property
    def is_captured(self) -> bool:
        """Whether the corpus holds what the teacher says."""
        return self.engine == CAPTURED

    def names(self, classifier: RiskClassifier) -> ModelNames:
        """Return what reports call these, with the classifier that judges their scores."""
        return ModelNames(
            teacher=self.teacher,
            teacher_digest=self.teacher_digest,
            reference=self.reference,
            reference_digest=self.reference_digest,
            feature_set=feature_set_name(self.role),
            engine=self.engine,
            classifier=classifier.name,
            classifier_digest=classifier.digest,
            memaudit_version=__version__,
        )


@dataclass(frozen=True, slots=True)
class ModelSources:
    """Which models score, and on what."""

    teacher: str
    """Folder, file or hub id."""

    reference: str | None
    """Likewise. None: the teacher is alone."""

    role: ReferenceRole | None
    options: AuditOptions
    """How they are loaded and run; of the rest of the options none has an effect here."""

    digests: tuple[str, str | None] | None = None
    """Of the teacher's and the reference's files, once they are known: others are refused."""


def load_models(sources: ModelSources) -> AuditModels:
    """Load models, and what is needed to tell two runs apart.

    If other processes score, this one keeps the tokenizer alone.

    Raises:
        ModelError: a model cannot be loaded, vocabularies differ, or the engine cannot run them.
        MissingDependency: Ray or vLLM is asked for and not installed.
        UsageError: the device does not go with what is reserved on Ray.
    """
    options = sources.options
    if sources.teacher == CAPTURED:
        return _captured(sources)
    if is_endpoint(sources.teacher):
        return _at_endpoint(sources)
    tell("import torch")
    threads = _set_threads(options)
    device, fused = _device_kind(options, threads)
    # Others score, and only the tokenizer is needed here; or vLLM spreads the model itself.
    on_cpu = options.n_elsewhere or options.vllm.tensor_parallel > 1
    here = replace(options.model, device="cpu") if on_cpu else options.model
    teacher, reference = _load_pair(sources, here)
    reference_digest = None if reference is None else reference.digest
    logprobs_only, settle = False, None
    name = engine_name("hf", options.model.dtype, compiled=options.model.compiled, fused=fused)
    if options.n_elsewhere:
        # Every process runs as many threads as this one settles on: another number rounds otherwise.
        settled, digests = replace(options, threads=threads), (teacher.digest, reference_digest)
        loader = partial(load_scorer, replace(sources, options=settled, digests=digests))
        score = partial(score_in_workers, loader, options.workers)
        if options.ray is not None:
            score = partial(score_on_ray, loader, options.ray, threads)
    else:
        engine = _engine_here(sources, here, teacher, reference)
        name = engine.name
        logprobs_only = isinstance(engine, WatchedEngine) and engine.logprobs_only
        score = partial(score_here, engine, teacher.tokenizer)
        if options.model.compiled is None:
            settle = partial(_settled, sources, (teacher, reference), engine)
    return AuditModels(
        settle=settle,
        tokenizer=teacher.tokenizer,
        score=score,
        engine=name,
        teacher=sources.teacher,
        teacher_digest=teacher.digest,
        reference=sources.reference,
        reference_digest=reference_digest,
        role=sources.role,
        logprobs_only=logprobs_only,
        device=device,
        threads=threads,
        tasks=tasks_here if options.ray is None else partial(tasks_on_ray, options.ray, threads),
        unused="; ".join(each.unused for each in (teacher, reference) if each and each.unused)
        or None,
    )


def _settled(
    sources: ModelSources,
    loaded: tuple[LoadedModel, LoadedModel | None],
    engine: Engine,
    models: AuditModels,
    windows: DistinctWindows,
) -> AuditModels:
    from memaudit.engines.hf import faster_engine

    if isinstance(engine, WatchedEngine) or models.device != "cpu":
        why = "not compiled: that is decided only where transformers runs the models on a CPU"
    else:
        model = replace(sources.options.model, compiled=True)
        compiled = replace(sources, options=replace(sources.options, model=model))
        engine, why = faster_engine(
            engine,
            partial(_engine, compiled, *loaded),
            [each.model for each in loaded if each is not None],
            lambda index: without_padding(windows.window(index)),
            len(windows),
        )
    score = partial(score_here, engine, models.tokenizer)
    return replace(models, score=score, engine=engine.name, compile_choice=why, settle=None)


def _at_endpoint(sources: ModelSources) -> AuditModels:
    from memaudit.engines.endpoint import load_endpoint_engine

    options = sources.options
    endpoint, model = _found_at_endpoint(sources)
    engine, canary = load_endpoint_engine(endpoint, model, options.shape.length)
    return AuditModels(
        tokenizer=model.tokenizer,
        score=partial(score_at_once, engine, model.tokenizer, options.endpoint.n_requests),
        engine=engine.name,
        teacher=f"{sources.teacher}#{model.name}",
        teacher_digest=model.digest,
        logprobs_only=True,
        # Nobody tells what runs there.
        device=engine.name,
        canary=canary,
    )


def _captured(sources: ModelSources) -> AuditModels:
    options = sources.options
    assert options.endpoint.tokenizer is not None
    tokenizer, digest = open_tokenizer(options.endpoint.tokenizer, options.model)
    return AuditModels(
        tokenizer=tokenizer,
        score=partial(score_captured, tokenizer),
        engine=CAPTURED,
        teacher=CAPTURED,
        teacher_digest=digest,
        logprobs_only=True,
        device=CAPTURED,
    )


def teacher_digest(sources: ModelSources) -> str | None:
    """Return what tells the teacher from others, without loading it.

    Returns:
        None: only the corpus tells, once it is read.

    Raises:
        ModelError: it is not there.
    """
    options = sources.options
    if sources.teacher == CAPTURED:
        return None
    if not is_endpoint(sources.teacher):
        return model_digest(sources.teacher, options.model)
    return _found_at_endpoint(sources)[1].digest


def _found_at_endpoint(sources: ModelSources) -> "tuple[Endpoint, EndpointModel]":
    from memaudit.engines.endpoint import Endpoint, find_model

    options = sources.options
    endpoint = Endpoint(sources.teacher, offline=options.model.offline)
    return endpoint, find_model(endpoint, options.endpoint, options.model)


def check_sources(sources: ModelSources) -> None:
    """Refuse what a teacher cannot do whose model is not here, or is not asked for.

    Raises:
        UsageError: saying what.
    """
    options = sources.options
    if is_elsewhere(sources.reference or ""):
        raise UsageError(
            "only the teacher can be an endpoint, or captured",
            hint="give the student or the baseline as a folder, a .gguf file or a hub id",
        )
    is_captured = sources.teacher == CAPTURED
    if is_captured and options.endpoint.tokenizer is None:
        raise UsageError(
            "what was captured of a teacher are token ids, and no tokenizer is given",
            hint="name the teacher's with --tokenizer: a folder or a hub id",
        )
    if not is_elsewhere(sources.teacher):
        if options.endpoint != EndpointOptions(n_requests=options.endpoint.n_requests):
            raise UsageError(
                "--tokenizer, --served-model and --captured-temperature go with a teacher elsewhere",
                hint="leave them out, or give --teacher http://HOST:PORT or --teacher captured",
            )
        return
    refused = {
        "--cascade": is_captured and options.survival is not None,
        "--captured-temperature": not is_captured and options.endpoint.captured_temperature != 1,
        "--served-model": is_captured and options.endpoint.served_model is not None,
        "--student and --baseline": sources.reference is not None,
        "--workers and --executor ray": options.n_elsewhere > 0,
        "--compile": options.model.compiled is not False,
        f"--engine {options.engine}": options.engine != "auto",
        "--tensor-parallel": options.vllm.tensor_parallel > 1,
        "--model-revision": options.model.revision is not None,
    }
    found = next((name for name, is_given in refused.items() if is_given), None)
    if found:
        raise UsageError(
            f"the teacher is {'captured' if is_captured else 'an endpoint'}, and {found} cannot be "
            "used with one",
            hint="leave it out"
            if is_captured
            else "leave it out; --requests says how many requests are under way at once",
        )


def settled_role(sources: ModelSources) -> ModelSources:
    """Return the same, with a role that says whether the reference has a tokenizer of its own.

    Raises:
        ModelError: a tokenizer cannot be loaded.
    """
    reference, role, model = sources.reference, sources.role, sources.options.model
    if reference is None or role is None or cuts_alike(sources.teacher, reference, model):
        return sources
    return replace(sources, role="aligned_student" if role == "student" else "aligned_baseline")


def load_scorer(sources: ModelSources, worker: int) -> tuple[Engine, Tokenizer]:
    """Load the models for one of several workers, on a device of its own.

    The number of threads is settled. Workers are numbered from 0; where models run on GPUs, worker
    n has GPU n.

    Raises:
        ModelError: a model cannot be loaded, its files are others than declared, or vocabularies
            differ.
    """
    options = sources.options
    # This process scores now. With others to score for it, `_set_threads` would set nothing.
    _set_threads(replace(options, workers=1, ray=None))
    if options.ray is not None:
        on_gpu = options.ray.gpus_per_replica > 0
    else:
        on_gpu = _kind_here(options.model.device)[0] != "cpu"
    device = f"cuda:{worker}" if on_gpu else "cpu"  # Ray shows an actor its own GPU alone, as 0
    teacher, reference = _load_pair(sources, replace(options.model, device=device))
    digests = (teacher.digest, None if reference is None else reference.digest)
    if digests != sources.digests:
        raise ModelError(
            "the model files are others than those that the run began with",
            hint="give the same models: on every machine, and did nobody change them meanwhile?",
        )
    return _engine(sources, teacher, reference), teacher.tokenizer


def _load_pair(
    sources: ModelSources, options: ModelOptions
) -> tuple[LoadedModel, LoadedModel | None]:
    teacher = load_model(sources.teacher, options)
    if sources.reference is None:
        return teacher, None
    reference = load_model(sources.reference, options)
    if not is_aligned(sources.role or ""):
        check_same_vocabulary(teacher, reference)
    return teacher, reference


def _engine_here(
    sources: ModelSources, here: ModelOptions, teacher: LoadedModel, reference: LoadedModel | None
) -> Engine:
    """Return the engine that was asked for; with `auto`, vLLM if it runs the models exactly."""
    options = sources.options
    name = engine_to_try(options.engine, options.vllm, elsewhere=False)
    if name == "hf":
        return _engine(sources, teacher, reference)
    from memaudit.engines import vllm, vllm_start

    refusal = vllm_start.why_not([model for model in (teacher, reference) if model], options.model)
    if is_aligned(sources.role or ""):
        refusal = "the second model has a tokenizer of its own"
    # Who asked for vLLM by name is told. `auto` takes what can run the models.
    if refusal is not None and name == "auto":
        return _engine(sources, teacher, reference)
    if refusal is not None:
        raise ModelError(f"the vllm engine cannot run this: {refusal}", hint="use --engine hf")
    try:
        return vllm.load_vllm_engine(
            teacher,
            reference,
            window_len=options.shape.length,
            options=options.vllm,
            compiled=bool(options.model.compiled),
            falls_back=name == "vllm",
        )
    except vllm_start.VllmRefusedError:
        if name == "vllm":
            raise
    # It has let the models go.
    return _engine(sources, *_load_pair(sources, here))


def _engine(sources: ModelSources, teacher: LoadedModel, reference: LoadedModel | None) -> Engine:
    from memaudit.engines import aligned, hf

    compiled, tokenizer = bool(sources.options.model.compiled), teacher.tokenizer
    is_apart = is_aligned(sources.role or "")  # its tokens are others: it scores by itself
    beside = None if reference is None or is_apart else reference.model
    engine = hf.HfEngine(
        teacher.model, beside, bos_token_id=tokenizer.bos_token_id, compiled=compiled
    )
    if reference is None or not is_apart:
        return engine
    other = aligned.aligned_reference(reference, tokenizer, compiled)
    return aligned.AlignedEngine(engine, other)


def _set_threads(options: AuditOptions) -> int:
    """Set the CPU threads of this process if it scores; return those of one that does."""
    import torch

    if options.n_elsewhere:
        return options.threads or max(1, torch.get_num_threads() // options.n_elsewhere)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return torch.get_num_threads()


def _device_kind(options: AuditOptions, threads: int) -> tuple[str, bool]:
    """Return what the models run on, wherever that is, and whether `is_fused` there."""
    ray, device = options.ray, options.model.device
    if device == "split" and options.n_elsewhere:
        raise UsageError(
            "--device split takes all devices, and several workers would share them",
            hint="leave out --workers",
        )
    if ray is None:
        return _kind_here(device)
    if device not in ("auto", "cuda" if ray.gpus_per_replica else "cpu"):
        raise UsageError(
            f"--device {safe_text(device)} with {ray.gpus_per_replica:g} GPUs for each replica",
            hint="leave out --device: a replica runs on what --gpus-per-replica reserves",
        )
    if ray.gpus_per_replica == 0:
        return "cpu", False
    return device_on_ray(ray, threads)


def _kind_here(device: str) -> tuple[str, bool]:
    import torch

    device = device_here("auto" if device == "split" else device)
    if device == "cpu":
        return device, False
    from memaudit.engines.head import is_fused

    return str(torch.cuda.get_device_name(device)), is_fused(torch.device(device))
