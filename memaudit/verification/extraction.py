"""What each model recites, what hard labels leak, and the table that says it row by row."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memaudit.engines.generation import count_generation_disagreements
from memaudit.evaluation import RowPredictions
from memaudit.labels import (
    ROLES,
    ROW_COLUMNS,
    TABLE_SCHEMA,
    ExtractionSet,
    GenerationCounts,
    LabelScan,
    NearVerbatim,
)
from memaudit.memorization import extracted, probabilistically_extracted, suffix_logprob
from memaudit.verification.examples import Examples
from memaudit.windows import WindowShape, context_len, window_key, without_padding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from memaudit.engines import Engine

_CHUNK = 128  # windows scored between two reports of progress
_SAMPLES = (1, 10, 100, 1000)
"""Of each prefix, for (n, p)-extraction."""

_MORE_LIKELY_THAN_NOT = 0.5
"""Its p."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """One model's view of the windows."""

    extracted: NDArray[np.bool_]
    """(n,) whether it continues the prefix by exactly the suffix."""

    nats: NDArray[np.float64]
    """(n,) negative log-probability of all predicted tokens of the window."""

    suffix_logprobs: NDArray[np.float64]
    """(n,) log-probability of sampling the suffix after the prefix, nats."""

    n_predictions: NDArray[np.int64]
    """(n,) predicted tokens of each window."""

    near_logprobs: NDArray[np.float64] | None = None
    """(n,) lower bounds of that of sampling nearly the suffix, nats. None: not asked for."""

    def perplexity(self, chosen: NDArray[np.bool_]) -> float | None:
        """Return exp(mean nats per token) over some windows; None over none."""
        if not chosen.any():
            return None
        return math.exp(self.nats[chosen].mean() / self.n_predictions[chosen].mean())


def extract(
    engine: "Engine",
    windows: NDArray[np.int32],
    *,
    shape: WindowShape,
    on_chunk: Callable[[int], None],
) -> dict[str, NDArray[Any]]:
    """Return what an `Extraction` holds of each of (n, T) windows, by one pass in float32.

    Raises:
        ModelError: a score is not finite.
    """
    is_extracted = np.zeros(len(windows), dtype=np.bool_)
    nats, suffix_logprobs = np.zeros(len(windows)), np.zeros(len(windows))
    for start in range(0, len(windows), _CHUNK):
        chunk = windows[start : start + _CHUNK]
        scores = engine.score([without_padding(window) for window in chunk])
        for i, score in enumerate(scores, start=start):
            prefix_len = context_len(windows[i], shape)
            is_extracted[i] = extracted(score.teacher, prefix_len)
            suffix_logprobs[i] = suffix_logprob(score.teacher, prefix_len)
            # Summed in float64: a long window's float32 sum is off by more than the differences.
            nats[i] = -score.teacher.logprobs.sum(dtype=np.float64)
        on_chunk(start + len(chunk))
    return {"extracted": is_extracted, "nats": nats, "suffix_logprobs": suffix_logprobs}


def sampled_counts(
    extractions: Mapping[str, Extraction], chosen: NDArray[np.bool_]
) -> dict[str, dict[str, int]]:
    """Return how many of some windows n samples reveal, by role and n, see `VerificationResult`."""
    return {role: _counts(each.suffix_logprobs[chosen]) for role, each in extractions.items()}


def nearly_sampled(
    extractions: Mapping[str, Extraction], chosen: NDArray[np.bool_]
) -> dict[str, NearVerbatim] | None:
    """Return by role what samples nearly reveal of some windows; None: nobody was asked."""
    found = {}
    for role, each in extractions.items():
        if each.near_logprobs is not None:
            exact = each.suffix_logprobs[chosen]
            # Two ways to compute the suffix's own probability differ in rounding.
            near = np.maximum(each.near_logprobs[chosen], exact)
            found[role] = NearVerbatim(
                _counts(near), float(np.exp(exact).sum()), float(np.exp(near).sum())
            )
    return found or None


def _counts(logprobs: NDArray[np.float64]) -> dict[str, int]:
    p = _MORE_LIKELY_THAN_NOT
    return {str(n): int(probabilistically_extracted(logprobs, n, p).sum()) for n in _SAMPLES}


def extraction_sets(found: Mapping[str, NDArray[np.bool_]]) -> list[ExtractionSet]:
    """Return the set of each example.

    Args:
        found: (n,) whether each role's model recites it; without a baseline, none is easy.
    """
    names: dict[tuple[bool, bool, bool], ExtractionSet] = {
        # Easy whatever the student says: teacher and baseline recite it.
        (True, True, True): "easy",
        (True, True, False): "easy",
        (True, False, True): "inherited",
        (False, False, True): "new",
        (False, True, True): "baseline_and_student",
        (True, False, False): "teacher_only",
        (False, True, False): "baseline_only",
        (False, False, False): "none",
    }
    nothing = np.zeros_like(found["student"])
    columns = [found.get(role, nothing).tolist() for role in ROLES]
    return [names[triple] for triple in zip(*columns, strict=True)]


def check_generation(
    model: "PreTrainedModel",
    windows: NDArray[np.int32],
    is_extracted: NDArray[np.bool_],
    *,
    n: int,
    shape: WindowShape,
    bos_token_id: int | None,
    seed: int,
) -> GenerationCounts:
    """Really continue n of (m, T) windows, half of them recited ones as far as there are, and compare.

    The model is in float32, and `is_extracted`, (m,), is what its one pass says.

    Raises:
        ModelError: memory does not suffice.
    """
    # Half of them recited: among random windows hardly any would be, and nothing be checked.
    order = np.random.default_rng(seed).permutation(len(windows))
    recited = order[is_extracted[order]][: -(-n // 2)]
    others = order[~np.isin(order, recited)][: n - len(recited)]
    chosen = np.sort(np.concatenate([recited, others]))
    checks = [
        count_generation_disagreements(
            model,
            [without_padding(window) for window in windows[chosen[group]]],
            prefix_len,
            bos_token_id=bos_token_id,
        )
        for prefix_len, group in by_context(windows[chosen], shape)
    ]
    return GenerationCounts(
        windows=sum(check.n_windows for check in checks),
        extracted_one_pass=sum(check.n_extracted_one_pass for check in checks),
        extracted_generated=sum(check.n_extracted_generated for check in checks),
        disagreements=sum(len(check.disagreements) for check in checks),
        ties=sum(len(check.ties) for check in checks),
        nearly_generated=sum(check.n_nearly_generated for check in checks),
    )


def by_context(
    windows: NDArray[np.int32], shape: WindowShape
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each length of context with the places of the windows that have it, ascending."""
    lengths = np.array([context_len(window, shape) for window in windows])
    for length in np.unique(lengths):
        yield int(length), np.flatnonzero(lengths == length)


def scan_labels(
    labels: NDArray[np.int32],
    windows: NDArray[np.int32],
    corpus_chunks: Iterable[NDArray[np.int32]],
    prefix_len: int,
) -> LabelScan:
    """Look for suffixes of the corpus, token by token, in what a teacher wrote.

    It needs no student: what stands here is what the student is taught.

    Args:
        labels: (n, T) each a real prefix and the teacher's continuation of it.
        windows: (n, T) the windows those prefixes come from.
        corpus_chunks: (_, T) all distinct windows of the corpus, a chunk at a time.
        prefix_len: tokens of a window before its suffix.
    """
    suffix_len = labels.shape[1] - prefix_len
    corpus = {
        window_key(np.ascontiguousarray(window[prefix_len:]))
        for chunk in corpus_chunks
        for window in chunk
    }
    # Only runs that reach into the continuation: what lies in the prefix is no text of the teacher's.
    starts = range(max(0, prefix_len - suffix_len + 1), prefix_len + 1)
    own = other = 0
    leaked: set[bytes] = set()
    for label, window in zip(labels, windows, strict=True):
        own_key = window_key(np.ascontiguousarray(window[prefix_len:]))
        keys = {window_key(np.ascontiguousarray(label[s : s + suffix_len])) for s in starts}
        found = keys & corpus
        own += own_key in found
        other += bool(found - {own_key})
        leaked |= found
    return LabelScan(len(labels), own, other, len(leaked))


def label_table(examples: Examples, found: dict[str, NDArray[np.bool_]]) -> pa.Table:
    """Return the table, in the order of the corpus.

    The outcome of a row is `scored` if it was trained on and looked at; else `held_out`,
    `not_sampled`, `too_short` or `bad`. Only scored rows have labels: a model recites a row if it
    recites one of its windows. `example` numbers the scored rows; those with the same windows
    have the same number. `found` says by role, (windows that were trained on,), what is recited.
    """
    is_kept_out = examples.any_of_row(examples.is_held_out)
    recites = {}
    for role, of_trained in found.items():
        of_windows = np.zeros_like(examples.is_held_out)
        of_windows[~examples.is_held_out] = of_trained
        recites[role] = examples.any_of_row(of_windows)
    sets = extraction_sets(recites)
    in_sample = examples.example_of_row[examples.example_of_row >= 0]
    _, number = np.unique(np.where(is_kept_out, -1, in_sample), return_inverse=True)
    # Number 0 is the -1 of the rows that are held out.
    number -= int(is_kept_out.any())
    example_of_row, place = iter(examples.example_of_row.tolist()), -1
    records: list[dict[str, Any]] = []
    for row in examples.rows:
        of_row = (row.example_id, row.row, row.address, row.outcome)
        record: dict[str, Any] = dict(zip(ROW_COLUMNS, of_row, strict=True))
        if row.outcome == "scored" and next(example_of_row) < 0:
            record["outcome"] = "not_sampled"
        elif row.outcome == "scored":
            place += 1
            if is_kept_out[place]:
                record["outcome"] = "held_out"
            else:
                record["example"], record["set"] = int(number[place]), sets[place]
                for role, of_rows in recites.items():
                    record[f"extracted_by_{role}"] = bool(of_rows[place])
        records.append(record)
    return pa.Table.from_pylist(records, schema=TABLE_SCHEMA)


def with_predictions(table: pa.Table, predicted: RowPredictions) -> pa.Table:
    """Return the table with what was predicted, not what was earlier; empty in rows without it."""
    missing = np.isnan(predicted.probabilities)
    columns = {
        "probability": pa.array(predicted.probabilities, mask=missing),
        "flagged": pa.array(predicted.flagged, mask=missing),
    }
    for name, column in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, column)
    return table
