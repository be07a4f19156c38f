"""Labelled runs: the examples of a distillation, and which of them the student memorized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import ClassifierError


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """One distillation: its distinct examples, and which of them the student memorized."""

    name: str
    """Unique among the runs."""

    features: Mapping[str, NDArray[np.float64]]
    """(n,) for each feature name."""

    extracted: NDArray[np.bool_]
    """(n,) whether the trained student reproduces the suffix."""

    def __post_init__(self) -> None:
        for name, column in self.features.items():
            if column.shape != self.extracted.shape:
                raise ValueError(
                    f"expected {name} of shape {self.extracted.shape}, got {column.shape}"
                )

    @property
    def n_extracted(self) -> int:
        """Examples that the student memorized."""
        return int(self.extracted.sum())


def feature_matrix(run: LabelledRun, features: Sequence[str]) -> NDArray[np.float64]:
    """Return (n, n_features), all finite."""
    for name in features:
        if name not in run.features:
            raise ClassifierError(
                f"run {run.name} has no feature {name}",
                hint="choose a feature set whose models the run was scored with",
            )
        n_broken = int((~np.isfinite(run.features[name])).sum())
        if n_broken:
            raise ClassifierError(
                f"run {run.name}: feature {name} is not a finite number in {n_broken} examples",
                hint="score the run again, or leave it out",
            )
    return np.column_stack([run.features[name] for name in features]).astype(np.float64)


def pooled_labels(runs: Sequence[LabelledRun]) -> NDArray[np.bool_]:
    """Return whether each example of the runs was extracted, one run after the other."""
    return np.concatenate([run.extracted for run in runs])


def example_weights(runs: Sequence[LabelledRun]) -> NDArray[np.float64]:
    """Return a weight for each example: equal sums over runs, mean 1 (so that C keeps its sense)."""
    runs = [run for run in runs if len(run.extracted)]
    n_total = sum(len(run.extracted) for run in runs)
    per_run = n_total / len(runs)
    return np.concatenate(
        [np.full(len(run.extracted), per_run / len(run.extracted)) for run in runs]
    )
