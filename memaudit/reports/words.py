"""How reports say numbers, and the sentences that several of them share."""

from collections.abc import Mapping
from pathlib import PurePath

from memaudit.evaluation import Figure, Rate
from memaudit.metrics import ExpectedCount
from memaudit.runs.manifest import RunInputs
from memaudit.runs.risks import Risks
from memaudit.text import number_of
from memaudit.windows import WindowShape

NOT_FAMILIAR = "Rows unlike those the classifier was trained on"
READ_AS_ORDER = "Use the probabilities to rank rows, not as numbers."


# By the name without the model's role, which `feature` puts in front.
_FEATURES = {
    "log_temperature": "temperature of the soft labels",
    "cross_entropy_share": "share of cross-entropy in the loss",
    "zlib_entropy": "compressed size of the window, bytes",
    "suffix_zlib_entropy": "compressed size of the suffix, bytes",
    "zlib_ratio": "compressed size over plain size",
    "occurrences": "times the window occurs in the corpus",
    "log_occurrences": "times the window occurs in the corpus",
    "log_exposure": "times its tokens are seen in training",
    "exposure_share": "share of the suffix that other rows hold too",
    "perplexity": "perplexity of the window",
    "suffix_perplexity": "perplexity of the suffix",
    "suffix_logprob": "log-probability of the suffix, nats",
    "suffix_mean_logprob": "log-probability per token of the suffix, nats",
    "suffix_min_logprob": "log-probability of its least likely suffix token, nats",
    "suffix_argmax_rate": "share of suffix tokens that are its first choice",
    "suffix_min_margin": "smallest margin of a suffix token over its best rival, nats",
    "prefix_mean_logprob": "log-probability per token of the prefix, nats",
    "entropy": "mean uncertainty in the window, nats",
    "suffix_entropy": "mean uncertainty in the suffix, nats",
    "suffix_max_entropy": "highest uncertainty in the suffix, nats",
    "suffix_max_surprise": "highest surprise in the suffix, nats",
}


def feature(name: str) -> str:
    """Return what a feature measures, in words; its name where there are none."""
    aligned, plain = "aligned_", name.removeprefix("aligned_")
    role, _, rest = plain.partition("_")
    if role in ("teacher", "student", "baseline") and rest in _FEATURES:
        told = ", told by the teacher's tokens" if name.startswith(aligned) else ""
        return f"{role}: {_FEATURES[rest]}{told}"
    return _FEATURES.get(name, name.replace("_", " "))


def percent(share: float | None) -> str:
    """Return a share in percent; what is not certain never reads as certain, None is a dash."""
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.1%}"


def percent_range(low: float, high: float) -> str:
    """Return an interval of shares."""
    return f"{percent(low)} to {percent(high)}"


def rate(found: Rate) -> str:
    """Return a share with its 95 % interval."""
    return f"{percent(found.rate)} ({rate_range(found)})"


def rate_of(found: Rate, what: str) -> tuple[str, str]:
    """Return a share, and its numbers with the 95 % interval: `1 of 2 at risk are recited (…)`."""
    return percent(found.rate), f"{found.count:,} of {found.of:,} {what} ({rate_range(found)})"


def rate_range(rate: Rate) -> str:
    """Return the 95 % interval of a share; a dash if it is of nothing."""
    return "–" if rate.rate is None else percent_range(rate.low, rate.high)


def approximately(count: float) -> str:
    """Return an expected number: a decimal only where it matters."""
    # The interval is many times as wide as the decimal of a larger number.
    return f"{count:,.1f}" if count < 10 else f"{count:,.0f}"


def interval(count: ExpectedCount) -> str:
    """Return the 95 % interval of an expected number."""
    return f"{count.low:,} to {count.high:,}"


def expected(count: ExpectedCount) -> str:
    """Return an expected number with its interval, such as `217 (47 to 518)`."""
    return f"{approximately(count.mean)} ({interval(count)})"


def generic(risks: Risks) -> str:
    """Return how many of the texts expected have wording that other rows have too, or nothing."""
    count, expected = risks.expected_generic_texts, risks.expected_texts.mean
    # What rounds to no text is not worth a sentence.
    if count is None or expected < 0.5:
        return ""
    texts = f"the {approximately(expected)} different texts expected"
    if count < 0.05 * expected:
        return f"Nearly all of {texts} would not be memorized if you dropped them."
    return (
        f"Of {texts}, about {approximately(count)} would be memorized even if you dropped them "
        "one at a time: other examples have the same wording."
    )


def sampled(risks: Risks) -> str:
    """Return how many different texts samples are expected to reveal, or nothing."""
    found = {n: count for n, count in risks.expected_if_sampled.items() if count.mean >= 0.5}
    if not found:
        return ""
    first, *more = (f"{approximately(count.mean)} in {n:,}" for n, count in found.items())
    told = ", ".join([f"{first} samples of each", *more])
    return (
        f"If people sample at temperature 1, expect this many different texts: {told} "
        f"({interval(found[max(found)])})."
    )


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number without a unit, such as an AUC; None if it is not defined."""
    return "–" if value is None else f"{value:.{digits}f}"


def figure_range(found: Figure, digits: int = 3) -> str:
    """Return the 95 % interval of such a number; nothing if it has none."""
    interval = found.interval
    return "" if interval is None else f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def and_more(n: int) -> str:
    """Return `and 12 more`, what stands below the first of a list; nothing if they are all."""
    return f"and {n:,} more" if n > 0 else ""


def training_in_words(inputs: RunInputs) -> str:
    """Return how the student learns, such as "soft labels at T = 2, in 3 epochs"."""
    objective, exposure = inputs.objective, inputs.exposure
    words = {
        "soft": f"soft labels at T = {objective.temperature:g}",
        "hard": "hard labels",
        "sampled": "text that it samples",
        "cross-entropy": "cross-entropy on the corpus",
    }[objective.kind]
    if objective.kind == "soft" and objective.cross_entropy_share:
        words += f" with {objective.cross_entropy_share:.0%} cross-entropy"
    # Without one, epochs are no input of the classifier.
    return words if exposure is None else f"{words}, in {number_of(exposure.epochs, 'epoch')}"


def windows(inputs: RunInputs) -> str:
    """Return which windows were scored, such as "50 + 50 tokens, first"."""
    return f"{inputs.shape.prefix_len} + {inputs.shape.suffix_len} tokens, {inputs.windows}"


def percent_by_name(rates: Mapping[str, float]) -> str:
    """Return shares in words, the highest first: `12% in entropy, 7% in zlib ratio`."""
    by_rate = sorted(rates.items(), key=lambda item: -item[1])
    return ", ".join(f"{rate:.0%} in {name.replace('_', ' ')}" for name, rate in by_rate)


def not_a_guarantee(shape: WindowShape) -> str:
    """Return what a low probability does not mean, which stands on every report of risks."""
    return (
        "A low probability is not a guarantee. It covers one thing: the student, given the first "
        f"{shape.prefix_len} tokens of a window, writing exactly the next {shape.suffix_len} "
        "when it always picks the most likely token. It says nothing about paraphrases, other parts of "
        "the text, or random sampling."
    )


def cleaned_name(source: str) -> str:
    """Return a name for what a filter writes of a corpus, with the endings that it insists on."""
    return f"cleaned{''.join(PurePath(source).suffixes[-2:])}"


def duration(seconds: float) -> str:
    """Return a time as people say it, such as `4.2 s`, `38 min` or `12 days`."""
    # 80 minutes are read faster than 1.3 hours, and 40 hours than 1.7 days.
    for limit, size, unit in ((100, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            number = seconds / size
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{seconds / 86_400:,.1f} days"


def shared_windows(n_texts: int, n_windows: int, length: int) -> str:
    """Say that different texts are at risk for the same tokens, if they are; else nothing."""
    if n_texts <= n_windows:
        return ""
    shared = number_of(n_windows, "window")
    return f" The {n_texts:,} different texts at risk share {shared} of {length} tokens."
