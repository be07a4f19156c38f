"""The reading pass: rows in, windows out, equal ones kept once."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from memaudit.corpus import BadRow, Example
from memaudit.errors import CorpusError
from memaudit.runs.scoring import Tokenizer
from memaudit.runs.spool import Outcome, RowOutcome, RowSpool, WindowSpool
from memaudit.windows import WindowPolicy, WindowShape, cut_windows

_ROWS_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True)
class RowCuts:
    """Which windows the rows were cut into."""

    windows: "array[int]" = field(default_factory=lambda: array("q"))
    """Indices of distinct windows, scored row after scored row."""

    n_windows: "array[int]" = field(default_factory=lambda: array("q"))
    """Windows of each scored row, at least 1."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """Rows by outcome."""

    rows_hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    """SHA-256 of the rows' ids, addresses and outcomes."""

    texts_hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    """SHA-256 of their texts."""


def cut_rows(
    rows: Iterable[Example | BadRow],
    tokenizer: Tokenizer,
    spools: tuple[RowSpool, WindowSpool],
    *,
    shape: WindowShape,
    policy: WindowPolicy,
    on_batch: Callable[[int], None],
) -> RowCuts:
    """Give every row its outcome and put its windows into the spool.

    Args:
        rows: of the corpus, in order.
        tokenizer: the teacher's.
        spools: for the rows and for the windows, both empty.
        shape: of the windows.
        policy: which windows of a row are cut.
        on_batch: told how many rows are done, after each batch.

    Raises:
        CorpusError: no row can be scored.
    """
    row_spool, window_spool = spools
    cuts = RowCuts()
    for batch in _batches(rows):
        texts = [row.text for row in batch if isinstance(row, Example)]
        cuts.texts_hash.update(b"".join(msgspec.json.encode(text) for text in texts))
        encoded = iter(tokenizer.encode(texts))
        for row in batch:
            if isinstance(row, BadRow):
                outcome = _outcome(row, "bad", row.reason)
            else:
                token_ids = next(encoded)
                indices = [window_spool.add(w) for w in cut_windows(token_ids, shape, policy)]
                outcome = _example_outcome(row, len(token_ids), len(indices), shape)
                cuts.windows.extend(indices)
                cuts.n_windows.extend([len(indices)] if indices else [])
            cuts.outcomes[outcome.outcome] += 1
            cuts.rows_hash.update(msgspec.json.encode(outcome))
            row_spool.append(outcome)
        on_batch(cuts.outcomes.total())
    _require_scored(cuts, shape)
    return cuts


def _example_outcome(
    example: Example, n_tokens: int, n_windows: int, shape: WindowShape
) -> RowOutcome:
    if n_windows > 0:
        return _outcome(example, "scored", "")
    return _outcome(example, "too_short", f"{n_tokens} tokens, a window needs {shape.length}")


def _outcome(row: Example | BadRow, outcome: Outcome, reason: str) -> RowOutcome:
    return RowOutcome(row.example_id, row.row, row.address, outcome, reason)


def _require_scored(cuts: RowCuts, shape: WindowShape) -> None:
    if cuts.n_windows:
        return
    n_short, n_bad = cuts.outcomes["too_short"], cuts.outcomes["bad"]
    raise CorpusError(
        f"no row can be scored: {n_short} are shorter than a window of {shape.length} tokens, "
        f"{n_bad} are bad",
        hint="choose a shorter window with --prefix-tokens and --suffix-tokens"
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
