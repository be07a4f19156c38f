"""A run without a teacher: what was captured of it is read with the rows, and waits for the scoring."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memaudit.corpus import BadRow, Example
from memaudit.corpus.base import CAPTURED_WRONG, RowError, Span, refused
from memaudit.engines.captured import CapturedRow, Codec, captured_engine, find_codec, own_and_rival
from memaudit.engines.tokenizer import Tokenizer
from memaudit.runs.chunks import ChunkPlan
from memaudit.runs.files import NamelessFile
from memaudit.runs.reading import Tokenizer as RowTokenizer
from memaudit.runs.reading import encode_examples
from memaudit.runs.scoring import ChunkWork, score_chunk
from memaudit.windows import NO_TOKEN, WindowChoice, windows_of, without_padding


def told_rows(
    rows: Iterable[Example | BadRow],
    tokenizer: Callable[[], RowTokenizer],
    choice: WindowChoice,
    source: str,
    temperature: float = 1.0,
) -> Iterator[Example | BadRow]:
    """Yield rows with what was captured of their tokens; those that hold nothing usable are bad.

    Windows must lie where something was captured: of other tokens a row is not trained on. How
    compressed log-probabilities are packed is said beside the source of the corpus; axolotl
    prepared them at a temperature above 0.

    Raises:
        CorpusError: it is not said.
    """
    # The file is asked for at the first packed row: corpora of other layouts have none.
    codec = cache(lambda: find_codec(source))
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            packed_by = codec() if "compressed_logprobs" in row.captured else None
            yield _told(row, tokenizer(), choice, packed_by, temperature)
        except RowError as error:
            yield refused(row, f"{CAPTURED_WRONG}{error}")


def _told(
    row: Example,
    tokenizer: RowTokenizer,
    choice: WindowChoice,
    codec: Codec | None,
    temperature: float,
) -> Example:
    if row.token_ids is None:
        ((ids, answers),) = encode_examples([row], tokenizer)
        start = 0
    else:
        ids, answers = list(row.token_ids), row.answers
        # What was captured counts a BOS in front. Windows are cut behind it.
        start = len(ids) - len(tokenizer.without_bos(ids))
    captured = CapturedRow(row.captured, len(ids), answers, codec, temperature)
    logprobs = own_and_rival(ids, captured.entries())
    is_told = ~np.isnan(logprobs[0])
    # None, all of a row, stays if only its first token lacks: nobody predicts that.
    if answers is not None or not is_told[1:].all():
        is_answer = np.full(len(is_told), answers is None)
        for first, end in answers or ():
            is_answer[first:end] = True
        # Of booleans `diff` tells where they change: starts and ends in turn.
        edges = np.flatnonzero(np.diff(is_answer & is_told, prepend=False, append=False))
        answers = tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    if answers == ():
        raise RowError("there is none of a token that is trained on")
    # Windows by `first` are cut whatever the answers say, and may hold tokens without a capture.
    in_window = is_told[start:][choice.shape.prefix_len : choice.shape.length]
    if choice.policy == "first" and not in_window.all():
        raise RowError("there are none at the start of the row, leave out --windows first")
    return replace(row, token_ids=tuple(ids), answers=answers, captured={}, logprobs=logprobs)


class CapturedScores(NamelessFile):
    """What was captured of the distinct windows of a corpus.

    Equal windows of different rows may have been captured behind different contexts. Then what is
    kept is all of the one whose least certain suffix token is the most certain: if one of them is
    recited, so is that.
    """

    def __init__(self, choice: WindowChoice, folder: Path | None = None) -> None:
        """Open an empty file for the windows that are cut so."""
        super().__init__(folder)
        self._choice = choice
        self._margins = array("f")
        self._hash = hashlib.sha256()
        self.lacks_context = False
        """Whether of a context token that has a prediction nothing was captured."""

    @property
    def digest(self) -> str:
        """SHA-256 over what was captured of all rows, hexadecimal."""
        return self._hash.hexdigest()

    def add(
        self,
        logprobs: NDArray[np.float32],
        n_tokens: int,
        answers: tuple[Span, ...] | None,
        indices: Sequence[int],
    ) -> None:
        """Keep what was captured of the windows of the next row: (2, T), and its answers.

        The last `n_tokens` are left of it: a BOS may be left out in front. The indices are of its
        windows among the distinct ones; new ones come in ascending order.
        """
        self._hash.update(logprobs.tobytes())
        logprobs = logprobs[:, logprobs.shape[1] - n_tokens :]
        prefix_len = self._choice.shape.prefix_len
        for index, places in zip(
            indices, windows_of(range(n_tokens), answers, self._choice), strict=True
        ):
            values = np.where(places == NO_TOKEN, np.float32(np.nan), logprobs[:, places])
            context = values[0, :prefix_len][places[:prefix_len] != NO_TOKEN]
            # The first token of a window has no prediction, so nothing needs to be captured of it.
            self.lacks_context |= bool(np.isnan(context[1:]).any())
            suffix = values[:, prefix_len:]
            # In float32, as margins are kept: the same window once more must not look better. A
            # short answer leaves NaN behind its end.
            margin = float(np.float32(np.nanmin(suffix[0] - suffix[1])))
            if index == len(self._margins):
                self._append(values.tobytes())
                self._margins.append(margin)
            elif margin > self._margins[index]:
                self._margins[index] = margin
                self._seek(index * self._n_bytes)
                self._append(values.tobytes())
                self._file.seek(0, 2)  # the next new window goes to the end

    @property
    def _n_bytes(self) -> int:
        return 8 * self._choice.shape.length

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """Return what was captured of some distinct windows: (count, 2, window_len)."""
        self._seek(start * self._n_bytes)
        content = self._file.read(count * self._n_bytes)
        return np.frombuffer(content, dtype=np.float32).reshape(count, 2, -1)


def score_captured(
    tokenizer: Tokenizer, plan: ChunkPlan, works: Iterator[ChunkWork]
) -> Iterator[int]:
    """Score chunks by what was captured of their windows."""
    for work in works:
        assert work.captured is not None
        windows = [without_padding(window) for window in work.windows]
        captured = [
            values[:, window != NO_TOKEN]
            for window, values in zip(work.windows, work.captured, strict=True)
        ]
        # No model is shared between chunks: what an engine tells lies in the chunk itself.
        engine = captured_engine(windows, captured, tokenizer.n_ids)
        score_chunk(plan, engine, tokenizer, work)
        yield work.number
