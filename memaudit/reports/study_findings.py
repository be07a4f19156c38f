"""Where a study's numbers are not what the paper found, in one sentence each.

The paper is Borkar et al. 2026 (arXiv:2601.15394); its numbers are named where they are used.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

Document = Mapping[str, Any]

PAPER_SOFT_AGAINST_BASELINE = (0.13, 0.48)
"""Least and most over its five settings; section 3."""

PAPER_TEACHER_RATES = (0.0005, 0.089)
"""Least and most over its five settings; section 3."""

PAPER_SHARE_IN_EASY = 0.957
"""676 of 706 on Pythia and FineWeb; section 3."""

PAPER_INHERITED_RATIO = 50 / 18
"""Hard against soft labels on Pythia and FineWeb; section 6."""

PAPER_ROC_AUC = 0.9997
"""On Pythia and FineWeb; section 5."""

PAPER_PRECISION = 0.9917
"""There, with three negatives drawn for each positive."""

_FAR_BELOW = 0.1
_NEAR_CHANCE = 0.6
_ALIKE = 1.5


def about_rates(document: Document) -> list[str]:
    """Return what the rates of students and baselines contradict."""
    above, less = [], []
    highest = PAPER_SOFT_AGAINST_BASELINE[1]
    for setting, entry in _groups(document).items():
        ratio = entry["figures"]["soft_against_baseline"]["value"]
        if ratio is None:
            continue
        counts = entry["counts"]
        if ratio > 1:
            above.append(f"{setting} ({counts['soft']:,} against {counts['baseline']:,})")
        elif ratio > highest:
            less.append(f"{setting} ({ratio:.2f})")
    found = []
    if above:
        found.append(
            "Contradicts the paper: soft students memorize more than the baseline in "
            f"{', '.join(above)}."
        )
    if less:
        low, high = PAPER_SOFT_AGAINST_BASELINE
        found.append(
            "Weaker than in the paper: soft students memorize more of the baseline's number than "
            f"there ({low:.2f} to {high:.2f} of it) in {', '.join(less)}."
        )
    figures = document["rates"].get("all", {}).get("all", {}).get("figures", {})
    rates = {
        model: figures.get(f"{model}_rate", {}).get("value")
        for model in ("teacher", "soft", "hard")
    }
    return _teachers(rates["teacher"]) + found + _hard_against_soft(rates["soft"], rates["hard"])


def _teachers(rate: float | None) -> list[str]:
    """Return whether teachers know more of their corpus by heart than the paper's do."""
    low, high = PAPER_TEACHER_RATES
    if rate is None or rate <= high:
        return []
    return [
        f"Not where the paper measured: over all cells teachers recite {rate:.0%} of the examples; "
        f"there, {low:.2%} to {high:.1%}."
    ]


def _hard_against_soft(soft: float | None, hard: float | None) -> list[str]:
    if not soft or hard is None or 1 / _ALIKE <= hard / soft <= _ALIKE:
        return []
    return [
        f"Contradicts the paper: over all cells hard labels lead to {hard / soft:.1f} times as "
        "much memorization as soft ones; there, both to as much."
    ]


def about_overlaps(document: Document) -> list[str]:
    """Return what the sets contradict."""
    low, fewer = [], []
    for setting, entry in _groups(document).items():
        share, counts = entry["figures"]["soft_in_easy"], entry["counts"]
        if share["value"] is not None and share["high"] < PAPER_SHARE_IN_EASY - _FAR_BELOW:
            low.append(f"{setting} ({share['value']:.0%})")
        soft, hard = counts["soft_inherited"], counts.get("hard_inherited")
        if hard is not None and hard < soft:
            fewer.append(f"{setting} ({hard} against {soft})")
    found = []
    if low:
        found.append(
            "Contradicts the paper: far less of S lies in T∩B than the "
            f"{PAPER_SHARE_IN_EASY:.0%} of its main setting, interval included, in "
            f"{', '.join(low)}."
        )
    if fewer:
        found.append(
            "Contradicts the paper: hard labels hand on less of what only the teacher has than "
            f"soft ones (there {PAPER_INHERITED_RATIO:.1f} times as much) in {', '.join(fewer)}."
        )
    return found


def about_objectives(document: Document) -> list[str]:
    """Return where soft labels do not reduce memorization, or heat does not reduce it further."""
    by_temperature = temperatures(document)
    found = []
    above = {t: ratio for t, ratio in by_temperature.items() if ratio > 1}
    if above:
        named = ", ".join(f"T = {t:g} ({ratio:.2f})" for t, ratio in above.items())
        found.append(
            "Contradicts the paper: students of soft labels memorize more than the baseline at "
            f"{named}."
        )
    ratios = list(by_temperature.values())
    if any(later > earlier for earlier, later in pairwise(ratios)):
        named = ", ".join(f"{ratio:.2f} at T = {t:g}" for t, ratio in by_temperature.items())
        found.append(
            "Contradicts the paper: a higher temperature does not always lead to less "
            f"memorization, against the baseline {named}."
        )
    return found


def temperatures(document: Document) -> dict[float, float]:
    """Return what students of soft labels alone memorize against the baseline, by temperature.

    Empty where the document does not say what the students learnt from.
    """
    found: dict[float, float] = {}
    for entry in document["objectives"].values():
        objective = entry.get("objective")
        ratio = entry["figures"]["against_baseline"]["value"]
        if objective is not None and is_plain_soft(objective) and ratio is not None:
            found.setdefault(float(objective["temperature"]), ratio)
    return {temperature: found[temperature] for temperature in sorted(found)}


def is_plain_soft(objective: Mapping[str, Any]) -> bool:
    """Return whether a student learns soft labels alone, in the cell's own order."""
    return bool(
        objective["kind"] == "soft"
        and objective["cross_entropy_share"] == 0
        and objective.get("seed", 0) == 0
    )


def about_perplexities(document: Document) -> list[str]:
    """Return whether distillation made worse language models than fine-tuning."""
    means = document["held_out_perplexity"]
    soft, baseline = means.get("soft"), means.get("baseline")
    if soft is None or baseline is None or soft <= baseline:
        return []
    return [
        "Unlike what distillation is used for: soft students predict held-out text worse than "
        f"the baseline, a perplexity of {soft:.2f} against {baseline:.2f}."
    ]


def about_classifiers(document: Document) -> list[str]:
    """Return what the figures of classifiers contradict, and what they are to be held against."""
    methods = {
        method: groups["as shipped"]["figures"]
        for method, groups in document["classifiers"].items()
        if groups.get("as shipped", {}).get("figures")
    }
    found = [*_zlib_alone(methods), *_papers_four(methods)]
    count = _value(methods, "occurrence count alone", "pr_auc")
    four = _value(methods, "the paper's four", "pr_auc")
    if count is not None and four is not None and count >= four:
        found.append(
            "How often an example occurs ranks as well as the paper's four features: PR-AUC "
            f"{count:.3f} against {four:.3f}."
        )
    return found


def _zlib_alone(methods: Mapping[str, Any]) -> list[str]:
    auc = _value(methods, "zlib entropy alone", "roc_auc")
    if auc is None or auc >= _NEAR_CHANCE:
        return []
    return [
        f"Contradicts the paper: zlib entropy alone is near chance, a ROC-AUC of {auc:.3f}; there "
        "it has the largest coefficient of the four features."
    ]


def _papers_four(methods: Mapping[str, Any]) -> list[str]:
    found = []
    figure = methods.get("the paper's four", {}).get("roc_auc")
    if figure and figure["high"] is not None and figure["high"] < PAPER_ROC_AUC:
        found.append(
            f"Weaker than in the paper: its four features reach a ROC-AUC of "
            f"{figure['value']:.3f} (there {PAPER_ROC_AUC})."
        )
    precision = _value(methods, "the paper's four", "precision")
    if precision is not None and precision < PAPER_PRECISION:
        found.append(
            f"Precision of the paper's four features is {precision:.2f} at natural prevalence; the paper's "
            f"{PAPER_PRECISION} is with three negatives for each positive."
        )
    return found


def about_interventions(document: Document) -> list[str]:
    """Return what dropping examples does not do as the paper says."""
    arms = [arms for arms in document["interventions"].values() if "flagged" in arms]
    memorized = sum(each["none"]["memorized"] for each in arms)
    left = sum(each["flagged"]["memorized"] for each in arms)
    dropped = sum(each["flagged"]["memorized_though_dropped"] for each in arms)
    found = []
    if memorized and left > 0.05 * memorized:
        found.append(
            f"Contradicts the paper: {left:,} of {memorized:,} stay or appear after dropping the "
            "flagged; there 4 of 706."
        )
    if dropped:
        found.append(
            f"Contradicts the paper: {dropped:,} examples are memorized though they were dropped, "
            "through others like them; there what is left is all new."
        )
    return found


def _groups(document: Document) -> Mapping[str, Any]:
    groups: Mapping[str, Any] = document["rates"]["family and corpus"]
    return groups


def _value(methods: Mapping[str, Any], method: str, figure: str) -> float | None:
    value: float | None = methods.get(method, {}).get(figure, {}).get("value")
    return value
