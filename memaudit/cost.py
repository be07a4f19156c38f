"""What an audit would cost, said before it is begun.

Counts are exact: the corpus is read and cut as it will be. Times and memory on this machine come
from a short sample that is really run in this process; times on named GPUs are derived from
published peaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memaudit.engines.head import TILE_POSITIONS, TILE_ROWS
from memaudit.engines.hf import BATCH_TOKENS
from memaudit.runs.reading import Outcome

UTILISATION = 0.4
"""Share of its peak that a GPU is taken to reach: an assumption, not a measurement."""

_RUNTIME_BYTES = 700 * 10**6
"""Of Python, torch and transformers, where nothing was measured: from above."""
_SPOOLED_BYTES, _ROW_BYTES, _CHUNK_BYTES, _RUN_BYTES = 500, 200, 8192, 64 * 1024
"""In memory for each distinct window; on disk for each row, each chunk and each run."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Numbers of a model that decide how much work and memory it takes."""

    source: str
    parameters: int
    """All weights; a weight that two layers share counts once."""

    body_parameters: int
    """Without embeddings and output layer; all experts of a mixture, so an upper limit there."""

    head_parameters: int
    """Weights of the output layer, also where it shares them with the embeddings."""

    layers: int
    """Transformer blocks."""

    attention_width: int
    """Number of attention heads times the size of one."""

    activation_width: int
    """Numbers that one block holds at a time for each token."""

    def body_flops(self, n_tokens: int) -> int:
        """Return the floating-point operations of the body for a window of so many tokens.

        2 for each weight and token, and 4 * layers * attention width for each pair of tokens,
        masked pairs included.
        """
        attention = 4 * self.layers * self.attention_width * n_tokens**2
        return 2 * self.body_parameters * n_tokens + attention

    def head_flops(self, n_tokens: int) -> int:
        """Return the operations of the output layer: 2 for each weight and predicted token."""
        return 2 * self.head_parameters * (n_tokens - 1)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its maker describes it; peaks are dense, without sparsity."""

    name: str
    half_flops: float
    """Per second in bfloat16; in float16 where it has no bfloat16."""
    single_flops: float
    """Per second in float32, without TF32."""
    memory: int
    """Bytes."""


GPUS = (
    Gpu("T4", 65e12, 8.1e12, 16 * 10**9),
    Gpu("L4", 121e12, 30.3e12, 24 * 10**9),
    Gpu("A100-80", 312e12, 19.5e12, 80 * 10**9),
    Gpu("H100", 989e12, 67e12, 80 * 10**9),
)
"""Peaks by NVIDIA's data sheets: T4 (2019), L4 (2023), A100 80 GB SXM (2021), H100 SXM (2023)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Windows that were really scored, on this machine and in this process."""

    windows: int
    """In the batch that was timed: the largest one that was tried."""

    seconds: float
    """Of that batch, features and file included."""

    cpu_seconds: float
    """Of that batch, over all threads: what other processes do changes it little."""

    seconds_before: float
    """Until then, as an audit takes them: importing packages, loading models, reading the corpus."""

    cpu_seconds_before: float
    total_seconds: float
    """All that the sample took, loading included."""

    memory: int | None
    """Peak bytes of this process so far, and of its models on a GPU. None: the system does not
    say."""

    compile_choice: str | None = None
    """In words whether compiling the models would pay. None: nobody asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """What an audit would read, compute and need."""

    outcomes: Mapping[Outcome, int]
    """Rows by outcome; rows that a cascade would leave out are counted as scored."""

    windows: int
    """Windows cut, equal ones counted each time."""

    distinct_windows: int
    """Equal ones counted once."""

    screened_windows: int
    """Distinct windows that a cascade would leave out because of the corpus alone."""

    out_of_reach_windows: int
    """Distinct windows that nothing a model could say would flag. 0 with a cascade: it knows."""

    asks_reference: bool
    """Whether a cascade would leave out more of them after asking the reference."""

    window_tokens: int
    features: int
    """Numbers kept for each distinct window."""

    chunks: int
    dtype: str
    """`float32` or `bfloat16`, of the bodies of the models."""

    device: str
    """`cpu` or `cuda`: where the models would run here."""

    workers: int
    models: Mapping[str, ModelSizes]
    """By role, the teacher first."""

    extra_tokens: int = 0
    """Tokens put in front of each window: 1 if the model has a start-of-text token, else 0."""

    reading_seconds: float = 0.0
    """Measured: the corpus was read and cut for the plan."""

    sample: Sample | None = None
    """None: there is nothing to score, or not enough memory here to load the models."""

    @property
    def rows(self) -> int:
        """Rows in the corpus."""
        return sum(self.outcomes.values())

    @property
    def scored_windows(self) -> int:
        """Distinct windows that models would look at."""
        return self.distinct_windows - self.screened_windows

    @property
    def tokens(self) -> int:
        """Tokens of those windows, each once, however many models look at them."""
        return self.scored_windows * self.window_tokens

    @property
    def body_flops(self) -> int:
        """Operations of the bodies of all models."""
        n_tokens = self.window_tokens + self.extra_tokens
        return self.scored_windows * sum(m.body_flops(n_tokens) for m in self.models.values())

    @property
    def head_flops(self) -> int:
        """Operations of their output layers."""
        # Without the start token: it is read, and nobody asks how likely it was.
        per_window = sum(m.head_flops(self.window_tokens) for m in self.models.values())
        return self.scored_windows * per_window

    def model_memory(self, device: str) -> int:
        """Return the bytes of the weights, of a full batch in flight and of tiles of the head."""
        models, in_float32 = self.models.values(), self.dtype == "float32"
        weights = sum(model.parameters for model in models) * (4 if in_float32 else 2)
        # On a CPU the head runs in float32: one in another format is copied.
        is_shared = in_float32 or device == "cuda"
        copies = 0 if is_shared else 4 * sum(model.head_parameters for model in models)
        # Logits and their exponentials; the divergence of two models holds five such tiles.
        n_tiles = 2 if len(models) == 1 else 5
        tiles = n_tiles * 4 * TILE_POSITIONS[device] * TILE_ROWS[device]
        return weights + copies + self._batch_memory(BATCH_TOKENS[device]) + tiles

    def _batch_memory(self, n_tokens: int) -> int:
        """Return the bytes of a batch of so many tokens: the models run on it one by one."""
        widest = max(model.activation_width for model in self.models.values())
        return n_tokens * widest * (4 if self.dtype == "float32" else 2)

    @property
    def memory(self) -> int:
        """Bytes at the peak here, models on a GPU included.

        What the sample reached, if there is one; otherwise an estimate from above.
        """
        matrix = 2 * 8 * self.features * self.distinct_windows
        if self.sample is None or self.sample.memory is None:
            spooled = _SPOOLED_BYTES * self.distinct_windows + 16 * self.rows
            return _RUNTIME_BYTES + spooled + matrix + self.workers * self.model_memory(self.device)
        # An audit fills its batches; the sample of a large model may be smaller than one.
        n_tokens = self.window_tokens + self.extra_tokens - 1
        in_batch = min(BATCH_TOKENS[self.device], self.scored_windows * n_tokens)
        more = self._batch_memory(max(0, in_batch - self.sample.windows * n_tokens))
        # Several workers are processes of their own, beside this one.
        n_processes = 1 if self.workers == 1 else 1 + self.workers
        return matrix + n_processes * (self.sample.memory + more)

    @property
    def disk(self) -> int:
        """Bytes of the run's folder in the end, from above: it may take a third."""
        row_bytes = 8 * self.features
        table = self.rows * (2 * _ROW_BYTES + row_bytes)
        return _RUN_BYTES + self.chunks * _CHUNK_BYTES + self.distinct_windows * row_bytes + table

    @property
    def temporary_disk(self) -> int:
        """Bytes of files that vanish when the audit is done: token ids and rows."""
        return self.distinct_windows * self.window_tokens * 4 + self.rows * _ROW_BYTES

    @property
    def seconds(self) -> float | None:
        """Estimated for this machine, loading and reading included; None without a sample."""
        if self.sample is None:
            return None
        scoring = self.scored_windows * self.sample.seconds / self.sample.windows / self.workers
        return self.sample.seconds_before + scoring

    @property
    def cpu_seconds(self) -> float | None:
        """The same in CPU time, over all threads and workers."""
        if self.sample is None:
            return None
        per_window = self.sample.cpu_seconds / self.sample.windows
        return self.sample.cpu_seconds_before + self.scored_windows * per_window

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of windows scored here in a second; None without a sample."""
        if self.sample is None:
            return None
        return self.sample.windows / self.sample.seconds * self.window_tokens

    def seconds_on(self, gpu: Gpu) -> float:
        """Return the time of the scoring on one such GPU: derived, not measured."""
        peak = gpu.single_flops if self.dtype == "float32" else gpu.half_flops
        return (self.body_flops + self.head_flops) / peak / UTILISATION

    def fits_on(self, gpu: Gpu) -> bool:
        """Whether the GPU has the memory that the models need."""
        return self.model_memory("cuda") <= gpu.memory

    def document(self) -> dict[str, Any]:
        """Return the plan as one JSON document; keys are never renamed within a version."""
        outcomes = {name: self.outcomes.get(name, 0) for name in ("scored", "too_short", "bad")}
        windows = ("windows", "distinct_windows", "screened_windows", "out_of_reach_windows")
        counted = ("rows", *windows, "asks_reference")
        computed = ("tokens", "body_flops", "head_flops", "dtype", "reading_seconds")
        plain = {name: getattr(self, name) for name in counted + computed}
        sampled = None
        if self.sample is not None:
            names = ("windows", "seconds", "cpu_seconds", "total_seconds")
            sampled = {name: getattr(self.sample, name) for name in names} | {
                "loading_seconds": self.sample.seconds_before - self.reading_seconds,
                "tokens_per_second": self.tokens_per_second,
            }
        shown = ("source", "parameters", "body_parameters", "head_parameters")
        return {
            "schema_version": 1,
            **outcomes,
            **plain,
            "flops": self.body_flops + self.head_flops,
            "models": [
                {"role": role} | {name: getattr(sizes, name) for name in shown}
                for role, sizes in self.models.items()
            ],
            "memory_bytes": self.memory,
            "disk_bytes": self.disk,
            "temporary_disk_bytes": self.temporary_disk,
            "estimated_seconds": self.seconds,
            "estimated_cpu_seconds": self.cpu_seconds,
            "calibration": sampled,
            "compile_choice": None if self.sample is None else self.sample.compile_choice,
            "gpus": [
                {
                    "name": gpu.name,
                    "estimated_seconds": self.seconds_on(gpu),
                    "memory_bytes": self.model_memory("cuda"),
                    "fits": self.fits_on(gpu),
                }
                for gpu in GPUS
            ],
            "gpus_are": f"derived from published peaks at {UTILISATION:.0%} of them, not measured",
        }
