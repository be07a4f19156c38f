"""The scoring pass: from the windows of a chunk to its features, committed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memaudit.engines.base import Engine
from memaudit.errors import ModelError
from memaudit.features import window_features
from memaudit.runs.chunks import ChunkPlan, write_chunk
from memaudit.runs.spool import WindowSpool
from memaudit.scores import WindowScores


class Tokenizer(Protocol):
    """Turns texts into token ids and back, many at a time."""

    def encode(self, texts: list[str], /) -> list[list[int]]:
        """Return the token ids of each text."""
        ...

    def decode(self, token_ids: list[list[int]], /) -> list[str]:
        """Return the text of each sequence of token ids."""
        ...

    def render_messages(self, messages: list[dict[str, str]], /) -> str:
        """Return the text that the chat template makes of messages with role and content."""
        ...


@dataclass(frozen=True, slots=True)
class ChunkWork:
    """A chunk to be scored."""

    number: int
    """Which chunk of the plan it is."""

    windows: NDArray[np.int32]
    """(n, T) token ids."""

    occurrences: NDArray[np.int64]
    """(n,) how often each window occurs in the corpus."""


ScoreChunks = Callable[[ChunkPlan, Iterator[ChunkWork]], Iterator[int]]
"""Scores and commits chunks, here or elsewhere, in any order; yields the number of each."""


def chunks_to_score(
    plan: ChunkPlan, windows: WindowSpool, chunks: Sequence[int]
) -> Iterator[ChunkWork]:
    """Yield the work for some chunks of a plan, as it is asked for."""
    occurrences = windows.occurrences
    for chunk in chunks:
        indices = plan.windows_of(chunk)
        token_ids = windows.read(indices.start, len(indices))
        yield ChunkWork(chunk, token_ids, occurrences[indices.start : indices.stop])


def score_here(
    engine: Engine, tokenizer: Tokenizer, plan: ChunkPlan, works: Iterator[ChunkWork]
) -> Iterator[int]:
    """Score chunks one after the other in this process: the plainest `ScoreChunks`."""
    for work in works:
        score_chunk(plan, engine, tokenizer, work)
        yield work.number


def score_chunk(plan: ChunkPlan, engine: Engine, tokenizer: Tokenizer, work: ChunkWork) -> None:
    """Score a chunk and commit it under its name; to do so twice leaves the same file.

    Args:
        plan: where it goes, and what it holds.
        engine: runs the teacher, and a reference if the plan has a role for it.
        tokenizer: the teacher's, for the text of a window.
        work: the chunk.

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
    prefix_len = plan.shape.prefix_len
    scores = _score(engine, list(work.windows))
    texts = tokenizer.decode(work.windows.tolist())
    suffix_texts = tokenizer.decode(work.windows[:, prefix_len:].tolist())
    X = np.empty((len(work.windows), len(plan.features)))
    for i in range(len(X)):
        features = window_features(
            scores[i],
            prefix_len=prefix_len,
            text=texts[i],
            suffix_text=suffix_texts[i],
            occurrences=int(work.occurrences[i]),
            objective=plan.objective,
            role=plan.role,
        )
        X[i] = [features[name] for name in plan.features]
    _check_finite(X, plan.features)
    return X


def _score(engine: Engine, windows: list[NDArray[np.int32]]) -> list[WindowScores]:
    """Score windows; if memory does not suffice, one half after the other."""
    try:
        return engine.score(windows)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(windows) == 1:
            raise ModelError(
                f"not enough memory for one window of {len(windows[0])} tokens",
                hint="choose a smaller model, bfloat16 or another --device",
            ) from error
    # Outside of the handler: the error holds on to what was being computed.
    half = len(windows) // 2
    return _score(engine, windows[:half]) + _score(engine, windows[half:])


def _is_out_of_memory(error: BaseException) -> bool:
    # torch has a class for its GPUs only; its CPU allocator raises a bare RuntimeError.
    said = str(error).lower()
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(phrase in said for phrase in phrases)


def _check_finite(X: NDArray[np.float64], names: tuple[str, ...]) -> None:
    n_broken = (~np.isfinite(X)).sum(axis=0)
    if n_broken.any():
        column = int(n_broken.argmax())
        raise ModelError(
            f"feature {names[column]} is not a finite number in {n_broken[column]} windows",
            hint="the model's weights are broken: get its files again, or use float32",
        )
