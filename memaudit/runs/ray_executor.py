"""A Ray cluster: tasks that tokenise and count, and actors that share the chunks of a run.

The driver reads the corpus, and sends texts and tokens to tasks without a state, some parts ahead of
the one whose answer comes next. It keeps what it sent until the answer is here: Ray gives it to
another process when one dies, or to another node.

Ray promises that a task runs at least once. A chunk is the same file whoever commits it and however
often; so all that is asked of Ray is to carry chunks to actors, and to say when one is lost. An
actor that is lost, alone or with its node, is replaced, and its chunk handed out again. The windows
of a chunk travel as an argument of the task, one chunk an actor at a time.
"""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from pickle import PicklingError
from shutil import disk_usage
from typing import Any

from memaudit.engines import Engine
from memaudit.errors import MissingDependency, ModelError
from memaudit.files import forbid_core_dumps
from memaudit.runs.chunks import ChunkPlan
from memaudit.runs.counting import available_memory
from memaudit.runs.manifest import software_versions
from memaudit.runs.options import RayOptions
from memaudit.runs.reading import Answer, Part, Tasks, Tokenizer
from memaudit.runs.scoring import ChunkWork, score_chunk
from memaudit.runs.workers import MAX_ATTEMPTS, Attempts, LoadScorer, raise_trouble, trouble_of

_MAX_STILLBORN = 3
"""Actors that may die in a row before they have loaded their models."""

_SECONDS_FOR_A_START = 1800
"""How long to wait for a first actor: a cluster may have to grow, and models to be loaded."""

_OBJECT_STORE_BYTES, _BYTES_A_TASK = 100 * 1024**2, 64 * 1024**2
"""Of a cluster of our own, beside the grams: for chunks, and for the parts of the corpus that are
under way to a task. It must hold them all: what does not fit, Ray writes into a file."""

_IN_MEMORY = Path("/dev/shm")

_MOST_TASKS = 32
"""Twice as many as one driver keeps at work that tokenise, measured with rows of 3 kB."""


class Replica:
    """What lives in an actor: models, and the chunks they score."""

    def __init__(self, load: LoadScorer, plan: ChunkPlan, versions: dict[str, str]) -> None:
        self._load, self._plan, self._versions = load, plan, versions
        self._scorer: tuple[Engine, Tokenizer] | None = None

    def start(self) -> object:
        """Load the models; return what went wrong, or None."""
        forbid_core_dumps()  # Ray started this process, so it inherits no limit from us
        try:
            _require_same(frozenset(self._versions.items()), sensitive=self._plan.is_sensitive)
            self._scorer = self._load(0)
        except Exception as error:
            return trouble_of(error)
        return None

    def score(self, work: ChunkWork) -> object:
        """Score a chunk and commit it; return what went wrong, or None."""
        assert self._scorer is not None
        try:
            score_chunk(self._plan, *self._scorer, work)
        except Exception as error:
            return trouble_of(error)
        return None


def score_on_ray(
    load: LoadScorer, options: RayOptions, threads: int, plan: ChunkPlan, works: Iterator[ChunkWork]
) -> Iterator[int]:
    """Score chunks in actors: a `ScoreChunks` once the first three are given.

    Raises:
        MissingDependency: Ray is not installed.
        MemauditError: what an actor met, or none could be started, or one chunk after the other
            had to be given up.
        RuntimeError: an actor crashed; with its traceback.
    """
    with connected(options, threads) as ray:
        resources = {"num_cpus": threads, "num_gpus": options.gpus_per_replica}
        # Ray itself restarts no actor: `_Pool` counts who died at which chunk.
        actor_class = ray.remote(Replica).options(**resources)
        versions = software_versions(sensitive=plan.is_sensitive)
        pool = _Pool(ray, lambda: actor_class.remote(load, plan, versions), plan, works)
        yield from pool.run(options.replicas)


@contextmanager
def tasks_on_ray(options: RayOptions, threads: int) -> Iterator[Tasks]:
    """Give tasks on a cluster, as many at once as there are threads in its replicas, but at most 32.

    Twice as many are under way, so that none has to wait for its part.

    The connection is also that of the scoring within.

    Raises:
        MissingDependency, ModelError: as for `connected`.
    """
    with connected(options, threads) as ray:
        yield _RayTasks(ray, min(options.replicas * threads, _MOST_TASKS))


class _RayTasks(Tasks):
    def __init__(self, ray: Any, n_at_once: int) -> None:
        self._ray, self._n_at_once = ray, n_at_once
        # A task has no state, so Ray may try again by itself.
        self._task = ray.remote(_answer).options(num_cpus=1, max_retries=MAX_ATTEMPTS - 1)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        stores = [
            int(node["object_store_memory"]) for node in nodes if "object_store_memory" in node
        ]
        # A table may still be there when the next one comes.
        self.shared_bytes = min(stores) // 2 if stores else None

    def map(self, function: Callable[[Part], Answer], parts: Iterable[Part]) -> Iterator[Answer]:
        """Yield what a function makes of each part, in order.

        Raises:
            MemauditError: what a task met, or it could not be run.
            WorkerError: a task crashed; with its traceback.
        """
        try:
            shared = self._ray.put(function)
        except PicklingError:  # a tokenizer that comes with code of its own
            yield from map(function, parts)
            return
        # Hashable, for `_require_same` is cached: a process compares them once.
        versions, ahead = frozenset(software_versions().items()), deque[tuple[Any, Any]]()
        for part in parts:
            sent = self._ray.put(part)
            ahead.append((self._task.remote(shared, sent, versions), sent))
            if len(ahead) == 2 * self._n_at_once:
                yield self._heard(*ahead.popleft())
        while ahead:
            yield self._heard(*ahead.popleft())

    def _heard(self, ref: Any, sent: Any) -> Any:
        """Return the answer of a task; `sent` is only kept until it is here."""
        try:
            answer = self._ray.get(ref, timeout=_SECONDS_FOR_A_START)
        except self._ray.exceptions.GetTimeoutError as error:
            raise ModelError(
                f"no task on Ray has answered within {_SECONDS_FOR_A_START // 60} minutes",
                hint="compare with 'ray status' whether the cluster has a core that is free",
            ) from error
        except self._ray.exceptions.RayError as error:
            raise ModelError(
                f"a part of the corpus was given up on Ray: {_last_line(error)}",
                hint="is this version of memaudit installed on all nodes, and is there memory?",
            ) from error
        raise_trouble(answer, "a task")
        return answer


def _answer(
    function: Callable[[Part], Answer], part: Part, versions: frozenset[tuple[str, str]]
) -> object:
    """Apply a function in a task; return what went wrong, if anything did."""
    forbid_core_dumps()  # Ray started this process, so it inherits no limit from us
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it has one core
    try:
        _require_same(versions)
        return function(part)
    except Exception as error:
        return trouble_of(error)


@cache
def _require_same(versions: frozenset[tuple[str, str]], *, sensitive: bool = False) -> None:
    """Refuse a node whose software is not the driver's, naming what differs."""
    found = software_versions(sensitive=sensitive)
    differing = [
        f"{name} {found.get(name)} instead of {version}"
        for name, version in sorted(versions)
        if found.get(name) != version
    ]
    if differing:
        raise ModelError(
            f"a node of the cluster has other software: {', '.join(differing)}",
            hint="install the same versions on all nodes: others give other numbers",
        )


def device_on_ray(options: RayOptions, threads: int) -> tuple[str, bool]:
    """Return the kind of GPU that a replica would run on, and whether `is_fused` there."""
    with connected(options, threads) as ray:
        task = ray.remote(_gpu).options(num_cpus=0, num_gpus=options.gpus_per_replica)
        found: tuple[str, bool] = ray.get(task.remote())
    return found


@contextmanager
def connected(options: RayOptions, threads: int) -> Iterator[Any]:
    """Give Ray, connected to a cluster, or with one of its own on this machine for the time.

    Raises:
        MissingDependency: Ray is not installed.
        ModelError: there is no such cluster.
    """
    # Read when Ray is imported, and passed on to what it starts.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingDependency("ray", needed_for="--executor ray", extra="ray") from error
    if ray.is_initialized():  # by what this is a part of: reading, counting and scoring share it
        yield ray
        return
    where: dict[str, Any] = {"address": options.address}
    if options.address is None:
        where = {"num_cpus": options.replicas * threads, "include_dashboard": False}
        n_tasks = min(where["num_cpus"], _MOST_TASKS)
        least = _OBJECT_STORE_BYTES + n_tasks * _BYTES_A_TASK
        # Were it larger than the file system in memory, Ray would put all of it on a disk.
        free = disk_usage(_IN_MEMORY).free if _IN_MEMORY.exists() else 0
        more = (available_memory() or 0) // 4  # for grams; it takes memory only as it fills
        where["object_store_memory"] = max(least, min(least + more, free))
    with _same_signals():
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises bare ones
            raise ModelError(
                f"no connection to Ray at {options.address or 'this machine'}: {_last_line(error)}",
                hint="check --address, or leave it out for a cluster on this machine alone",
            ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(slots=True)
class _Actor:
    handle: Any
    work: ChunkWork | None
    """What it scores. None: it is starting."""


class _Pool:
    """Actors at work or starting, and the chunks that are left."""

    def __init__(
        self, ray: Any, new_actor: Any, plan: ChunkPlan, works: Iterator[ChunkWork]
    ) -> None:
        self._ray, self._new_actor, self._works = ray, new_actor, works
        # A chunk at hand, if any is left: whether one is left decides about starts.
        self._next = next(works, None)
        self._attempts = Attempts(plan)
        self._actors: dict[Any, _Actor] = {}
        self._n_stillborn = 0
        self._last_sign = time.monotonic()

    def run(self, n_actors: int) -> Iterator[int]:
        """Yield the number of each chunk that is scored or given up."""
        try:
            for _ in range(n_actors if self._next else 0):
                self._start()
            while self._next or any(actor.work for actor in self._actors.values()):
                for ref in self._finished():
                    yield from self._heard_of(ref, self._actors.pop(ref))
        finally:
            for actor in self._actors.values():
                self._ray.kill(actor.handle)

    def _start(self) -> None:
        handle = self._new_actor()
        self._actors[handle.start.remote()] = _Actor(handle, None)

    def _finished(self) -> list[Any]:
        """Wait for a moment; return what has finished by then."""
        # A second at a time: without room in the cluster a start would be waited for without end.
        refs = list(self._actors)
        finished: list[Any] = self._ray.wait(refs, num_returns=1, timeout=1)[0]
        # While one of them scores, the others may wait for room as long as they like.
        is_waiting = all(actor.work is None for actor in self._actors.values())
        if finished or not is_waiting:
            self._last_sign = time.monotonic()
        elif time.monotonic() - self._last_sign > _SECONDS_FOR_A_START:
            raise ModelError(
                f"no replica has started within {_SECONDS_FOR_A_START // 60} minutes",
                hint="compare what --threads and --gpus-per-replica ask for with 'ray status'",
            )
        return finished

    def _heard_of(self, ref: Any, actor: _Actor) -> Iterator[int]:
        try:
            trouble = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            yield from self._lost(actor, error)
            return
        raise_trouble(trouble, "a replica")
        self._n_stillborn = 0
        if actor.work is not None:
            self._attempts.scored()
            yield actor.work.number
        self._hand_out(actor)

    def _hand_out(self, actor: _Actor) -> None:
        """Give an actor its next chunk, or let it go."""
        if self._next is None:
            self._ray.kill(actor.handle)
            return
        actor.work = self._next
        self._actors[actor.handle.score.remote(actor.work)] = actor
        self._next = next(self._works, None)

    def _lost(self, actor: _Actor, error: Exception) -> Iterator[int]:
        """Replace an actor, and see to its chunk."""
        # It may only be out of reach. What it has reserved is needed for the next one.
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor.handle)
        if actor.work is None:
            # Without its models no chunk can be to blame.
            self._n_stillborn += 1
            if self._n_stillborn == _MAX_STILLBORN:
                raise ModelError(
                    f"{_MAX_STILLBORN} replicas in a row died before they had their models: "
                    + _last_line(error),
                    hint="is this version of memaudit installed on all nodes, and is there "
                    "memory for the models?",
                ) from error
        elif self._attempts.lost(actor.work.number, f"with {type(error).__name__}"):
            left = chain([self._next] if self._next else [], self._works)
            self._works, self._next = left, actor.work
        else:
            yield actor.work.number
        if self._next:
            self._start()


def _last_line(error: Exception) -> str:
    """Return the end of what Ray says: before it are tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _gpu() -> tuple[str, bool]:
    import torch

    from memaudit.engines.head import is_fused

    return str(torch.cuda.get_device_name()), is_fused(torch.device("cuda"))


@contextmanager
def _same_signals() -> Iterator[None]:
    """Undo that Ray answers SIGTERM in our place, and answer one that it took for its own."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    was_terminated = False
    try:
        yield
    except SystemExit:  # what its handler of SIGTERM raises
        was_terminated = True
    finally:
        # Python sets handlers in the main thread alone, and so does Ray.
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
    if was_terminated:
        os.kill(os.getpid(), signal.SIGTERM)
