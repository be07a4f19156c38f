"""The reading pass: rows in, windows out, equal windows kept once.

What it leaves for the scoring pass lies in files without a name, which vanish with the process:
a distinct window takes about 200 bytes of memory, whatever its length, and a row 16.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, tee
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Conversation, Example, Rendered
from memaudit.corpus.base import RawDigest, Span, text_key
from memaudit.errors import CorpusError
from memaudit.exposure import BETWEEN
from memaudit.progress import ReportProgress, begin_stage
from memaudit.runs.files import NamelessFile
from memaudit.text import number_of
from memaudit.windows import SHAPE_OPTIONS, WindowChoice, window_key, windows_of, without_padding


class Tokenizer(Protocol):
    """Turns texts into token ids and back, many at a time."""

    def encode(self, texts: list[str], /) -> list[list[int]]:
        """Return the token ids of each text."""

    def can_encode(self, text: str, /, *, whole: bool) -> bool:
        """Whether the tokens of a text take a bounded amount of memory."""

    def encode_starts(self, texts: list[str], n_tokens: int, /) -> list[list[int]]:
        """Return the token ids of each text, of a long one at least so many of the first."""

    def decode(self, token_ids: list[list[int]], /) -> list[str]:
        """Return the text of each sequence of token ids."""

    def encode_answers(
        self, texts: list[str], answers: list[tuple[Span, ...]], /
    ) -> list[tuple[list[int], tuple[Span, ...]]]:
        """Return the token ids of each text, and which of them are its answers."""

    def without_bos(self, ids: list[int], /) -> list[int]:
        """Return token ids without a BOS token at their start, where engines put one in front."""

    def render_messages(self, conversation: Conversation, /) -> Rendered:
        """Return the text that the chat template makes of messages, and where its answers are."""


Outcome = Literal["scored", "screened", "too_short", "bad", "error"]
"""What became of a row. Every row has exactly one.

`screened`: a prefilter left all of its windows out; `error`: its windows could not be scored.
"""


class RowOutcome(msgspec.Struct, frozen=True, array_like=True):
    """A row of the corpus and what became of it."""

    example_id: str
    row: int
    address: str
    outcome: Outcome
    reason: str = ""


class RowLog(NamelessFile):
    """The rows of a corpus in order, without their text."""

    def append(self, row: RowOutcome) -> None:
        """Add a row after the others."""
        # Ids are untrusted. JSON writes out their line breaks, so that a line is a row.
        self._append(msgspec.json.encode(row) + b"\n")

    def __iter__(self) -> Iterator[RowOutcome]:
        """Yield the rows again. Nothing may be appended meanwhile."""
        decoder = msgspec.json.Decoder(RowOutcome)
        self._seek(0)
        for line in self._file:
            yield decoder.decode(line)


class DistinctWindows(NamelessFile):
    """The distinct windows of a corpus, and how often each occurs.

    About 200 bytes of memory a distinct window; its tokens are in the file.
    """

    def __init__(self, window_len: int, folder: Path | None = None) -> None:
        """Open an empty file for windows of this many tokens."""
        super().__init__(folder)
        self._window_len = window_len
        self._index: dict[bytes, int] = {}
        self._suffixes: dict[bytes, int] = {}
        self.exposure: NDArray[np.float64] | None = None
        """(n, 2) median and share of `Exposure`; NaN where they were not needed. None:
        they were not counted."""
        self.captured: Callable[[int, int], NDArray[np.float32]] | None = None
        """`CapturedScores.read`, where what was captured stands for the teacher."""
        self._leaders = array("q")
        self._occurrences = array("q")

    def __len__(self) -> int:
        """Distinct windows."""
        return len(self._occurrences)

    @property
    def occurrences(self) -> NDArray[np.int64]:
        """(n,) how many times each window, or its counted part, was added; at least 1."""
        # Windows that end alike have one leader, and all of them the sum of their counts.
        leaders = np.array(self._leaders, dtype=np.int64)
        counts = np.zeros(len(self), dtype=np.int64)
        np.add.at(counts, leaders, np.array(self._occurrences, dtype=np.int64))
        return counts[leaders]

    def add(self, window: NDArray[np.int32], *, counted_from: int = 0) -> int:
        """Count a window, (window_len,), and return its index, the same for equal windows.

        `counted_from` is where the part begins that `occurrences` counts. A student learns an
        answer each time it is the answer, whatever was asked: there it is the suffix.
        """
        key = window_key(window)
        index = self._index.setdefault(key, len(self._index))
        if index == len(self._occurrences):
            self._append(window.tobytes())
            self._occurrences.append(0)
            counted = window_key(window[counted_from:]) if counted_from else None
            leader = index if counted is None else self._suffixes.setdefault(counted, index)
            self._leaders.append(leader)
        self._occurrences[index] += 1
        return index

    def close_index(self) -> None:
        """Let go of most of the memory once every window is added: only `add` needs it."""
        self._index, self._suffixes = {}, {}

    def chunks(self, size: int) -> Iterator[NDArray[np.int32]]:
        """Yield the distinct windows in the order they came.

        Yields:
            (at most `size`, window_len) token ids.
        """
        for start in range(0, len(self), size):
            yield self.read(start, min(size, len(self) - start))

    def window(self, index: int) -> NDArray[np.int32]:
        """Return one window, without what stands for tokens that it lacks: (T,) token ids."""
        (window,) = self.read(index, 1)
        return without_padding(np.asarray(window, dtype=np.int32))

    def read(self, start: int, count: int) -> NDArray[np.int32]:
        """Return some of the distinct windows: (count, window_len) token ids."""
        self._seek(start * self._window_len * 4)
        content = self._file.read(count * self._window_len * 4)
        return np.frombuffer(content, dtype=np.int32).reshape(count, self._window_len)


_ROWS_AT_ONCE, _CHARACTERS_AT_ONCE = 1024, 1_000_000

_Answers = tuple[Span, ...] | None
"""Which tokens of a row are trained on; None: all."""

_Encoded = tuple[list[int], _Answers]
Part = TypeVar("Part")
Answer = TypeVar("Answer")


class Tasks:
    """Where functions that take long are applied to the parts of a corpus: in this process."""

    shared_bytes: int | None = None
    """What such a function may hold. None: as much as there is."""

    def map(self, function: Callable[[Part], Answer], parts: Iterable[Part]) -> Iterator[Answer]:
        """Yield what a function, which can be pickled, makes of each part, in order."""
        return map(function, parts)


HERE = Tasks()


@dataclass(frozen=True, slots=True)
class CutTexts:
    """What some texts were cut into."""

    n_tokens: list[int]
    """Of each text, or of its start where no more was needed."""

    answers: list[_Answers]
    """Of each text, in tokens. None: all of it is trained on."""

    n_windows: list[int]
    windows: NDArray[np.int32]
    """(n_windows.sum(), window_len) token ids, text after text."""

    tokens: NDArray[np.int32] | None
    """(n,) of all texts, `BETWEEN` after each. None: they were not to be kept."""

    def __iter__(self) -> Iterator[tuple[int, _Answers, list[NDArray[np.int32]]]]:
        """Yield of each text how many tokens it has, its answers and its windows."""
        windows = iter(self.windows)
        for n_tokens, answers, n in zip(self.n_tokens, self.answers, self.n_windows, strict=True):
            yield n_tokens, answers, list(islice(windows, n))


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts texts into tokens and windows; can be pickled."""

    tokenizer: Tokenizer
    choice: WindowChoice
    keeps_tokens: bool
    """Whether all tokens of the texts are wanted beside the windows."""

    def __call__(self, texts: list[Rendered]) -> CutTexts:
        """Return what some texts are cut into."""
        choice = self.choice
        # Of a row without answers nothing is looked at behind its first window, unless it is tiled
        # or its tokens are kept to count exposure in.
        needs_all = choice.policy == "tile" or self.keeps_tokens
        encoded = encode_examples(texts, self.tokenizer, None if needs_all else choice.shape.length)
        windows = [list(windows_of(ids, answers, choice)) for ids, answers in encoded]
        rows = [np.array([*ids, BETWEEN], np.int32) for ids, _ in encoded if self.keeps_tokens]
        return CutTexts(
            [len(ids) for ids, _ in encoded],
            [answers for _, answers in encoded],
            [len(each) for each in windows],
            np.array([*chain(*windows)], np.int32).reshape(-1, choice.shape.length),
            np.concatenate([np.empty(0, np.int32), *rows]) if self.keeps_tokens else None,
        )


@dataclass(slots=True)
class AnswerCounts:
    """How much of the answers of a corpus lies in windows."""

    rows: int = 0
    """Rows that say which part of them is trained on."""

    windows: int = 0
    """Windows of those whose suffix has a trained token."""

    all_windows: int = 0
    unseen_rows: int = 0
    """Rows of those no trained token of which lies in the suffix of a window."""

    def add(
        self, answers: tuple[Span, ...], windows: Sequence[NDArray[np.int32]], choice: WindowChoice
    ) -> None:
        """Count a row with answers, and its windows."""
        n_seen = len(windows)
        if choice.policy == "first":
            start, end = choice.shape.prefix_len, choice.shape.length
            # A window by `first` is cut wherever the answers are.
            n_seen = int(bool(windows) and any(a < end and b > start for a, b in answers))
        self.rows += 1
        self.windows += n_seen
        self.all_windows += len(windows)
        self.unseen_rows += n_seen == 0


@dataclass(frozen=True, slots=True)
class RowWindows:
    """Which windows the rows were cut into."""

    # Arrays, not lists: 8 bytes a number, and a corpus has many.
    windows: "array[int]" = field(default_factory=lambda: array("q"))
    """Indices of distinct windows, scored row after scored row."""

    n_windows: "array[int]" = field(default_factory=lambda: array("q"))
    """Windows of each scored row, at least 1."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    rows_hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    """SHA-256 of the rows' ids, addresses and outcomes."""

    # As JSON a text ends at its quote: the same letters, divided otherwise among two rows, are
    # another corpus.
    texts_hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    """SHA-256 of their texts."""

    raw: RawDigest = field(default_factory=RawDigest)
    """Of their messages, before a chat template made texts of them."""

    text_keys: bytearray = field(default_factory=bytearray)
    """16 bytes for each row: `text_key`, or for a bad row what is like no other."""

    answers: AnswerCounts = field(default_factory=AnswerCounts)
    """How much of what is trained on was looked at, where rows say what that is."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n_windows,) which of the scored rows each window is of."""
        return np.repeat(np.arange(len(self.n_windows)), np.array(self.n_windows))

    def highest(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return (n_scored,) the highest of each row's windows, given a value of each distinct one."""
        # `reduceat` takes the next value for an empty part. No row here is without a window.
        starts = np.cumsum(self.n_windows, dtype=np.int64) - self.n_windows
        return np.maximum.reduceat(values[np.array(self.windows)], starts)

    def only(self, is_kept: NDArray[np.bool_]) -> "RowWindows":
        """Return the windows that are kept, (n_windows,) by window of a row, and their rows alone."""
        n_windows = np.bincount(self.rows[is_kept], minlength=len(self.n_windows))
        kept = RowWindows()
        kept.windows.frombytes(np.array(self.windows)[is_kept].tobytes())
        kept.n_windows.frombytes(n_windows[n_windows > 0].tobytes())
        return kept


def cut_rows(  # noqa: PLR0913  # what is kept of a row goes to different places
    rows: Iterable[Example | BadRow],
    tokenizer: Tokenizer,
    kept: tuple[RowLog, DistinctWindows],
    *,
    choice: WindowChoice,
    progress: ReportProgress | None = None,
    keep_tokens: Callable[[NDArray[np.int32]], None] | None = None,
    keep_captured: Callable[[NDArray[np.float32], int, _Answers, list[int]], None] | None = None,
    tasks: Tasks = HERE,
) -> RowWindows:
    """Give every row its outcome and keep its windows.

    Rows and windows go into `kept`, both empty. `progress` is told how many rows are done, after
    each batch; `keep_tokens` is given the token ids of the rows that can be read, `BETWEEN` after
    each. `keep_captured` is `CapturedScores.add`, called for each row with log-probabilities.

    Raises:
        CorpusError: no row can be scored.
    """
    row_log, distinct = kept
    report, cuts = begin_stage("read", "rows", progress), RowWindows()
    cutter = Cutter(tokenizer, choice, keeps_tokens=keep_tokens is not None)
    batches, ahead = tee(_batches(rows))  # tasks may be some batches ahead of what is kept here
    for batch, found in zip(batches, tasks.map(cutter, map(texts_of, ahead)), strict=True):
        if keep_tokens is not None and found.tokens is not None:
            keep_tokens(found.tokens)
        each = iter(found)
        for row in batch:
            cuts.raw.add(row)
            cuts.text_keys.extend(text_key(row))
            place = (row.example_id, row.row, row.address)
            if isinstance(row, BadRow):
                known = RowOutcome(*place, "bad", row.reason)
            else:
                cuts.texts_hash.update(msgspec.json.encode(row.text))
                n_tokens, answers, windows = next(each)
                if answers is not None:
                    cuts.answers.add(answers, windows, choice)
                of_answers = answers is not None and choice.policy != "first"
                counted_from = choice.shape.prefix_len if of_answers else 0
                indices = [distinct.add(one, counted_from=counted_from) for one in windows]
                if keep_captured is not None and row.logprobs is not None:
                    keep_captured(row.logprobs, n_tokens, answers, indices)
                known = RowOutcome(*place, *_outcome(n_tokens, answers, len(windows), choice))
                cuts.windows.extend(indices)
                cuts.n_windows.extend([len(indices)] if indices else [])
            cuts.outcomes[known.outcome] += 1
            cuts.rows_hash.update(msgspec.json.encode(known))
            row_log.append(known)
        report(cuts.outcomes.total(), None)
    distinct.close_index()
    _require_scored(cuts, choice)
    return cuts


def texts_of(batch: list[Example | BadRow]) -> list[Rendered]:
    """Return what is cut of some rows, without what else they hold: less has to be pickled."""
    return [
        Rendered(row.text, row.answers, row.token_ids) for row in batch if isinstance(row, Example)
    ]


def encode_examples(
    examples: Sequence[Example | Rendered], tokenizer: Tokenizer, n_tokens: int | None = None
) -> list[_Encoded]:
    """Return the tokens of each example, and its answers in tokens.

    Of long texts without answers the first `n_tokens` suffice. None: all are needed.
    """
    texts = [row.text for row in examples if row.token_ids is None and row.answers is None]
    plain = iter(
        tokenizer.encode(texts) if n_tokens is None else tokenizer.encode_starts(texts, n_tokens)
    )
    parts = [
        (row.text, row.answers)
        for row in examples
        if row.token_ids is None and row.answers is not None
    ]
    answered = iter(tokenizer.encode_answers([text for text, _ in parts], [a for _, a in parts]))
    encoded = list[_Encoded]()
    for row in examples:
        answers = row.answers
        if row.token_ids is None:
            encoded.append((next(plain), None) if answers is None else next(answered))
            continue
        token_ids = tokenizer.without_bos(list(row.token_ids))
        # Answers count a BOS that may be gone now.
        cut = len(row.token_ids) - len(token_ids)
        if answers is not None:
            answers = tuple((max(0, a - cut), b - cut) for a, b in answers)
        encoded.append((token_ids, answers))
    return encoded


def _outcome(
    n_tokens: int, answers: _Answers, n_windows: int, choice: WindowChoice
) -> tuple[Outcome, str]:
    """Return what becomes of an example, and why."""
    if n_windows > 0:
        return "scored", ""
    if answers is None or choice.policy == "first":
        reason = f"{n_tokens} tokens, a window needs {choice.shape.length}"
    elif not answers:
        reason = "no answer: nothing of it is trained on"
    else:
        longest = max(end - start for start, end in answers)
        shortest = min(choice.min_suffix_len, choice.shape.suffix_len)
        reason = f"{longest} tokens in the longest answer, a window needs {shortest}"
    return "too_short", reason


def _require_scored(cuts: RowWindows, choice: WindowChoice) -> None:
    if cuts.n_windows:
        return
    n_short, n_bad = cuts.outcomes["too_short"], cuts.outcomes["bad"]
    by_answers = bool(cuts.answers.rows) and choice.policy != "first"
    shortest = choice.min_suffix_len if by_answers else choice.shape.length
    short, hint = f"shorter than a window of {shortest} tokens", SHAPE_OPTIONS
    told = number_of(n_short, f"is {short}", f"are {short}")
    if by_answers:
        told = f"{number_of(n_short, 'has', 'have')} no answer of {shortest} tokens"
        hint = "--min-suffix; if all of a row is trained on, give --windows first"
    raise CorpusError(
        f"no row can be scored: {told}, {number_of(n_bad, 'is', 'are')} bad",
        hint=f"choose a shorter window with {hint}"
        if n_short
        else "see what is wrong with the first one: leave out --on-bad-row skip",
    )


def _batches(rows: Iterable[Example | BadRow]) -> Iterator[list[Example | BadRow]]:
    """Yield runs of rows, small enough that their texts fit into memory whatever their size."""
    batch: list[Example | BadRow] = []
    n_characters = 0
    for row in rows:
        batch.append(row)
        n_characters += len(row.text) if isinstance(row, Example) else 0
        if len(batch) == _ROWS_AT_ONCE or n_characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch
