"""Inputs of a fit: pairs of tables, and what the summaries beside them say of their making.

Labels for another model, or scores for other windows, must not be fitted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from memaudit.classifier import zlib_record
from memaudit.corpus.base import RowError
from memaudit.corpus.json_lines import parse_object
from memaudit.errors import ClassifierError, CorpusError, UsageError
from memaudit.features import objective_features
from memaudit.objectives import Objective, ObjectiveKind
from memaudit.tables import Table, find_table, read_table
from memaudit.text import safe_text, shown_path

_ABOUT_SCORES = (
    *("teacher", "teacher_digest", "reference", "reference_digest", "feature_set", "engine"),
    *("prefix_tokens", "suffix_tokens", "window_policy", "memaudit_version"),
    "objective",
)
_ABOUT_LABELS = (
    *("teacher", "teacher_digest", "student", "student_digest", "baseline", "baseline_digest"),
    *("objective", "temperature", "cross_entropy_share", "epochs", "learning_rate", "batch_size"),
    *("divergence", "beta", "top_k", "tail", "distilled"),
    *("seed", "prefix_tokens", "suffix_tokens", "sample", "held_out_share", "labels_digest"),
)
_MUST_AGREE = ("teacher_digest", "prefix_tokens", "suffix_tokens", "objective")
_MAX_SUMMARY_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Input:
    """The tables of one run."""

    name: str
    """Unique among the inputs."""

    labels: Table
    """What was found."""

    scores: Table
    """What had been scored."""

    about_labels: Mapping[str, object]
    """From `verification.json` beside the labels; empty without one."""

    about_scores: Mapping[str, object]
    """From `summary.json` beside the scores; empty without one."""

    def document(self) -> dict[str, Any]:
        """Return where the tables are and how they came about."""
        return {
            "labels": {"path": self.labels.shown, "sha256": self.labels.sha256}
            | dict(self.about_labels),
            "scores": {"path": self.scores.shown, "sha256": self.scores.sha256}
            | dict(self.about_scores),
        }


def read_inputs(pairs: Sequence[tuple[Path, Path]]) -> list[Input]:
    """Read the tables of every pair, labels first.

    Raises:
        UsageError: there is no pair, or a path is not as expected.
        CorpusError: a table or a summary cannot be read.
        ClassifierError: labels and scores are of different windows, teachers or objectives.
    """
    if not pairs:
        raise UsageError("there are no tables", hint="give --labels and --scores")
    names: list[str] = []
    inputs = []
    for labels_path, scores_path in pairs:
        labels_file = find_table(labels_path, "verification")
        scores_file = find_table(scores_path, "risk")
        names.append(_unique(_stem(scores_path), names))
        one = Input(
            names[-1],
            read_table(labels_file),
            read_table(scores_file),
            _read_summary(labels_file.with_name("verification.json"), _ABOUT_LABELS),
            _read_summary(scores_file.with_name("summary.json"), _ABOUT_SCORES),
        )
        _require_agreement(one)
        scored_with = _read_object(scores_file.with_name("manifest.json")).get("inputs")
        if isinstance(scored_with, dict):
            _require_same_zlib(one, scored_with)
            _require_same_epochs(one, scored_with)
        inputs.append(one)
    return inputs


def objective_of(inputs: Sequence[Input], given: ObjectiveKind | None) -> ObjectiveKind:
    """Return what the students of all inputs learned from.

    Args:
        inputs: at least one.
        given: what the user says; what stands beside the labels has to agree. None: that, and
            `soft` where nothing does.

    Raises:
        UsageError: they differ.
    """
    told = {
        one.name: str(one.about_labels["objective"])
        for one in inputs
        if "objective" in one.about_labels
    }
    kinds = {*told.values(), *([] if given is None else [given])}
    if len(kinds) > 1:
        raise UsageError(
            f"expected students of one objective, got {' and '.join(sorted(kinds))}",
            hint="fit one classifier for each objective",
        )
    kind = kinds.pop() if kinds else "soft"
    return next(known for known in get_args(ObjectiveKind) if known == kind)


def _stem(path: Path) -> str:
    """Return what a run is called: the name of its folder, or of its table."""
    return safe_text(path.resolve().name if path.is_dir() else path.name.split(".")[0])


def _unique(stem: str, names: Sequence[str]) -> str:
    name, number = stem, 2
    while name in names:
        name, number = f"{stem}-{number}", number + 1
    return name


def _read_summary(path: Path, keys: Sequence[str]) -> dict[str, object]:
    """Return some keys of a JSON object, if there is such a file: only plain values."""
    found = _read_object(path)
    for group in ("settings", "models"):  # of a verification: digests and options, paths
        inner = found.get(group)
        found = found | (inner if isinstance(inner, dict) else {})
    plain = {key: found[key] for key in keys if isinstance(found.get(key), (str, int, float))}
    return {key: shown_path(x) if isinstance(x, str) else x for key, x in plain.items()}


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one without the file."""
    if not path.is_file():
        return {}
    shown = shown_path(path)
    with path.open("rb") as file:
        content = file.read(_MAX_SUMMARY_BYTES + 1)
    try:
        if len(content) > _MAX_SUMMARY_BYTES:
            raise RowError(f"more than {_MAX_SUMMARY_BYTES:,} bytes long")
        return parse_object(content, "file")
    except RowError as error:
        raise CorpusError(f"{shown}: {error}", hint="copy it again, or move it away") from error


def _require_agreement(one: Input) -> None:
    for key in _MUST_AGREE:
        if key not in one.about_labels or key not in one.about_scores:
            continue
        found, scored = one.about_labels[key], one.about_scores[key]
        if found != scored:
            raise ClassifierError(
                f"{key.replace('_', ' ')} is {found} for {one.labels.shown} "
                f"and {scored} for {one.scores.shown}",
                hint="predict and verify with the same teacher, windows and objective",
            )
    _require_same_objective(one)


def _require_same_zlib(one: Input, scored_with: Mapping[str, object]) -> None:
    """Refuse scores whose zlib features another interpreter measured, if they say so."""
    record = scored_with.get("zlib")
    measured = record.get("golden_sha256") if isinstance(record, dict) else None
    if measured is not None and measured != zlib_record().golden_sha256:
        raise ClassifierError(
            f"{one.scores.shown}: the scores were measured with another zlib, "
            "which compresses to other lengths",
            hint="fit with the interpreter that predicted, or predict again with this one",
        )


def _require_same_epochs(one: Input, scored_with: Mapping[str, object]) -> None:
    """Refuse exposure of another number of epochs than the student's, if both are known."""
    counted = scored_with.get("exposure")
    said = counted.get("epochs") if isinstance(counted, dict) else None
    trained = one.about_labels.get("epochs")
    if said is not None and trained is not None and said != trained:
        raise ClassifierError(
            f"epochs are {trained} for {one.labels.shown} and {said} for {one.scores.shown}",
            hint="predict with the --epochs that the student was trained for",
        )


def _require_same_objective(one: Input) -> None:
    """Refuse scores for another objective than the student was trained on, if both are known."""
    about = one.about_labels
    try:
        objective = Objective(
            str(about["objective"]),  # type: ignore[arg-type]  # it checks
            float(str(about["temperature"])),
            float(str(about["cross_entropy_share"])),
        )
    except KeyError:
        return
    except ValueError as error:
        raise CorpusError(
            f"verification.json beside {one.labels.shown}: {safe_text(str(error))}",
            hint="copy it again, or move it away",
        ) from error
    for name, trained in objective_features(objective).items():
        column = one.scores.numbers.get(name)
        if column is None:
            continue
        others = column[np.isfinite(column) & (column != trained)]
        if len(others):
            raise ClassifierError(
                f"{name} is {trained:g} for {one.labels.shown} "
                f"and {others[0]:g} for {one.scores.shown}",
                hint="predict with the objective that the student was trained with",
            )
