"""Which rows go or are cut, by the run and by their texts, and what a classifier expects of the rest."""

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Example
from memaudit.corpus.base import Cuts, RowError, Span
from memaudit.corpus.cuts import cut_string, cut_values, place_cuts
from memaudit.errors import MissingDependency, UsageError
from memaudit.features import EXPOSURE_FEATURES
from memaudit.metrics import ExpectedCount
from memaudit.runs.reading import Tokenizer, encode_examples
from memaudit.runs.risks import Risks
from memaudit.runs.run import Run
from memaudit.windows import risky_spans, window_key, windows_of

Strategy = Literal["drop", "deduplicate", "downsample", "excise"]
"""What happens to a risky row: it goes; of equal texts one stays; of rows with equal windows a few
stay; or the risky window is cut out of it."""


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """Which rows are too risky, and what happens to them. Without a limit: the flagged ones."""

    max_probability: float | None = None
    """Rows above it are too risky, in [0, 1]."""

    top: int | None = None
    """So many of the riskiest rows are too risky."""

    expected_at_most: float | None = None
    """As few rows as possible are too risky: the upper end of the 95 % interval of the number
    memorized comes down to this."""

    strategy: Strategy = "drop"
    max_copies: int = 1
    """Rows with the same risky window that `downsample` keeps, at least 1."""

    near_duplicates: float | None = None
    """For `deduplicate`: of texts at least this similar to a risky one, one is kept, in (0, 1]."""

    def __post_init__(self) -> None:
        limits = [self.max_probability, self.top, self.expected_at_most]
        if sum(limit is not None for limit in limits) > 1:
            raise UsageError(
                "more than one limit, expected at most one",
                hint="give --max-probability, --top or --expected-at-most",
            )
        if any(limit is not None and not (math.isfinite(limit) and limit >= 0) for limit in limits):
            raise UsageError("a limit is not a number of at least 0")
        if self.max_probability is not None and self.max_probability > 1:
            raise UsageError(f"expected a probability, got {self.max_probability:g}")
        if self.strategy not in get_args(Strategy) or self.max_copies < 1:
            raise ValueError(f"expected a strategy of {get_args(Strategy)} and max_copies >= 1")
        for option, strategy, is_given in (
            ("--max-copies", "downsample", self.max_copies > 1),
            ("--near-duplicates", "deduplicate", self.near_duplicates is not None),
        ):
            if is_given and self.strategy != strategy:
                raise UsageError(
                    f"{option} goes with --strategy {strategy}, got {self.strategy}",
                    hint="leave out one of the two",
                )
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise UsageError(f"expected a similarity in (0, 1], got {self.near_duplicates:g}")

    @property
    def in_words(self) -> str:
        """Why a row is too risky."""
        if self.max_probability is not None:
            return f"probability above {self.max_probability:g}"
        if self.top is not None:
            return f"among the {self.top} riskiest"
        if self.expected_at_most is not None:
            return f"for at most {self.expected_at_most:g} expected"
        return "flagged"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows go, and which are cut."""

    is_removed: NDArray[np.bool_]
    """(n_rows,)"""

    kept: NDArray[np.int64]
    """(n_rows,) the row that stays in the place of a removed one; -1 where none does."""

    is_copy: NDArray[np.bool_]
    """(n_rows,) whether a removed row has the same text as the row that stays in its place."""

    risky_windows: NDArray[np.int64]
    """Distinct windows that are too risky, ascending."""

    is_cut: NDArray[np.bool_]
    """(n_rows,) whether the risky windows are cut out of a row, which stays."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of some rows."""

    expected: ExpectedCount
    """Memorized rows; equal ones share their fate."""

    flagged: int
    """Rows at or above the threshold."""

    is_estimate: bool
    """Whether probabilities were changed for how often a window is left."""


def select_rows(run: Run, options: FilterOptions, texts: NDArray[np.int64]) -> Selection:
    """Return which rows go or are cut, near-duplicates aside.

    `texts`: (n_rows,) equal numbers for equal texts.

    Raises:
        UsageError: no choice of copies brings the expected number down far enough.
    """
    limit, above = options.expected_at_most, options.max_probability
    if options.top is None and limit is None:
        risky = run.is_flagged if above is None else run.is_scored & (run.probabilities > above)
        return _applied(run, options, texts, risky)
    rows = np.flatnonzero(run.is_scored)
    _, first, inverse = np.unique(run.worst_windows[rows], return_index=True, return_inverse=True)
    # The riskiest first, copies side by side, of equally risky ones the first first.
    order = rows[np.lexsort((rows, first[inverse], -run.probabilities[rows]))]

    def removing(n: int) -> Selection:
        return _applied(run, options, texts, np.isin(np.arange(run.n_rows), order[:n]))

    if options.top is not None:
        return removing(options.top)
    assert limit is not None
    # Asked first: bisection would return the whole order, enough or not.
    best = outlook(run, removing(len(order)), options).expected
    if best.high > limit:
        raise UsageError(
            f"with --strategy {options.strategy} still {best.mean:,.1f} "
            f"({best.low:,} to {best.high:,}) are expected to be memorized, "
            f"at most {limit:g} allowed by the upper bound",
            hint="choose --strategy drop, or a higher --expected-at-most",
        )
    # As little as brings the upper bound down to the limit: more is never worse, so by bisection.
    return removing(
        bisect_left(
            range(len(order)),
            True,
            key=lambda n: outlook(run, removing(n), options).expected.high <= limit,
        )
    )


def _applied(
    run: Run, options: FilterOptions, texts: NDArray[np.int64], risky: NDArray[np.bool_]
) -> Selection:
    """Return what the strategy does about risky rows."""
    windows, nothing = np.unique(run.worst_windows[risky]), np.zeros(run.n_rows, dtype=np.bool_)
    no_row = np.full(run.n_rows, -1, dtype=np.int64)
    if options.strategy == "drop":
        return Selection(risky, no_row, nothing, windows, nothing)
    if options.strategy == "excise":
        return Selection(nothing, no_row, nothing, windows, risky)
    groups = texts if options.strategy == "deduplicate" else run.worst_windows
    rows = np.flatnonzero(np.isin(run.worst_windows, windows) & run.is_scored)
    rows = rows[np.argsort(groups[rows], kind="stable")]
    _, starts, counts = np.unique(groups[rows], return_index=True, return_counts=True)
    # The place of a row in its group: those in front stay.
    goes = np.arange(len(rows)) - np.repeat(starts, counts) >= options.max_copies
    removed, kept = nothing.copy(), no_row.copy()
    removed[rows[goes]] = True
    kept[rows[goes]] = np.repeat(rows[starts], counts)[goes]
    is_copy = removed & (texts == texts[np.maximum(kept, 0)])
    return Selection(removed, kept, is_copy, windows, nothing)


def outlook(run: Run, selection: Selection | None, options: FilterOptions) -> Outlook:
    """Return what is expected of the rows that stay as they were; without a selection, of all.

    What is left of a row that is cut has not been scored, so nothing is expected of it.

    Rows that stay have their probability, but for windows of which copies went: where the
    classifier looks at how often a window occurs, it is asked again. The teacher's scores are
    still those of a teacher that saw every copy.
    """
    is_gone = np.zeros(run.n_rows, dtype=np.bool_)
    if selection is not None:
        is_gone = selection.is_removed | selection.is_cut
    stays = run.is_scored & ~is_gone
    windows, copies = np.unique(run.worst_windows[stays], return_counts=True)
    probabilities, is_estimate = run.risks.window_probabilities[windows], False
    if options.strategy != "drop" and is_gone.any():
        gone, n_gone = np.unique(run.worst_windows[run.is_scored & is_gone], return_counts=True)
        probabilities, is_estimate = with_fewer_copies(run.risks, windows, gone, n_gone)
    classifier = run.manifest.classifier
    return Outlook(
        classifier.expected_count(probabilities, copies),
        int(copies[probabilities >= classifier.threshold].sum()),
        is_estimate,
    )


def with_fewer_copies(
    risks: Risks, windows: NDArray[np.int64], gone: NDArray[np.int64], n_gone: NDArray[np.int64]
) -> tuple[NDArray[np.float64], bool]:
    """Return the probabilities of windows with fewer copies, and whether the classifier counts them.

    Args:
        risks: of the run.
        windows: (n_windows,) distinct ones.
        gone: (n_gone,) distinct windows of which copies go.
        n_gone: (n_gone,) how many of each; one is left at least.

    Returns:
        (n_windows,)
    """
    probabilities = risks.window_probabilities[windows]
    used = set(risks.classifier.features)
    if not {"occurrences", "log_occurrences", *EXPOSURE_FEATURES} & used:
        return probabilities, False
    lost = np.zeros(len(risks.X), dtype=np.int64)
    lost[gone] = n_gone
    # Windows that keep all their copies keep their probability, to the bit.
    again = risks.probabilities_without(windows, lost[windows])
    return np.where(lost[windows] > 0, again, probabilities), True


# Texts .6 alike share one of 32 bands of 4 hashes with probability .988, texts .8 alike with
# 1 - 5e-8: the bands find the candidates, all 128 hashes say how alike these are.
_N_HASHES, _N_BANDS, _SEED = 128, 32, 1
_WORDS_A_SHINGLE = 3
_WORD = re.compile(r"\w+")


class NearDuplicates:
    """Groups of texts that are alike, each around a risky one.

    Two texts are alike if their sets of three words in a row overlap by the similarity asked for,
    as estimated from 128 hashes (a standard error of at most .045).
    """

    def __init__(self, run: Run, selection: Selection, similarity: float) -> None:
        """Prepare for the risky rows that stay.

        Raises:
            MissingDependency: rensa is not installed.
        """
        try:
            import rensa
        except ImportError as error:
            raise MissingDependency(
                "rensa", needed_for="--near-duplicates", extra="dedup"
            ) from error
        self._rensa: Any = rensa
        is_risky = np.isin(run.worst_windows, selection.risky_windows)
        self._stays = run.is_scored & ~selection.is_removed
        self._is_risky = is_risky & self._stays
        self._similarity = similarity
        self._index = rensa.RMinHashLSH(similarity, _N_HASHES, _N_BANDS)
        self._hashes: dict[int, Any] = {}
        self._leader = np.arange(run.n_rows)

    def learn(self, row: Example | BadRow) -> None:
        """Look at a row once: risky texts are kept in mind as hashes."""
        # Risky texts alone: memory grows with them, not with the corpus.
        if isinstance(row, Example) and self._is_risky[row.row]:
            self._hashes[row.row] = self._hash(row.text)
            self._index.insert(row.row, self._hashes[row.row])

    def find(self, rows: Iterable[Example | BadRow]) -> NDArray[np.int64]:
        """Look at all rows again, once every risky one is known.

        Returns:
            (n_rows,) the first row of each row's group: itself where it is alone.
        """
        # A second time through: a text may stand in front of the risky one that it is like.
        for row in rows:
            if not isinstance(row, Example) or not self._stays[row.row]:
                continue
            own = self._hashes.get(row.row) or self._hash(row.text)
            for other in self._index.query(own):
                # The index does not look at the similarity: one band in common is enough for it.
                if other != row.row and own.jaccard(self._hashes[other]) >= self._similarity:
                    # The first row leads, as the first of each group stays.
                    first, second = sorted((self._first(row.row), self._first(other)))
                    self._leader[second] = first
        n_rows = len(self._leader)
        return np.fromiter(map(self._first, range(n_rows)), np.int64, n_rows)

    def _hash(self, text: str) -> Any:
        words = _WORD.findall(text.casefold())
        last = max(1, len(words) - _WORDS_A_SHINGLE + 1)
        minhash = self._rensa.RMinHash(_N_HASHES, _SEED)
        minhash.update([" ".join(words[i : i + _WORDS_A_SHINGLE]) for i in range(last)])
        return minhash

    def _first(self, row: int) -> int:
        while self._leader[row] != row:
            # Each step halves the way for the next one who asks.
            self._leader[row] = self._leader[self._leader[row]]
            row = int(self._leader[row])
        return row


class TeacherTokenizer(Tokenizer, Protocol):
    """What is needed of the teacher's tokenizer, where it is given."""

    def token_spans(self, text: str, /) -> list[Span]:
        """Return where each token of a text stands in it, in characters."""
        ...


class RiskyWindows:
    """Where risky windows stand in the strings of the rows that are to be cut.

    All of them, not the riskiest of each row alone: a chat may have several such answers.

    Windows are numbered as `predict` numbered them: in the order in which they first occur.
    """

    def __init__(
        self,
        run: Run,
        options: FilterOptions,
        selection: Selection,
        tokenizer: TeacherTokenizer | None,
    ) -> None:
        """Prepare for a pass over the corpus.

        Raises:
            UsageError: there is no tokenizer.
        """
        if tokenizer is None:
            raise UsageError(
                "--strategy excise needs to know where the tokens of a text are",
                hint="name the model that predict was given with --teacher",
            )
        self._tokenizer, self._choice = tokenizer, run.manifest.inputs.window_choice
        # What is at risk, or as risky as a row that is to be cut.
        lowest = run.probabilities[selection.is_cut].min(initial=run.manifest.classifier.threshold)
        is_risky = run.risks.window_probabilities >= lowest
        if options.max_probability is not None:
            is_risky = run.risks.window_probabilities > options.max_probability
        self._selection, self._risky = selection, set(np.flatnonzero(is_risky).tolist())
        self._numbers: dict[bytes, int] = {}
        self._emptied: list[int] = []
        self.cuts: dict[int, Cuts] = {}
        self.n_not_cut = 0  # rows in which a risky window is left

    @property
    def selection(self) -> Selection:
        """The rows that are cut; one of which nothing is left goes, as it is no row in some formats."""
        is_cut, is_removed = np.zeros((2, len(self._selection.is_cut)), dtype=np.bool_)
        is_cut[list(self.cuts)] = True
        is_removed[self._emptied] = True
        return replace(self._selection, is_removed=is_removed, is_cut=is_cut)

    def learn(self, row: Example) -> str | None:
        """Look at a row; rows come in order.

        Returns:
            what is left of a text that is cut; None: it stays as it is, or goes.

        Raises:
            UsageError: the row holds token ids instead of text.
        """
        if row.token_ids is not None:
            raise UsageError(
                "--strategy excise cuts text, and the corpus holds token ids",
                hint="choose --strategy drop or deduplicate",
            )
        spans = self._risky_spans(row)
        if not spans:
            return None
        cut, clean, untried = None, list[Span](), [spans]
        while untried:
            part = untried.pop()
            if (more := _without(row, [*clean, *part])) is not None:
                cut, clean = more, [*clean, *part]
            elif len(part) > 1:
                # One that cannot be cut, such as a call of a function, need not keep the others. By
                # halves: a long row has thousands of windows.
                untried += [part[len(part) // 2 :], part[: len(part) // 2]]
        self.n_not_cut += len(clean) < len(spans)
        if cut is None:
            return None
        cuts, left = cut
        if not left.strip():
            self._emptied.append(row.row)
            return None
        self.cuts[row.row] = cuts
        return left

    def _risky_spans(self, row: Example) -> list[Span]:
        """Return where risky windows stand in the text of a row, in characters."""
        ((token_ids, answers),) = encode_examples([row], self._tokenizer)
        # Of every row, cut or not: windows have numbers in the order in which they first occur.
        risky, spans_of = [], risky_spans(len(token_ids), answers, self._choice)
        for window, span in zip(
            windows_of(token_ids, answers, self._choice), spans_of, strict=True
        ):
            if self._numbers.setdefault(window_key(window), len(self._numbers)) in self._risky:
                risky.append(span)
        if not risky or not self._selection.is_cut[row.row]:
            return []
        places = self._tokenizer.token_spans(row.text)
        spans = [(places[a][0], places[b - 1][1]) for a, b in risky]
        # One character may be of two tokens: a span begins where the one before it ends, or later.
        starts = [spans[0][0], *(max(b[0], a[1]) for a, b in pairwise(spans))]
        ends = [end for _, end in spans]
        return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


def _without(row: Example, spans: Sequence[Span]) -> tuple[Cuts, str] | None:
    """Return what is cut of a row and what is left of its text; None: not all spans can be cut."""
    cuts, inside = place_cuts(row.values, row.text, spans)
    furthest = [0, *accumulate((end for _, end in inside), max)]
    # Of each span something is cut: of the parts that begin before its end one ends behind its start.
    if any(furthest[bisect_left(inside, (end,))] <= start for start, end in spans):
        return None
    left = cut_string(row.text, inside)
    if not left.strip():
        return cuts, left
    assert row.render is not None
    try:
        found = row.render(cut_values(row.values, cuts)).text
    except RowError:
        return None
    # The row that is written must give the text that is meant, blanks aside.
    return (cuts, left) if "".join(found.split()) == "".join(left.split()) else None
