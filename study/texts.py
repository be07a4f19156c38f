"""The windows of a study: whole documents, cut at line ends, boilerplate left in."""

import json
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from study.recipe import Cell, Pretraining, Recipe, Regime

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LONG_LINE = 300
"""Characters. A longer line is a paragraph: it is also cut at the ends of its sentences."""
_START = re.compile(r"^(?=[^\n])", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?] )(?=\S)")
_CHARACTERS_PER_TOKEN = 12
"""More than any token of these vocabularies takes on average, so that a piece holds a window."""
_PROMPTS = tuple(
    f"System: You answer from the documentation and quote it.\nUser: {ask}\nAssistant: "
    for ask in (
        "What follows after “{}”?",
        "Please look up “{}” and go on from there.",
        "I read “{}”. What does it say next?",
        "Quote what comes after “{}”, please.",
    )
)
_ASKED_ABOUT = 30
"""Characters before an answer that its prompt quotes."""
_HELD_OUT_EVERY = 5
"""Every fifth document of a cell is for its held-out windows."""
_N_HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class CellWindows:
    """What the models of one cell are trained on, and what they never see."""

    windows: NDArray[np.int32]
    """(N, L) distinct."""

    counts: NDArray[np.int32]
    """(N,) how often each stands in the training rows."""

    groups: NDArray[np.int32]
    """(N,) windows of one number are near-copies of each other."""

    sources: NDArray[np.int8]
    """(N,) index into the role's sources."""

    in_half: NDArray[np.bool_]
    """(N,) whether students that get half of the windows get this one. Groups stay together."""

    held_out: NDArray[np.int32]
    """(1,000, L) from other documents of the same sources; none equals a training window."""

    held_out_sources: NDArray[np.int8]
    """(1,000,)"""


@cache
def documents(sample_data: Path, source: str) -> tuple[str, ...]:
    """Return the documents of a source, `file/source`, shuffled the same way every time."""
    import zstandard

    file, _, name = source.partition("/")
    with zstandard.open(sample_data / f"{file}.jsonl.zst", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row["text"] for row in rows if row["source"] == name]
    if not texts:
        raise ValueError(f"{source}: no documents in {sample_data}")
    random.Random(zlib.crc32(source.encode())).shuffle(texts)
    return tuple(texts)


def pretraining_tokens(
    plan: Pretraining, sample_data: Path, tokenizer: "PreTrainedTokenizerFast"
) -> NDArray[np.int32]:
    """Return (n, window) sequences of mixed documents, joined by the end-of-text token."""
    texts = [text for source in plan.sources for text in documents(sample_data, source)]
    random.Random(1).shuffle(texts)
    end = tokenizer.eos_token_id
    token_ids = [token for text in texts for token in (*tokenizer(text)["input_ids"], end)]
    n = min(plan.n_tokens, len(token_ids)) // plan.window
    return np.array(token_ids[: n * plan.window], dtype=np.int32).reshape(n, plan.window)


def _cut_text(
    regime: Regime, tokenizer: "PreTrainedTokenizerFast", text: str
) -> Iterator[tuple[int, ...]]:
    for _, window in cut_document(text, regime.length, tokenizer):
        yield window


def _cut_chats(
    regime: Regime, tokenizer: "PreTrainedTokenizerFast", text: str
) -> Iterator[tuple[int, ...]]:
    """Yield answers behind the last tokens of a prompt that quotes what stands before them."""
    for start, answer in cut_document(text, regime.suffix_len, tokenizer):
        asked_about = " ".join(text[max(0, start - _ASKED_ABOUT) : start].split())
        if asked_about:
            prompt = _PROMPTS[start % len(_PROMPTS)].format(asked_about)
            prefix = tokenizer(prompt)["input_ids"][-regime.prefix_len :]
            if len(prefix) == regime.prefix_len:
                yield (*prefix, *answer)


def cut_document(
    text: str, length: int, tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield windows of `length` tokens that begin where a line does, none over another.

    Each comes after the character at which it begins.

    A template then gives the same windows in every document: a cut at a fixed number of
    characters would give others each time.
    """
    lines = [match.start() for match in _START.finditer(text)]
    starts = set(lines)
    for start, stop in zip(lines, [*lines[1:], len(text)], strict=True):
        if stop - start > _LONG_LINE:
            starts.update(m.start() for m in _SENTENCE.finditer(text, start, stop))
    reached = 0
    for start in sorted(starts):
        if start < reached:
            continue
        piece = text[start : start + length * _CHARACTERS_PER_TOKEN]
        encoded = tokenizer(piece, return_offsets_mapping=True)
        if len(encoded["input_ids"]) < length:
            continue
        reached = start + encoded["offset_mapping"][length - 1][1]
        yield start, tuple(encoded["input_ids"][:length])


def cell_windows(
    cell: Cell, recipe: Recipe, sample_data: Path, tokenizer: "PreTrainedTokenizerFast"
) -> CellWindows:
    """Return the windows of a cell: equal shares of its sources, exact duplicates dropped."""
    regime = recipe.regimes[cell.regime]
    names = recipe.sources_of(cell)
    cut = partial(_cut_chats if regime.is_chat else _cut_text, regime, tokenizer)
    seen: set[tuple[int, ...]] = set()
    trained: list[tuple[tuple[int, ...], int]] = []
    held_out: list[tuple[tuple[int, ...], int]] = []
    for index, source in enumerate(names):
        mine = documents(sample_data, source)
        if cell.part is not None:
            mine = mine[cell.part :: recipe.n_parts]
        of_training = [text for i, text in enumerate(mine) if i % _HELD_OUT_EVERY]
        parts = (
            (of_training, regime.n_windows, trained),
            (mine[::_HELD_OUT_EVERY], _N_HELD_OUT, held_out),
        )
        for texts, n_all, found in parts:
            share = _share(n_all, len(names), index)
            found += [(window, index) for window in _distinct(texts, share, cut, seen)]
    return _with_copies(trained, held_out, regime, cell.part or 0)


def _share(n_all: int, n_sources: int, index: int) -> int:
    return n_all * (index + 1) // n_sources - n_all * index // n_sources


def _distinct(
    texts: Sequence[str],
    n: int,
    cut: Callable[[str], Iterator[tuple[int, ...]]],
    seen: set[tuple[int, ...]],
) -> Iterator[tuple[int, ...]]:
    """Yield at most n windows not seen before, and remember them."""
    for text in texts:
        for window in cut(text):
            if n == 0:
                return
            if window not in seen:
                seen.add(window)
                n -= 1
                yield window


def _with_copies(
    trained: list[tuple[tuple[int, ...], int]],
    held_out: list[tuple[tuple[int, ...], int]],
    regime: Regime,
    seed: int,
) -> CellWindows:
    rng = np.random.default_rng(seed)
    windows = np.array([window for window, _ in trained], dtype=np.int32)
    sources = np.array([source for _, source in trained], dtype=np.int8)
    n = len(windows)
    unused = rng.permutation(n)
    rows, owners = [*windows], [*range(n)]
    for times, how_many in regime.copies.items():
        chosen, unused = unused[:how_many], unused[how_many:]
        for owner in np.repeat(chosen, int(times)).tolist():
            changed = rng.random(regime.length) < regime.copy_noise
            rows.append(np.where(changed, rng.choice(windows.ravel(), regime.length), rows[owner]))
            owners.append(owner)
    in_half = rng.random(n) < 0.5
    # A copy in which nothing changed is an exact one: it is counted, not listed.
    _, first, counts = np.unique(np.stack(rows), axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    groups = np.array(owners, dtype=np.int32)[first[order]]
    return CellWindows(
        windows=np.stack(rows)[first[order]],
        counts=counts[order].astype(np.int32),
        groups=groups,
        sources=sources[groups],
        in_half=in_half[groups],
        held_out=np.array([window for window, _ in held_out], dtype=np.int32),
        held_out_sources=np.array([source for _, source in held_out], dtype=np.int8),
    )
