"""The scoring pass: from the windows of a chunk to its features, committed."""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from queue import SimpleQueue
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from memaudit.engines import Engine
from memaudit.errors import ModelError, OutputError
from memaudit.features import corpus_features, exposure_features, model_columns, one_model_features
from memaudit.progress import ReportProgress, begin_stage, listening
from memaudit.runs.chunks import SUFFIX_TOKENS, ChunkPlan, write_chunk
from memaudit.runs.files import output_errors, remove_halves
from memaudit.runs.folder import WINDOWS, RunFolder, unscored_chunks
from memaudit.runs.reading import DistinctWindows, Tokenizer
from memaudit.runs.sealed_parquet import DamagedFileError
from memaudit.scores import WindowScores, stack_scores
from memaudit.sensitivity import (
    is_secret_at_risk,
    load_detector,
    secret_argmax_rate,
    sensitivity_counts,
)
from memaudit.text import number_of, shown_path
from memaudit.windows import NO_TOKEN, context_len, without_padding

TOKEN = np.dtype("<i4")
"""Of token ids in files of a run: one byte order, whatever machine wrote them."""

_NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ChunkWork:
    """A chunk to be scored."""

    number: int
    windows: NDArray[np.int32]
    """(n, T) token ids, `NO_TOKEN` where a window lacks some."""

    occurrences: NDArray[np.int64]
    """(n,) how often each window occurs in the corpus."""

    exposure: NDArray[np.float64] | None = None
    """(n, 3) as in `DistinctWindows`."""

    captured: NDArray[np.float32] | None = None
    """(n, 2, T) as in `memaudit.runs.captured`."""


ScoreChunks = Callable[[ChunkPlan, Iterator[ChunkWork]], Iterator[int]]
"""Scores and commits chunks, here or elsewhere, in any order; yields the number of each.

One that cannot be scored is marked as failed instead (`memaudit.runs.workers`).
"""


@dataclass(frozen=True, slots=True)
class Session:
    """What one process does for a run."""

    started: float = field(default_factory=time.monotonic)
    """By `time.monotonic`."""

    scoring_seconds: float = 0.0
    kept_windows: int = 0
    """Distinct windows that were scored before."""


@dataclass(frozen=True, slots=True)
class KeptWindows:
    """The distinct windows of a corpus, in a file that is open; as `DistinctWindows`, to be read."""

    plan: ChunkPlan
    """Of the run they belong to. Each chunk is a row group."""

    file: pq.ParquetFile
    occurrences: NDArray[np.int64]
    exposure: NDArray[np.float64] | None
    captured: None = None

    def read(self, start: int, count: int) -> NDArray[np.int32]:
        """Return the windows of a chunk: (count, window_len) token ids.

        Raises:
            OutputError: they are not what was written.
        """
        length = self.plan.shape.length
        try:
            group = self.file.read_row_group(self.plan.chunk_of(start), ["tokens"])
            column = group.column(0).combine_chunks()
            if len(column) != count or column.null_count:
                raise DamagedFileError("another number of windows")
            windows = np.frombuffer(
                column.buffers()[1], TOKEN, count * length, column.offset * length * 4
            )
            # Whoever can write there can seal ids that no tokenizer has.
            if windows.min() < NO_TOKEN:
                raise DamagedFileError("no tokens")
        except (DamagedFileError, IndexError, OSError, ValueError, pa.ArrowException) as error:
            raise OutputError(
                f"{shown_path(self.plan.folder.with_name(WINDOWS))}: damaged",
                hint="remove it, and give the same command again",
            ) from error
        return windows.reshape(count, length)


def score_missing(
    run: RunFolder,
    windows: DistinctWindows | KeptWindows,
    score: ScoreChunks,
    session: Session,
    progress: ReportProgress | None,
) -> Session:
    """Score the own chunks of a run that are not there yet, or damaged.

    Returns:
        the session, with what was done in it.
    """
    plan, missing = run.plan, unscored_chunks(run)
    n_missing = sum(len(plan.windows_of(chunk)) for chunk in missing)
    started, done, begun = time.monotonic(), 0, 0
    report = begin_stage("score", "windows", progress)

    def hear(what: str, n: int) -> None:
        nonlocal begun
        if what == "score":
            # Two models may look at a window: that a chunk is done, only its end says.
            begun = min(begun + n, plan.chunk_size)
            report(min(done + begun, n_missing - 1), n_missing)

    report(done, n_missing)
    with listening(hear):
        for chunk in score(plan, chunks_to_score(plan, windows, missing)):
            done, begun = done + len(plan.windows_of(chunk)), 0
            report(done, n_missing)
    with output_errors(plan.folder):
        remove_halves(plan.folder)  # of workers that were killed at a commit
    return replace(
        session, scoring_seconds=time.monotonic() - started, kept_windows=plan.n_windows - n_missing
    )


def chunks_to_score(
    plan: ChunkPlan, windows: DistinctWindows | KeptWindows, chunks: Sequence[int]
) -> Iterator[ChunkWork]:
    """Yield the work for some chunks of a plan, as it is asked for."""
    occurrences, exposure = windows.occurrences, windows.exposure
    for chunk in chunks:
        indices = plan.windows_of(chunk)
        part = slice(indices.start, indices.stop)
        token_ids = windows.read(indices.start, len(indices))
        counted = None if exposure is None else exposure[part]
        told = None if windows.captured is None else windows.captured(indices.start, len(indices))
        yield ChunkWork(chunk, token_ids, occurrences[part], counted, told)


def score_here(
    engine: Engine, tokenizer: Tokenizer, plan: ChunkPlan, works: Iterator[ChunkWork]
) -> Iterator[int]:
    """Score chunks one after the other in this process: the plainest `ScoreChunks`.

    While the models run on a chunk, the texts of the next are measured and the features of the one
    before are committed, in a thread each: a GPU waits for neither.
    """

    def commit(work: ChunkWork, scored: _Scored) -> int:
        write_chunk(plan, work.number, _features(plan, tokenizer, work, scored))
        return work.number

    with ThreadPoolExecutor(1) as before, ThreadPoolExecutor(1) as after:
        # A generator: the next chunk is handed to the thread as it is asked for.
        measured = (
            (work, before.submit(_corpus_features, plan, tokenizer, work)) for work in works
        )
        current: tuple[ChunkWork, Future[list[dict[str, float]]]] | None = None
        committed: Future[int] | None = None
        # None moves the last chunk through.
        for upcoming in chain(measured, [None]):
            if current is not None:
                scored = _run_models(plan, engine, *current)
                # One commit at a time: a disk slower than the models holds them up, and fills no
                # memory.
                if committed is not None:
                    yield committed.result()
                committed = after.submit(commit, current[0], scored)
            current = upcoming
        if committed is not None:
            yield committed.result()


def score_at_once(
    engine: Engine,
    tokenizer: Tokenizer,
    n_at_once: int,
    plan: ChunkPlan,
    works: Iterator[ChunkWork],
) -> Iterator[int]:
    """Score several chunks at once in threads: for an engine that waits for another machine."""
    done: SimpleQueue[int | Exception] = SimpleQueue()

    def score(work: ChunkWork) -> None:
        try:
            score_chunk(plan, engine, tokenizer, work)
        except Exception as error:  # raised where it can be answered
            done.put(error)
        else:
            done.put(work.number)

    n_pending = 0
    # A None for each chunk that may be under way: they fetch the last answers.
    for work in chain(works, repeat(None, n_at_once)):
        if n_pending == n_at_once or (work is None and n_pending):
            found = done.get()
            n_pending -= 1
            if isinstance(found, Exception):
                raise found
            yield found
        if work is not None:
            # Daemons: after an error or a Ctrl-C nobody waits for answers that may never come. A
            # chunk is committed whole or not at all.
            Thread(target=score, args=(work,), daemon=True).start()
            n_pending += 1


def score_chunk(plan: ChunkPlan, engine: Engine, tokenizer: Tokenizer, work: ChunkWork) -> None:
    """Score a chunk and commit it under its name; to do so twice leaves the same file.

    The engine runs the teacher, and a reference if the plan has a role for it.

    Raises:
        ModelError: a feature is not a finite number, or memory does not suffice for one window.
        OutputError: the chunk cannot be written.
    """
    write_chunk(plan, work.number, chunk_features(plan, engine, tokenizer, work))


def chunk_features(
    plan: ChunkPlan, engine: Engine, tokenizer: Tokenizer, work: ChunkWork
) -> NDArray[np.float64]:
    """Return the features of a chunk's windows: (n, n_features).

    Raises:
        ModelError: as for `score_chunk`.
    """
    with ThreadPoolExecutor(max_workers=1) as beside:
        # zlib and the tokenizer let go of the interpreter: they run while the models do.
        known = beside.submit(_corpus_features, plan, tokenizer, work)
        return _features(plan, tokenizer, work, _run_models(plan, engine, work, known))


_Scored = tuple[list[dict[str, float]], list[int], list[WindowScores]]
"""Once the models have run: what no model says of each window, by name; the places of the windows
that the models looked at, ascending, and their scores."""


def _run_models(
    plan: ChunkPlan, engine: Engine, work: ChunkWork, known: Future[list[dict[str, float]]]
) -> _Scored:
    kept, prefilter = list(range(len(work.windows))), plan.prefilter
    if prefilter is not None:
        features = known.result()
        if prefilter.needs_reference:
            assert plan.role is not None
            kept = _kept(prefilter.could_be_flagged, features, kept)
            windows = [without_padding(work.windows[i]) for i in kept]
            said = _score(engine.reference_alone, windows) if windows else []
            for i, of_reference in zip(kept, said, strict=True):
                prefix_len = context_len(work.windows[i], plan.shape)
                features[i] |= one_model_features(plan.role, of_reference.teacher, prefix_len)
        kept = _kept(prefilter.keeps, features, kept)
    scores = _score(engine, [without_padding(work.windows[i]) for i in kept]) if kept else []
    return known.result(), kept, scores


def _features(
    plan: ChunkPlan, tokenizer: Tokenizer, work: ChunkWork, scored: _Scored
) -> NDArray[np.float64]:
    (known, kept, scores), alike = scored, defaultdict[tuple[int, int], list[int]](list)
    for number, (i, each) in enumerate(zip(kept, scores, strict=True)):
        # Windows of one shape are computed together.
        prefix_len = context_len(work.windows[i], plan.shape)
        alike[prefix_len, len(each.teacher.logprobs)].append(number)
        if known[i].get("secrets"):
            window = without_padding(work.windows[i])
            known[i]["secret_argmax_rate"] = secret_argmax_rate(
                load_detector(), tokenizer.decode, window, each.teacher.is_argmax
            )
            known[i]["secret_at_risk"] = float(is_secret_at_risk(known[i]))
    # NaN is what nobody says: it stays where a prefilter has spared the teacher a window.
    X = np.array([[row.get(name, np.nan) for name in plan.features] for row in known])
    for (prefix_len, _), numbers in alike.items():
        together = stack_scores([scores[number] for number in numbers])
        columns = model_columns(together, prefix_len=prefix_len, role=plan.role)
        rows = [kept[number] for number in numbers]
        for column, name in enumerate(plan.features):
            if name in columns:
                X[rows, column] = columns[name]
    # Refused before it is committed: a later session would take the chunk for good.
    n_broken = (~np.isfinite(X[kept])).sum(axis=0)
    if n_broken.any():
        column = int(n_broken.argmax())
        raise ModelError(
            f"feature {plan.features[column]} is not a finite number in "
            f"{number_of(int(n_broken[column]), 'window')}",
            hint="the model's weights are broken: get its files again, or use float32",
        )
    return X


def _corpus_features(
    plan: ChunkPlan, tokenizer: Tokenizer, work: ChunkWork
) -> list[dict[str, float]]:
    suffixes = [without_padding(window) for window in work.windows[:, plan.shape.prefix_len :]]
    texts = tokenizer.decode([without_padding(window).tolist() for window in work.windows])
    suffix_texts = tokenizer.decode([suffix.tolist() for suffix in suffixes])
    known = [
        corpus_features(text, suffix_text, int(count), plan.objective)
        for text, suffix_text, count in zip(texts, suffix_texts, work.occurrences, strict=True)
    ]
    if plan.epochs is not None:
        assert work.exposure is not None
        for features, counted, n in zip(known, work.exposure, work.occurrences, strict=True):
            features |= exposure_features(*counted.tolist(), occurrences=int(n), epochs=plan.epochs)
    if SUFFIX_TOKENS in plan.features:
        for features, suffix in zip(known, suffixes, strict=True):
            features[SUFFIX_TOKENS] = float(len(suffix))
    if plan.is_sensitive:
        # A window with a secret is always scored, and gets its own values then.
        unknown = {"secret_argmax_rate": 0.0, "secret_at_risk": 0.0}
        for features, text in zip(known, texts, strict=True):
            features |= sensitivity_counts(load_detector(), text) | unknown
    return known


def windows_to_score(
    plan: ChunkPlan, windows: DistinctWindows, tokenizer: Tokenizer
) -> NDArray[np.int64]:
    """Return the indices of the distinct windows that a model has to look at, ascending.

    With a prefilter that asks the reference first, the teacher is spared more of them.
    """
    if plan.prefilter is None:
        return np.arange(len(windows))
    prefilter, kept = plan.prefilter, []
    keeps = prefilter.could_be_flagged if prefilter.needs_reference else prefilter.keeps
    for work in chunks_to_score(plan, windows, range(plan.n_chunks)):
        known, places = _corpus_features(plan, tokenizer, work), plan.windows_of(work.number)
        kept += [places[i] for i in _kept(keeps, known, range(len(known)))]
    return np.array(kept, dtype=np.int64)


def _kept(
    keeps: Callable[[Mapping[str, NDArray[np.float64]]], NDArray[np.bool_]],
    known: Sequence[Mapping[str, float]],
    places: Sequence[int],
) -> list[int]:
    """Return those of some places that a rule keeps, or where a secret is."""
    if not places:
        return []
    rows = [known[i] for i in places]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    # What a prefilter rests on says nothing of secrets: whether the teacher knows one is asked.
    has_secret = np.array([row.get("secrets", 0.0) > 0 for row in rows], dtype=np.bool_)
    return [places[int(i)] for i in np.flatnonzero(keeps(columns) | has_secret)]


def _score(engine: Engine, windows: list[NDArray[np.int32]]) -> list[WindowScores]:
    """Score windows; if memory does not suffice, one half after the other."""
    try:
        return engine.score(windows)
    except (MemoryError, RuntimeError) as error:
        # torch has a class for its GPUs only; its CPU allocator raises a bare RuntimeError.
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        if len(windows) == 1:
            raise ModelError(
                f"not enough memory for one window of {len(windows[0])} tokens",
                hint="choose a smaller model, bfloat16 or another --device",
            ) from error
    # Outside of the handler: the error holds on to what was being computed.
    half = len(windows) // 2
    return _score(engine, windows[:half]) + _score(engine, windows[half:])
