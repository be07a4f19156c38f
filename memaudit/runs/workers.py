"""Several processes on one machine, one per device, that share the chunks of a run.

This process hands out one chunk at a time to each worker; the worker scores it and commits it. A
worker that dies is replaced, and its chunk is given to another: a chunk committed twice is the
same file. Workers do not outlive this process.

A chunk at which several workers die is given up, because one chunk must not end a run of days. It
gets a marker with the reason and no text, and its rows the outcome `error`; the next session
removes the marker and tries again.
"""

import multiprocessing
import os
import resource
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from memaudit.engines import Engine
from memaudit.errors import MemauditError, ModelError, WorkerError, traceback_of
from memaudit.files import forbid_core_dumps
from memaudit.runs.chunks import ChunkPlan, write_failure
from memaudit.runs.reading import Tokenizer
from memaudit.runs.scoring import ChunkWork, score_chunk

MAX_ATTEMPTS = 3
"""Processes that may die at a chunk before it is given up."""

_MAX_IN_A_ROW = 3
"""Chunks that may be given up without one that is scored: then it is not the chunks' fault."""


class Attempts:
    """How often the chunks of a run were lost together with whoever worked on them."""

    def __init__(self, plan: ChunkPlan) -> None:
        self._plan = plan
        self._n_lost: Counter[int] = Counter()
        self._n_given_up = 0

    def scored(self) -> None:
        """Note that a chunk was scored: whoever works can work."""
        self._n_given_up = 0

    def lost(self, chunk: int, reason: str) -> bool:
        """Note that a process died at a chunk, and how.

        Returns:
            whether the chunk is to be tried again; if not, it has a marker now.

        Raises:
            ModelError: several chunks in a row had to be given up.
            OutputError: the marker cannot be written.
        """
        self._n_lost[chunk] += 1
        if self._n_lost[chunk] < MAX_ATTEMPTS:
            return True
        self._n_given_up += 1
        reason = f"{MAX_ATTEMPTS} processes died at it, the last {reason}"
        if self._n_given_up == _MAX_IN_A_ROW:
            raise ModelError(
                f"{_MAX_IN_A_ROW} chunks in a row could not be scored; chunk {chunk}: {reason}",
                hint="if memory ran out, let fewer processes score at a time, or start over with "
                "a smaller --chunk-size",
            )
        write_failure(self._plan, chunk, reason)
        return False


LoadScorer = Callable[[int], tuple[Engine, Tokenizer]]
"""Loads the models in a worker, given its number; can be pickled."""


@dataclass(slots=True)
class _Worker:
    number: int
    process: BaseProcess
    pipe: Connection
    work: ChunkWork

    def answered(self) -> bool:
        """Whether it has committed its chunk; False if it died."""
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.pipe.close()
            self.process.join()
            return False
        raise_trouble(answer, f"worker {self.number}")
        return True


def score_in_workers(
    load: LoadScorer, n_workers: int, plan: ChunkPlan, works: Iterator[ChunkWork]
) -> Iterator[int]:
    """Score chunks in several processes: a `ScoreChunks` once the first two are given.

    Raises:
        MemauditError: what a worker met, or one chunk after the other had to be given up.
        RuntimeError: a worker crashed; with its traceback.
    """
    workers: dict[Connection, _Worker] = {}
    attempts = Attempts(plan)
    try:
        for number in range(n_workers):
            _start_next(workers, load, plan, number, works)
        while workers:
            for pipe in wait(list(workers)):
                worker = workers.pop(pipe)  # type: ignore[call-overload]  # only pipes wait here
                chunk = worker.work.number
                if worker.answered():
                    attempts.scored()
                    yield chunk
                    _hand_out(workers, worker, works)
                elif attempts.lost(chunk, f"with exit code {worker.process.exitcode}"):
                    _start_next(workers, load, plan, worker.number, iter([worker.work]))
                else:
                    yield chunk
                    _start_next(workers, load, plan, worker.number, works)
    finally:
        # Killed and not asked: a chunk that is not committed is worth nothing.
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
    # Not a fork: neither CUDA nor the threads of torch survive one.
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
    # While this process held that end as well, it would never hear that the worker has died.
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
    # If it has died meanwhile, the end of its pipe says so.
    with suppress(OSError):
        worker.pipe.send(work)


def _serve(load: LoadScorer, number: int, plan: ChunkPlan, pipe: Connection) -> None:
    """Score chunks until the pipe ends: the life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The mask of the moment at which it was started was inherited.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if resource.getrlimit(resource.RLIMIT_CORE)[0] == 0:
        forbid_core_dumps()  # the limit is inherited, the rest of it is not
    try:
        engine, tokenizer = load(number)
        while True:
            work = pipe.recv()
            score_chunk(plan, engine, tokenizer, work)
            pipe.send(work.number)
    except EOFError:
        return
    except Exception as error:
        pipe.send(trouble_of(error))


def trouble_of(error: Exception) -> MemauditError | str:
    """Return what another process is to be told of an error: message and hint, or a traceback."""
    # As the plain class: those that take other arguments cannot be unpickled.
    if isinstance(error, MemauditError):
        return MemauditError(error.message, hint=error.hint)
    return traceback_of(error)


def raise_trouble(answer: object, who: str) -> None:
    """Raise what `trouble_of` told, if that is the answer.

    Raises:
        MemauditError: what the other process met.
        WorkerError: it crashed; with its traceback.
    """
    if isinstance(answer, MemauditError):
        raise answer
    if isinstance(answer, str):
        raise WorkerError(f"{who} crashed:\n{answer}")


def _die_with_parent() -> None:
    # A parent that is killed stops nobody: its workers would go on and hold their GPUs.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # `sys.exit` would end this thread alone.
    os._exit(1)
