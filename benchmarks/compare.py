"""Compare memaudit with its peers on one model: speed, memory, numeric error, extraction.

All paths get the same windows, each in a process of its own. The windows are cut into rounds, and
within a round one path runs after the other, so that what else the machine does hits all alike;
ratios are taken round by round. Every figure is written as it comes: a run that was stopped goes
on where it was, and what is measured is not measured again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.paths import write_reference
from benchmarks.report import write_report
from benchmarks.windows import write_windows

_REPOSITORY = Path(__file__).parent.parent
_ENVIRONMENTS = _REPOSITORY / "build" / "benchmarks"
_N_WARM_UP = 8
_N_PILOTS = 2
_LEAST_PART = 32


@dataclass(frozen=True, slots=True)
class Contender:
    """One path as it is entered: in which interpreter, dtype and batch sizes."""

    name: str
    """In tables and files."""

    path: str
    """As the worker knows it."""

    interpreter: str
    """Whose packages it needs."""

    dtype: str = "float32"
    """Of the weights."""

    batch_sizes: tuple[int, ...] = (0,)
    """To choose from by a pilot; 0 where the path chooses itself."""

    n_windows: int | None = None
    """At most, spread over all rounds, for a slow path. None: all."""


_SCORING = (1, 4, 8, 16, 32)
_GENERATING = (8, 16, 32)
CONTENDERS = (
    Contender("gemm fp32", "gemm", "memaudit", n_windows=160),
    Contender("gemm bf16", "gemm", "memaudit", "bfloat16", n_windows=160),
    Contender("memaudit hf fp32", "memaudit-hf", "memaudit"),
    Contender("lm-eval fp32", "lm-eval", "lm-eval", batch_sizes=_SCORING),
    Contender("memaudit vllm fp32", "memaudit-vllm", "vllm"),
    Contender("memaudit hf fp32 compiled", "memaudit-hf-compiled", "memaudit"),
    Contender("memaudit vllm fp32 compiled", "memaudit-vllm-compiled", "vllm", n_windows=300),
    Contender("naive loop fp32", "naive", "memaudit", n_windows=200),
    Contender("memaudit hf fp32, KL", "memaudit-hf-pair", "memaudit", n_windows=200),
    Contender("memaudit vllm fp32, KL", "memaudit-vllm-pair", "vllm", n_windows=200),
    Contender("PrivacyGuard fp32", "privacy-guard", "privacy-guard", "float32", _SCORING, 200),
    Contender("vLLM prompt_logprobs fp32", "vllm", "vllm", n_windows=200),
    Contender("memaudit hf bf16", "memaudit-hf", "memaudit", "bfloat16"),
    Contender("lm-eval bf16", "lm-eval", "lm-eval", "bfloat16", _SCORING),
    Contender("memaudit vllm bf16", "memaudit-vllm", "vllm", "bfloat16"),
    Contender("memaudit hf bf16 compiled", "memaudit-hf-compiled", "memaudit", "bfloat16"),
    Contender("memaudit vllm bf16 compiled", "memaudit-vllm-compiled", "vllm", "bfloat16"),
    Contender("vLLM prompt_logprobs bf16", "vllm", "vllm", "bfloat16"),
    Contender("PrivacyGuard bf16", "privacy-guard", "privacy-guard", "bfloat16", _SCORING),
    Contender("truth (float64)", "truth", "memaudit", "float64", n_windows=80),
    Contender("generate, batches", "generate", "memaudit", batch_sizes=_GENERATING),
    Contender("generate, one by one", "generate", "memaudit", batch_sizes=(1,), n_windows=40),
    Contender(
        "PrivacyGuard generation", "privacy-guard-generation", "privacy-guard",
        batch_sizes=_GENERATING, n_windows=100,
    ),
)  # fmt: skip


@dataclass(slots=True)
class Process:
    """A contender's running worker."""

    popen: "subprocess.Popen[str]"
    """With pipes on both ends."""

    loaded: dict[str, Any] = field(default_factory=dict)
    """Its first reply."""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for what was measured."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(request) + "\n")
        self.popen.stdin.flush()
        return self.reply()

    def reply(self) -> dict[str, Any]:
        """Return the next line."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"exit code {self.popen.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def end(self) -> None:
        """Close its input, which ends it, and wait."""
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        self.popen.wait()


class Comparison:
    """Workers, and what they have measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read what an earlier run has left in the folder.

        Args:
            arguments: of the command line.
        """
        self._arguments = arguments
        self._folder: Path = arguments.out
        self._log = self._folder / "measured.jsonl"
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._processes: dict[str, Process] = {}

    def run(self, contenders: list[Contender]) -> None:
        """Measure all that is missing, round by round; leave out a contender that fails."""
        rounds, n_windows = self._arguments.rounds, self._arguments.windows
        failed: set[str] = set()
        for index in range(rounds):
            start, stop = n_windows * index // rounds, n_windows * (index + 1) // rounds
            for contender in contenders:
                part, chosen = _spread_over(rounds, stop - start, self._limit(contender))
                if contender.name in failed or index not in chosen:
                    continue
                try:
                    self._measure(contender, index, start, start + part)
                except (OSError, RuntimeError) as error:
                    failed.add(contender.name)
                    _say(f"{contender.name}: left out, {error}; see its .log file")
                if len(chosen) < rounds:  # it would only hold memory until its next round
                    self._end(contender.name)
        for name in list(self._processes):
            self._end(name)

    def _limit(self, contender: Contender) -> int:
        """Return how many windows it is asked about."""
        n_windows: int = self._arguments.windows
        wanted = self._arguments.limit.get(contender.name, contender.n_windows)
        return n_windows if wanted is None else min(n_windows, wanted)

    def _measure(self, contender: Contender, index: int, start: int, stop: int) -> None:
        if self._found("slice", contender.name, round=index):
            return
        batch_size = self._best_batch_size(contender)
        out = str(self._folder / f"{contender.name}-{index}.npz")
        request = {"start": start, "stop": stop, "batch_size": batch_size, "out": out}
        measured = self._process(contender).ask(request)
        self._record("slice", contender, {**request, **measured, "round": index})

    def _best_batch_size(self, contender: Contender) -> int:
        """Return the batch size that took least processor time, all tried on the same windows."""
        if contender.name in self._arguments.batch_size:
            return int(self._arguments.batch_size[contender.name])
        sizes = contender.batch_sizes
        for attempt in range(_N_PILOTS if len(sizes) > 1 else 0):
            for size in sizes:
                if not self._found("pilot", contender.name, batch_size=size, attempt=attempt):
                    stop = min(self._arguments.pilot, self._limit(contender))
                    request = {"start": 0, "stop": stop, "batch_size": size}
                    measured = self._process(contender).ask(request)
                    self._record("pilot", contender, {**request, **measured, "attempt": attempt})
        pilots = self._found("pilot", contender.name)
        best = min(pilots, key=lambda record: record["cpu"]) if pilots else {}
        return int(best.get("batch_size", sizes[0]))

    def _process(self, contender: Contender) -> Process:
        """Return its worker, started and warmed up when it is needed first."""
        if contender.name not in self._processes:
            process = Process(self._start(contender))
            process.loaded = process.reply()
            self._record("loaded", contender, process.loaded)
            if contender.path != "gemm":
                batch_size = max(1, contender.batch_sizes[0])
                process.ask({"start": 0, "stop": _N_WARM_UP, "batch_size": batch_size})
            self._processes[contender.name] = process
        return self._processes[contender.name]

    def _end(self, name: str) -> None:
        """End a worker if there is one."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.end()

    def _start(self, contender: Contender) -> "subprocess.Popen[str]":
        arguments = self._arguments
        interpreter = arguments.interpreter.get(
            contender.interpreter, str(_ENVIRONMENTS / contender.interpreter / "bin" / "python")
        )
        threads = str(arguments.threads)
        command = [
            interpreter, "-m", "benchmarks.worker", contender.path,
            "--model", str(arguments.model.resolve()),
            "--reference", str(self._folder / "reference"), "--dtype", contender.dtype,
            "--windows", str(self._folder / "windows.npz"), "--threads", threads,
        ]  # fmt: skip
        environment = {
            **os.environ,
            "PYTHONPATH": str(_REPOSITORY),
            "OMP_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        with (self._folder / f"{contender.name}.log").open("a") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=_REPOSITORY,
            )

    def _found(self, kind: str, name: str, **values: int) -> list[dict[str, Any]]:
        return [
            record
            for record in self.records
            if record["kind"] == kind
            and record["name"] == name
            and all(record[key] == value for key, value in values.items())
        ]

    def _record(self, kind: str, contender: Contender, values: dict[str, Any]) -> None:
        record = {"kind": kind, "name": contender.name, "load": os.getloadavg()[0], **values}
        self.records.append(record)
        with self._log.open("a") as log:
            log.write(json.dumps(record) + "\n")
        shown = {
            key: values[key] for key in ("batch_size", "round", "wall", "cpu") if key in values
        }
        _say(f"{contender.name}: {kind} {shown}")


def main() -> None:
    """Prepare the windows, measure what is missing, and write the tables."""
    arguments = _parser().parse_args()
    arguments.out = arguments.out.resolve()
    arguments.limit = dict(arguments.limit)
    arguments.batch_size = dict(arguments.batch_size)
    arguments.interpreter = {"memaudit": sys.executable, **dict(arguments.interpreter)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    windows = arguments.out / "windows.npz"
    if not windows.exists():
        n_windows = write_windows(
            windows,
            str(arguments.model),
            arguments.texts,
            n_windows=arguments.windows,
            prefix_len=arguments.prefix_len,
            suffix_len=arguments.suffix_len,
        )
        if n_windows < arguments.windows:
            sys.exit(f"the texts have {n_windows} windows, expected {arguments.windows}")
    if not (arguments.out / "reference").exists():
        write_reference(str(arguments.model), arguments.out / "reference")
    contenders = [c for c in CONTENDERS if arguments.only is None or c.name in arguments.only]
    comparison = Comparison(arguments)
    if not arguments.report_only:
        comparison.run(contenders)
    command = shlex.join(["python", "-m", "benchmarks.compare", *sys.argv[1:]])
    sys.stdout.write(write_report(arguments.out, arguments.model, comparison.records, command))


def _spread_over(rounds: int, length: int, limit: int) -> tuple[int, set[int]]:
    """Return how many windows of a round are asked, and in which rounds.

    A limited path has few rounds rather than small ones, where no batch would fill. The first
    round is always among them, so that all paths have windows in common.
    """
    if limit < 1:
        return 0, set()
    part = min(length, limit, _LEAST_PART) if limit < rounds * length else length
    n_chosen = max(1, min(rounds, limit // part))
    return part, {index * rounds // n_chosen for index in range(n_chosen)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder that save_pretrained wrote, float32")
    add("--texts", nargs="+", required=True, help="corpora the windows are cut from")
    add("--windows", type=int, default=1000, help="default: %(default)s")
    add("--prefix-len", type=int, default=50, help="tokens (default: %(default)s)")
    add("--suffix-len", type=int, default=50, help="tokens (default: %(default)s)")
    add("--threads", type=int, default=1, help="of every path (default: %(default)s)")
    add("--rounds", type=int, default=20, help="parts of the windows (default: %(default)s)")
    add("--pilot", type=int, default=32, help="windows to try batch sizes on (default: 32)")
    add("--only", nargs="+", choices=[c.name for c in CONTENDERS], help="default: all")
    add(
        "--limit",
        nargs="+",
        type=_name_and_count,
        default=[],
        metavar="NAME=WINDOWS",
        help="windows for a slow path, spread over the rounds",
    )
    add(
        "--batch-size",
        nargs="+",
        type=_name_and_count,
        default=[],
        metavar="NAME=SIZE",
        help="instead of the best of a pilot",
    )
    add(
        "--interpreter", nargs="+", type=_name_and_text, default=[], metavar="NAME=PATH",
        help="of memaudit (default: this one), vllm, lm-eval, privacy-guard "
        "(default: those that setup.sh makes)",
    )  # fmt: skip
    add("--out", type=Path, required=True, help="folder for windows, figures and tables")
    add("--report-only", action="store_true", help="write the tables again, measure nothing")
    return parser


def _name_and_count(option: str) -> tuple[str, int]:
    name, _, count = option.rpartition("=")
    return name, int(count)


def _name_and_text(option: str) -> tuple[str, str]:
    name, _, text = option.partition("=")
    return name, text


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
