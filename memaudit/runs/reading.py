"""The reading pass: rows in, windows out, equal windows kept once.

What it leaves for the scoring pass lies in files without a name, which vanish with the process:
a distinct window takes about 200 bytes of memory, whatever its length, and a row 16.
"""

import hashlib
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Conversation, Example, Rendered
from memaudit.corpus.base import RawDigest, Span, text_key
from memaudit.errors import CorpusError
from memaudit.progress import ReportProgress, begin_stage
from memaudit.runs.files import output_errors
from memaudit.windows import (
    WindowChoice,
    answer_suffixes,
    cut_answers,
    cut_windows,
    window_key,
    window_starts,
    without_padding,
)

if TYPE_CHECKING:
    from memaudit.runs.captured import CapturedScores


class Tokenizer(Protocol):
    """Turns texts into token ids and back, many at a time."""

    def encode(self, texts: list[str], /) -> list[list[int]]:
        """Return the token ids of each text."""
        ...

    def can_encode(self, text: str, /, *, whole: bool) -> bool:
        """Whether the tokens of a text take a bounded amount of memory."""
        ...

    def encode_starts(self, texts: list[str], n_tokens: int, /) -> list[list[int]]:
        """Return the token ids of each text, of a long one at least so many of the first."""
        ...

    def decode(self, token_ids: list[list[int]], /) -> list[str]:
        """Return the text of each sequence of token ids."""
        ...

    def encode_answers(
        self, texts: list[str], answers: list[tuple[Span, ...]], /
    ) -> list[tuple[list[int], tuple[Span, ...]]]:
        """Return the token ids of each text, and which of them are its answers."""
        ...

    def without_bos(self, ids: list[int], /) -> list[int]:
        """Return token ids without a BOS token at their start, where engines put one in front."""
        ...

    def render_messages(self, conversation: Conversation, /) -> Rendered:
        """Return the text that the chat template makes of messages, and where its answers are."""
        ...


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


class NamelessFile:
    """A file only this process can reach: it has no name, so a crash leaves nothing behind."""

    def __init__(self, folder: Path | None) -> None:
        """Open it in a folder, or where the system keeps temporary files."""
        self._place = folder or Path(tempfile.gettempdir())
        with output_errors(self._place):
            self._file = tempfile.TemporaryFile(dir=self._place)  # noqa: SIM115  closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What is left in its buffer finds no room where the disk was full before, and nobody wants it.
        with suppress(OSError):
            self._file.close()

    def _append(self, content: bytes) -> None:
        with output_errors(self._place):
            self._file.write(content)

    def _seek(self, place: int) -> None:
        # Writes what is still in the buffer: the disk may turn out to be full only now.
        with output_errors(self._place):
            self._file.seek(place)


class RowLog(NamelessFile):
    """The rows of a corpus in order, without their text."""

    def append(self, row: RowOutcome) -> None:
        """Add a row after the others."""
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
        self.captured: CapturedScores | None = None
        """What was captured of each, where that stands for the teacher."""
        self._leaders = array("q")
        self._occurrences = array("q")

    def __len__(self) -> int:
        """Distinct windows."""
        return len(self._occurrences)

    @property
    def occurrences(self) -> NDArray[np.int64]:
        """(n,) how many times each window, or its counted part, was added; at least 1."""
        leaders = np.array(self._leaders, dtype=np.int64)
        counts = np.zeros(len(self), dtype=np.int64)
        np.add.at(counts, leaders, np.array(self._occurrences, dtype=np.int64))
        occurrences: NDArray[np.int64] = counts[leaders]
        return occurrences

    def add(self, window: NDArray[np.int32], *, counted_from: int = 0) -> int:
        """Count a window and return its index, the same for equal windows.

        Args:
            window: (window_len,) token ids.
            counted_from: where the part begins that `occurrences` counts. A student learns an
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
        shape = (count, self._window_len)
        windows: NDArray[np.int32] = np.frombuffer(content, dtype=np.int32).reshape(shape)
        return windows


_ROWS_AT_ONCE, _CHARACTERS_AT_ONCE = 256, 1_000_000


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


@dataclass(frozen=True, slots=True)
class RowWindows:
    """Which windows the rows were cut into."""

    windows: "array[int]" = field(default_factory=lambda: array("q"))
    """Indices of distinct windows, scored row after scored row."""

    n_windows: "array[int]" = field(default_factory=lambda: array("q"))
    """Windows of each scored row, at least 1."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    rows_hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    """SHA-256 of the rows' ids, addresses and outcomes."""

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
        starts = np.cumsum(self.n_windows, dtype=np.int64) - self.n_windows
        found: NDArray[Any] = np.maximum.reduceat(values[np.array(self.windows)], starts)
        return found

    def only(self, is_kept: NDArray[np.bool_]) -> "RowWindows":
        """Return the windows that are kept, and the rows that have one; without the rest.

        Args:
            is_kept: (n_windows,) by window of a row.
        """
        n_windows = np.bincount(self.rows[is_kept], minlength=len(self.n_windows))
        kept = RowWindows()
        kept.windows.frombytes(np.array(self.windows)[is_kept].tobytes())
        kept.n_windows.frombytes(n_windows[n_windows > 0].tobytes())
        return kept


def cut_rows(
    rows: Iterable[Example | BadRow],
    tokenizer: Tokenizer,
    kept: tuple[RowLog, DistinctWindows],
    *,
    choice: WindowChoice,
    progress: ReportProgress | None = None,
    keep_tokens: Callable[[list[int]], None] | None = None,
) -> RowWindows:
    """Give every row its outcome and keep its windows.

    Args:
        rows: of the corpus, in order.
        tokenizer: the teacher's.
        kept: where rows and windows go, both empty.
        choice: which windows of a row are cut.
        progress: told how many rows are done, after each batch.
        keep_tokens: given the token ids of each row that can be read.

    Raises:
        CorpusError: no row can be scored.
    """
    row_log, distinct = kept
    report = begin_stage("read", "rows", progress)
    cuts = RowWindows()
    # Of a row without answers nothing is looked at behind its first window, unless it is tiled or
    # its tokens are kept to count exposure in.
    n_tokens = None if choice.policy == "tile" or keep_tokens is not None else choice.shape.length
    for batch in _batches(rows):
        examples = [row for row in batch if isinstance(row, Example)]
        cuts.texts_hash.update(b"".join(msgspec.json.encode(row.text) for row in examples))
        encoded = iter(encode_examples(examples, tokenizer, n_tokens))
        for row in batch:
            cuts.raw.add(row)
            cuts.text_keys.extend(text_key(row))
            if isinstance(row, BadRow):
                outcome = _outcome(row, "bad", row.reason)
            else:
                token_ids, answers = next(encoded)
                if keep_tokens is not None:
                    keep_tokens(token_ids)
                windows = list(windows_of(token_ids, answers, choice))
                if answers is not None:
                    _count(cuts.answers, answers, windows, choice)
                of_answers = answers is not None and choice.policy != "first"
                counted_from = choice.shape.prefix_len if of_answers else 0
                indices = [distinct.add(each, counted_from=counted_from) for each in windows]
                if distinct.captured is not None and row.logprobs is not None:
                    distinct.captured.add(row.logprobs, len(token_ids), answers, indices)
                outcome = _example_outcome(row, (token_ids, answers), len(indices), choice)
                cuts.windows.extend(indices)
                cuts.n_windows.extend([len(indices)] if indices else [])
            cuts.outcomes[outcome.outcome] += 1
            cuts.rows_hash.update(msgspec.json.encode(outcome))
            row_log.append(outcome)
        report(cuts.outcomes.total(), None)
    distinct.close_index()
    _require_scored(cuts, choice)
    return cuts


_Encoded = tuple[list[int], tuple[Span, ...] | None]
"""Token ids, and which of them are trained on; None: all."""


def encode_examples(
    examples: list[Example], tokenizer: Tokenizer, n_tokens: int | None = None
) -> list[_Encoded]:
    """Return the tokens of each example, and its answers in tokens.

    Args:
        examples: some rows.
        tokenizer: the teacher's.
        n_tokens: of long texts without answers the first so many suffice. None: all are needed.
    """
    found: dict[int, _Encoded] = {}
    plain = [i for i, row in enumerate(examples) if row.token_ids is None and row.answers is None]
    texts = [examples[i].text for i in plain]
    starts = (
        tokenizer.encode(texts) if n_tokens is None else tokenizer.encode_starts(texts, n_tokens)
    )
    for i, token_ids in zip(plain, starts, strict=True):
        found[i] = token_ids, None
    parts = [
        (i, row.answers)
        for i, row in enumerate(examples)
        if row.token_ids is None and row.answers is not None
    ]
    texts = [examples[i].text for i, _ in parts]
    encoded = tokenizer.encode_answers(texts, [answers for _, answers in parts])
    found |= {i: each for (i, _), each in zip(parts, encoded, strict=True)}
    for i, row in enumerate(examples):
        if row.token_ids is not None:
            token_ids = tokenizer.without_bos(list(row.token_ids))
            cut = len(row.token_ids) - len(token_ids)
            answers = row.answers
            if answers is not None:
                answers = tuple((max(0, a - cut), b - cut) for a, b in answers)
            found[i] = token_ids, answers
    return [found[i] for i in range(len(examples))]


def windows_of(
    token_ids: Sequence[int], answers: tuple[Span, ...] | None, choice: WindowChoice
) -> Iterator[NDArray[np.int32]]:
    """Yield the windows of an example, given as `encode_examples` gives it."""
    if answers is None or choice.policy == "first":
        return cut_windows(token_ids, choice.shape, choice.policy)
    return cut_answers(
        token_ids,
        answers if choice.turns == "all" else answers[-1:],
        choice.shape,
        tiled=choice.policy == "tile",
        min_suffix_len=choice.min_suffix_len,
    )


def risky_spans(
    token_ids: list[int], answers: tuple[Span, ...] | None, choice: WindowChoice
) -> list[Span]:
    """Return what must not leak of each window that `windows_of` yields, in tokens.

    Of an answer its own tokens: what precedes it is context. Of other text the whole window.
    """
    shape = choice.shape
    if answers is None or choice.policy == "first":
        starts = window_starts(len(token_ids), shape, choice.policy)
        return [(start, start + shape.length) for start in starts]
    answers = answers if choice.turns == "all" else answers[-1:]
    tiled = choice.policy == "tile"
    suffixes = answer_suffixes(answers, shape, tiled=tiled, min_suffix_len=choice.min_suffix_len)
    return list(suffixes)


def _count(
    counts: AnswerCounts,
    answers: tuple[Span, ...],
    windows: Sequence[NDArray[np.int32]],
    choice: WindowChoice,
) -> None:
    """Count a row with answers, and its windows."""
    n_seen = len(windows)
    if choice.policy == "first":
        start, end = choice.shape.prefix_len, choice.shape.length
        n_seen = int(bool(windows) and any(a < end and b > start for a, b in answers))
    counts.rows += 1
    counts.windows += n_seen
    counts.all_windows += len(windows)
    counts.unseen_rows += n_seen == 0


def _example_outcome(
    example: Example, encoded: _Encoded, n_windows: int, choice: WindowChoice
) -> RowOutcome:
    if n_windows > 0:
        return _outcome(example, "scored", "")
    token_ids, answers = encoded
    if answers is None or choice.policy == "first":
        reason = f"{len(token_ids)} tokens, a window needs {choice.shape.length}"
    elif not answers:
        reason = "no answer: nothing of it is trained on"
    else:
        longest = max(end - start for start, end in answers)
        shortest = min(choice.min_suffix_len, choice.shape.suffix_len)
        reason = f"{longest} tokens in the longest answer, a window needs {shortest}"
    return _outcome(example, "too_short", reason)


def _outcome(row: Example | BadRow, outcome: Outcome, reason: str) -> RowOutcome:
    return RowOutcome(row.example_id, row.row, row.address, outcome, reason)


def _require_scored(cuts: RowWindows, choice: WindowChoice) -> None:
    if cuts.n_windows:
        return
    n_short, n_bad = cuts.outcomes["too_short"], cuts.outcomes["bad"]
    by_answers = bool(cuts.answers.rows) and choice.policy != "first"
    shortest = choice.min_suffix_len if by_answers else choice.shape.length
    options = "--min-suffix" if by_answers else "--prefix-tokens and --suffix-tokens"
    raise CorpusError(
        f"no row can be scored: {n_short} are shorter than "
        f"{'an answer' if by_answers else 'a window'} of {shortest} tokens, {n_bad} are bad",
        hint=f"choose a shorter window with {options}"
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
