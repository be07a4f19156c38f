"""The opening of an audit: what it is given, found, loaded and read, and how that is declared."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from hashlib import sha256
from itertools import chain, islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import msgspec

from memaudit.classifier import (
    RiskClassifier,
    check_features,
    check_zlib,
    find_classifier,
)
from memaudit.corpus import BadRow, CorpusOptions, Example, corpus_of, read_corpus
from memaudit.corpus.base import LONG_TEXT, TOO_LARGE, CorpusSeen, refused
from memaudit.engines import (
    CAPTURED,
    COMPILED,
    ENDPOINT,
    FUSED,
    engine_name,
    engine_to_try,
    is_elsewhere,
    is_endpoint,
)
from memaudit.engines.models import model_digest
from memaudit.errors import CorpusError, UsageError
from memaudit.exposure import GRAM_TOKENS
from memaudit.features import EXPOSURE_FEATURES, ReferenceRole, feature_set_name, zlib_record
from memaudit.prefilter import Prefilter, make_prefilter
from memaudit.progress import ReportProgress
from memaudit.runs.captured import CapturedScores, told_rows
from memaudit.runs.chunks import SUFFIX_TOKENS
from memaudit.runs.counting import RowTokens
from memaudit.runs.files import scratch_folder
from memaudit.runs.folder import MANIFEST, ROWS, RunFolder, unscored_chunks
from memaudit.runs.manifest import (
    AnswersRead,
    ExposureCounted,
    Manifest,
    RunInputs,
    Shard,
    read_manifest,
    refuse_differences,
    software_versions,
)
from memaudit.runs.models import (
    AuditModels,
    ModelSources,
    check_sources,
    load_models,
    settled_role,
    teacher_digest,
)
from memaudit.runs.options import AuditOptions
from memaudit.runs.reading import (
    AnswerCounts,
    DistinctWindows,
    RowLog,
    RowWindows,
    Tokenizer,
    cut_rows,
)
from memaudit.runs.run import read_run
from memaudit.runs.sealed_parquet import is_whole
from memaudit.runs.unchanged import require_same_corpus
from memaudit.sensitivity import SENSITIVITY_COLUMNS, load_detector
from memaudit.text import shown_path


@dataclass(frozen=True, slots=True)
class AuditInputs:
    """What is audited, with what."""

    rows: Iterable[Example | BadRow]
    """Every row of the corpus, in order."""

    models: AuditModels
    """Of a captured teacher it is known only once all rows are read what was captured."""

    classifier: RiskClassifier
    """Its features are among those of the models' feature set."""

    options: AuditOptions
    prefilter: Prefilter | None = None
    """Says which windows no model looks at."""

    corpus: CorpusOptions | None = None
    """Where the rows are from, if they are from a corpus."""

    seen: CorpusSeen = field(default_factory=CorpusSeen)
    """What was found out about it, once all rows are read."""


@dataclass(frozen=True, slots=True)
class CorpusRead:
    """What is known of a corpus once it has been read, and a run declares."""

    rows: int
    rows_digest: str
    texts_digest: str
    distinct_windows: int
    answers: AnswerCounts
    raw_digest: str | None
    in_words: str | None
    """As in `Manifest.corpus_read`."""


@dataclass(frozen=True, slots=True)
class RowsRead:
    """A corpus read to its end; what is needed of it waits in files without a name."""

    inputs: AuditInputs
    """Of a captured teacher it is known now what was captured."""

    windows: DistinctWindows
    rows: RowLog
    cuts: RowWindows
    tokens: RowTokens
    """Of all rows, if the classifier looks at exposure; else none."""

    @property
    def corpus(self) -> CorpusRead:
        """What is known of it."""
        return CorpusRead(
            self.cuts.outcomes.total(),
            self.cuts.rows_hash.hexdigest(),
            self.cuts.texts_hash.hexdigest(),
            len(self.windows),
            self.cuts.answers,
            self.cuts.raw.value,
            self.inputs.seen.in_words,
        )

    def settled(self) -> "RowsRead":
        """Return the same once it is found out on the windows what scores: compiled models or not."""
        models = self.inputs.models
        if models.settle is not None:
            models = models.settle(models, self.windows)
        return replace(self, inputs=replace(self.inputs, models=models))


@contextmanager
def read_rows(
    inputs: AuditInputs,
    windows: DistinctWindows,
    folder: Path | None,
    progress: ReportProgress | None,
) -> Iterator[RowsRead]:
    """Read the corpus, and cut its rows into windows, of which equal ones are kept once.

    Raises:
        CorpusError: a row is bad, or none can be scored.
    """
    place = None if folder is None else scratch_folder(folder)
    choice, models = inputs.options.window_choice, inputs.models
    with (
        models.tasks() as tasks,
        RowLog(place) as rows,
        RowTokens(place, tasks) as tokens,
        CapturedScores(choice, place) as spool,
    ):
        windows.captured = spool.read if models.is_captured else None
        cuts = cut_rows(
            inputs.rows,
            models.tokenizer,
            (rows, windows),
            choice=choice,
            progress=progress,
            keep_tokens=tokens.append if asks_exposure(inputs) else None,
            keep_captured=spool.add if models.is_captured else None,
            tasks=tasks,
        )
        if models.is_captured:
            # Many teachers have one tokenizer: what was captured tells them apart.
            digest = sha256(f"{models.teacher_digest}{spool.digest}".encode()).hexdigest()
            models = replace(models, teacher_digest=digest, lacks_context=spool.lacks_context)
        yield RowsRead(replace(inputs, models=models), windows, rows, cuts, tokens)


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """What a user asks for; nothing has been loaded or read yet."""

    corpus: CorpusOptions
    sources: ModelSources
    classifier: RiskClassifier
    """Fits the models and the objective."""

    prefilter: Prefilter | None

    @property
    def options(self) -> AuditOptions:
        """Everything else."""
        return self.sources.options

    def as_begun(self, folder: Path) -> "AuditRequest":
        """Return the same; if a run in a folder found out whether compiling pays, that holds."""
        options = self.options
        is_begun = (folder / MANIFEST).exists() and not options.restart
        if options.model.compiled is not None or not is_begun:
            return self
        # Timed anew, a machine could decide otherwise, and the run be refused as another one.
        compiled = COMPILED in read_manifest(folder / MANIFEST).inputs.engine.split("-")
        options = replace(options, model=replace(options.model, compiled=compiled))
        return replace(self, sources=replace(self.sources, options=options))


def open_request(
    teacher: str | PathLike[str],
    data: object,
    student: str | PathLike[str] | None,
    baseline: str | PathLike[str] | None,
    options: AuditOptions,
) -> AuditRequest:
    """Find the classifier, and check that what is asked for can be had.

    Raises:
        UsageError: both a student and a baseline are given, or a survival that cannot be had.
        ClassifierError: no classifier fits.
        MissingDependency: what is sensitive is to be found, and a detector is not installed.
    """
    if options.sensitive:
        # First of all: that a package is missing is told before a tokenizer is loaded.
        load_detector()
    if student is not None and baseline is not None:
        raise UsageError(
            "both a student and a baseline are given, expected at most one reference",
            hint="leave out --student or --baseline",
        )
    reference = student or baseline
    role: ReferenceRole | None = "student" if student is not None else None
    corpus = replace(corpus_of(data), captured=fspath(teacher) == CAPTURED)
    asked = ModelSources(
        fspath(teacher),
        None if reference is None else fspath(reference),
        role if baseline is None else "baseline",
        replace(options, model=options.model.for_corpus(corpus)),
    )
    check_sources(asked)
    sources = settled_role(asked)
    feature_set = feature_set_name(sources.role)
    classifier = find_classifier(options.classifier, feature_set, options.objective.kind)
    check_zlib(classifier)
    return AuditRequest(corpus, sources, classifier, chosen_prefilter(classifier, options))


def open_inputs(
    request: AuditRequest, load: Callable[[], AuditModels] | None = None
) -> AuditInputs:
    """Find the first row of the corpus, then load the models, as they are asked for or by `load`.

    Raises:
        CorpusError: the corpus cannot be read.
        ModelError: a model cannot be loaded, or vocabularies differ.
    """
    # Models are loaded once there is a first row: a typo in a path costs no loading.
    models = cache(load or (lambda: load_models(request.sources)))
    options, corpus, seen = request.options, request.corpus, CorpusSeen()
    rows = read_corpus(
        corpus,
        render_messages=lambda messages: models().tokenizer.render_messages(messages),
        seen=seen,
    )
    rows = allowed_rows(rows, options.on_bad_row, lambda: models().tokenizer)
    if corpus.captured:
        choice, temperature = options.window_choice, options.endpoint.captured_temperature
        rows = told_rows(rows, lambda: models().tokenizer, choice, corpus.source, temperature)
        # Once more: what was captured may make a row bad.
        rows = allowed_rows(rows, options.on_bad_row, lambda: models().tokenizer)
    # The first row is read now, so that a corpus that cannot be read says so now.
    return AuditInputs(
        chain(list(islice(rows, 1)), rows),
        models(),
        request.classifier,
        options,
        request.prefilter,
        corpus,
        seen,
    )


def finished_before(
    folder: Path, request: AuditRequest, shard: Shard | None = None
) -> RunFolder | None:
    """Return the run in a folder if it is the one asked for, and nothing of it is left to be done.

    No model is loaded for that, and none before another run is refused: digests tell models apart.

    Raises:
        UsageError: another run is there, or the corpus has changed.
        OutputError: the manifest is damaged.
        ModelError, CorpusError: a model is not there, or the corpus cannot be read.
    """
    options, corpus, sources = request.options, request.corpus, request.sources
    if options.restart or not (folder / MANIFEST).exists():
        return None
    run = RunFolder.read(folder)
    was = run.manifest
    # A shard has no results that could be told again.
    is_done = was.shard is None and not unscored_chunks(run)
    asked = _asked_inputs(request, was.inputs, is_done=is_done)
    refuse_differences(folder, was, msgspec.structs.replace(was, inputs=asked, shard=shard))
    # A pipe can be read once, and texts are shown from their tokens.
    reads_once = corpus.source == "-" or isinstance(corpus.rows, Iterator)
    is_exact = _known_engine(sources) is not None and is_whole(
        folder / ROWS, {"memaudit.run": was.inputs.fingerprint}
    )
    if not is_done or not is_exact or reads_once or options.show_text:
        return None
    try:
        require_same_corpus(read_run(folder), corpus)
    except UsageError as error:
        raise UsageError(
            f"{shown_path(folder)}: holds another run: {error.message}",
            hint="start over with --restart, or choose another folder with --out",
        ) from error
    return run


def _known_engine(sources: ModelSources) -> str | None:
    """Return what the engine will call itself. None: models and devices decide that."""
    options = sources.options
    if sources.teacher == CAPTURED:
        return None  # so that the corpus is read: it is the teacher as well
    if is_endpoint(sources.teacher):
        return ENDPOINT
    if engine_to_try(options.engine, options.vllm, elsewhere=options.n_elsewhere > 0) != "hf":
        return None
    return engine_name("hf", options.model.dtype, compiled=options.model.compiled)


def _asked_inputs(request: AuditRequest, was: RunInputs, *, is_done: bool) -> RunInputs:
    """Return what a run would be given, as far as is known without models; the rest as it was.

    The number of threads rounds scores, and matters only while there is something to score.
    """
    options, sources, answers = request.options, request.sources, was.answers
    sensitivity = SENSITIVITY_COLUMNS if options.sensitive else ()
    changes = _chosen_inputs(request, sources.role, has_answers=answers is not None) | {
        "teacher_digest": teacher_digest(sources) or was.teacher_digest,
        "reference_digest": None
        if sources.reference is None
        else model_digest(sources.reference, options.model),
        "features": (*(n for n in was.features if n not in SENSITIVITY_COLUMNS), *sensitivity),
        "chunk_size": options.chunk_size or was.chunk_size,
    }
    if answers is not None:
        changes["answers"] = msgspec.structs.replace(
            answers, turns=options.turns, min_suffix_tokens=options.min_suffix_len
        )
    engine = _known_engine(sources)
    # Whether the softmax is fused is known once the device has been looked at.
    if engine not in (None, was.engine.removesuffix(FUSED)):
        changes["engine"] = engine
    if options.model.device == "cpu" and not is_elsewhere(sources.teacher):
        changes["device"] = "cpu"
    if options.threads is not None and not is_done:
        changes["threads"] = options.threads
    return msgspec.structs.replace(was, **changes)


def _chosen_inputs(
    asked: "AuditRequest | AuditInputs", role: ReferenceRole | None, *, has_answers: bool
) -> dict[str, Any]:
    """Return what a run is given that neither models nor the texts of a corpus decide."""
    options, prefilter, windows = asked.options, asked.prefilter, asked.options.windows
    # The rows settle what `auto` is, so a run says what was really cut.
    if windows == "auto":
        windows = "answers" if has_answers else "first"
    counts_exposure = asks_exposure(asked)
    return {
        "corpus": {} if asked.corpus is None else asked.corpus.declared(),
        "on_bad_row": options.on_bad_row,
        "feature_set": feature_set_name(role),
        "classifier_digest": asked.classifier.digest,
        "objective": options.objective,
        **options.shape.settings,
        "windows": windows,
        "zlib": zlib_record(),
        "versions": software_versions(sensitive=options.sensitive),
        "survival": None if prefilter is None else prefilter.survival,
        "cascade_digest": None if prefilter is None else prefilter.digest,
        "exposure": ExposureCounted(GRAM_TOKENS, options.epochs) if counts_exposure else None,
    }


def chosen_prefilter(classifier: RiskClassifier, options: AuditOptions) -> Prefilter | None:
    """Return the prefilter that the options ask for.

    Raises:
        UsageError: its survival cannot be had.
        ClassifierError: the screen is damaged, or this interpreter's zlib is another one.
    """
    if options.survival is None:
        return None
    prefilter = make_prefilter(classifier, options.survival)
    if prefilter.estimator is not None:
        check_zlib(prefilter.estimator)
    return prefilter


def asks_exposure(asked: "AuditRequest | AuditInputs") -> bool:
    """Whether rows are streamed past the windows to count how often their grams occur.

    The classifier, or the one of the prefilter, looks at exposure then.
    """
    estimator = None if asked.prefilter is None else asked.prefilter.estimator
    used = (*asked.classifier.features, *(() if estimator is None else estimator.features))
    return bool({*used} & {*EXPOSURE_FEATURES})


def allowed_rows(
    rows: Iterable[Example | BadRow],
    on_bad_row: Literal["error", "skip"],
    tokenizer: Callable[[], Tokenizer],
) -> Iterator[Example | BadRow]:
    """Yield rows; refuse the first bad one if the policy says so, be it for the tokenizer alone.

    Raises:
        CorpusError: saying what is wrong with it.
    """
    for row in rows:
        if isinstance(row, Example) and len(row.text) > LONG_TEXT and row.token_ids is None:
            whole = row.answers is not None
            # Asked before anything is tokenised: to try would take the memory.
            row = row if tokenizer().can_encode(row.text, whole=whole) else refused(row, TOO_LARGE)
        if isinstance(row, BadRow) and on_bad_row == "error":
            raise CorpusError(
                f"{row.address}: {row.reason}",
                hint="repair the row, or count and leave out bad rows with --on-bad-row skip",
            )
        yield row


def declare(inputs: AuditInputs, read: CorpusRead, shard: Shard | None) -> Manifest:
    """Return what a run is given: all that decides a byte of its results.

    Raises:
        ClassifierError: the engine cannot tell a feature that the classifier needs.
    """
    models, options = inputs.models, inputs.options
    features = models.features + (EXPOSURE_FEATURES if asks_exposure(inputs) else ())
    check_features(inputs.classifier, features, models.engine)
    sensitivity, answers = SENSITIVITY_COLUMNS if options.sensitive else (), None
    if read.answers.rows:
        answers = AnswersRead(options.turns, options.min_suffix_len, **asdict(read.answers))
    declared = RunInputs(
        rows=read.rows,
        rows_digest=read.rows_digest,
        texts_digest=read.texts_digest,
        distinct_windows=read.distinct_windows,
        teacher_digest=models.teacher_digest,
        reference_digest=models.reference_digest,
        features=features + ((SUFFIX_TOKENS,) if answers else ()) + sensitivity,
        engine=models.engine,
        device=models.device,
        threads=models.threads,
        chunk_size=options.chunk_size_on(models.device),
        answers=answers,
        **_chosen_inputs(inputs, models.role, has_answers=bool(read.answers.rows)),
    )
    return Manifest(
        inputs=declared,
        names=models.names(inputs.classifier),
        classifier=inputs.classifier,
        prefilter=inputs.prefilter,
        shard=shard,
        raw_digest=read.raw_digest,
        corpus_read=read.in_words,
        unused_weights=models.unused,
        compile_choice=models.compile_choice,
        canary=models.canary,
    )
