"""Splitting: which examples are fitted on, calibrated on, and held out.

The same text never stands on two sides. Three or more runs without a text in common are split
as wholes, so that near-duplicates, which stand in one corpus, cannot straddle the sides.
Fewer are split example by example.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from memaudit.errors import ClassifierError
from memaudit.training.fitting import MIN_CALIBRATION_POSITIVES, MIN_FIT_POSITIVES, LabelledRun
from memaudit.training.inputs import VerifiedRun

SplitUnit = Literal["run", "example"]
"""What is never cut in two."""

Side = Literal["fit", "calibration", "test"]
_SIDES: tuple[Side, ...] = ("fit", "calibration", "test")
_MIN_UNITS = 3  # of two, one held out leaves nothing to calibrate on
_N_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Split:
    """Labelled runs by what they are for; names are unique."""

    fit: tuple[LabelledRun, ...]
    calibration: tuple[LabelledRun, ...]
    test: tuple[LabelledRun, ...] = ()
    """For judging; empty where nothing is held out."""


def split_unit(runs: Sequence[VerifiedRun]) -> SplitUnit:
    """Return whether the runs are split as wholes."""
    return "run" if len(_groups(runs)) >= _MIN_UNITS else "example"


def final_split(runs: Sequence[VerifiedRun], *, share: float, seed: int) -> Split:
    """Return the split that the classifier itself comes from: nothing is held out.

    Args:
        runs: at least one, with their texts compared.
        share: for calibration, in (0, 1): of the runs, or of the distinct texts of either
            label. Moved where a side would have too few extracted examples.
        seed: another one gives another split.

    Raises:
        ClassifierError: there are too few extracted examples for two sides.
    """
    if split_unit(runs) == "run":
        split = _split_groups(_shuffled(_groups(runs), seed), share)
    else:
        split = _split_texts(runs, share, seed)
    if split is not None:
        return split
    n_needed = MIN_FIT_POSITIVES + MIN_CALIBRATION_POSITIVES
    for kind, extracted in (("extracted", True), ("not extracted", False)):
        n_found = count_texts(runs, extracted)
        if n_found < n_needed:
            raise ClassifierError(
                f"fitting needs at least {n_needed} distinct examples that were {kind} "
                f"({MIN_FIT_POSITIVES} to fit, {MIN_CALIBRATION_POSITIVES} to calibrate), "
                f"the tables have {n_found}",
                hint="verify more or larger corpora, or distil for more epochs",
            )
    counts = ", ".join(f"{run.run.name} {run.run.n_extracted}" for run in runs)
    raise ClassifierError(
        f"no split of whole runs leaves {MIN_FIT_POSITIVES} extracted examples to fit and "
        f"{MIN_CALIBRATION_POSITIVES} to calibrate: {counts}",
        hint="add runs that memorize more, or give one or two of them alone",
    )


def held_out_splits(runs: Sequence[VerifiedRun], *, share: float, seed: int) -> list[Split]:
    """Return splits that together hold every example out once, as far as positives suffice.

    Runs that are split as wholes are held out one by one or, if there are more than five, with
    every fifth; else every fifth text is. A split whose rest is too small is left out.
    """
    if split_unit(runs) == "example":
        splits = [_split_texts(runs, share, seed, fold) for fold in range(_N_FOLDS)]
        return [split for split in splits if split is not None]
    groups = _shuffled(_groups(runs), seed)
    n_folds = min(_N_FOLDS, len(groups))
    found = []
    for fold in range(n_folds):
        rest = [group for i, group in enumerate(groups) if i % n_folds != fold]
        split = _split_groups(rest, share)
        if split is not None:
            test = tuple(run.run for group in groups[fold::n_folds] for run in group)
            found.append(Split(split.fit, split.calibration, test))
    return found


def source_name(run: LabelledRun) -> str:
    """Return the name of the run that a side of a split was taken from."""
    return re.sub(rf" \(({'|'.join(_SIDES)})\)\Z", "", run.name)


def count_texts(runs: Sequence[VerifiedRun], extracted: bool) -> int:
    """Return how many distinct texts of all runs were extracted by any student, or by none."""
    texts, positive = _texts(runs)
    return len(positive) if extracted else len(texts) - len(positive)


def _groups(runs: Sequence[VerifiedRun]) -> list[list[VerifiedRun]]:
    """Return the runs in groups that have no text in common."""
    groups: list[tuple[set[int], list[VerifiedRun]]] = []
    for run in runs:
        texts, members = set(run.texts.tolist()), [run]
        apart = []
        for other_texts, others in groups:
            if texts.isdisjoint(other_texts):
                apart.append((other_texts, others))
            else:
                # A run that shares texts with several groups makes one group of them.
                texts |= other_texts
                members = [*others, *members]
        groups = [*apart, (texts, members)]
    return [members for _, members in groups]


def _shuffled(groups: list[list[VerifiedRun]], seed: int) -> list[list[VerifiedRun]]:
    order = np.random.default_rng(seed).permutation(len(groups))
    return [groups[i] for i in order]


def _split_groups(groups: Sequence[Sequence[VerifiedRun]], share: float) -> Split | None:
    """Return the first split, share and order as wished, whose sides have enough positives."""
    # The wished size first, then the nearest ones: a run with many positives may be indivisible.
    n_wished = min(max(1, round(share * len(groups))), len(groups) - 1)
    sizes = sorted(range(1, len(groups)), key=lambda size: abs(size - n_wished))
    for size in sizes:
        for start in range(len(groups)):
            rotated = [*groups[start:], *groups[:start]]
            calibration = [run for group in rotated[:size] for run in group]
            fit = [run for group in rotated[size:] for run in group]
            if _enough(fit, MIN_FIT_POSITIVES) and _enough(calibration, MIN_CALIBRATION_POSITIVES):
                return Split(tuple(r.run for r in fit), tuple(r.run for r in calibration))
    return None


def _enough(runs: Sequence[VerifiedRun], n_needed: int) -> bool:
    return min(count_texts(runs, True), count_texts(runs, False)) >= n_needed


def _split_texts(
    runs: Sequence[VerifiedRun], share: float, seed: int, fold: int | None = None
) -> Split | None:
    """Return a split of the texts, by a hash of their ids and with equal shares of positives."""
    texts, positive = _texts(runs)
    # By a hash of the id: a corpus that grows keeps its old examples on their sides.
    ordered = sorted(
        texts,
        key=lambda text: hashlib.sha256(
            f"{seed} {texts[text]}".encode(errors="surrogatepass")
        ).digest(),
    )
    side_of: dict[int, Side] = dict.fromkeys(texts, "fit")
    for kind in (True, False):
        these = [text for text in ordered if (text in positive) == kind]
        held_out = set() if fold is None else set(these[fold::_N_FOLDS])
        rest = [text for text in these if text not in held_out]
        if len(rest) < MIN_FIT_POSITIVES + MIN_CALIBRATION_POSITIVES:
            return None
        n_calibration = max(MIN_CALIBRATION_POSITIVES, round(share * len(rest)))
        n_calibration = min(n_calibration, len(rest) - MIN_FIT_POSITIVES)
        side_of |= dict.fromkeys(rest[:n_calibration], "calibration")
        side_of |= dict.fromkeys(held_out, "test")
    sides: dict[Side, list[LabelledRun]] = {side: [] for side in _SIDES}
    for verified in runs:
        run = verified.run
        sides_of_rows = np.array([side_of[text] for text in verified.texts.tolist()], np.str_)
        for side, labelled in sides.items():
            rows = sides_of_rows == side
            if rows.any():
                columns = {feature: column[rows] for feature, column in run.features.items()}
                labelled.append(LabelledRun(f"{run.name} ({side})", columns, run.extracted[rows]))
    return Split(**{side: tuple(labelled) for side, labelled in sides.items()})


def _texts(runs: Sequence[VerifiedRun]) -> tuple[dict[int, str], set[int]]:
    """Return an id of each distinct text, and which were extracted in any run."""
    ids: dict[int, str] = {}
    positive: set[int] = set()
    for run in runs:
        for text, name in zip(run.texts.tolist(), run.ids, strict=True):
            # The least id and not the first: rows in another order are split as before.
            ids[text] = min(ids.get(text, name), name)
        positive.update(run.texts[run.run.extracted].tolist())
    return ids, positive
