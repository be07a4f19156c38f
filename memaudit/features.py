"""Features: the numbers about one window from which its risk is predicted.

All are raw: no statistic of the corpus at hand enters, so a classifier fitted on one corpus
can be applied to another. Means and sums run over predicted tokens; a window of T tokens has
T - 1 of them, and its suffix as many as it has tokens. "Suffix" features look at the suffix
alone: only the suffix has to be reproduced, and the prefix dilutes what it says.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from memaudit.objectives import Objective
from memaudit.scores import TokenScores, WindowScores, suffix

ReferenceRole = Literal["student", "baseline", "aligned_student", "aligned_baseline"]
"""What the second model is: the student before training, or a trained baseline. Aligned: it has a
tokenizer of its own, see `memaudit.engines.aligned`."""

Numbers = NDArray[np.floating[Any]]
"""One for each window; without an axis for one window alone."""

OBJECTIVE_FEATURES = ("log_temperature", "cross_entropy_share")
"""How soft the student's labels will be: the same for every window of an audit."""

_MODEL_FEATURES = (
    "perplexity",
    "prefix_mean_logprob",
    "suffix_perplexity",
    "suffix_logprob",
    "suffix_mean_logprob",
    "suffix_min_logprob",
    "suffix_argmax_rate",
    "suffix_min_margin",
    "suffix_margin_log_odds",
    "entropy",
    "suffix_entropy",
    "suffix_max_entropy",
    "suffix_max_surprise",
    "min_k_logprob",
)
_CORPUS_FEATURES = (
    "zlib_entropy",
    "suffix_zlib_entropy",
    "zlib_ratio",
    "occurrences",
    "log_occurrences",
)
CORPUS_FEATURES = (*OBJECTIVE_FEATURES, *_CORPUS_FEATURES)
"""Features that no model is needed for."""

EXPOSURE_FEATURES = ("exposure_median", "exposure_share", "log_exposure")
"""What `memaudit.exposure` counts, and how often a student will see it: only computed where a
classifier asks for one of them, for the whole corpus is read once more."""

_ENTROPY_FEATURES = ("entropy", "suffix_entropy", "suffix_max_entropy", "suffix_max_surprise")
"""Of a model's features, those that need the entropy of its predictions."""

_CONTEXT_FEATURES = ("teacher_perplexity", "teacher_prefix_mean_logprob")
"""Those of the teacher's without entropy that look at more than the suffix."""

REFERENCE_FEATURES = tuple(
    f"{r}_{name}" for r in ("student", "baseline") for name in _MODEL_FEATURES
)
"""Features that a reference of the teacher's vocabulary tells alone, without the teacher."""

# The order is that of the columns in every run.
_TEACHER_FEATURES = (*CORPUS_FEATURES, *(f"teacher_{name}" for name in _MODEL_FEATURES))


def _with_reference(role: ReferenceRole) -> tuple[str, ...]:
    names = tuple(f"{role}_{name}" for name in _MODEL_FEATURES)
    divergences: tuple[str, ...]
    divergences = (kl_name(role), suffix_kl_name(role), f"{role}_suffix_max_kl_divergence")
    ratios = (f"{role}_suffix_log_ratio", f"{role}_suffix_max_log_ratio")
    if is_aligned(role):
        # A divergence needs one vocabulary for both, and entropies over two do not compare.
        absent = {f"{role}_{name}" for name in _ENTROPY_FEATURES}
        names, divergences = tuple(name for name in names if name not in absent), ()
    # The teacher first: its columns stand in the same places whatever reference a run has.
    return _TEACHER_FEATURES + names + divergences + ratios


def is_aligned(role: str) -> bool:
    """Whether a reference, or a feature set with one, is of a model with its own tokenizer."""
    return "aligned_" in role


def kl_name(role: ReferenceRole) -> str:
    """Return the name of KL(teacher ‖ role): the paper's is the one to the baseline."""
    return "kl_divergence" if role == "baseline" else "student_kl_divergence"


def suffix_kl_name(role: ReferenceRole) -> str:
    """Return the name of KL(teacher ‖ role) over the suffix alone."""
    return f"suffix_{kl_name(role)}" if role == "baseline" else "student_suffix_kl_divergence"


PAPERS_OBJECTIVE = Objective()
"""Soft labels at T = 2, no cross-entropy."""

SHARED_SETS = ("teacher", "teacher+student", "teacher+baseline")
"""Keys of `FEATURE_SETS` whose models share a vocabulary: there is a shipped classifier for each."""

FEATURE_SETS: dict[str, tuple[str, ...]] = {
    "teacher": _TEACHER_FEATURES,
    **{f"teacher+{role}": _with_reference(role) for role in get_args(ReferenceRole)},
}
"""Which features every run has, by the models that a user has."""

KNOWN_FEATURES: dict[str, tuple[str, ...]] = {
    name: CORPUS_FEATURES + EXPOSURE_FEATURES + features[len(CORPUS_FEATURES) :]
    for name, features in FEATURE_SETS.items()
}
"""Which features exist, in their order. A classifier uses some of its set."""


def feature_set_name(role: ReferenceRole | None) -> str:
    """Return the key of `FEATURE_SETS` for a teacher and, if it has a role, a reference."""
    return "teacher" if role is None else f"teacher+{role}"


def exact_features(
    role: ReferenceRole | None, *, logprobs_only: bool, lacks_context: bool
) -> tuple[str, ...]:
    """Return the features of a teacher, and of a reference, that an engine can tell.

    Args:
        role: what the reference is. None: there is none.
        logprobs_only: the engine tells neither entropies nor divergences. What needs them is left
            out: an approximation under the same name would be taken for the exact one.
        lacks_context: the engine tells nothing of some tokens before a suffix.
    """
    names = FEATURE_SETS[feature_set_name(role)]
    if lacks_context:
        names = tuple(name for name in names if name not in _CONTEXT_FEATURES)
    if not logprobs_only:
        return names
    absent = {f"{each}_{name}" for each in ("teacher", role) for name in _ENTROPY_FEATURES}
    return tuple(name for name in names if name not in absent and "kl_divergence" not in name)


def one_model_features(
    role: Literal["teacher"] | ReferenceRole, scores: TokenScores, prefix_len: int
) -> dict[str, float]:
    """Return the features of one window that one model tells alone, by name, the role in front."""
    return {name: float(value) for name, value in _one_model(role, scores, prefix_len).items()}


def model_features(
    scores: WindowScores, *, prefix_len: int, role: ReferenceRole | None = None
) -> dict[str, float]:
    """Return the features of one window that `model_columns` gives, by name."""
    columns = model_columns(scores, prefix_len=prefix_len, role=role)
    return {name: float(value) for name, value in columns.items()}


def model_columns(
    scores: WindowScores, *, prefix_len: int, role: ReferenceRole | None = None
) -> dict[str, Numbers]:
    """Return the features that models are needed for and that the scores allow, by name.

    Args:
        scores: of the teacher, and of the reference when `role` is given; of one window or,
            stacked, of several. A window's features are the same bits either way.
        prefix_len: tokens of each window before its suffix.
        role: what the reference is.

    Returns:
        (n,) for each name; a number for the scores of one window.
    """
    features = _one_model("teacher", scores.teacher, prefix_len)
    if role is None:
        return features
    assert scores.reference is not None
    features |= _one_model(role, scores.reference, prefix_len)
    if scores.kl_divergence is not None:
        suffix_kl = suffix(scores.kl_divergence, prefix_len)
        features |= {
            kl_name(role): mean(scores.kl_divergence),
            suffix_kl_name(role): mean(suffix_kl),
            f"{role}_suffix_max_kl_divergence": suffix_kl.max(axis=-1),
        }
    log_ratios = suffix(scores.teacher.logprobs - scores.reference.logprobs, prefix_len)
    return features | {
        f"{role}_suffix_log_ratio": mean(log_ratios),
        f"{role}_suffix_max_log_ratio": log_ratios.max(axis=-1),
    }


def _one_model(
    role: Literal["teacher"] | ReferenceRole, scores: TokenScores, prefix_len: int
) -> dict[str, Numbers]:
    suffix_logprobs = suffix(scores.logprobs, prefix_len)
    prefix_logprobs = scores.logprobs[..., : prefix_len - 1]
    margins = suffix(scores.margin, prefix_len).astype(np.float64)
    # A prefix of one token has no prediction of its own to average.
    nothing = np.zeros(scores.logprobs.shape[:-1])
    features = {
        f"{role}_perplexity": perplexity(scores.logprobs),
        f"{role}_prefix_mean_logprob": mean(prefix_logprobs) if prefix_len > 1 else nothing,
        f"{role}_suffix_perplexity": perplexity(suffix_logprobs),
        f"{role}_suffix_logprob": suffix_logprobs.astype(np.float64).sum(axis=-1),
        f"{role}_suffix_mean_logprob": mean(suffix_logprobs),
        f"{role}_suffix_min_logprob": suffix_logprobs.min(axis=-1),
        f"{role}_suffix_argmax_rate": mean(suffix(scores.is_argmax, prefix_len)),
        f"{role}_suffix_min_margin": margins.min(axis=-1),
        # The log of a product of sigmoids: about 0 where every token is far ahead of its rival.
        f"{role}_suffix_margin_log_odds": -np.logaddexp(0.0, -margins).sum(axis=-1),
    }
    if scores.entropy is not None:
        suffix_entropies = suffix(scores.entropy, prefix_len)
        features |= {
            f"{role}_entropy": mean(scores.entropy),
            f"{role}_suffix_entropy": mean(suffix_entropies),
            f"{role}_suffix_max_entropy": suffix_entropies.max(axis=-1),
            f"{role}_suffix_max_surprise": (-suffix_logprobs - suffix_entropies).max(axis=-1),
        }
    # Last, as in `_MODEL_FEATURES`: features come in the order of their set.
    return features | {f"{role}_min_k_logprob": min_k_logprob(suffix_logprobs)}


def corpus_features(
    text: str, suffix_text: str, occurrences: int, objective: Objective = PAPERS_OBJECTIVE
) -> dict[str, float]:
    """Return the features that no model is needed for, by name.

    They are of a window and its suffix, decoded, and of how many times it occurs, at least 1.
    """
    length = zlib_entropy(text)
    return {
        **objective_features(objective),
        "zlib_entropy": length,
        "suffix_zlib_entropy": zlib_entropy(suffix_text),
        # `zlib_entropy` of texts of mixed length is a measure of length; this is not.
        "zlib_ratio": length / max(1, len(_utf8(text))),
        "occurrences": float(occurrences),
        "log_occurrences": float(np.log(occurrences)),
    }


def exposure_features(
    median: float, share: float, *, occurrences: int, epochs: float
) -> dict[str, float]:
    """Return how often a student sees the suffix of a window, by name.

    Median and share are as in `memaudit.exposure.Exposure`. The window occurs at least once; a row
    that holds it several times counts once for its grams, and a short window has none. Epochs are
    passes over the corpus.
    """
    return {
        "exposure_median": median,
        "exposure_share": share,
        "log_exposure": math.log(max(median, occurrences) * epochs),
    }


def objective_features(objective: Objective) -> dict[str, float]:
    """Return the settings of the objective; what has no soft labels has temperature 1.

    The logarithm, for the log-odds of being memorized fall about evenly with it.
    """
    # Other objectives hold a temperature as well, 2 by default: it must not move a prediction.
    temperature = objective.temperature if objective.kind == "soft" else 1.0
    return {
        "log_temperature": float(np.log(temperature)),
        "cross_entropy_share": objective.cross_entropy_share,
    }


def mean(per_token: NDArray[Any]) -> Numbers:
    """Return the mean over tokens, the last axis, summed in float64."""
    # Converted before: a sum that converts on the way groups the numbers of many windows otherwise
    # than those of one, and rounds otherwise.
    means: Numbers = per_token.astype(np.float64).mean(axis=-1)
    return means


def perplexity(logprobs: NDArray[Any]) -> Numbers:
    """Return exp of the mean negative log-probability per token; at least 1, no unit.

    The mean is capped at 80 nats, so that the result is finite.
    """
    # The exponent is capped, not the result: exp overflows from 710 on.
    return np.exp(np.minimum(-mean(logprobs), 80.0))


def min_k_logprob(logprobs: NDArray[Any]) -> Numbers:
    """Return the mean log-probability of the least probable fifth of (..., S) tokens, nats.

    Source: Shi et al. 2023 (arXiv:2310.16789), Min-K%.
    """
    # At least one: a fifth of four tokens is none.
    k = max(1, int(logprobs.shape[-1] * 0.2))
    return mean(np.sort(logprobs, axis=-1)[..., :k])


def zlib_entropy(text: str) -> float:
    """Return the length of the text compressed with zlib at level 6, bytes.

    Other implementations of deflate give other lengths: a classifier records the one it was
    fitted with. Source: Carlini et al. 2021 (arXiv:2012.07805), section 5.2.
    """
    return float(len(zlib.compress(_utf8(text), level=6)))


class ZlibRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which zlib the zlib features were measured with: others compress to other lengths."""

    version: str
    """As the library calls itself; for people, not compared."""

    # Sizes decide, not a version: zlib-ng gives the size of zlib for only 18 % of paragraphs.
    golden_sha256: str
    """Hexadecimal digest of the compressed lengths of 64 fixed texts; compared."""


def zlib_record() -> ZlibRecord:
    """Return which zlib this interpreter has, told by what it does to 64 fixed texts.

    They have 20 to 5,000 bytes and the redundancy of prose.
    """
    words = b"the of and to in a is that for it as was with be by on not he his but at are".split()
    lengths = []
    for i in range(64):
        # By a hash: its bytes are the same in every version of Python.
        stream = hashlib.shake_256(bytes([i])).digest(6 + 20 * i)
        text = b" ".join(words[byte % len(words)] + b"%d" % (byte % 7) for byte in stream)
        lengths.append(len(zlib.compress(text, level=6)))
    digest = hashlib.sha256(",".join(map(str, lengths)).encode()).hexdigest()
    return ZlibRecord(version=zlib.ZLIB_RUNTIME_VERSION, golden_sha256=digest)


def _utf8(text: str) -> bytes:
    # Decoded tokens may hold lone surrogates, for which UTF-8 has no bytes.
    return text.encode("utf-8", errors="surrogatepass")


def reason_in_words(features: Mapping[str, float]) -> str:
    """Return why a window stands out, most telling first, such as "occurs 16 times".

    Returns:
        short phrases joined by commas; "nothing stands out" if none applies.
    """
    times, rows = features["occurrences"], features.get("exposure_median", 1.0)
    recited_by = [
        role
        for role in ("teacher", "baseline", "student")
        # Exact: the mean of n ones is 1.0, and no smaller count rounds to it.
        if 1.0 in (features.get(f"{kind}{role}_suffix_argmax_rate") for kind in ("", "aligned_"))
    ]
    at_risk = " that is at risk" if features.get("secret_at_risk") else ""
    recites = "recites" if len(recited_by) == 1 else "recite"
    nearly = not recited_by and features["teacher_suffix_argmax_rate"] >= 0.9
    # The limits are for readers: no probability rests on them.
    reasons = {
        f"holds a secret{at_risk}": features.get("secrets"),
        "holds personal data": features.get("personal_data"),
        f"occurs {times:.0f} times": times > 1,
        f"much of it is in {rows // 1:.0f} rows": rows > times,
        f"{' and '.join(recited_by)} {recites} it": recited_by,
        "teacher nearly recites it": nearly,
        "low entropy": features.get("teacher_suffix_entropy", math.inf) < 0.5,
        "repetitive text": features["zlib_ratio"] < 0.5,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds) or "nothing stands out"
