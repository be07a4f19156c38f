"""What a run costs beside its models, and what more processes bring.

    python -m benchmarks.scaling throughput --model models/demo-teacher
    python -m benchmarks.scaling commit --model models/demo-teacher
    python -m benchmarks.scaling memory --rows 1000000
    python -m benchmarks.scaling dispatch
    python -m benchmarks.scaling whole --rows 1000000
    python -m benchmarks.scaling busy --windows 40960
    python -m benchmarks.scaling actors --chunk-size 1024
    python -m benchmarks.scaling shards --rows 100000 [--row-bytes 300]
    python -m benchmarks.scaling prepare --rows 16000 [--row-bytes 300]

`whole` audits a file of documents of 3 kB with an engine that takes no time. `busy` says which share
of the scoring an engine is at work that sleeps as long as an H100 would take for a teacher of 1 and
of 8 billion parameters: as it is done, and chunk by chunk with 128 windows, as it was done before.
`actors` says how many windows a second 1, 2 and 4 Ray actors score, each with such an engine.
`shards` compares the CPU time of 16 shards that share the reading of a corpus with that of one reader;
nothing is scored, the windows are only handed out. Once with a classifier that asks for exposure.
`prepare` says how many rows a second are read, tokenised and cut, and how many are counted in a pass: by
one process, which tokenises with all cores, and with 1, 2 and 4 tasks at once on Ray. Each in a process
of its own, one after the other, round after round. `--tasks N` measures one of them alone.

Prints one JSON document. `throughput` alternates between one process and two Ray actors, each with
one thread; on a machine that others use too, compare CPU seconds a window rather than wall time.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import CorpusOptions, Example, Rendered, read_corpus
from memaudit.corpus.base import Span
from memaudit.corpus.reader import corpus_stamp
from memaudit.engines import Engine
from memaudit.engines.models import ModelOptions, open_tokenizer
from memaudit.features import FEATURE_SETS
from memaudit.objectives import Objective
from memaudit.progress import Progress
from memaudit.runs.chunks import ChunkPlan, write_chunk
from memaudit.runs.counting import count_exposure
from memaudit.runs.manifest import Shard
from memaudit.runs.models import ModelSources, load_models, load_scorer
from memaudit.runs.opening import AuditInputs, read_rows
from memaudit.runs.options import AuditOptions, RayOptions
from memaudit.runs.ray_executor import score_on_ray, tasks_on_ray
from memaudit.runs.reading import HERE, Answer, Cutter, DistinctWindows, Part, Tasks, Tokenizer
from memaudit.runs.scoring import ChunkWork, chunk_features, score_chunk, score_here
from memaudit.scores import TokenScores, WindowScores
from memaudit.windows import WindowShape

_SHAPE = WindowShape(50, 50)


class TimedEngine:
    """Notes when it is called, and what CPU time its process has used by then."""

    def __init__(self, engine: Engine, log: Path) -> None:
        """Note it in a file of the folder, one a process."""
        self.name = engine.name
        self._engine = engine
        self._log = log / f"{time.time_ns()}.jsonl"

    @property
    def reference_alone(self) -> Engine:
        """Not needed here."""
        raise NotImplementedError

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Score windows."""
        entry = {"wall": time.time(), "cpu": time.process_time(), "windows": len(windows)}
        with self._log.open("a") as log:
            log.write(json.dumps(entry) + "\n")
        return self._engine.score(windows)


class InstantEngine:
    """Knows no language and takes no time."""

    name = "instant"

    @property
    def reference_alone(self) -> Engine:
        """Not needed here."""
        raise NotImplementedError

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Make up scores."""
        logprobs = -np.ones(len(windows[0]) - 1, np.float32)
        scores = TokenScores(logprobs, logprobs < -2, -logprobs, logprobs)
        return [WindowScores(scores) for _ in windows]


class WordTokenizer:
    """Makes 100 token ids of a text, and texts of token ids, at little cost."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the characters, repeated to a window's length."""
        return [[*(text.encode() * 100)[: _SHAPE.length]] for text in texts]

    def encode_starts(self, texts: list[str], n_tokens: int) -> list[list[int]]:
        """Return the same."""
        return self.encode(texts)

    def encode_answers(
        self, texts: list[str], answers: list[tuple[Span, ...]]
    ) -> list[tuple[list[int], tuple[Span, ...]]]:
        """Return the same; there are no answers."""
        return [(ids, ()) for ids in self.encode(texts)]

    def can_encode(self, text: str, *, whole: bool) -> bool:
        """Say that it takes little memory."""
        return True

    def without_bos(self, ids: list[int]) -> list[int]:
        """Return the same."""
        return ids

    def decode(self, token_ids: list[list[int]]) -> list[str]:
        """Return one character a token."""
        return [bytes(ids).decode("latin-1") for ids in token_ids]

    def render_messages(self, conversation: object) -> Rendered:
        """Not needed here."""
        raise NotImplementedError


def load_timed(sources: ModelSources, log: Path, worker: int) -> tuple[Engine, Tokenizer]:
    """Load models for a worker; they note their times."""
    engine, tokenizer = load_scorer(sources, worker)
    return TimedEngine(engine, log), tokenizer


def load_instant(worker: int) -> tuple[Engine, Tokenizer]:
    """Load what takes no time."""
    return InstantEngine(), WordTokenizer()


def make_plan(folder: Path, n_windows: int, chunk_size: int) -> ChunkPlan:
    """Return the plan of a run of made up windows."""
    chunks = folder / "chunks"
    chunks.mkdir(parents=True)
    features = FEATURE_SETS["teacher"]
    return ChunkPlan(chunks, "0" * 64, _SHAPE, None, Objective(), features, n_windows, chunk_size)


def make_works(plan: ChunkPlan) -> Iterator[ChunkWork]:
    """Yield chunks of windows of random tokens."""
    rng = np.random.default_rng(0)
    for chunk in range(plan.n_chunks):
        n = len(plan.windows_of(chunk))
        windows = rng.integers(32, 127, (n, _SHAPE.length), dtype=np.int32)
        yield ChunkWork(chunk, windows, np.ones(n, np.int64))


def measured_sources(model: str) -> ModelSources:
    """Return the model, with one thread on the CPU, and its digest."""
    options = AuditOptions(model=ModelOptions(device="cpu", offline=True), threads=1)
    sources = ModelSources(model, None, None, options)
    digest = load_models(sources).teacher_digest
    return replace(sources, digests=(digest, None))


def costs(log: Path) -> dict[str, float]:
    """Return seconds a window, by the clock and of CPU, from calls that follow one another."""
    wall = cpu = windows = 0.0
    starts, ends = [], []
    for path in log.iterdir():
        # The first call of a process is slower: it is left out.
        calls = [json.loads(line) for line in path.read_text().splitlines()][1:]
        if len(calls) < 2:
            continue
        wall += calls[-1]["wall"] - calls[0]["wall"]
        cpu += calls[-1]["cpu"] - calls[0]["cpu"]
        windows += sum(call["windows"] for call in calls[:-1])
        starts.append(calls[0]["wall"])
        ends.append(calls[-1]["wall"])
    together = min(ends) - max(starts)
    return {
        "wall seconds a window and process": wall / windows,
        "CPU seconds a window": cpu / windows,
        "windows": windows,
        "seconds all at work": together,
        "windows a second": len(ends) * windows / wall,
    }


def throughput(model: str, n_windows: int, chunk_size: int, rounds: int) -> dict[str, object]:
    """Compare two Ray actors with one process, one thread each."""
    sources = measured_sources(model)
    found: dict[str, list[dict[str, float]]] = {"one process": [], "two actors": []}
    for _ in range(rounds):
        for name, measured in found.items():
            with tempfile.TemporaryDirectory() as folder:
                log = Path(folder) / "log"
                log.mkdir()
                plan = make_plan(Path(folder), n_windows, chunk_size)
                load = partial(load_timed, sources, log)
                if name == "one process":
                    scored = score_here(*load(0), plan, make_works(plan))
                else:
                    scored = score_on_ray(load, RayOptions(replicas=2), 1, plan, make_works(plan))
                assert len(list(scored)) == plan.n_chunks
                measured.append(costs(log))
    one, two = found["one process"], found["two actors"]
    by = {key: [b[key] / a[key] for a, b in zip(one, two, strict=True)] for key in one[0]}
    cpu = statistics.median(by["CPU seconds a window"])
    return {
        **found,
        "ratio of windows a second, as measured": statistics.median(by["windows a second"]),
        "ratio by CPU time, as if both cores were free": 2 / cpu,
    }


def commit(model: str, chunk_size: int, n_chunks: int) -> dict[str, float]:
    """Compare the commit of a chunk with its scoring."""
    engine, tokenizer = load_scorer(measured_sources(model), 0)
    seconds: dict[str, list[float]] = {"score": [], "commit": []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        plan = make_plan(Path(folder), chunk_size * n_chunks, chunk_size)
        for work in make_works(plan):
            started = time.perf_counter()
            X = chunk_features(plan, engine, tokenizer, work)
            scored = time.perf_counter()
            write_chunk(plan, work.number, X)
            seconds["score"].append(scored - started)
            seconds["commit"].append(time.perf_counter() - scored)
        size = statistics.mean(path.stat().st_size for path in plan.folder.iterdir())
    found: dict[str, float] = {}
    for kind, choose in (("median", statistics.median), ("least", min)):
        chosen = {name: choose(values[1:]) for name, values in seconds.items()}
        found |= {f"{kind} seconds to {name} a chunk": value for name, value in chosen.items()}
        found[f"share of commits, {kind}"] = chosen["commit"] / chosen["score"]
    return {
        **found,
        "bytes of a chunk": size,
    }


def memory(n_rows: int, chunk_size: int) -> dict[str, float]:
    """Audit rows that all differ with an engine that takes no time."""
    from memaudit import audit
    from memaudit.classifier import load_classifier
    from memaudit.runs.folder import open_folder
    from memaudit.runs.models import AuditModels
    from memaudit.runs.options import AuditOptions

    before = _peak()
    rows = (Example(i, f"row-{i}", f"c.jsonl:{i + 1}", f"{i:09} ") for i in range(n_rows))
    tokenizer = WordTokenizer()
    score = partial(score_here, InstantEngine(), tokenizer)
    models = AuditModels(tokenizer=tokenizer, score=score, engine="instant", teacher="none")
    classifier = load_classifier(Path("models") / "teacher")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        out = Path(folder) / "run"
        inputs = AuditInputs(rows, models, classifier, AuditOptions(chunk_size=chunk_size))
        with open_folder(out) as run_folder:
            audit._audit(run_folder, inputs, None, writes=True)
        sizes = {path.name: path.stat().st_size for path in out.iterdir() if path.is_file()}
        sizes["chunks"] = sum(path.stat().st_size for path in (out / "chunks").iterdir())
    return {
        "peak MiB": _peak(),
        "of it before the rows": before,
        "seconds": time.monotonic() - started,
        **{f"bytes of {name}": size for name, size in sizes.items()},
    }


class SleepingEngine(InstantEngine):
    """Takes the time of a model on another machine."""

    def __init__(self, windows_a_second: float) -> None:
        """Take its speed."""
        self._rate = windows_a_second
        self.slept = 0.0

    def score(self, windows: Sequence[NDArray[np.int32]]) -> list[WindowScores]:
        """Sleep, and make up scores."""
        begun = time.monotonic()
        time.sleep(len(windows) / self._rate)
        self.slept += time.monotonic() - begun
        return super().score(windows)


_RATES = {"1B": 3500.0, "8B": 500.0}
"""Windows of 100 tokens a second on an H100: 350 TFLOP/s of the 989 that it has in bfloat16 without
sparsity, 2e11 and 1.6e12 FLOP a window, and some time for the head."""


def busy(model: str, n_windows: int) -> dict[str, float]:
    """Return the share of the scoring that an engine is at work, by its size and how it is done."""
    tokenizer = load_scorer(measured_sources(model), 0)[1]
    windows = _natural_windows(tokenizer, n_windows)
    found = {}
    for name, rate in _RATES.items():
        n = min(n_windows, int(20 * rate))  # 20 seconds are enough
        for way, chunk_size in (("chunk by chunk", 128), ("as it is done", 4096)):
            engine = SleepingEngine(rate)
            with tempfile.TemporaryDirectory() as folder:
                plan = make_plan(Path(folder), n, chunk_size)
                works = (
                    ChunkWork(i, windows[list(plan.windows_of(i))], np.ones(len(part), np.int64))
                    for i in range(plan.n_chunks)
                    if (part := plan.windows_of(i))
                )
                begun = time.monotonic()
                if way == "chunk by chunk":
                    for work in works:
                        score_chunk(plan, engine, tokenizer, work)
                else:
                    for _ in score_here(engine, tokenizer, plan, works):
                        pass
                seconds = time.monotonic() - begun
            found[f"{name}, {way}"] = round(engine.slept / seconds, 3)
    return found


def load_sleeping(rate: float, worker: int) -> tuple[Engine, Tokenizer]:
    """Load what takes the time of a model on another machine."""
    return SleepingEngine(rate), WordTokenizer()


def actors(chunk_size: int) -> dict[str, float]:
    """Return the windows a second of 1, 2 and 4 actors, from the first commit to the last."""
    found = {}
    for name, rate in _RATES.items():
        for n in (1, 2, 4):
            n_chunks = max(4 * n, int(10 * rate * n / chunk_size))  # some 10 seconds
            with tempfile.TemporaryDirectory() as folder:
                plan = make_plan(Path(folder), n_chunks * chunk_size, chunk_size)
                load, options = partial(load_sleeping, rate), RayOptions(replicas=n)
                scored = score_on_ray(load, options, 1, plan, make_works(plan))
                times = [time.monotonic() for _ in scored]
            # The first chunks of the actors come together: what each begins with is not counted.
            seconds = times[-1] - times[n - 1]
            found[f"{name}, {n} actors"] = round((n_chunks - n) * chunk_size / seconds, 1)
    return found


def _natural_documents(n_bytes: int) -> list[str]:
    """Return real text in pieces of a size."""
    rows = read_corpus(CorpusOptions("sample_data/natural.jsonl.zst"))
    text = "\n".join(row.text for row in rows if isinstance(row, Example))
    return [text[i : i + n_bytes] for i in range(0, len(text) - n_bytes, n_bytes)]


def _natural_windows(tokenizer: Tokenizer, n: int) -> NDArray[np.int32]:
    ids = np.concatenate(tokenizer.encode(_natural_documents(100_000))).astype(np.int32)
    starts = np.random.default_rng(0).integers(0, len(ids) - _SHAPE.length, n)
    windows: NDArray[np.int32] = ids[starts[:, None] + np.arange(_SHAPE.length)]
    return windows


def whole(model: str, n_rows: int, chunk_size: int) -> dict[str, float]:
    """Audit a file of documents of 3 kB that all differ, without a model's time."""
    from memaudit import audit
    from memaudit.classifier import load_classifier
    from memaudit.runs.folder import open_folder
    from memaudit.runs.models import AuditModels

    tokenizer = load_scorer(measured_sources(model), 0)[1]
    documents = _natural_documents(2990)
    score = partial(score_here, InstantEngine(), tokenizer)
    models = AuditModels(tokenizer=tokenizer, score=score, engine="instant", teacher="none")
    classifier = load_classifier(Path("models") / "teacher")
    seconds: dict[str, float] = {}

    def note(moment: Progress) -> None:
        seconds[moment.stage] = moment.seconds

    with tempfile.TemporaryDirectory(dir=".") as folder:
        corpus = Path(folder) / "corpus.jsonl"
        _write_corpus(corpus, n_rows, documents)
        begun = time.process_time()
        assert sum(1 for _ in read_corpus(CorpusOptions(str(corpus)))) == n_rows
        alone = time.process_time() - begun
        before, begun, cpu = _peak(), time.monotonic(), time.process_time()
        options = AuditOptions(chunk_size=chunk_size)
        inputs = AuditInputs(read_corpus(CorpusOptions(str(corpus))), models, classifier, options)
        with open_folder(Path(folder) / "run") as run_folder:
            audit._audit(run_folder, inputs, note, writes=True)
        total, cpu = time.monotonic() - begun, time.process_time() - cpu
    sample = [documents[i % len(documents)] for i in range(4000)]
    begun = time.process_time()
    tokenizer.encode(sample)
    encoding = time.process_time() - begun
    begun = time.process_time()
    tokenizer.encode_starts(sample, _SHAPE.length)
    starting = time.process_time() - begun
    each = 1e6 / n_rows
    return {
        "rows": n_rows,
        "microseconds of CPU to read a row, alone": alone * each,
        "to tokenise all of it, alone": 1e6 * encoding / len(sample),
        "to tokenise its first window, alone": 1e6 * starting / len(sample),
        "microseconds a row of all but reading, counting and scoring": (
            total - sum(seconds.values())
        )
        * each,
        "rows a second": n_rows / total,
        "rows a CPU second": n_rows / cpu,
        **{f"seconds of {stage}": taken for stage, taken in seconds.items()},
        "whole texts a CPU second, tokenizers alone": len(sample) / encoding,
        "peak MiB": _peak(),
        "of it before the rows": before,
    }


def shards(model: str, n_rows: int, row_bytes: int, n_shards: int = 16) -> dict[str, float]:
    """Compare the CPU time of shards that share the reading of a corpus with that of one reader."""
    from memaudit import audit
    from memaudit.classifier import load_classifier
    from memaudit.runs.folder import open_folder
    from memaudit.runs.models import AuditModels
    from memaudit.runs.shards import score_prepared

    def hand_out(plan: ChunkPlan, works: Iterator[ChunkWork]) -> Iterator[int]:
        return (work.number for work in works)

    tokenizer = load_scorer(measured_sources(model), 0)[1]
    models = AuditModels(tokenizer=tokenizer, score=hand_out, engine="instant", teacher="none")
    found: dict[str, float] = {"rows": n_rows, "bytes of a row": row_bytes}
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        corpus = CorpusOptions(str(folder / "corpus.jsonl"))
        _write_corpus(Path(corpus.source), n_rows, _natural_documents(row_bytes - 10))

        def seconds_of(kind: str, shard: Shard | None, *, shared: bool = False) -> float:
            classifier = load_classifier(Path("models") / kind)
            begun, rows = time.process_time(), read_corpus(corpus)
            inputs = AuditInputs(rows, models, classifier, AuditOptions(), corpus=corpus)
            with open_folder(folder / f"{kind}-{shared}-{shard and shard.index}") as out:
                if shard is not None and shared:
                    place = folder / f"{kind}-shared", str(corpus_stamp(corpus))
                    score_prepared(out, inputs, shard, place, None)
                else:
                    with DistinctWindows(_SHAPE.length, out) as windows:
                        audit._score(out, inputs, windows, None, shard)
            return time.process_time() - begun

        for what, kind in (("plain", "teacher-hard"), ("exposure", "teacher")):
            alone, one = seconds_of(kind, Shard(0, n_shards)), seconds_of(kind, None)
            each = [seconds_of(kind, Shard(i, n_shards), shared=True) for i in range(n_shards)]
            found |= {
                f"{what}: CPU seconds of the reading of a whole run": one,
                f"{what}: of one shard that reads alone": alone,
                f"{what}: of {n_shards} shards together": sum(each),
                f"{what}: of the first": each[0],
                f"{what}: of another, median": statistics.median(each[1:]),
                f"{what}: ratio to a whole run": sum(each) / one,
                f"{what}: ratio to a shard alone": sum(each) / alone,
            }
    return found


@dataclass(frozen=True, slots=True)
class Timed:
    """A function that also says what CPU time it takes."""

    function: Callable[[Any], Any]

    def __call__(self, part: Any) -> tuple[Any, float]:
        """Return its answer, and seconds of this process."""
        begun = time.process_time()
        answer = self.function(part)
        return answer, time.process_time() - begun


class TimedTasks(Tasks):
    """Adds up the CPU seconds of tasks."""

    def __init__(self, tasks: Tasks) -> None:
        """Take them."""
        self._tasks, self.shared_bytes, self.seconds = tasks, tasks.shared_bytes, 0.0

    def map(self, function: Callable[[Part], Answer], parts: Iterable[Part]) -> Iterator[Answer]:
        """Yield what a function makes of each part."""
        for answer, seconds in self._tasks.map(Timed(function), parts):
            self.seconds += seconds
            yield answer


_COPIES = 16
"""Of the corpus that is counted: what a pass costs beside its rows is little where there are many."""


def prepare(model: str, n_rows: int, row_bytes: int, n_tasks: int) -> dict[str, float]:
    """Read a corpus and count in it, with so many tasks at once; 0: in this process."""
    from memaudit.classifier import load_classifier
    from memaudit.runs.models import AuditModels

    tokenizer, _ = open_tokenizer(model, ModelOptions(device="cpu", offline=True))
    options = RayOptions(replicas=n_tasks or 1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=".")))
        documents = _natural_documents(row_bytes - 10)
        _write_corpus(folder / "corpus.jsonl", n_rows, documents)
        before = _peak()
        tasks = stack.enter_context(tasks_on_ray(options, 1)) if n_tasks else HERE
        # What a process loads before its first rows is not measured.
        some = [[Rendered(text) for text in documents[:9]]] * 4 * n_tasks
        cutter = Cutter(tokenizer, AuditOptions().window_choice, keeps_tokens=True)
        for _ in tasks.map(cutter, some):
            pass
        timed = TimedTasks(tasks)
        models = AuditModels(
            tokenizer=tokenizer,
            score=lambda plan, works: iter(()),
            engine="none",
            teacher="none",
            tasks=lambda: nullcontext(timed),
        )
        rows = read_corpus(CorpusOptions(str(folder / "corpus.jsonl")))
        classifier = load_classifier(Path("models") / "teacher")
        windows = stack.enter_context(DistinctWindows(_SHAPE.length, folder))
        inputs = AuditInputs(rows, models, classifier, AuditOptions())
        begun = _clocks(timed)
        read = stack.enter_context(read_rows(inputs, windows, folder, None))
        found = _since(begun, timed, n_rows, "read", in_driver=not n_tasks)
        parts = list(read.tokens.parts())
        for part in parts * (_COPIES - 1):
            read.tokens.append(part)
        plan, begun = make_plan(folder, len(windows), 4096), _clocks(timed)
        count_exposure(plan, range(plan.n_chunks), windows, read.tokens)
        found |= _since(begun, timed, n_rows * _COPIES, "count", in_driver=not n_tasks)
        return found | {"peak MiB of the driver": _peak(), "of it before the rows": before}


def _clocks(tasks: TimedTasks) -> tuple[float, float, float]:
    return time.monotonic(), time.process_time(), tasks.seconds


def _since(
    begun: tuple[float, float, float], tasks: TimedTasks, n_rows: int, what: str, *, in_driver: bool
) -> dict[str, float]:
    wall, cpu, in_tasks = (now - then for now, then in zip(_clocks(tasks), begun, strict=True))
    return {
        f"{what}: rows a second": n_rows / wall,
        f"{what}: microseconds of CPU a row in tasks": 1e6 * in_tasks / n_rows,
        f"{what}: in the driver beside them": 1e6 * (cpu - in_tasks * in_driver) / n_rows,
    }


def prepare_all(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Compare tasks with one process, round after round; return medians, and those of ratios."""
    command = [sys.executable, "-m", "benchmarks.scaling", "prepare", "--model", given.model]
    command += ["--rows", str(given.rows), "--row-bytes", str(given.row_bytes)]
    each: dict[int, list[dict[str, float]]] = {n: [] for n in (0, 1, 2, 4)}
    for _ in range(given.rounds):
        for n, measured in each.items():
            one = subprocess.run([*command, "--tasks", str(n)], stdout=subprocess.PIPE, check=True)
            measured.append(json.loads(one.stdout))
    found = {}
    for n, measured in each.items():
        name = f"{n} tasks at once" if n else "one process"
        found[name] = {key: statistics.median(m[key] for m in measured) for key in measured[0]}
        for what in ("read", "count"):
            key = f"{what}: rows a second"
            ratios = [m[key] / own[key] for m, own in zip(measured, each[0], strict=True)]
            found[name][f"{key}, times one process"] = statistics.median(ratios)
    return found


def _write_corpus(path: Path, n_rows: int, documents: Sequence[str]) -> None:
    """Write documents that all differ, by the number in front."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(n_rows):
            text = f"{i:09} {documents[i % len(documents)]}"
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def dispatch(n_chunks: int, chunk_size: int) -> dict[str, float]:
    """Send chunks to one actor that does nothing but commit them."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder), n_chunks * chunk_size, chunk_size)
        times = [
            time.perf_counter()
            for _ in score_on_ray(load_instant, RayOptions(), 1, plan, make_works(plan))
        ]
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder), n_chunks * chunk_size, chunk_size)
        here = [time.perf_counter() for _ in score_here(*load_instant(0), plan, make_works(plan))]
    on_ray, in_place = (statistics.median(np.diff(t)) for t in (times, here))
    return {
        "median seconds a chunk on Ray": on_ray,
        "median seconds a chunk in one process": in_place,
        "median seconds of Ray a chunk": on_ray - in_place,
    }


def _peak() -> float:
    """Return the highest resident memory of this process so far, MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1024**2


def main() -> None:
    """Measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = "throughput commit memory dispatch whole busy actors shards prepare"
    parser.add_argument("what", choices=names.split())
    parser.add_argument("--model", default="models/demo-teacher")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--row-bytes", type=int, default=3000)
    parser.add_argument("--windows", type=int, default=2048)
    parser.add_argument("--chunk-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int)
    given = parser.parse_args()
    n_chunks = max(2, given.windows // given.chunk_size)
    measures: dict[str, Callable[[], object]] = {
        "throughput": lambda: throughput(
            given.model, given.windows, given.chunk_size, given.rounds
        ),
        "commit": lambda: commit(given.model, given.chunk_size, n_chunks),
        "memory": lambda: memory(given.rows, given.chunk_size),
        "dispatch": lambda: dispatch(n_chunks, given.chunk_size),
        "whole": lambda: whole(given.model, given.rows, given.chunk_size),
        "busy": lambda: busy(given.model, given.windows),
        "actors": lambda: actors(given.chunk_size),
        "shards": lambda: shards(given.model, given.rows, given.row_bytes),
        "prepare": lambda: (
            prepare_all(given)
            if given.tasks is None
            else prepare(given.model, given.rows, given.row_bytes, given.tasks)
        ),
    }
    found = measures[given.what]()
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
