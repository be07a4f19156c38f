"""How a distillation is verified: what it is asked for, what is trained on, and what is kept from that."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, CorpusOptions, Example, corpus_of, read_corpus
from memaudit.distillation import TrainingOptions
from memaudit.engines.models import ModelOptions
from memaudit.errors import CorpusError, UsageError
from memaudit.objectives import GREEDY, Divergence, LabelSampling, Objective, check_loss
from memaudit.progress import ReportProgress
from memaudit.runs.opening import allowed_rows
from memaudit.runs.reading import DistinctWindows, RowLog, RowWindows, Tokenizer, cut_rows
from memaudit.verification.predictions import Predictions, match_predictions, read_predictions
from memaudit.windows import MIN_SUFFIX_LEN, Turns, WindowChoice, WindowPolicy, WindowShape


@dataclass(frozen=True, slots=True)
class VerificationOptions:
    """How a distillation is verified."""

    objective: Objective = field(default_factory=Objective)
    divergence: Divergence = field(default_factory=Divergence)
    """How the loss of soft labels measures the distance from the teacher."""

    labels: LabelSampling = GREEDY
    """How the teacher draws the tokens of hard labels."""

    training: TrainingOptions = field(default_factory=TrainingOptions)
    """Of baseline and student alike. Its seed also draws the sample and the held-out windows."""

    shape: WindowShape = field(default_factory=WindowShape)
    windows: WindowPolicy = "auto"
    """Which windows of a row are trained on and asked for; with predictions, those are."""

    turns: Turns = "all"
    """Of which answers of a conversation, likewise."""

    min_suffix_len: int = MIN_SUFFIX_LEN
    """Tokens of the shortest answer, likewise."""

    sample: int | None = None
    """Rows to train on and to verify, drawn at random. None: all."""

    held_out_share: float = 0.1
    """Of the distinct windows, kept from baseline and student to measure perplexity, in [0, 1)."""

    on_bad_row: Literal["error", "skip"] = "error"
    """Whether a row that cannot be used ends the verification, or is counted and left out."""

    check_generate: int = 0
    """Windows that teacher and student really continue, to check the one pass against."""

    near_verbatim: float | None = None
    """Edits, as a share of the suffix's tokens, up to which a sample nearly is the suffix, in (0, 1).
    None: it is not asked for."""

    keep_models: bool = False
    """Whether the trained models stay in the folder."""

    model: ModelOptions = field(default_factory=ModelOptions)
    """How models are loaded: in float32, whatever they are trained in."""

    threads: int | None = None
    """CPU threads of torch in this process. None leaves them as they are."""

    @property
    def window_choice(self) -> WindowChoice:
        """Which windows are cut."""
        return WindowChoice(self.shape, self.windows, self.turns, self.min_suffix_len)

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample < 1:
            raise ValueError(f"sample must be at least 1, got {self.sample}")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"held_out_share must be in [0, 1), got {self.held_out_share}")
        check_loss(self.objective, self.divergence, self.labels)
        if self.near_verbatim is not None and not 0 < self.near_verbatim < 1:
            raise ValueError(f"near_verbatim must be in (0, 1), got {self.near_verbatim}")
        if self.check_generate < 0:
            raise ValueError(f"check_generate must be at least 0, got {self.check_generate}")
        # In float32 one pass and real generation agreed on 78 of 78 windows, in bfloat16 on 70.
        if self.model.dtype != "float32":
            raise ValueError("models are loaded in float32, for extraction is decided in it")

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides a number, by the names under which documents keep it."""
        # Only where it is asked for, so that a folder of an earlier version still goes on.
        near = {} if self.near_verbatim is None else {"near_verbatim": self.near_verbatim}
        return {
            **self.shape.settings,
            "sample": self.sample,
            "held_out_share": self.held_out_share,
            **self.objective.settings,
            **self.divergence.settings,
            **self.labels.settings,
            **near,
            **self.training.settings,
            "seed": self.training.seed,
            "check_generate": self.check_generate,
        }

    def check_for_student_of_other_tokens(self) -> None:
        """Refuse what continues the teacher's tokens.

        Raises:
            UsageError: naming the option.
        """
        if self.check_generate or self.near_verbatim:
            option = "--check-generate" if self.check_generate else "--near-verbatim"
            raise UsageError(
                f"{option} continues the teacher's tokens, and the student has others",
                hint="leave it out",
            )


DEFAULT_OPTIONS = VerificationOptions()
"""Three epochs of soft labels at temperature 2, all rows, a tenth of the windows held out."""


@dataclass(frozen=True, slots=True)
class Task:
    """A corpus, what was predicted of it, and how it is verified."""

    corpus: CorpusOptions
    told: Predictions | None
    options: VerificationOptions
    """Of the windows that were predicted, and with the special tokens of the corpus."""

    @contextmanager
    def examples(
        self, tokenizer: Tokenizer, folder: Path | None, progress: ReportProgress | None
    ) -> "Iterator[Examples]":
        """Read the corpus, as `read_examples` does, and see that what was predicted is of it."""
        rows = read_corpus(self.corpus, render_messages=tokenizer.render_messages)
        read = read_examples(rows, tokenizer, self.options, folder=folder, progress=progress)
        with read as examples:
            if self.told is not None:  # whether they fit is better known before hours of training
                places = ((r.example_id, r.row, r.address, r.outcome) for r in examples.rows)
                match_predictions(self.told, places)
            yield examples


def make_task(data: object, predictions: Path | None, options: VerificationOptions) -> Task:
    """Return what is to be done.

    Args:
        data: the corpus, as `audit_corpus` takes it.
        predictions: a folder that `memaudit predict` wrote for the same corpus.
        options: how it is verified; where there are predictions, their windows are taken.

    Raises:
        UsageError: the folder is none that predict wrote, or speaks of other windows.
    """
    told = None if predictions is None else read_predictions(predictions, options.shape)
    corpus = corpus_of(data)
    model = options.model.for_corpus(corpus)
    options = replace(options, model=model, **({} if told is None else told.windows))
    return Task(corpus, told, options)


_CHUNK = 4096  # windows read at a time
_HELD_OUT_SEED = 1
"""Apart from the seed of the sample, so that one does not decide the other."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The windows of a verification."""

    windows: NDArray[np.int32]
    """(n, T) distinct, in the order of the corpus."""

    occurrences: NDArray[np.int64]
    """(n,) how often each occurs in the rows that are trained on, or else held out; at least 1."""

    is_held_out: NDArray[np.bool_]
    """(n,) whether baseline and student are kept from it."""

    example_of_row: NDArray[np.int64]
    """(scored rows,) equal numbers for rows with the same windows; -1 if not in the sample."""

    windows_of_rows: NDArray[np.int64]
    """(m,) indices of the windows of the rows in the sample, row after row."""

    n_windows: NDArray[np.int64]
    """(rows in the sample,) windows of each, at least 1."""

    rows: RowLog
    corpus_windows: DistinctWindows
    """The distinct windows of the whole corpus."""

    digest: str
    """Sha256 of all of it."""

    has_answers: bool = False
    """Whether windows end with answers: what precedes those is read and not learnt."""

    def windows_told(self, options: VerificationOptions) -> dict[str, Any]:
        """Return which windows these are, for the settings; nothing if each row's first."""
        told: dict[str, Any] = {}
        if options.windows == "tile" or self.has_answers:
            told["windows"] = "tile" if options.windows == "tile" else "answers"
        if self.has_answers and self.n_windows.max() > 1:
            told["turns"] = options.turns
        if self.has_answers and options.min_suffix_len != MIN_SUFFIX_LEN:
            told["min_suffix_tokens"] = options.min_suffix_len
        return told

    def any_of_row(self, of_windows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return (rows in the sample,) whether a row has a window of which it holds, (n,)."""
        starts = np.cumsum(self.n_windows) - self.n_windows
        found: NDArray[np.bool_] = np.logical_or.reduceat(of_windows[self.windows_of_rows], starts)
        return found

    @property
    def trained(self) -> NDArray[np.int32]:
        """(examples, T) the windows that are trained on."""
        return self.windows[~self.is_held_out]

    def training_set(self, windows: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        """Return windows, one for each of `trained`, as often as those occur."""
        counts = self.occurrences[~self.is_held_out]
        return list(np.repeat(windows, counts, axis=0))


@contextmanager
def read_examples(
    rows: Iterable[Example | BadRow],
    tokenizer: Tokenizer,
    options: VerificationOptions,
    *,
    folder: Path | None,
    progress: ReportProgress | None,
) -> Iterator[Examples]:
    """Read a corpus as an audit does, and choose what is trained on.

    Temporary files without a name are made in the folder; None: in the system's.

    Raises:
        CorpusError: a row is bad, or no window is left to train on.
    """
    with RowLog(folder) as row_log, DistinctWindows(options.shape.length, folder) as windows:
        cuts = cut_rows(
            allowed_rows(rows, options.on_bad_row, lambda: tokenizer),
            tokenizer,
            (row_log, windows),
            choice=options.window_choice,
            progress=progress,
        )
        examples = _choose(cuts, row_log, windows, options)
        has_answers = bool(cuts.answers.rows) and options.windows != "first"
        yield replace(examples, has_answers=has_answers)


def _choose(
    cuts: RowWindows, rows: RowLog, spool: DistinctWindows, options: VerificationOptions
) -> Examples:
    seed, texts = options.training.seed, _texts(cuts)
    in_sample = np.ones(len(texts), dtype=np.bool_)
    if options.sample is not None and options.sample < len(texts):
        order = np.random.default_rng(seed).permutation(len(texts))
        # A larger sample of the same seed holds the smaller one: both are the front of one order.
        in_sample[order[options.sample :]] = False
    distinct, inverse = np.unique(texts[in_sample], return_inverse=True)
    chosen = np.full(len(texts), -1, dtype=np.int64)
    chosen[in_sample] = inverse
    # Texts are held out, and not rows: a copy that stays in would be learnt.
    n_held_out = round(options.held_out_share * len(distinct))
    order = np.random.default_rng([seed, _HELD_OUT_SEED]).permutation(len(distinct))
    is_kept_out = np.zeros(len(distinct), dtype=np.bool_)
    is_kept_out[order[:n_held_out]] = True

    n_windows = np.array(cuts.n_windows, dtype=np.int64)
    of_sample = np.array(cuts.windows, dtype=np.int64)[np.repeat(in_sample, n_windows)]
    n_windows = n_windows[in_sample]
    windows, windows_of_rows = np.unique(of_sample, return_inverse=True)
    is_trained_on = np.repeat(~is_kept_out[inverse], n_windows)
    # What also stands in a row that is trained on is learnt there: it is not held out.
    trained = np.bincount(windows_of_rows[is_trained_on], minlength=len(windows))
    is_held_out: NDArray[np.bool_] = trained == 0
    if is_held_out.all():
        raise CorpusError(
            f"no window is left to train on: all {len(windows)} would be held out",
            hint="give more rows, or a smaller --held-out-share",
        )
    counts = np.where(is_held_out, np.bincount(windows_of_rows), trained)
    # By chunks of the file: where the sample is small, most of a large corpus stays on the disk.
    parts = np.split(windows, np.searchsorted(windows, range(_CHUNK, len(spool), _CHUNK)))
    chunks = zip(spool.chunks(_CHUNK), parts, strict=True)
    tokens = np.concatenate([chunk[part % _CHUNK] for chunk, part in chunks])
    several = (windows_of_rows, n_windows) if n_windows.max() > 1 else ()
    digest = _digest(rows, tokens, counts, is_held_out, chosen, *several)
    return Examples(
        tokens, counts, is_held_out, chosen, windows_of_rows, n_windows, rows, spool, digest
    )


def _texts(cuts: RowWindows) -> NDArray[np.int64]:
    """Return (scored rows,) equal numbers for rows with the same windows."""
    windows, edges = np.array(cuts.windows, dtype=np.int64), np.cumsum(cuts.n_windows)
    # One window for each row: its number is that of the text.
    if len(windows) == len(edges):
        return windows
    rows = [part.tobytes() for part in np.split(windows, edges[:-1])]
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(row, len(numbers)) for row in rows], dtype=np.int64)


def _digest(rows: RowLog, *arrays: NDArray[np.generic]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        fields = (row.example_id, str(row.row), row.address, row.outcome, row.reason)
        # NUL between the fields: what one ends with could else begin the next one.
        digest.update("\0".join(fields).encode() + b"\n")
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
