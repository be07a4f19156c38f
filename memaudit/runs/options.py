"""The options of an audit."""

import math
from dataclasses import dataclass, field
from typing import Literal

from memaudit.engines import ENDPOINT, EndpointOptions, EngineName, VllmOptions, engine_to_try
from memaudit.engines.models import ModelOptions
from memaudit.errors import UsageError
from memaudit.files import TableFormat
from memaudit.objectives import DEFAULT_EPOCHS, Objective
from memaudit.windows import MIN_SUFFIX_LEN, Turns, WindowChoice, WindowPolicy, WindowShape


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Where and how widely a corpus is cut, counted and scored on Ray."""

    address: str | None = None
    """Of a cluster, such as `auto`. None: one on this machine, for the time of the run."""

    replicas: int = 1
    """Actors that score; before them, as many tasks cut and count as they have threads."""

    gpus_per_replica: float = 0.0
    """What each of them reserves. 0: models run on CPUs."""

    def __post_init__(self) -> None:
        if self.replicas < 1 or not 0 <= self.gpus_per_replica < math.inf:
            raise ValueError("replicas must be at least 1, gpus_per_replica at least 0 and finite")


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """How a corpus is audited."""

    classifier: str | None = None
    """Name or path. None: the shipped one for the models given."""

    objective: Objective = field(default_factory=Objective)
    """What the student will learn from."""

    epochs: float = DEFAULT_EPOCHS
    """Passes over the corpus in the student's training. Counts for classifiers that look at
    exposure."""

    engine: EngineName = "auto"
    """What runs the models; `auto` is vLLM where it is installed and can run them, else `hf`."""

    vllm: VllmOptions = field(default_factory=VllmOptions)
    """How vLLM is run, where it is."""

    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    """How the teacher is asked, where it is an endpoint."""

    shape: WindowShape = field(default_factory=WindowShape)
    """Tokens of prefix and suffix."""

    windows: WindowPolicy = "auto"
    """Which windows of a row are scored."""

    turns: Turns = "all"
    """Which answers of a conversation are."""

    min_suffix_len: int = MIN_SUFFIX_LEN
    """Tokens of the shortest answer that is scored."""

    on_bad_row: Literal["error", "skip"] = "error"
    """Whether a row that cannot be used ends the audit, or is counted and left out."""

    model: ModelOptions = field(default_factory=ModelOptions)
    table_format: TableFormat = "parquet"
    """How the risk table is written."""

    chunk_size: int | None = None
    """Distinct windows that are scored, and committed, together. None: by the device."""

    n_worst: int = 10
    """Examples listed in the result, at least 0."""

    show_text: int = 0
    """Characters of the listed examples that enter the result; 0: no text of the corpus does."""

    threads: int | None = None
    """CPU threads of each process that scores. None: the cores, divided among them."""

    workers: int = 1
    """Processes that score; on GPUs one each. 1: this one."""

    ray: RayOptions | None = None
    """Scores on Ray instead of in workers."""

    survival: float | None = None
    """Share of what would be flagged that survives a prefilter, in (0, 1]. None: no prefilter."""

    sensitive: bool = False
    """Whether windows are searched for personal data and secrets."""

    restart: bool = False
    """Whether another run in the same folder is started over instead of refused."""

    def __post_init__(self) -> None:
        engine_to_try(self.engine, self.vllm, elsewhere=self.n_elsewhere > 0)
        refuse_to_time(self)
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs must be above 0 and finite, got {self.epochs}")
        sizes = (self.workers, *(() if self.chunk_size is None else (self.chunk_size,)))
        if min(sizes) < 1 or min(self.n_worst, self.show_text) < 0:
            raise ValueError(
                "chunk_size and workers must be at least 1, n_worst and show_text at least 0"
            )

    @property
    def n_elsewhere(self) -> int:
        """Other processes that score; 0: this one does."""
        if self.ray is not None:
            return self.ray.replicas
        return self.workers if self.workers > 1 else 0

    def chunk_size_on(self, device: str) -> int:
        """Return the windows of a chunk, on `cpu` or a GPU by its name.

        A GPU takes over a hundred windows at once, and waits between two chunks.
        """
        # With an engine that sleeps as long as an H100 would compute for 10^9 parameters: 4,096
        # windows keep it at work for 94 % of the time, 128, one chunk after another, for 61 %.
        return self.chunk_size or (128 if device in ("cpu", ENDPOINT) else 4096)

    @property
    def window_choice(self) -> WindowChoice:
        """Which windows are cut."""
        return WindowChoice(self.shape, self.windows, self.turns, self.min_suffix_len)


def refuse_to_time(options: AuditOptions, *, is_shard: bool = False) -> None:
    """Refuse to find out whether compiling pays where one process does not score all windows."""
    # Parts could decide differently, and their chunks would not be of one run. How many windows a
    # cascade leaves is not known beforehand.
    others = {
        "--shard": is_shard,
        "--executor ray": options.ray is not None,
        "--workers": options.workers > 1,
        "--cascade": options.survival is not None,
        "--engine vllm": options.engine == "vllm",
    }
    refused = [name for name, is_given in others.items() if is_given]
    for name in refused if options.model.compiled is None else ():
        raise UsageError(
            f"--compile auto and {name}: it is for one process that scores all windows with hf",
            hint="give on or off; a dry run without it says what pays",
        )


DEFAULT_OPTIONS = AuditOptions()
"""The paper's window, whichever engine fits, a table as parquet; a bad row ends the audit."""
