"""What each model recites, and how well it predicts windows it was kept from."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from memaudit.memorization import extracted
from memaudit.verification.result import ROLES, ExtractionSet, GenerationCounts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK = 128


@dataclass(frozen=True, slots=True)
class Extraction:
    """One model's view of the windows."""

    extracted: NDArray[np.bool_]
    """(n,) whether it continues the prefix by exactly the suffix."""

    nats: NDArray[np.float64]
    """(n,) negative log-probability of all predicted tokens of the window."""

    n_predictions: int
    """Predicted tokens a window."""

    def perplexity(self, chosen: NDArray[np.bool_]) -> float | None:
        """Return exp(mean nats per token) over some windows; None over none."""
        if not chosen.any():
            return None
        return math.exp(self.nats[chosen].mean() / self.n_predictions)


def extract(
    model: "PreTrainedModel",
    windows: NDArray[np.int32],
    *,
    prefix_len: int,
    bos_token_id: int | None,
    on_chunk: Callable[[int], None],
) -> dict[str, NDArray[Any]]:
    """Return `extracted` and `nats` of every window by one pass in float32, see `Extraction`.

    Args:
        model: in float32.
        windows: (n, T).
        prefix_len: tokens of a window before its suffix.
        bos_token_id: read before each window.
        on_chunk: told the windows done.

    Raises:
        ModelError: a score is not finite.
    """
    from memaudit.engines.hf import HfEngine

    engine = HfEngine(model, bos_token_id=bos_token_id)
    is_extracted = np.zeros(len(windows), dtype=np.bool_)
    nats = np.zeros(len(windows))
    for start in range(0, len(windows), _CHUNK):
        chunk = windows[start : start + _CHUNK]
        for i, score in enumerate(engine.score(list(chunk)), start=start):
            is_extracted[i] = extracted(score.teacher, prefix_len)
            nats[i] = -score.teacher.logprobs.sum(dtype=np.float64)
        on_chunk(start + len(chunk))
    return {"extracted": is_extracted, "nats": nats}


def extraction_sets(found: Mapping[str, NDArray[np.bool_]]) -> list[ExtractionSet]:
    """Return the set of each example.

    Args:
        found: (n,) whether each role's model recites it.
    """
    names: dict[tuple[bool, bool, bool], ExtractionSet] = {
        (True, True, True): "easy",
        (True, True, False): "easy",
        (True, False, True): "inherited",
        (False, False, True): "new",
        (False, True, True): "baseline_and_student",
        (True, False, False): "teacher_only",
        (False, True, False): "baseline_only",
        (False, False, False): "none",
    }
    columns = [found[role].tolist() for role in ROLES]
    return [names[triple] for triple in zip(*columns, strict=True)]


def count_sets(sets: list[ExtractionSet]) -> dict[ExtractionSet, int]:
    """Return how many examples each set has, empty ones included."""
    names: tuple[ExtractionSet, ...] = get_args(ExtractionSet)
    return {name: sets.count(name) for name in names}


def check_generation(
    model: "PreTrainedModel",
    windows: NDArray[np.int32],
    is_extracted: NDArray[np.bool_],
    *,
    n: int,
    prefix_len: int,
    bos_token_id: int | None,
    seed: int,
) -> GenerationCounts:
    """Really continue some windows, half of them recited ones as far as there are, and compare.

    Args:
        model: in float32.
        windows: (m, T).
        is_extracted: (m,) by the one pass.
        n: windows to continue, at least 1; all of them if there are fewer.
        prefix_len: tokens of a window before its suffix.
        bos_token_id: read before each window.
        seed: of the choice.

    Raises:
        ModelError: memory does not suffice.
    """
    from memaudit.engines.generation import count_generation_disagreements

    order = np.random.default_rng(seed).permutation(len(windows))
    recited = order[is_extracted[order]][: -(-n // 2)]
    others = order[~np.isin(order, recited)][: n - len(recited)]
    chosen = np.sort(np.concatenate([recited, others]))
    check = count_generation_disagreements(
        model, list(windows[chosen]), prefix_len, bos_token_id=bos_token_id
    )
    return GenerationCounts(
        windows=check.n_windows,
        extracted_one_pass=check.n_extracted_one_pass,
        extracted_generated=check.n_extracted_generated,
        disagreements=len(check.disagreements),
        ties=len(check.ties),
    )
