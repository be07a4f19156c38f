"""How two finished runs differ: what `memaudit diff` finds, and its page."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memaudit.errors import UsageError
from memaudit.gate.result import PARTS_OF_ROWS
from memaudit.gate.rules import judged
from memaudit.metrics import ExpectedCount
from memaudit.reports import words
from memaudit.reports.page import Column, Page, Section, Sentence, Table, Words, name, numbers
from memaudit.runs.run import Run
from memaudit.text import number_of, shown_path

SCHEMA_VERSION = 1
"""Of the JSON document; goes up when a reader of the old one would misread."""

# What two runs are compared for. PARTS_OF_ROWS must agree: else probabilities of different
# parts of a row would stand side by side as one that changed.
_MAY_DIFFER = ("teacher", "teacher_digest", "objective", "temperature", "alpha")
_SMALLEST_CHANGE = 0.001
"""Of a probability; what changes less is rounding."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs."""

    folder: str
    run: str
    """Fingerprint."""
    rows: int
    scored: int
    flagged: int
    flagged_texts: int
    expected: ExpectedCount
    expected_texts: ExpectedCount
    """Distinct texts expected to be memorized."""
    recited: int


@dataclass(frozen=True, slots=True)
class Change:
    """A row that is in both runs, with another probability."""

    example_id: str
    """As in the corpus: untrusted."""
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What the second run has that the first has not, and the other way round. Ids are untrusted."""

    before: Side
    after: Side
    settings: dict[str, tuple[Any, Any]]
    """Settings that differ, by name."""
    gone: tuple[str, ...]
    """Ids of rows of the first run alone, in its order."""
    come: tuple[str, ...]
    """Ids of rows of the second run alone, in its order."""
    gone_at_risk: int
    """Rows at risk among those that are gone."""
    no_longer_at_risk: tuple[Change, ...]
    """Rows of both that were at risk, the largest change first."""
    newly_at_risk: tuple[Change, ...]
    """Rows of both that were not at risk, the largest change first."""
    changed: tuple[Change, ...]
    """Rows of both whose probability changed otherwise, the largest change first."""

    @property
    def is_empty(self) -> bool:
        """Whether no row came, went or changed, and no setting did."""
        lists = (self.gone, self.come, self.no_longer_at_risk, self.newly_at_risk, self.changed)
        return not any(lists) and not self.settings

    def document(self) -> dict[str, Any]:
        """Return it as one JSON document."""
        return {"schema_version": SCHEMA_VERSION, "empty": self.is_empty, **asdict(self)}


def compare_runs(first: Run, second: Run) -> Difference:
    """Return how two runs differ, before and after. Rows are the same if they have the same id.

    Raises:
        UsageError: they scored different parts of rows, or their rows have no ids to tell them by.
    """
    settings = _settings(first, second)
    ids = [run.rows.column("id").to_pylist() for run in (first, second)]
    # Of the same texts a place is as good as an id: row 5 is row 5 in both.
    if first.manifest.inputs.texts_digest != second.manifest.inputs.texts_digest:
        for run, its in zip((first, second), ids, strict=True):
            # In another corpus the same place is another row.
            if all(map(str.endswith, run.rows.column("address").to_pylist(), its)):
                raise UsageError(
                    f"{shown_path(run.folder)}: its rows have no ids, only places, and the two "
                    "corpora differ",
                    hint="predict both with --id-column, so that the same row has the same name",
                )
    here, there = _common(*ids)
    is_common = np.zeros(first.n_rows, dtype=np.bool_), np.zeros(second.n_rows, dtype=np.bool_)
    is_common[0][here], is_common[1][there] = True, True
    was, is_now = first.is_flagged[here], second.is_flagged[there]
    # A row that only one of them has scored has no change to speak of, but it may be at risk.
    p, q = np.nan_to_num(first.probabilities[here]), np.nan_to_num(second.probabilities[there])
    moved = np.abs(q - p) >= _SMALLEST_CHANGE

    def changes(which: NDArray[np.bool_]) -> tuple[Change, ...]:
        places = np.flatnonzero(which)
        # Stable, so that equal changes keep the order of the corpus, and two calls agree.
        places = places[np.argsort(-np.abs(q - p)[places], kind="stable")]
        return tuple(Change(ids[0][here[i]], float(p[i]), float(q[i])) for i in places.tolist())

    return Difference(
        before=_side(first),
        after=_side(second),
        settings=settings,
        gone=tuple(compress(ids[0], ~is_common[0])),
        come=tuple(compress(ids[1], ~is_common[1])),
        gone_at_risk=int((first.is_flagged & ~is_common[0]).sum()),
        no_longer_at_risk=changes(was & ~is_now),
        newly_at_risk=changes(is_now & ~was),
        changed=changes(moved & (was == is_now)),
    )


def _settings(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ.

    Raises:
        UsageError: one of them must not.
    """
    one, other = judged(first), judged(second)
    if apart := [key for key in PARTS_OF_ROWS if getattr(one, key) != getattr(other, key)]:
        listed = ", ".join(key.replace("_", " ") for key in apart)
        raise UsageError(
            f"the runs scored different things, they differ in {listed}",
            hint="compare runs of the same column, layout and windows",
        )
    found = {
        key: (getattr(one, key), getattr(other, key))
        for key in _MAY_DIFFER
        if getattr(one, key) != getattr(other, key)
    }
    # By digest: two classifiers of one name may be fitted on different students.
    digests = first.manifest.classifier.digest, second.manifest.classifier.digest
    names = first.manifest.classifier.name, second.manifest.classifier.name
    return found if digests[0] == digests[1] else {**found, "classifier": names}


def _common(before: list[str], after: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the rows that are in both; of equal ids, as many as both have."""
    if before == after:  # another teacher on the same corpus
        return np.arange(len(before)), np.arange(len(after))
    places = {key: place for place, key in enumerate(_numbered(before))}
    found = [(places[key], i) for i, key in enumerate(_numbered(after)) if key in places]
    here, there = np.array(found, dtype=np.int64).reshape(-1, 2).T
    return here, there


def _numbered(ids: list[str]) -> Iterator[tuple[str, int]]:
    """Yield each id with how many equal ones came before it."""
    seen: Counter[str] = Counter()
    for each in ids:
        yield each, seen[each]
        seen[each] += 1


def _side(run: Run) -> Side:
    risks = run.risks
    return Side(
        folder=shown_path(run.folder),
        run=run.manifest.inputs.fingerprint,
        rows=run.n_rows,
        scored=int(run.is_scored.sum()),
        flagged=risks.n_flagged,
        flagged_texts=risks.n_flagged_texts,
        expected=risks.expected,
        expected_texts=risks.expected_texts,
        recited=risks.n_recited,
    )


def difference_page(found: Difference, *, n_listed: int = 10) -> Page:
    """Return how two runs differ: the numbers side by side, then some rows of each kind."""
    before, after = found.before, found.after
    verdict: Sentence = Words("The runs do not differ.", "good")
    if not found.is_empty:
        better = after.expected.mean <= before.expected.mean
        were = number_of(before.flagged, "example was", "examples were")
        counts = f"{were} at risk, now {after.flagged:,}"
        verdict = (
            Words(counts, "good" if better else "risk"),
            f": expect {words.expected(after.expected)} to be memorized, before "
            f"{words.expected(before.expected)}.",
        )
    at_risk = number_of(found.gone_at_risk, "was at risk", "were at risk")
    lists: dict[str, tuple[str, ...] | tuple[Change, ...]] = {
        f"Rows that are gone: {len(found.gone):,}, {at_risk}": found.gone,
        f"Rows that are new: {len(found.come):,}": found.come,
        f"No longer at risk: {len(found.no_longer_at_risk):,}": found.no_longer_at_risk,
        f"Newly at risk: {len(found.newly_at_risk):,}": found.newly_at_risk,
        f"Other changes of the probability: {len(found.changed):,}": found.changed,
    }
    sections = [Section(blocks=(_side_by_side(found),))]
    columns = (Column("example", "anywhere"), *numbers("before", "after"))
    for title, all_rows in lists.items():
        rows: list[tuple[Sentence, ...]] = [
            (name(each),)
            if isinstance(each, str)
            else (name(each.example_id), words.percent(each.before), words.percent(each.after))
            for each in all_rows[:n_listed]
        ]
        if all_rows:
            shown = columns[:1] if isinstance(all_rows[0], str) else columns
            rest = words.and_more(len(all_rows) - n_listed)
            table = Table(columns=shown, rows=tuple(rows), rest=rest)
            sections.append(Section(title=title, blocks=(table,) if rows else ()))
    return Page(title="What differs between two runs", verdict=verdict, sections=tuple(sections))


def _side_by_side(found: Difference) -> Table:
    before, after = found.before, found.after
    rows: list[tuple[Sentence, ...]] = [
        ("run", name(before.folder), name(after.folder)),
        *(
            (key.replace("_", " "), _setting(one), _setting(other))
            for key, (one, other) in found.settings.items()
        ),
        ("rows", before.rows, after.rows),
        ("scored", before.scored, after.scored),
        ("at risk", before.flagged, after.flagged),
        ("distinct texts at risk", before.flagged_texts, after.flagged_texts),
        ("expected", words.expected(before.expected), words.expected(after.expected)),
        (
            "expected distinct texts",
            words.expected(before.expected_texts),
            words.expected(after.expected_texts),
        ),
        ("recited by the teacher", before.recited, after.recited),
    ]
    columns = (Column("what", "nowhere"), Column("before", "anywhere"), Column("after", "anywhere"))
    return Table(columns=columns, rows=tuple(rows))


def _setting(value: object) -> Sentence:
    return name(f"{value:g}" if isinstance(value, float) else str(value))
