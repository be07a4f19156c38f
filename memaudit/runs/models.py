"""The models of a run: loaded in this process, or in each worker."""

from dataclasses import dataclass, replace
from functools import partial

from memaudit import __version__
from memaudit.classifier import RiskClassifier
from memaudit.engines.base import Engine
from memaudit.engines.models import LoadedModel, ModelOptions
from memaudit.features import ReferenceRole
from memaudit.runs.chunks import feature_set_name
from memaudit.runs.result import ModelNames
from memaudit.runs.scoring import ScoreChunks, Tokenizer, score_here
from memaudit.runs.workers import score_in_workers


@dataclass(frozen=True, slots=True)
class AuditModels:
    """What scores a corpus: models, or a test's stand-in."""

    tokenizer: Tokenizer
    """The teacher's."""

    score: ScoreChunks
    """Runs the teacher, and the reference if there is a role for it, over chunks."""

    engine: str
    """What runs them: `hf-float32`."""

    teacher: str
    """As given, for reports."""

    teacher_digest: str = ""
    """Of its files."""

    reference: str | None = None
    """As given, for reports."""

    reference_digest: str | None = None
    """Of its files."""

    role: ReferenceRole | None = None
    """What the reference is."""

    device: str = "cpu"
    """`cpu`, or the kind of GPU."""

    threads: int | None = None
    """CPU threads of each process that scores. None: not settled by us."""

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
    """Folder, file or hub id."""

    role: ReferenceRole | None
    """What the reference is."""

    options: ModelOptions
    """How they are loaded."""

    threads: int | None = None
    """CPU threads of each process that scores. None: the cores, divided among them."""

    workers: int = 1
    """Processes that score; on GPUs one each. 1: this one."""


def load_models(sources: ModelSources) -> AuditModels:
    """Load models, and what is needed to tell two runs apart.

    With several workers this process keeps the tokenizer alone.

    Raises:
        ModelError: a model cannot be loaded, or vocabularies differ.
    """
    here = sources.options
    if sources.workers > 1:
        here = replace(here, device="cpu")
    threads = _set_threads(sources)
    teacher, reference = _load_pair(sources, here)
    if sources.workers > 1:
        loader = partial(load_scorer, replace(sources, threads=threads))
        score: ScoreChunks = partial(score_in_workers, loader, sources.workers)
    else:
        score = partial(score_here, _engine(teacher, reference), teacher.tokenizer)
    return AuditModels(
        tokenizer=teacher.tokenizer,
        score=score,
        engine=f"hf-{sources.options.dtype}",
        teacher=sources.teacher,
        teacher_digest=teacher.digest,
        reference=sources.reference,
        reference_digest=None if reference is None else reference.digest,
        role=sources.role,
        device=_device_kind(sources.options.device),
        threads=threads,
    )


def load_scorer(sources: ModelSources, worker: int) -> tuple[Engine, Tokenizer]:
    """Load the models for one of several workers, on a device of its own.

    Args:
        sources: with the number of threads settled.
        worker: its number from 0, and that of its GPU, if models run on GPUs.

    Raises:
        ModelError: a model cannot be loaded, or vocabularies differ.
    """
    _set_threads(replace(sources, workers=1))
    on_gpu = _device_kind(sources.options.device) != "cpu"
    options = replace(sources.options, device=f"cuda:{worker}") if on_gpu else sources.options
    teacher, reference = _load_pair(sources, options)
    return _engine(teacher, reference), teacher.tokenizer


def _load_pair(
    sources: ModelSources, options: ModelOptions
) -> tuple[LoadedModel, LoadedModel | None]:
    from memaudit.engines.models import check_same_vocabulary, load_model

    teacher = load_model(sources.teacher, options)
    if sources.reference is None:
        return teacher, None
    reference = load_model(sources.reference, options)
    check_same_vocabulary(teacher, reference)
    return teacher, reference


def _engine(teacher: LoadedModel, reference: LoadedModel | None) -> Engine:
    from memaudit.engines.hf import HfEngine

    return HfEngine(
        teacher.model,
        None if reference is None else reference.model,
        bos_token_id=teacher.tokenizer.bos_token_id,
    )


def _set_threads(sources: ModelSources) -> int:
    """Set the CPU threads of this process if it scores; return those of one that does."""
    import torch

    if sources.workers > 1:
        return sources.threads or max(1, torch.get_num_threads() // sources.workers)
    if sources.threads is not None:
        torch.set_num_threads(sources.threads)
    return torch.get_num_threads()


def _device_kind(device: str) -> str:
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    name: str = torch.cuda.get_device_name(None if device == "auto" else device)
    return name
