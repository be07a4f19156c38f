"""Several processes on one machine, one a device, that share the chunks of a run.

This process hands out one chunk at a time to each worker; the worker scores it and commits it. A
worker that dies is replaced, and its chunk is given to another: a chunk committed twice is the
same file. Workers do not outlive this process.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from memaudit.engines.base import Engine
from memaudit.errors import MemauditError, ModelError
from memaudit.runs.chunks import ChunkPlan
from memaudit.runs.scoring import ChunkWork, Tokenizer, score_chunk

LoadScorer = Callable[[int], tuple[Engine, Tokenizer]]
"""Loads the models in a worker, given its number; can be pickled."""

_MAX_ATTEMPTS = 3
"""Workers that may die at one chunk before the run gives up."""


@dataclass(slots=True)
class _Worker:
    number: int
    process: BaseProcess
    pipe: Connection
    work: ChunkWork


def score_in_workers(
    load: LoadScorer, n_workers: int, plan: ChunkPlan, works: Iterator[ChunkWork]
) -> Iterator[int]:
    """Score chunks in several processes: a `ScoreChunks` once the first two are given.

    Args:
        load: called once in each worker.
        n_workers: processes at most.
        plan: of the run.
        works: the chunks.

    Raises:
        MemauditError: what a worker met, or several died at the same chunk.
        RuntimeError: a worker crashed; with its traceback.
    """
    workers: dict[Connection, _Worker] = {}
    attempts: dict[int, int] = {}
    try:
        for number in range(n_workers):
            _start_next(workers, load, plan, number, works)
        while workers:
            for pipe in wait(list(workers)):
                worker = workers.pop(pipe)  # type: ignore[call-overload]  # only pipes wait here
                if not _answered(worker):
                    chunk = worker.work.number
                    attempts[chunk] = attempts.get(chunk, 0) + 1
                    _refuse_poison(worker, attempts[chunk])
                    _start_next(workers, load, plan, worker.number, iter([worker.work]))
                    continue
                yield worker.work.number
                _hand_out(workers, worker, works)
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.join()


def _start_next(
    workers: dict[Connection, _Worker],
    load: LoadScorer,
    plan: ChunkPlan,
    number: int,
    works: Iterator[ChunkWork],
) -> None:
    """Start a worker on the next chunk, if there is one."""
    work = next(works, None)
    if work is None:
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(load, number, plan, theirs), daemon=True)
    # Ctrl-C is sent to all processes of a terminal; this one alone answers it, and stops the rest.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
        workers[ours] = _Worker(number, process, ours, work)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    with suppress(OSError):  # it died already: the pipe says so
        ours.send(work)


def _hand_out(
    workers: dict[Connection, _Worker], worker: _Worker, works: Iterator[ChunkWork]
) -> None:
    """Give a worker its next chunk, or let it go."""
    work = next(works, None)
    if work is None:
        worker.pipe.close()
        worker.process.join()
        return
    worker.work = work
    workers[worker.pipe] = worker
    with suppress(OSError):
        worker.pipe.send(work)


def _answered(worker: _Worker) -> bool:
    """Whether a worker has committed its chunk; False if it died."""
    try:
        answer = worker.pipe.recv()
    except (EOFError, OSError):
        worker.pipe.close()
        worker.process.join()
        return False
    if isinstance(answer, MemauditError):
        raise answer
    if isinstance(answer, str):
        raise RuntimeError(f"worker {worker.number} crashed:\n{answer}")
    return True


def _refuse_poison(worker: _Worker, attempts: int) -> None:
    if attempts == _MAX_ATTEMPTS:
        raise ModelError(
            f"{attempts} workers died at chunk {worker.work.number}, the last with exit code "
            f"{worker.process.exitcode}",
            hint="if they ran out of memory, use fewer --workers or a smaller --chunk-size",
        )


def _serve(load: LoadScorer, number: int, plan: ChunkPlan, pipe: Connection) -> None:
    """Score chunks until the pipe ends: the life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_die_with_parent, daemon=True).start()
    answer: object = None
    try:
        engine, tokenizer = load(number)
        while True:
            work = pipe.recv()
            score_chunk(plan, engine, tokenizer, work)
            pipe.send(work.number)
    except EOFError:
        return
    except MemauditError as error:
        answer = MemauditError(error.message, hint=error.hint)
    except Exception:
        import traceback

        answer = traceback.format_exc()
    pipe.send(answer)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
