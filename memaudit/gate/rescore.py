"""Some windows of a run scored again: evidence of what its scores are worth, without any trust.

Who can write a run can forge its scores. Whoever has the corpus and the teacher can score some of
the windows again, chosen at random when the gate runs, and compare.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memaudit.engines import Engine
from memaudit.engines.models import ModelOptions
from memaudit.errors import UsageError
from memaudit.features import EXPOSURE_FEATURES
from memaudit.gate import Rescoring
from memaudit.runs.chunks import ChunkPlan, read_matrix
from memaudit.runs.folder import RunFolder
from memaudit.runs.models import ModelSources, load_scorer
from memaudit.runs.options import AuditOptions
from memaudit.runs.reading import DistinctWindows, RowLog, Tokenizer, cut_rows
from memaudit.runs.run import Run
from memaudit.runs.scoring import ChunkWork, chunk_features
from memaudit.runs.unchanged import corpus_options, reread_corpus
from memaudit.text import number_of, shown_path

EXACT_TOLERANCE = 1e-3
"""For features that transformers scored in float32: many times what another processor changes."""

ROUGH_TOLERANCE = 0.05
"""For features in bfloat16, or of another engine than the one that scores again."""


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """The corpus and the models of a run, as they were when it was scored."""

    engine: Engine
    tokenizer: Tokenizer
    windows: DistinctWindows
    """In the order of the run."""


@contextmanager
def read_again(run: Run, source: str, asked: Rescoring) -> Iterator[ReadAgain]:
    """Load the models of a run and cut its windows again.

    Raises:
        UsageError: it is another corpus.
        ModelError: the models are others than the run's, or cannot be loaded.
        CorpusError: the corpus cannot be read.
    """
    inputs, plan = run.manifest.inputs, _plan(run)
    if (inputs.reference_digest is None) != (asked.reference is None):
        given = "was scored with a student or a baseline" if asked.reference is None else "has none"
        raise UsageError(
            f"{shown_path(run.folder)}: the run {given}",
            hint="give the same models with --teacher and --reference",
        )
    # The name of an engine says its number format, and so how much rounding is allowed.
    model = ModelOptions(dtype="bfloat16" if "bfloat16" in inputs.engine else "float32")
    sources = ModelSources(
        asked.teacher,
        asked.reference,
        plan.role,
        AuditOptions(model=model.for_corpus(corpus_options(run, source))),
        digests=(inputs.teacher_digest, inputs.reference_digest),
    )
    engine, tokenizer = load_scorer(sources, 0)
    with cut_again(run, source, tokenizer) as windows:
        yield ReadAgain(engine, tokenizer, windows)


@contextmanager
def cut_again(run: Run, source: str, tokenizer: Tokenizer) -> Iterator[DistinctWindows]:
    """Cut the windows of a run again, in the order of the run.

    Raises:
        UsageError: it is another corpus, or another tokenizer.
        CorpusError: the corpus cannot be read.
    """
    inputs = run.manifest.inputs
    with RowLog(None) as rows, DistinctWindows(inputs.shape.length) as windows:
        cut_rows(
            reread_corpus(run, source, tokenizer.render_messages),
            tokenizer,
            (rows, windows),
            choice=inputs.window_choice,
        )
        if len(windows) != inputs.distinct_windows:
            raise UsageError(
                f"{shown_path(run.folder)}: the run has "
                f"{number_of(inputs.distinct_windows, 'window')}, its corpus and teacher give "
                f"{len(windows):,}",
                hint="predict anew: this is not the run that it says it is",
            )
        yield windows


def rescore(run: Run, source: str, asked: Rescoring) -> int:
    """Score random windows of a run again, and return how many, once all agree.

    The corpus is read on the way, and refused if it is not the one that was scored.

    Raises:
        UsageError: scores differ by more than rounding, or it is another corpus.
        ModelError, CorpusError: as for `read_again`.
    """
    inputs, plan = run.manifest.inputs, _plan(run)
    with read_again(run, source, asked) as read:
        whole = RunFolder(run.folder, run.manifest).plan
        stored = read_matrix(whole)[:, [whole.features.index(name) for name in plan.features]]
        # By a seed that nobody knows before: who forges a run cannot tell which will be looked at.
        # What a cascade left out has no scores that could agree.
        scored = np.flatnonzero(~np.isnan(stored).any(axis=1))
        n_again = min(asked.windows, len(scored))
        chosen = np.sort(np.random.default_rng().choice(scored, size=n_again, replace=False))
        token_ids = np.concatenate([read.windows.read(int(i), 1) for i in chosen])
        work = ChunkWork(0, token_ids, read.windows.occurrences[chosen])
    again = chunk_features(plan, read.engine, read.tokenizer, work)
    tolerance = EXACT_TOLERANCE if inputs.engine.startswith("hf-float32") else ROUGH_TOLERANCE
    differs = _differences(plan, stored[chosen], again, tolerance)
    if n_other := int(differs.any(axis=1).sum()):
        names = [plan.features[int(column)] for column in np.flatnonzero(differs.any(axis=0))]
        raise UsageError(
            f"{shown_path(run.folder)}: of {number_of(len(chosen), 'window')} scored again "
            f"{number_of(n_other, 'has', 'have')} other scores than the run says, "
            f"in {', '.join(names[:3])}",
            hint="the run was forged, or scored by another version: predict anew",
        )
    return len(chosen)


def _plan(run: Run) -> ChunkPlan:
    """Return what a window's features are here: all but what is counted in a pass of its own."""
    plan = RunFolder(run.folder, run.manifest).plan
    features = tuple(name for name in plan.features if name not in EXPOSURE_FEATURES)
    return replace(plan, features=features, prefilter=None, epochs=None)


def _differences(
    plan: ChunkPlan, stored: NDArray[np.float64], again: NDArray[np.float64], tolerance: float
) -> NDArray[np.bool_]:
    """Return (n, n_features) which features differ by more than rounding."""
    # Relative above 1 and absolute below: near 0 rounding alone is a large part of a value.
    is_near = np.abs(stored - again) <= tolerance * np.maximum(1, np.abs(again))
    # Not `> tolerance`: a comparison with NaN is false, so a forged NaN would agree.
    differs: NDArray[np.bool_] = ~(is_near & np.isfinite(again))
    # Where two tokens tie, another one may come first: a token more or less, and whether all are
    # first only if it was close.
    is_close = np.abs(again[:, plan.features.index("teacher_suffix_min_margin")]) <= tolerance
    for column, name in enumerate(plan.features):
        if name.endswith("suffix_argmax_rate"):
            # One token of the suffix more or less, and half of one for rounding.
            near = np.abs(stored[:, column] - again[:, column]) <= 1.5 / plan.shape.suffix_len
            is_equal = (stored[:, column] == 1) == (again[:, column] == 1)
            differs[:, column] &= ~(near & (is_equal | is_close))
    return differs
