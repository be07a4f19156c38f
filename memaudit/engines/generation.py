"""Generation: what a model really says after a prefix, and whether one pass foretold it."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from memaudit.engines.hf import HfEngine, evaluating
from memaudit.engines.window_io import limits_of
from memaudit.errors import ModelError
from memaudit.memorization import BEAM_WIDTH, approximately_extracted, extracted, next_distances
from memaudit.objectives import GREEDY, LabelSampling
from memaudit.scores import suffix
from memaudit.text import number_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TIE_GAP = 1e-4
"""Two logits closer than this are tied, nats: several times the rounding of float32 between two
ways to compute them, see `Engine`."""

_LOGITS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Of all texts of a batch, by kind of device: 1 MiB in float32 stays in a cache."""


@dataclass(frozen=True, slots=True)
class GenerationCheck:
    """How often real generation and the one pass gave the same answer."""

    n_windows: int
    n_extracted_one_pass: int
    """Windows whose suffix is the argmax throughout, given the true tokens before it."""

    n_extracted_generated: int
    """Windows whose suffix came out of `generate`."""

    n_nearly_generated: int
    """Windows whose suffix came out but for a tenth of its tokens, exact ones among them."""

    disagreements: tuple[int, ...]
    """Indices of the windows on which the two differ, ascending."""

    ties: tuple[int, ...]
    """Those of the disagreements that a tie explains: where the two part, the two best logits
    are at most `TIE_GAP` apart, so that either answer is right."""


def continue_prefixes(
    model: "PreTrainedModel",
    prefixes: Sequence[NDArray[np.int32]],
    n_tokens: int,
    *,
    bos_token_id: int | None = None,
    n_at_once: int = 16,
    sampling: LabelSampling = GREEDY,
    seed: int = 0,
) -> list[NDArray[np.int32]]:
    """Return a continuation of each prefix, as transformers' `generate` gives it.

    Only the logits, and chance if tokens are sampled, decide: nothing of the model's generation
    config applies (penalties, sampling, suppressed or forced tokens), and an end-of-sequence token
    neither stops a continuation nor is avoided. Prefixes of one length run together, so there is no
    padding.

    Args:
        model: used in evaluation mode and in its own dtype; left as it was.
        prefixes: token ids, each (P,); lengths may differ. P >= 1, or 0 after a BOS.
        n_tokens: in each continuation, at least 1.
        bos_token_id: put in front of every prefix, as `HfEngine` does.
        n_at_once: prefixes run at once, at least 1.
        sampling: of the tokens; the likeliest ones unless told otherwise.
        seed: of the sampling.

    Returns:
        (n_tokens,) for each prefix, in the order given.

    Raises:
        ModelError: a prefix and its continuation are too long for the model, a prefix holds ids
            it does not have, or memory does not suffice for the batch.
    """
    inputs = [_with_bos(prefix, bos_token_id) for prefix in prefixes]
    _check_inputs(model, inputs, n_tokens, n_at_once)
    how: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        how["top_k"] = 0  # no limit; the library's own default is 50
    # Without an EOS id nothing stops early.
    config = GenerationConfig(
        num_beams=1, max_new_tokens=n_tokens, use_cache=True, eos_token_id=None, **how
    )
    untyped: Any = model
    continuations: dict[int, NDArray[np.int32]] = {}
    # On the CPU's and every GPU's generator: chance is the same in each process, and only lent.
    with _only_logits_decide(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in _batches([len(token_ids) for token_ids in inputs], n_at_once):
            inputs_BP = torch.as_tensor(np.stack([inputs[i] for i in batch]), device=model.device)
            with _memory_errors(model, len(batch)):
                found_BT = untyped.generate(
                    inputs_BP, attention_mask=torch.ones_like(inputs_BP), generation_config=config
                )
            written_Bn = found_BT[:, inputs_BP.shape[1] :].cpu().numpy().astype(np.int32)
            continuations.update(zip(batch, written_Bn, strict=True))
    return [continuations[i] for i in range(len(inputs))]


def count_generation_disagreements(
    model: "PreTrainedModel",
    windows: Sequence[NDArray[np.int32]],
    prefix_len: int,
    *,
    bos_token_id: int | None = None,
) -> GenerationCheck:
    """Ask for each window both ways whether its suffix is extracted, and compare.

    The two must agree in float32 but for ties. In lower precision they need not: rounding then
    differs between a pass over the window and one token at a time.

    Args:
        model: of transformers, in float32.
        windows: token ids, each longer than `prefix_len`; at least one.
        prefix_len: tokens of a window before its suffix, at least 1.
        bos_token_id: put in front of every window.

    Raises:
        ModelError: as `HfEngine.score` and `continue_prefixes`.
    """
    if not windows or prefix_len < 1 or min(map(len, windows)) <= prefix_len:
        raise ValueError(f"expected windows longer than a prefix_len >= 1, got {prefix_len}")
    suffixes = [window[prefix_len:] for window in windows]
    engine = HfEngine(model, bos_token_id=bos_token_id)
    scores = [score.teacher for score in engine.score(windows)]
    continuations = continue_prefixes(
        model,
        [window[:prefix_len] for window in windows],
        max(map(len, suffixes)),
        bos_token_id=bos_token_id,
    )
    # All were written as long as the longest, so that prefixes of one length ran together.
    generated = [c[: len(true)] for c, true in zip(continuations, suffixes, strict=True)]
    by_pass = [extracted(score, prefix_len) for score in scores]
    by_generation = list(map(np.array_equal, generated, suffixes))
    disagreements = [i for i in range(len(windows)) if by_pass[i] != by_generation[i]]
    untyped: Any = model
    ties = []
    for i in disagreements:
        # Until the first token on which they differ generation has written the window's own, so
        # both judge from this context.
        is_argmax = suffix(scores[i].is_argmax, prefix_len)
        n_shared = int(((generated[i] == suffixes[i]) != is_argmax).argmax())
        context = _with_bos(windows[i][: prefix_len + n_shared], bos_token_id)
        token_ids_1T = torch.as_tensor(context, device=model.device)[None]
        with _only_logits_decide(model), torch.inference_mode():
            logits_V = untyped(input_ids=token_ids_1T, use_cache=False).logits[0, -1].float()
        best, second = logits_V.topk(2).values.tolist()
        if best - second <= TIE_GAP:
            ties.append(i)
    return GenerationCheck(
        n_windows=len(windows),
        n_extracted_one_pass=sum(by_pass),
        n_extracted_generated=sum(by_generation),
        n_nearly_generated=sum(map(approximately_extracted, generated, suffixes)),
        disagreements=tuple(disagreements),
        ties=tuple(ties),
    )


def near_verbatim_logprobs(
    model: "PreTrainedModel",
    windows: Sequence[NDArray[np.int32]],
    prefix_lens: Sequence[int],
    *,
    max_distance: float,
    width: int = BEAM_WIDTH,
    bos_token_id: int | None = None,
    on_windows: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Return lower bounds of the log-probability of sampling nearly the suffix after the prefix.

    Nearly: as many tokens as the suffix has, that differ from it by few edits. Sampling is at
    temperature 1 from the whole vocabulary, as in `suffix_logprob`. A beam follows the likeliest
    texts that can still end within the edits, and the true suffix whatever it costs. Texts of one
    length that differ are disjoint events, so their probabilities add up: to at least that of the
    suffix, and at most that of all near texts, which a beam wide enough to hold them reaches.
    Source: Cooper et al. 2026 (arXiv:2603.24917), decoding-constrained beam search; there for the
    decoding scheme under test, such as top-k.

    Args:
        model: used in evaluation mode and in its own dtype; left as it was. Must keep a cache.
        windows: token ids, each longer than its prefix; at least one.
        prefix_lens: tokens of each window before its suffix, at least 1, or 0 after a BOS.
        max_distance: edits as a share of the suffix's tokens, in [0, 1).
        width: texts that are followed at once, at least 1.
        bos_token_id: read before every window.
        on_windows: told the windows done.

    Returns:
        (W,) nats, at most 0.

    Raises:
        ModelError: as `continue_prefixes`, or the model keeps no cache that can be reordered.
    """
    prefixes, suffixes, found = [], [], np.zeros(len(windows))
    for window, prefix_len in zip(windows, prefix_lens, strict=True):
        prefixes.append(_with_bos(window[:prefix_len], bos_token_id))
        suffixes.append(window[prefix_len:])
    _check_inputs(model, prefixes, max(map(len, suffixes)), width)
    n_logits = width * model.config.get_text_config().vocab_size
    at_once = max(1, _LOGITS_AT_ONCE[model.device.type] // n_logits)
    shapes = [(len(p), len(s)) for p, s in zip(prefixes, suffixes, strict=True)]
    n_done = 0
    with _only_logits_decide(model), torch.inference_mode(), _memory_errors(model, at_once):
        for batch in _batches(shapes, at_once):
            shares = np.arange(shapes[batch[0]][1]) / shapes[batch[0]][1]
            found[batch] = _near_mass(
                model,
                np.stack([prefixes[i] for i in batch]),
                np.stack([suffixes[i] for i in batch]),
                int((shares <= max_distance).sum()) - 1,  # as `approximately_extracted` rounds
                width,
            )
            n_done += len(batch)
            if on_windows is not None:
                on_windows(n_done)
    # Rounding may add up to a little more than 1.
    return np.minimum(found, 0.0)


def _near_mass(
    model: "PreTrainedModel",
    prefixes_WP: NDArray[np.int64],
    suffixes_WS: NDArray[np.int32],
    n_edits: int,
    width: int,
) -> NDArray[np.float64]:
    """Return (W,) log of the probabilities, added up, of the near texts that B = width find."""
    untyped: Any = model
    (n_windows, suffix_len), device = suffixes_WS.shape, model.device
    true_WS = torch.as_tensor(suffixes_WS, device=device).long()
    windows_W1 = torch.arange(n_windows, device=device)[:, None]
    said = untyped(input_ids=torch.as_tensor(prefixes_WP, device=device), use_cache=True)
    name = "cache" if "cache" in said else "past_key_values"  # as transformers called it before
    cache = said.get(name)
    if not hasattr(cache, "reorder_cache"):
        raise ModelError(
            f"{type(model).__name__} keeps no cache from which several texts could go on",
            hint="leave out near-verbatim extraction",
        )
    # A prefix is read once, and its keys and values are copied for each text of its beam.
    cache.reorder_cache(windows_W1.expand(-1, width).flatten())
    logits_WBV = said.logits[:, -1:].expand(-1, width, -1)
    # At first all texts of a window are the same: all but one count for nothing.
    total_WB = torch.full((n_windows, width), -torch.inf, dtype=torch.float64, device=device)
    total_WB[:, 0] = 0
    # Edits from a text to each beginning of the suffix: from nothing, as many as it has tokens.
    rows_WBD = np.broadcast_to(np.arange(suffix_len + 1), (n_windows, width, suffix_len + 1))
    for place in range(suffix_len - 1):
        near_WBV = _near_logprobs(logits_WBV, rows_WBD, suffixes_WS, place, n_edits)
        # Sums are kept in float64. To choose the likeliest texts float32 is enough.
        scores_WBV = total_WB.float()[..., None] + near_WBV
        # The true suffix always stays, as text 0: topk gives the largest first.
        scores_WBV[:, 0].scatter_(1, true_WS[:, place, None], torch.inf)
        best_WB = scores_WBV.flatten(1).topk(width).indices
        parents_WB, tokens_WB = best_WB // scores_WBV.shape[-1], best_WB % scores_WBV.shape[-1]
        total_WB = total_WB.gather(1, parents_WB) + near_WBV.flatten(1).gather(1, best_WB)
        differs_WBS = (tokens_WB[..., None] != true_WS[:, None]).cpu().numpy()
        rows_WBD = next_distances(rows_WBD[windows_W1.cpu(), parents_WB.cpu()], differs_WBS)
        cache.reorder_cache((windows_W1 * width + parents_WB).flatten())
        said = untyped(input_ids=tokens_WB.reshape(-1, 1), use_cache=True, **{name: cache})
        logits_WBV = said.logits.view(n_windows, width, -1)
    # All last tokens that are near count, not the likeliest alone.
    near_WBV = _near_logprobs(logits_WBV, rows_WBD, suffixes_WS, suffix_len - 1, n_edits)
    found: NDArray[np.float64] = (total_WB + near_WBV.logsumexp(-1)).logsumexp(-1).cpu().numpy()
    return found


def _near_logprobs(
    logits_WBV: torch.Tensor,
    rows_WBD: NDArray[np.int64],
    suffixes_WS: NDArray[np.int32],
    place: int,
    n_edits: int,
) -> torch.Tensor:
    """Return (W, B, V) log-probabilities of the next token; -inf where no end is within the edits."""
    # A token from further off in the suffix costs as much as one that does not stand there.
    near_WK = suffixes_WS[:, max(0, place - n_edits) : place + n_edits + 1]
    differs_WKS = near_WK[..., None] != suffixes_WS[:, None]
    # At best, what is still written repeats the rest of the suffix but for its length.
    offset_D = np.abs(np.arange(rows_WBD.shape[-1]) - (place + 1))
    is_near_WBK, is_other_WB = (
        torch.as_tensor((rows + offset_D).min(axis=-1) <= n_edits, device=logits_WBV.device)
        for rows in (
            next_distances(rows_WBD[:, :, None], differs_WKS[:, None]),
            next_distances(rows_WBD, np.ones(suffixes_WS.shape[1], np.bool_)),
        )
    )
    ids_WBK = torch.as_tensor(near_WK, device=logits_WBV.device).long()[:, None]
    allowed_WBV = is_other_WB[..., None].repeat(1, 1, logits_WBV.shape[-1])
    allowed_WBV.scatter_(2, ids_WBK.expand_as(is_near_WBK), is_near_WBK)
    # Ruled out afterwards: what is left keeps the probability that it has among all tokens.
    return logits_WBV.float().log_softmax(dim=-1).masked_fill(~allowed_WBV, -torch.inf)


def _with_bos(token_ids: NDArray[np.int32], bos_token_id: int | None) -> NDArray[np.int64]:
    bos = [] if bos_token_id is None else [bos_token_id]
    return np.concatenate([bos, token_ids]).astype(np.int64)


def _check_inputs(
    model: "PreTrainedModel", inputs: list[NDArray[np.int64]], n_tokens: int, n_at_once: int
) -> None:
    if n_tokens < 1 or n_at_once < 1:
        raise ValueError(
            f"n_tokens and n_at_once must be at least 1, got {n_tokens} and {n_at_once}"
        )
    if not inputs:
        return
    if min(map(len, inputs)) < 1:
        raise ValueError("a prefix must have at least 1 token, or follow a BOS")
    untyped: Any = model
    limits_of(model, untyped.get_input_embeddings().weight.shape[0]).check(
        "a prefix and its continuation have",
        max(map(len, inputs)) + n_tokens,
        min(x.min() for x in inputs),
        max(x.max() for x in inputs),
    )


def _batches(lengths: Sequence[Hashable], n_at_once: int) -> Iterator[list[int]]:
    """Yield indices of inputs of one length."""
    # Without padding no text depends on those beside it.
    by_length: dict[Hashable, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), n_at_once):
            yield indices[start : start + n_at_once]


@contextmanager
def _only_logits_decide(model: "PreTrainedModel") -> Iterator[None]:
    """Switch dropout and the model's generation config off, and back to what they were.

    What a config handed to `generate` leaves open is filled in from the model's own, so that
    one must be out of the way.
    """
    own_config = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        with evaluating([model]):
            yield
    finally:
        model.generation_config = own_config


@contextmanager
def _memory_errors(model: "PreTrainedModel", n_prefixes: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        prefixes = number_of(n_prefixes, "prefix", "prefixes")
        raise ModelError(
            f"not enough memory on {model.device} to continue {prefixes} at once",
            hint="choose a smaller model, or --device cpu",
        ) from error
