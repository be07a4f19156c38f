"""The plan of an audit: counts, and the costs that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from memaudit.planning.costs import GPUS, UTILISATION, Gpu, ModelCost
from memaudit.runs.reading import Outcome

Dtype = Literal["float32", "bfloat16"]
"""Of the body of a model; the head always runs in float32."""

_BATCH_TOKENS_CPU = 1024
_BATCH_TOKENS_GPU = 16_384
_TILE_BYTES = 3 * 4 * 512 * 4096
_RUNTIME_BYTES = 700 * 10**6
_BYTES_A_WINDOW = 500
_BYTES_A_ROW = 200
_BYTES_A_CHUNK = 8192
_BYTES_A_RUN = 64 * 1024


@dataclass(frozen=True, slots=True)
class Calibration:
    """Windows that were really scored on this machine."""

    windows: int
    """Scored in the batch that was timed last, the largest."""

    seconds: float
    """Its time, features included."""

    loading_seconds: float
    """To load the models."""

    total_seconds: float
    """All that the calibration took, loading included."""

    @property
    def windows_per_second(self) -> float:
        """The rate."""
        return self.windows / self.seconds


@dataclass(frozen=True, slots=True)
class GpuEstimate:
    """What an audit would take on a GPU: derived, not measured."""

    name: str
    """Of the GPU."""

    seconds: float
    """For the scoring."""

    memory: int
    """Bytes needed on it."""

    fits: bool
    """Whether it has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """What an audit would do."""

    outcomes: Mapping[Outcome, int]
    """Rows by outcome, those that a cascade would screen counted as scored."""

    windows: int
    """Windows cut, equal ones counted each time."""

    distinct_windows: int
    """Equal ones counted once."""

    screened_windows: int
    """Distinct windows that a cascade would leave out by the corpus alone; 0 without one."""

    asks_reference: bool
    """A cascade would leave out more of them for the teacher, by what the reference says."""

    window_tokens: int
    """Tokens of one window."""

    extra_tokens: int
    """Tokens that a model is given in front of each window: its start-of-text token, if any."""

    features: int
    """Numbers kept of each distinct window."""

    chunk_size: int
    """Distinct windows scored and committed together."""

    dtype: Dtype
    """Of the models."""

    on_gpu: bool
    """Whether they would run on a GPU here."""

    workers: int
    """Processes that would score here."""

    models: tuple[ModelCost, ...]
    """The teacher first."""

    reading_seconds: float
    """Measured: the corpus was read and cut for the plan."""

    calibration: Calibration | None = None
    """None: not enough memory here to load the models."""

    @property
    def rows(self) -> int:
        """In the corpus."""
        return sum(self.outcomes.values())

    @property
    def scored_windows(self) -> int:
        """Distinct windows that models would look at."""
        return self.distinct_windows - self.screened_windows

    @property
    def tokens(self) -> int:
        """Of those windows, each once, however many models look at them."""
        return self.scored_windows * self.window_tokens

    @property
    def body_flops(self) -> int:
        """Of the bodies of all models."""
        n_tokens = self.window_tokens + self.extra_tokens
        return self.scored_windows * sum(model.body_flops(n_tokens) for model in self.models)

    @property
    def head_flops(self) -> int:
        """Of their heads."""
        return self.scored_windows * sum(
            model.head_flops(self.window_tokens) for model in self.models
        )

    @property
    def memory(self) -> int:
        """Bytes at the peak here, models on a GPU included: an estimate from above.

        700 MB are taken for Python, torch and what comes with them.
        """
        corpus = (_BYTES_A_WINDOW + 8 * self.features) * self.distinct_windows + 16 * self.rows
        return _RUNTIME_BYTES + corpus + self.workers * self.model_memory(on_gpu=self.on_gpu)

    def model_memory(self, *, on_gpu: bool) -> int:
        """Return the bytes of weights, of a batch in flight and of a tile of the head."""
        batch_tokens = _BATCH_TOKENS_GPU if on_gpu else _BATCH_TOKENS_CPU
        n_bytes = 4 if self.dtype == "float32" else 2
        total = _TILE_BYTES
        for model in self.models:
            # A head that is not float32 is copied; a float32 one is shared with the model.
            copied = 0 if self.dtype == "float32" else 4 * model.head_parameters
            activations = batch_tokens * model.activation_width * n_bytes
            total += model.parameters * n_bytes + copied + activations
        return total

    @property
    def disk(self) -> int:
        """Bytes of the run's folder when it is done, from above: a third of it may do."""
        n_chunks = -(-self.distinct_windows // self.chunk_size)
        row_bytes = 8 * self.features
        table = self.rows * (2 * _BYTES_A_ROW + row_bytes)
        return _BYTES_A_RUN + n_chunks * _BYTES_A_CHUNK + self.distinct_windows * row_bytes + table

    @property
    def temporary_disk(self) -> int:
        """Bytes of files that vanish when it is done: token ids and rows."""
        return self.distinct_windows * self.window_tokens * 4 + self.rows * _BYTES_A_ROW

    @property
    def seconds(self) -> float | None:
        """Estimated for this machine, loading and reading included; None without a calibration."""
        if self.calibration is None:
            return None
        scoring = self.scored_windows / self.calibration.windows_per_second / self.workers
        return self.calibration.loading_seconds + self.reading_seconds + scoring

    @property
    def gpus(self) -> tuple[GpuEstimate, ...]:
        """One GPU of each kind, scoring alone."""
        memory = self.model_memory(on_gpu=True)
        return tuple(
            GpuEstimate(gpu.name, self._seconds_on(gpu), memory, memory <= gpu.memory)
            for gpu in GPUS
        )

    def _seconds_on(self, gpu: Gpu) -> float:
        peak = gpu.single_flops if self.dtype == "float32" else gpu.half_flops
        body, head = self.body_flops / peak, self.head_flops / gpu.single_flops
        return (body + head) / UTILISATION

    def document(self) -> dict[str, Any]:
        """Return the plan as one JSON document; keys are never renamed within a version."""
        calibration = self.calibration
        return {
            "schema_version": 1,
            "rows": self.rows,
            **{
                outcome: self.outcomes.get(outcome, 0) for outcome in ("scored", "too_short", "bad")
            },
            "windows": self.windows,
            "distinct_windows": self.distinct_windows,
            "screened_windows": self.screened_windows,
            "asks_reference": self.asks_reference,
            "tokens": self.tokens,
            "flops": self.body_flops + self.head_flops,
            "body_flops": self.body_flops,
            "head_flops": self.head_flops,
            "models": [
                {
                    "role": model.role,
                    "source": model.source,
                    "parameters": model.parameters,
                    "body_parameters": model.body_parameters,
                    "head_parameters": model.head_parameters,
                }
                for model in self.models
            ],
            "dtype": self.dtype,
            "memory_bytes": self.memory,
            "disk_bytes": self.disk,
            "temporary_disk_bytes": self.temporary_disk,
            "reading_seconds": self.reading_seconds,
            "estimated_seconds": self.seconds,
            "calibration": None
            if calibration is None
            else {
                "windows": calibration.windows,
                "seconds": calibration.seconds,
                "loading_seconds": calibration.loading_seconds,
                "total_seconds": calibration.total_seconds,
                "tokens_per_second": calibration.windows_per_second * self.window_tokens,
            },
            "gpus": [
                {
                    "name": gpu.name,
                    "estimated_seconds": gpu.seconds,
                    "memory_bytes": gpu.memory,
                    "fits": gpu.fits,
                }
                for gpu in self.gpus
            ],
            "gpus_are": f"derived from published peaks at {UTILISATION:.0%} of them, not measured",
        }
