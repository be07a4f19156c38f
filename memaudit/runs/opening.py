"""The opening of an audit: what it is given, found and loaded, and how that is declared."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from memaudit.classifier import (
    RiskClassifier,
    check_features,
    check_zlib,
    find_classifier,
    zlib_record,
)
from memaudit.corpus import BadRow, CorpusOptions, Example, read_corpus
from memaudit.corpus.base import CorpusSeen
from memaudit.errors import CorpusError, UsageError
from memaudit.exposure import GRAM_TOKENS
from memaudit.features import EXPOSURE_FEATURES, ReferenceRole
from memaudit.prefilter import Prefilter, make_prefilter
from memaudit.runs.chunks import SUFFIX_TOKENS, feature_set_name
from memaudit.runs.manifest import (
    AnswersRead,
    ExposureCounted,
    Manifest,
    RunInputs,
    Shard,
    software_versions,
)
from memaudit.runs.models import AuditModels, ModelSources, load_models
from memaudit.runs.options import AuditOptions
from memaudit.runs.reading import RowWindows
from memaudit.sensitivity import SENSITIVITY_COLUMNS, load_detector


@dataclass(frozen=True, slots=True)
class AuditInputs:
    """What is audited, with what."""

    rows: Iterable[Example | BadRow]
    """Every row of the corpus, in order."""

    models: AuditModels
    """Score the windows."""

    classifier: RiskClassifier
    """Its features are among those of the models' feature set."""

    prefilter: Prefilter | None = None
    """Says which windows no model looks at."""

    corpus: CorpusOptions | None = None
    """Where the rows are from, if they are from a corpus."""

    seen: CorpusSeen = field(default_factory=CorpusSeen)
    """What was found out about it, once all rows are read."""

    @property
    def asks_exposure(self) -> bool:
        """Whether the rows are streamed past the windows to count how often their grams occur."""
        return asks_exposure(self.classifier, self.prefilter)


def open_inputs(
    teacher: str,
    data: str | Path | CorpusOptions,
    student: str | None,
    baseline: str | None,
    options: AuditOptions,
) -> AuditInputs:
    """Find the classifier, then the first row of the corpus, then load the models.

    Raises:
        UsageError: both a student and a baseline are given, or a survival that cannot be had.
        CorpusError: the corpus cannot be read.
        ModelError: a model cannot be loaded, or vocabularies differ.
        ClassifierError: no classifier fits.
        MissingDependency: what is sensitive is to be found, and a detector is not installed.
    """
    if options.sensitive:
        load_detector()
    role = reference_role(student, baseline)
    classifier = find_classifier(options.classifier, feature_set_name(role), options.objective.kind)
    check_zlib(classifier)
    prefilter = chosen_prefilter(classifier, options)
    corpus = data if isinstance(data, CorpusOptions) else CorpusOptions(str(data))
    model = replace(options.model, add_special_tokens=corpus.add_special_tokens)
    sources = model_sources(teacher, student, baseline, replace(options, model=model))
    # Models are loaded once there is a first row: a typo in a path costs no loading.
    models = cache(lambda: load_models(sources))
    seen = CorpusSeen()
    rows = read_corpus(
        corpus,
        render_messages=lambda messages: models().tokenizer.render_messages(messages),
        seen=seen,
    )
    rows = _begun(allowed_rows(rows, options.on_bad_row))
    return AuditInputs(rows, models(), classifier, prefilter, corpus, seen)


def model_sources(
    teacher: str, student: str | None, baseline: str | None, options: AuditOptions
) -> ModelSources:
    """Return which models an audit loads, and how."""
    return ModelSources(
        teacher,
        student or baseline,
        reference_role(student, baseline),
        options.model,
        options.threads,
        options.workers,
        options.ray,
        options.engine,
        options.vllm,
        options.shape.length,
    )


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


def asks_exposure(classifier: RiskClassifier, prefilter: Prefilter | None) -> bool:
    """Whether a classifier, or the one of a prefilter, looks at exposure."""
    estimator = None if prefilter is None else prefilter.estimator
    used = (*classifier.features, *(() if estimator is None else estimator.features))
    return bool({*used} & {*EXPOSURE_FEATURES})


def reference_role(student: str | None, baseline: str | None) -> ReferenceRole | None:
    """Return what the reference is.

    Raises:
        UsageError: both a student and a baseline are given.
    """
    if student is not None and baseline is not None:
        raise UsageError(
            "both a student and a baseline are given, expected at most one reference",
            hint="leave out --student or --baseline",
        )
    if baseline is not None:
        return "baseline"
    return None if student is None else "student"


def allowed_rows(
    rows: Iterator[Example | BadRow], on_bad_row: Literal["error", "skip"]
) -> Iterator[Example | BadRow]:
    """Yield rows; refuse the first bad one if the policy says so.

    Raises:
        CorpusError: saying what is wrong with it.
    """
    for row in rows:
        if isinstance(row, BadRow) and on_bad_row == "error":
            raise CorpusError(
                f"{row.address}: {row.reason}",
                hint="repair the row, or count and leave out bad rows with --on-bad-row skip",
            )
        yield row


def _begun(rows: Iterator[Example | BadRow]) -> Iterator[Example | BadRow]:
    """Read the first row now, so that a corpus that cannot be read says so now."""
    return chain(list(islice(rows, 1)), rows)


def declare(
    inputs: AuditInputs,
    options: AuditOptions,
    cuts: RowWindows,
    distinct_windows: int,
    shard: Shard | None,
) -> Manifest:
    """Return what a run is given: all that decides a byte of its results.

    Args:
        inputs: what is audited.
        options: how.
        cuts: the rows that were read, and their windows.
        distinct_windows: how many those are, equal ones counted once.
        shard: the part that is scored. None: all.

    Raises:
        ClassifierError: the engine cannot tell a feature that the classifier needs.
    """
    models, windows = inputs.models, options.windows
    if windows == "auto":
        windows = "answers" if cuts.answers.rows else "first"
    exposure = ExposureCounted(GRAM_TOKENS, options.epochs) if inputs.asks_exposure else None
    features = models.features + (EXPOSURE_FEATURES if exposure else ())
    check_features(inputs.classifier, features, models.engine)
    sensitivity, answers = SENSITIVITY_COLUMNS if options.sensitive else (), None
    if cuts.answers.rows:
        answers = AnswersRead(options.turns, options.min_suffix_len, **asdict(cuts.answers))
    declared = RunInputs(
        corpus={} if inputs.corpus is None else inputs.corpus.declared(),
        on_bad_row=options.on_bad_row,
        rows=cuts.outcomes.total(),
        rows_digest=cuts.rows_hash.hexdigest(),
        texts_digest=cuts.texts_hash.hexdigest(),
        distinct_windows=distinct_windows,
        teacher_digest=models.teacher_digest,
        reference_digest=models.reference_digest,
        feature_set=feature_set_name(models.role),
        features=features + ((SUFFIX_TOKENS,) if answers else ()) + sensitivity,
        classifier_digest=inputs.classifier.digest,
        objective=options.objective,
        engine=models.engine,
        device=models.device,
        threads=models.threads,
        prefix_tokens=options.shape.prefix_len,
        suffix_tokens=options.shape.suffix_len,
        windows=windows,
        chunk_size=options.chunk_size,
        zlib=zlib_record(),
        versions=software_versions(sensitive=options.sensitive),
        survival=None if inputs.prefilter is None else inputs.prefilter.survival,
        cascade_digest=None if inputs.prefilter is None else inputs.prefilter.digest,
        answers=answers,
        exposure=exposure,
    )
    return Manifest(
        inputs=declared,
        names=models.names(inputs.classifier),
        classifier=inputs.classifier,
        prefilter=inputs.prefilter,
        shard=shard,
        raw_digest=cuts.raw.value,
        corpus_read=inputs.seen.in_words,
    )
