"""A teacher that is not here: the corpus holds the log-probabilities that were captured of it.

A row holds entries, one for each position: ids and log-probabilities of the k tokens that the
teacher found likeliest there. From the entry about a token its own log-probability is taken, and
that of the likeliest other one: all that a `LogprobEngine` needs.

Which token an entry is about differs, by the documentation of who writes it:

- axolotl, `target_logprobs`, `target_token_ids`, `target_mask`: entry j is about token j + 1, in
  what axolotl up to 0.21.0 prepared about token j. The mask says which: it hides what has no label.
  The k log-probabilities are scaled so that they sum to 1.
- DistillKit, `token_ids` and `top_values`, or `bytepacked_indices` and `compressed_logprobs`: entry
  j is about token j + 1. There may be one entry less than there are tokens.
- axolotl, a column of its own beside messages (`logprobs`): the last entry is about the last token;
  where there are more entries than tokens, entry j is about token j.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.corpus.base import RowError, Span
from memaudit.corpus.layouts import kind_of, quoted
from memaudit.engines import CAPTURED
from memaudit.engines.window_io import LogprobEngine, ModelLimits
from memaudit.errors import CorpusError
from memaudit.files import read_small
from memaudit.text import shown_path

CODEC_FILE = "compression_config.yaml"
"""What DistillKit writes beside what it captures."""

_LEAST = -9000.0
"""Nats. What is at most that stands for a token that is not there: -inf, or -9999 or -1e9 for it."""

_ABOVE_ZERO = 1e-3
"""Nats that rounding may put a log-probability above 0."""

_TOO_MUCH = 1.1
"""What the probabilities of an entry cannot sum to, whatever was rounded: these are logits."""

_ROUNDING = 1e-3
"""Of the sum of an entry's probabilities, in bfloat16."""

_FEW = 32
"""Of fewer entries nothing is concluded from how they fit the tokens."""

_MAX_CODEC_BYTES = 1 << 20
_MAX_NUMBERS = 1 << 25
"""Of a row, in one column: 256 MiB."""


@dataclass(frozen=True, slots=True)
class TopK:
    """What was captured of a row, entry by entry."""

    ids: NDArray[np.int64]
    """(n, k) token ids; -1 where an entry has fewer than k."""

    logprobs: NDArray[np.float64]
    """(n, k) nats; -inf where an entry has fewer than k."""

    first: int
    """Which token of the row entry 0 is about."""

    tells_rest: bool = True
    """Whether what is left of 1 is the probability of all other tokens. Not if the log-probabilities
    are approximate, or scaled to sum to 1."""


def own_and_rival(ids: Sequence[int], top: TopK) -> NDArray[np.float32]:
    """Return what was captured of the T tokens of a row.

    A token that is not among the k is no more probable than the least probable of them, and, with
    all others, than what they leave. It counts as if it were just as probable: never as less likely
    to be recited than it is. It is never the teacher's first choice.

    Returns:
        (2, T): the log-probability of each token and that of the most probable other one, nats;
        NaN of what no entry is about.

    Raises:
        RowError: an entry is broken, or the entries are about other tokens.
    """
    found = np.full((2, len(ids)), np.nan, dtype=np.float32)
    # Nobody predicts the first token, and an entry may be about what comes after the last.
    skipped = max(0, 1 - top.first)
    start = top.first + skipped
    n = min(len(top.ids) - skipped, len(ids) - start)
    if n <= 0:
        return found
    tokens = np.asarray(ids, dtype=np.int64)[start : start + n]
    ids_NK, logprobs_NK = top.ids[skipped : skipped + n], top.logprobs[skipped : skipped + n]
    is_there = logprobs_NK > _LEAST
    if np.isnan(logprobs_NK).any():
        raise RowError("one is not a number")
    if (logprobs_NK > _ABOVE_ZERO).any():
        raise RowError(f"one is {logprobs_NK.max():.3g}, expected at most 0")
    if (ids_NK[is_there] < 0).any():
        raise RowError("a token id is negative")
    sums = np.exp(np.where(is_there, logprobs_NK, -np.inf)).sum(axis=1)
    if top.tells_rest and (sums > _TOO_MUCH).any():
        raise RowError(f"the probabilities of an entry sum to {sums.max():.3g}, expected at most 1")
    has_entry = np.any(is_there, axis=1)
    is_own = (ids_NK == tokens[:, None]) & is_there
    if (is_own.sum(axis=1) > 1).any():
        raise RowError("an entry has a token twice")
    is_found = np.any(is_own, axis=1)
    _check_place(tokens, np.where(is_there, ids_NK, -1), has_entry, is_found)
    # What rounding has put just above 0 stands for a probability of 1.
    told = np.minimum(np.where(is_there, logprobs_NK, -np.inf), 0.0)
    own = np.where(is_own, told, -np.inf).max(axis=1, initial=-np.inf)
    rival = np.where(is_own, -np.inf, told).max(axis=1, initial=-np.inf)
    least = np.where(is_there, told, 0.0).min(axis=1, initial=0.0)
    if top.tells_rest:
        rest = np.maximum(1.0 - np.exp(told).sum(axis=1), 0.0)
        least = np.minimum(least, np.log(np.minimum(rest + _ROUNDING, 1.0)))
    # Where k is 1: no other token is likelier, nor can it have more than what this one leaves.
    left = np.log(np.maximum(-np.expm1(np.where(is_found, own, -1.0)), 1e-300))
    rival = np.where(np.isfinite(rival), rival, np.minimum(own, left))
    # Nor, by rounding, as probable as the first choice.
    below = np.nextafter(rival.astype(np.float32), np.float32(-np.inf))
    own = np.where(is_found, own, np.minimum(least, below))
    found[:, start : start + n] = np.where(has_entry, np.stack([own, rival]), np.nan)
    return found


def _check_place(
    tokens: NDArray[np.int64],
    ids: NDArray[np.int64],
    has_entry: NDArray[np.bool_],
    is_found: NDArray[np.bool_],
) -> None:
    """Refuse entries that fit the tokens beside those that they should be about better."""
    n = int(has_entry.sum())
    if n < _FEW:
        return
    n_found = int(is_found.sum())
    before = int((ids[1:] == tokens[:-1, None]).any(axis=1).sum())
    after = int((ids[:-1] == tokens[1:, None]).any(axis=1).sum())
    n_beside = max(before, after)
    # Texts repeat themselves, so some tokens fit beside by chance: only clearly more of them count.
    if n_beside > 1.5 * n_found and n_beside - n_found > 0.1 * n:
        raise RowError(
            f"{n_found} of {n} tokens are among those of their entries, and {n_beside} of the tokens "
            f"{'before' if before > after else 'behind'} them: the entries are about other tokens"
        )


@dataclass(frozen=True, slots=True)
class CapturedRow:
    """What a row holds."""

    columns: Mapping[str, object]
    """Those of one of `CAPTURES`, by the names there."""

    n_tokens: int
    answers: Sequence[Span] | None
    """Which of its tokens are trained on. None: all."""

    codec: "Codec | None" = None
    """Of compressed columns."""

    temperature: float = 1.0
    """At which axolotl prepared them, above 0: it divided the log-probabilities by it."""

    def entries(self) -> TopK:
        """Return its entries.

        Raises:
            RowError: they are broken, or their number does not go with that of the tokens.
        """
        columns, n_tokens = self.columns, self.n_tokens
        if "target_mask" in columns:
            return _prepared(self)
        if self.temperature != 1:
            raise RowError("axolotl did not prepare them: leave out --captured-temperature")
        if "top_values" in columns:
            logprobs, ids = _pair(columns, "top_values", "token_ids")
            _check_count(len(logprobs), n_tokens)
            return TopK(ids, logprobs, first=1)
        if "compressed_logprobs" in columns:
            codec = self.codec
            assert codec is not None
            packed, packed_ids = (
                _cast(_matrix(columns, name, 0.0), np.uint8, name, "byte")
                for name in ("compressed_logprobs", "bytepacked_indices")
            )
            _check_count(len(packed), n_tokens)
            if len(packed_ids) != len(packed):
                raise RowError(f"{len(packed)} entries with ids of {len(packed_ids)}")
            is_exact = codec.exact_k == codec.k
            return TopK(codec.ids(packed_ids), codec.logprobs(packed), first=1, tells_rest=is_exact)
        if "target_token_ids" not in columns:
            rows = _rows(columns, "logprobs")
            try:
                columns = {
                    "logprobs": [[token["logprob"] for token in entry or ()] for entry in rows],
                    "target_token_ids": [
                        [int(token["token"].removeprefix("token_id:")) for token in entry or ()]
                        for entry in rows
                    ],
                }
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise RowError(
                    "an entry is no list of {'token': 'token_id:7', 'logprob': -0.1}"
                ) from error
        logprobs, ids = _pair(columns, "logprobs", "target_token_ids")
        return TopK(ids, logprobs, first=max(0, n_tokens - len(ids)))


def _prepared(row: CapturedRow) -> TopK:
    logprobs, ids = _pair(row.columns, "target_logprobs", "target_token_ids")
    mask = _matrix(row.columns, "target_mask", 0.0) > 0
    n_tokens = row.n_tokens
    if len(logprobs) != n_tokens or mask.shape != logprobs.shape:
        raise RowError(
            f"{len(logprobs)} entries and a mask of {len(mask)} for {n_tokens} tokens, "
            "expected as many of each, and as many masks as log-probabilities"
        )
    # One more than there are tokens: the last entry is about a token that has no label.
    is_trained = np.zeros(n_tokens + 1, dtype=np.bool_)
    for start, end in [(0, n_tokens)] if row.answers is None else row.answers:
        is_trained[start:end] = True
    is_used = mask.any(axis=1)
    # Where the mask goes with both, it is the newer way.
    if is_trained[1:][is_used].all():
        first = 1
    elif is_trained[:-1][is_used].all():
        first = 0
    else:
        raise RowError("their mask does not go with the labels")
    told = np.where(mask, logprobs, -np.inf)
    if row.temperature != 1:  # p^(1 / T), scaled to sum to 1 over the k, back to p, scaled likewise
        told = told * row.temperature
        sums = np.logaddexp.reduce(told, axis=1, keepdims=True, initial=-np.inf)
        told = told - np.where(np.isfinite(sums), sums, 0.0)
    return TopK(ids, told, first, tells_rest=False)


def _check_count(n: int, n_tokens: int) -> None:
    if n not in (n_tokens - 1, n_tokens):
        raise RowError(f"{n} entries for {n_tokens} tokens, expected {n_tokens - 1} or {n_tokens}")


def _pair(
    columns: Mapping[str, object], values: str, ids: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return log-probabilities and ids, both (n, k)."""
    logprobs, found = _matrix(columns, values, -np.inf), _matrix(columns, ids, -1.0)
    # Short lists of ids were filled up with -1, which stands for no token.
    if logprobs.shape != found.shape or ((found == -1) & (logprobs > _LEAST)).any():
        raise RowError(f"{quoted(values)} and {quoted(ids)} are not of the same lengths")
    if not np.isfinite(found).all():
        raise RowError(f"an id in {quoted(ids)} is not a number")
    # What int64 does not hold could become the id of any token.
    return logprobs, _cast(np.clip(found, -2, 1 << 31), np.int64, ids, "whole number")


def _cast(found: NDArray[np.float64], dtype: type, name: str, kind: str) -> NDArray[Any]:
    """Return numbers in a format of integers; by itself a cast makes 7 of 7.5, and a byte of 256."""
    with np.errstate(invalid="ignore"):
        told: NDArray[Any] = found.astype(dtype)
    if len(wrong := np.argwhere(told != found)):
        i, j = wrong[0]
        raise RowError(f"{found[i, j]} at [{i}][{j}] of {quoted(name)} is no {kind}")
    return told


def _rows(columns: Mapping[str, object], name: str) -> list[Any]:
    rows = columns[name]
    if not isinstance(rows, list):
        raise RowError(f"{quoted(name)} is {kind_of(rows)}, expected a list of entries")
    return rows


def _matrix(columns: Mapping[str, object], name: str, fill: float) -> NDArray[np.float64]:
    """Return a list of lists as (n, k), filled up where one is shorter than the longest."""
    rows = _rows(columns, name)
    try:
        # Ids, too: float64 holds each of them exactly.
        entries = [np.asarray(() if each is None else each, dtype=np.float64) for each in rows]
        lengths = np.array([len(entry) for entry in entries], dtype=np.int64)
        flat = np.concatenate([np.empty(0), *entries])
    except (OverflowError, TypeError, ValueError) as error:
        raise RowError(f"{quoted(name)} holds something else than lists of numbers") from error
    longest = int(lengths.max(initial=0))
    # Looked at before it is filled up: one long entry among many empty ones is short in a file.
    if longest * len(rows) > _MAX_NUMBERS:
        raise RowError(f"{quoted(name)} has {len(rows):,} entries of up to {longest:,} numbers")
    found = np.full((len(rows), longest), fill)
    found[np.arange(longest) < lengths[:, None]] = flat
    return found


# numpy has no bfloat16: see _floats.
_DTYPES = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}


class _Bin(msgspec.Struct, frozen=True):
    scale_dtype: str
    element_bits: int
    num_elements: int


class Codec(msgspec.Struct, frozen=True):
    """How DistillKit packs the k log-probabilities of an entry, sorted, into bytes.

    `exact_k` are there as they are. The rest lies on a curve, of which the coefficients are there,
    and the first of the rest may have corrections, quantised bin by bin.
    """

    d: int
    """Tokens of the vocabulary."""

    k: int
    exact_k: int
    residual_bins: tuple[_Bin, ...]
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] | None = None
    term_dtype: str = "float32"
    delta_encoding: bool = True
    normalize_t: bool = False

    def __post_init__(self) -> None:
        # Anybody may have written the file, and how much is allocated follows from it.
        dtypes = (
            self.exact_dtype,
            self.term_dtype,
            *(each.scale_dtype for each in self.residual_bins),
        )
        n_corrected = sum(each.num_elements for each in self.residual_bins)
        if (
            not 0 <= self.exact_k <= self.k <= 1 << 16
            or not 1 <= self.d < 1 << 31
            or not {*dtypes} <= {*_DTYPES}
            or any(
                each.num_elements < 1 or not 1 <= each.element_bits <= 32
                for each in self.residual_bins
            )
            or n_corrected > self.k - self.exact_k
            or any(
                term not in ("sqrt", "exp") if isinstance(term, str) else not 0 <= term <= 64
                for term in self.terms
            )
        ):
            raise ValueError("not what DistillKit writes")

    @property
    def terms(self) -> tuple[int | str, ...]:
        """Powers of the curve, or what else it is made of."""
        return self.polynomial_terms or ()

    def logprobs(self, packed: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return (n, k) log-probabilities of (n, bytes)."""
        if not len(packed):
            return np.empty((0, self.k))
        n_terms, n_rest = len(self.terms), self.k - self.exact_k
        sizes = [_size(self.exact_dtype) * self.exact_k, _size(self.term_dtype) * n_terms]
        for each in self.residual_bins:
            sizes += [_size(each.scale_dtype), -(-each.element_bits * each.num_elements // 8)]
        if packed.shape[1] != sum(sizes):
            raise RowError(
                f"{packed.shape[1]} bytes for an entry, by {CODEC_FILE} there must be {sum(sizes)}"
            )
        head, terms, *bins = np.split(packed, np.cumsum(sizes)[:-1], axis=1)
        exact, coefficients = _floats(head, self.exact_dtype), _floats(terms, self.term_dtype)
        t = np.linspace(0, 1, n_rest) if self.normalize_t else np.arange(n_rest, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of that is refused
            curve = [getattr(np, x)(t) if isinstance(x, str) else t**x for x in self.terms]
            tail = coefficients @ np.array(curve).reshape(n_terms, n_rest)
        start = 0
        for each, scale, steps in zip(self.residual_bins, bins[::2], bins[1::2], strict=True):
            n, n_bits = each.num_elements, each.element_bits
            # One bit says up or down.
            lowest, factor = (-1, 2) if n_bits == 1 else (-(1 << n_bits - 1), 1)
            found = _integers(steps, n_bits, n) * factor + lowest
            tail[:, start : start + n] += found * _floats(scale, each.scale_dtype)
            start += n
        logprobs = np.concatenate([exact, tail], axis=1)
        return np.cumsum(logprobs, axis=1) if self.delta_encoding else logprobs

    def ids(self, packed: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return (n, k) token ids of (n, bytes)."""
        # In float32, as DistillKit does: just above a large power of two it may give a bit less.
        n_bits = math.ceil(np.log2(np.float32(self.d)))
        n_bytes = -(-n_bits * self.k // 8)
        if packed.shape[1] != n_bytes and len(packed):
            raise RowError(
                f"{packed.shape[1]} bytes for the ids of an entry, by {CODEC_FILE} there must be "
                f"{n_bytes}"
            )
        return _integers(packed, n_bits, self.k)


def _size(dtype: str) -> int:
    return np.dtype(_DTYPES[dtype]).itemsize


def _floats(packed: NDArray[np.uint8], dtype: str) -> NDArray[np.float64]:
    """Return (n_entries, n) numbers of their bytes."""
    found = np.ascontiguousarray(packed).view(_DTYPES[dtype])
    if dtype == "bfloat16":  # the upper half of a float32
        found = (found.astype(np.uint32) << 16).view(np.float32)
    return found.astype(np.float64)


def _integers(packed: NDArray[np.uint8], n_bits: int, n: int) -> NDArray[np.int64]:
    """Return (n_entries, n) numbers of so many bits each, the highest bit first."""
    bits = np.unpackbits(packed, axis=1)[:, : n_bits * n].reshape(len(packed), n, n_bits)
    powers = 1 << np.arange(n_bits - 1, -1, -1, dtype=np.int64)
    return np.asarray(bits @ powers, dtype=np.int64)


def find_codec(source: str) -> Codec:
    """Return how the compressed log-probabilities of a corpus are packed.

    Raises:
        CorpusError: nothing beside it says so.
    """
    import yaml

    path = Path(source)
    place = (path if path.is_dir() else path.parent) / CODEC_FILE
    try:
        # Other loaders may make objects of classes that a file names.
        found = yaml.safe_load(read_small(place, _MAX_CODEC_BYTES))
        return msgspec.convert(found, Codec)
    except OSError as error:
        raise CorpusError(
            f"{shown_path(place)}: not there, and without it nobody knows how the log-probabilities "
            "are packed",
            hint="DistillKit writes it beside what it captures: copy it next to the data",
        ) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise CorpusError(
            f"{shown_path(place)}: not a compression configuration of DistillKit",
            hint="it has d, k, exact_k and residual_bins",
        ) from error


def captured_engine(
    windows: Sequence[NDArray[np.int32]], captured: Sequence[NDArray[np.float32]], n_ids: int
) -> LogprobEngine:
    """Return an engine that tells of some windows what was captured of their tokens.

    Args:
        windows: token ids, each (T,).
        captured: of each window (2, T) as `own_and_rival` gives it.
        n_ids: one more than the largest id that the tokenizer knows.
    """
    told: dict[bytes, NDArray[np.float32]] = {}
    for window, values in zip(windows, captured, strict=True):
        # Of context that nothing was captured of, no feature is computed: any finite number will do.
        # The second is larger, so that none of it counts as recited.
        known = np.where(np.isnan(values), np.array([[-1.0], [0.0]], dtype=np.float32), values)
        told.setdefault(window.tobytes(), known[:, 1:])

    def run(prompts: list[list[int]]) -> list[NDArray[np.float32]]:
        return [told[np.array(prompt, dtype=np.int32).tobytes()] for prompt in prompts]

    # Without a BOS: the teacher had read all of the row before these tokens.
    return LogprobEngine([(run, ModelLimits("the tokenizer", None, n_ids))], name=CAPTURED)
