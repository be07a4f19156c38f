"""Inputs of a fit: pairs of tables, joined, and what the summaries beside them say of their making.

Labels for another model, or scores for other windows, must not be fitted.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from memaudit import distillation, objectives
from memaudit.corpus.base import RowError
from memaudit.corpus.json_lines import parse_object
from memaudit.errors import ClassifierError, CorpusError, UsageError
from memaudit.features import OBJECTIVE_FEATURES, objective_features, zlib_record
from memaudit.files import read_small
from memaudit.objectives import Objective, ObjectiveKind
from memaudit.runs.manifest import ModelNames
from memaudit.tables import LABEL_COLUMNS, Table, find_table, match_rows, read_table
from memaudit.text import number_of, safe_text, shown_path
from memaudit.training.fitting import LabelledRun
from memaudit.windows import WindowShape

_ABOUT_SCORES = (
    # Which classifier predicted says nothing of how its features came about.
    *(field.name for field in fields(ModelNames) if not field.name.startswith("classifier")),
    *WindowShape().settings,
    *("window_policy", "objective"),
)
_ABOUT_LABELS = (
    *("teacher", "teacher_digest", "student", "student_digest", "baseline", "baseline_digest"),
    *objectives.SETTINGS,
    *distillation.MAIN_SETTINGS,
    *WindowShape().settings,
    *("distilled", "seed", "sample", "held_out_share", "labels_digest"),
)
# Rows of one corpus always join. These tell whether the labels answer the same question.
_MUST_AGREE = ("teacher_digest", *WindowShape().settings, "objective")
_MAX_SUMMARY_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Input:
    """The tables of one run."""

    name: str
    """Unique among the inputs."""

    labels: Table
    scores: Table
    about_labels: Mapping[str, object]
    """From `verification.json` beside the labels; empty without one."""

    about_scores: Mapping[str, object]
    """From `summary.json` beside the scores; empty without one."""

    def document(self) -> dict[str, Any]:
        """Return where the tables are and how they came about."""
        labels = {"path": self.labels.shown, "sha256": self.labels.sha256, **self.about_labels}
        scores = {"path": self.scores.shown, "sha256": self.scores.sha256, **self.about_scores}
        return {"labels": labels, "scores": scores}

    def require_agreement(self, scored_with: Mapping[str, object]) -> None:
        """Refuse labels and scores of which it is known that they do not go together.

        Args:
            scored_with: the inputs in the manifest beside the scores; empty without one.

        Raises:
            ClassifierError: saying what differs.
        """
        for key in _MUST_AGREE:
            found, scored = self.about_labels.get(key), self.about_scores.get(key)
            if found is not None and scored is not None and found != scored:
                raise ClassifierError(
                    f"{key.replace('_', ' ')} is {found} for {self.labels.shown} "
                    f"and {scored} for {self.scores.shown}",
                    hint="predict and verify with the same teacher, windows and objective",
                )
        self._require_same_objective()
        # The lengths that zlib gives enter the features, and its versions give different ones.
        record = scored_with.get("zlib")
        measured = record.get("golden_sha256") if isinstance(record, dict) else None
        if measured is not None and measured != zlib_record().golden_sha256:
            raise ClassifierError(
                f"{self.scores.shown}: the scores were measured with another zlib, "
                "which compresses to other lengths",
                hint="fit with the interpreter that predicted, or predict again with this one",
            )
        # Exposure counts how often the student will see a text, in all its epochs.
        counted = scored_with.get("exposure")
        said = counted.get("epochs") if isinstance(counted, dict) else None
        trained = self.about_labels.get("epochs")
        if said is not None and trained is not None and said != trained:
            raise ClassifierError(
                f"epochs are {trained} for {self.labels.shown} and {said} for {self.scores.shown}",
                hint="predict with the --epochs that the student was trained for",
            )

    def _require_same_objective(self) -> None:
        """Refuse scores for another objective than the student was trained on, if both are known."""
        about = self.about_labels
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
                f"verification.json beside {self.labels.shown}: {safe_text(str(error))}",
                hint="copy it again, or move it away",
            ) from error
        for name, trained in objective_features(objective).items():
            column = self.scores.numbers.get(name, np.empty(0))
            others = column[np.isfinite(column) & (column != trained)]
            if len(others):
                raise ClassifierError(
                    f"{name} is {trained:g} for {self.labels.shown} "
                    f"and {others[0]:g} for {self.scores.shown}",
                    hint="predict with the objective that the student was trained with",
                )


def read_inputs(pairs: Sequence[tuple[Path, Path]]) -> list[Input]:
    """Read the tables of every pair, labels first.

    Raises:
        UsageError: there is no pair, or a path is not as expected.
        CorpusError: a table or a summary cannot be read.
        ClassifierError: labels and scores are of different windows, teachers or objectives.
    """
    if not pairs:
        raise UsageError("there are no tables", hint="give --labels and --scores")
    inputs: list[Input] = []
    for labels_path, scores_path in pairs:
        labels_file = find_table(labels_path, "verification")
        scores_file = find_table(scores_path, "risk")
        # The folder's name, or the table's; and a number if need be.
        is_folder = scores_path.is_dir()
        stem = safe_text(
            scores_path.resolve().name if is_folder else scores_path.name.split(".")[0]
        )
        names = chain([stem], (f"{stem}-{number}" for number in count(2)))
        one = Input(
            next(name for name in names if all(name != other.name for other in inputs)),
            read_table(labels_file),
            read_table(scores_file),
            _read_summary(labels_file.with_name("verification.json"), _ABOUT_LABELS),
            _read_summary(scores_file.with_name("summary.json"), _ABOUT_SCORES),
        )
        scored_with = _read_object(scores_file.with_name("manifest.json")).get("inputs")
        one.require_agreement(scored_with if isinstance(scored_with, dict) else {})
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
        CorpusError: what stands there is no objective.
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
    for known in get_args(ObjectiveKind):
        if known == kind:
            return known  # type: ignore[no-any-return]  # one of those
    raise CorpusError(
        f"verification.json: '{safe_text(kind)}' is no objective",
        hint="copy it again, or move it away",
    )


def _read_summary(path: Path, keys: Sequence[str]) -> dict[str, object]:
    """Return some keys of a JSON object, if there is such a file: only plain values."""
    found = _read_object(path)
    for group in ("settings", "models"):  # of a verification: digests and options, paths
        inner = found.get(group)
        found = found | (inner if isinstance(inner, dict) else {})
    # They go into a card as they are, and nobody has checked the file: no lists, no objects.
    plain = {key: found[key] for key in keys if isinstance(found.get(key), (str, int, float))}
    return {key: shown_path(x) if isinstance(x, str) else x for key, x in plain.items()}


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one without the file."""
    if not path.is_file():
        return {}
    try:
        return parse_object(read_small(path, _MAX_SUMMARY_BYTES), "file")
    except (OSError, RowError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise CorpusError(
            f"{shown_path(path)}: {said}", hint="copy it again, or move it away"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinCounts:
    """What became of the rows of two tables."""

    rows: int
    not_scored: int
    """Of these, without a score: too short or bad."""

    unlabelled: int
    """Scored rows without a label."""

    unscored: int
    """Labels of rows that are not scored or not in the risk table."""

    used: int
    distinct: int
    """Of these, examples with different features: equal ones count once."""

    conflicting: int
    """Distinct examples with both labels: they count as extracted."""


@dataclass(frozen=True, slots=True)
class VerifiedRun:
    """A labelled run that knows which of its examples are the same text as another's."""

    run: LabelledRun
    counts: JoinCounts
    ids: tuple[str, ...]
    """(n,) row and id of the first row of each example."""

    places: tuple[str, ...]
    """(n,) id and address of the same row, if both are known."""

    digests: tuple[bytes, ...]
    """(n,) of all features: the same for the same window and models."""

    texts: NDArray[np.int64]
    """(n,) the same number for the same text, in whichever run; -1 before they are compared."""


def join_tables(labels: Table, scores: Table, *, name: str, features: Sequence[str]) -> VerifiedRun:
    """Return the distinct examples that have both a score and a label.

    Rows with equal features count once: they have equal worst windows.

    Args:
        labels: with `id` or `row`, and `extracted_by_student`.
        scores: with `id` or `row`, and the features.
        name: of the run.
        features: columns of `scores`, all of them finite in every row used.

    Raises:
        ClassifierError: a column is missing, rows do not belong together, or a value is no
            label or not a finite number.
    """
    _require_columns(labels, ("extracted_by_student",))
    _require_columns(scores, features)
    match = match_rows(labels, scores)
    extracted = _label_column(labels, "extracted_by_student")
    outcomes = scores.texts.get("outcome", ["scored"] * scores.n_rows)
    scored = np.array([outcome == "scored" for outcome in outcomes])
    # Where there is no label, -1 takes that of the last row, and NaN its place.
    label_of = np.where(match >= 0, extracted[match], np.nan)
    used = np.flatnonzero(scored & np.isfinite(label_of))
    if len(used) == 0:
        raise ClassifierError(
            f"no row of {scores.shown} has both a score and a label in {labels.shown}",
            hint="pair each --labels with the --scores of the same corpus",
        )
    X, example_of, firsts, digests = _distinct_examples(scores, features, used)
    # An example counts as extracted if any of its copies is: one leak is a leak.
    positives = np.bincount(example_of, weights=label_of[used])
    copies = np.bincount(example_of)
    columns = {feature: X[firsts, i] for i, feature in enumerate(features)}
    ids, places = _ids_and_places(scores, used[firsts].tolist(), name)
    return VerifiedRun(
        LabelledRun(name, columns | _other_labels(labels, match[used[firsts]]), positives > 0),
        JoinCounts(
            rows=scores.n_rows,
            not_scored=int((~scored).sum()),
            unlabelled=int((scored & ~np.isfinite(label_of)).sum()),
            unscored=int(np.isfinite(extracted).sum()) - len(used),
            used=len(used),
            distinct=len(firsts),
            conflicting=int(((positives > 0) & (positives < copies)).sum()),
        ),
        ids,
        places,
        digests,
        texts=np.full(len(firsts), -1, dtype=np.int64),
    )


def _ids_and_places(
    scores: Table, rows: Sequence[int], name: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what rows are called in their own run, and what they are called in any run."""
    ids, addresses = (scores.texts.get(key, [""] * scores.n_rows) for key in ("id", "address"))
    ordinals = scores.numbers.get("row", np.full(scores.n_rows, np.nan)).tolist()
    # Ids alone are equal in unrelated corpora: without addresses no row is another's.
    has_places = {"id", "address"} <= scores.texts.keys()
    places = (f"{ids[row]}\0{addresses[row]}" if has_places else f"{name}\0{row}" for row in rows)
    return tuple(f"{ordinals[row]:.0f} {ids[row]}" for row in rows), tuple(places)


def join_inputs(inputs: Sequence[Input], features: Sequence[str]) -> list[VerifiedRun]:
    """Return the examples of all inputs, as `join_tables` and `number_texts` do."""
    return number_texts(
        [join_tables(one.labels, one.scores, name=one.name, features=features) for one in inputs]
    )


def number_texts(runs: Sequence[VerifiedRun]) -> list[VerifiedRun]:
    """Return the runs with the same number for the same text.

    Texts are the same if their features are equal, or their id and address. Near-duplicates
    cannot be told without the text itself.
    """
    # Texts are nodes that share a key, directly or through others: their connected components.
    first_with: dict[object, int] = {}
    partners = [
        first_with.setdefault(key, len(first_with))
        for run in runs
        for keys in zip(run.digests, run.places, strict=True)
        for key in keys
    ]
    pairs = np.array(partners, dtype=np.int64).reshape(-1, 2)
    n_keys = len(first_with)
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_keys, n_keys))
    _, component = connected_components(links, directed=False)
    texts = np.split(
        component[pairs[:, 0]].astype(np.int64), np.cumsum([len(run.ids) for run in runs])[:-1]
    )
    return [replace(run, texts=numbers) for run, numbers in zip(runs, texts, strict=True)]


def _require_columns(table: Table, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table.numbers]
    if "id" not in table.texts and "row" not in table.numbers:
        missing.insert(0, "id or row")
    if missing:
        raise ClassifierError(
            f"{table.shown}: expected the column {missing[0]}, "
            f"got {', '.join((*table.texts, *table.numbers)) or 'none that is known'}",
            hint="give the tables that predict and verify wrote, labels after --labels "
            "and scores after --scores",
        )


def _label_column(labels: Table, name: str) -> NDArray[np.float64]:
    column = labels.numbers[name]
    # NaN is a row without a label. An infinity is neither a label nor a missing one.
    n_wrong = int((~np.isnan(column) & ~np.isin(column, (0, 1))).sum())
    if n_wrong:
        raise ClassifierError(
            f"{labels.shown}: {name} is neither true nor false in {number_of(n_wrong, 'row')}",
            hint="label a row by whether the student reproduces it",
        )
    return column


def _distinct_examples(
    scores: Table, features: Sequence[str], used: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], tuple[bytes, ...]]:
    """Return the features and the example of each row used, each one's first row, and its digest."""
    X = np.column_stack([scores.numbers[name][used] for name in features])
    n_broken = (~np.isfinite(X)).sum(axis=0)
    if n_broken.any():
        column = int(n_broken.argmax())
        raise ClassifierError(
            f"{scores.shown}: feature {features[column]} is not a finite number "
            f"in {n_broken[column]:,} of {len(used):,} scored rows",
            hint="score the corpus again with 'memaudit predict'",
        )
    # The objective is that of the run: the same window of another run is the same text.
    of_window = [i for i, name in enumerate(features) if name not in OBJECTIVE_FEATURES]
    number: dict[bytes, int] = {}
    firsts: list[int] = []
    example_of = np.empty(len(X), dtype=np.int64)
    for i, row in enumerate(np.ascontiguousarray(X[:, of_window])):
        # To the last bit: equal windows are scored once, so their features have equal bytes.
        digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        example_of[i] = number.setdefault(digest, len(firsts))
        if example_of[i] == len(firsts):
            firsts.append(i)
    return X, example_of, np.array(firsts, dtype=np.int64), tuple(number)


def _other_labels(labels: Table, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return what the teacher and the baseline recite, where the labels say it of all."""
    columns = {
        name: _label_column(labels, name)[rows]
        for name in LABEL_COLUMNS[1:]
        if name in labels.numbers
    }
    return {name: column for name, column in columns.items() if np.isfinite(column).all()}
