"""What a student learns from its teacher: soft labels, text the teacher wrote, or the corpus."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from memaudit.errors import UsageError

DEFAULT_EPOCHS = 3.0
"""Passes over the corpus, where nobody says how many."""

ObjectiveKind = Literal["soft", "hard", "sampled", "cross-entropy"]
"""`soft`: the teacher's distribution over the next token of the corpus. `hard`: the likeliest text
with which the teacher continues prefixes of the corpus. `sampled`: text that it samples there, at
temperature 1. `cross-entropy`: the corpus alone."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What a student is trained on.

    Temperature and cross-entropy share mean something for `soft` only, whose loss is

        (1 - share) * T**2 * KL(teacher_T || student_T) + share * cross-entropy

    Sources: Hinton et al. 2015 (arXiv:1503.02531), section 2; Borkar et al. 2026
    (arXiv:2601.15394), section 3, which uses no share.
    """

    kind: ObjectiveKind = "soft"
    temperature: float = 2.0  # the paper's, and that of most students of the study
    """Of both softmaxes, above 0."""

    cross_entropy_share: float = 0.0
    """Of the loss, in [0, 1]; often called alpha."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ObjectiveKind):
            raise ValueError(f"kind must be one of {get_args(ObjectiveKind)}, got {self.kind}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if not 0 <= self.cross_entropy_share <= 1:
            raise ValueError(
                f"cross_entropy_share must be in [0, 1], got {self.cross_entropy_share}"
            )

    @property
    def learns_written_text(self) -> bool:
        """Whether the teacher writes the text that is learned."""
        return self.kind in ("hard", "sampled")

    @property
    def settings(self) -> dict[str, str | float]:
        """By the names under which documents keep them."""
        return {
            "objective": self.kind,
            "temperature": self.temperature,
            "cross_entropy_share": self.cross_entropy_share,
        }

    @property
    def predicted_settings(self) -> dict[str, str | float | None]:
        """Those of the students that a run for this objective speaks of; None: has no such setting."""
        # A run predicts for the full forward KL, the teacher's likeliest tokens, or text sampled at
        # temperature 1: a student by another loss or temperature is another question.
        loss = {"divergence": None, "top_k": None, "on_policy": None}
        return self.settings | loss | {"label_temperature": 1.0 if self.kind == "sampled" else None}


DivergenceKind = Literal["forward-kl", "reverse-kl", "jsd"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """How the loss of soft labels measures the distance from the teacher P to the student Q, and where.

    `forward-kl` is KL(P || Q), `reverse-kl` KL(Q || P), and `jsd` with M = β P + (1 - β) Q

        β KL(P || M) + (1 - β) KL(Q || M)

    Sources: Gu et al. 2023 (arXiv:2306.08543) for reverse KL; Agarwal et al. 2023
    (arXiv:2306.13649), equation 1, for the generalised JSD.
    """

    kind: DivergenceKind = "forward-kl"

    beta: float = 0.5
    """Weight of the teacher in the mixture of `jsd`, in (0, 1)."""

    top_k: int | None = None
    """Only the teacher's K likeliest tokens count, for `forward-kl`. None: all tokens."""

    tail: bool = False
    """With `top_k`: all other tokens count together as one more token. Otherwise both models are
    renormalised over the K tokens, and nothing is learned about how likely the others are."""

    on_policy: float = 0.0
    """Share of the steps, in [0, 1], that learn text which the student writes itself, not the corpus;
    called lambda by Agarwal et al."""

    def __post_init__(self) -> None:
        if not 0 <= self.on_policy <= 1:
            raise ValueError(f"on_policy must be in [0, 1], got {self.on_policy}")
        if self.kind not in ("forward-kl", "reverse-kl", "jsd"):
            raise ValueError(f"kind must be forward-kl, reverse-kl or jsd, got {self.kind}")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must be above 0 and below 1, got {self.beta}")
        if self.top_k is not None and (self.top_k < 1 or self.kind != "forward-kl"):
            raise ValueError("top_k must be at least 1, and goes with forward-kl alone")
        if self.tail and self.top_k is None:
            raise ValueError("a tail needs top_k")

    @property
    def settings(self) -> dict[str, str | float | int]:
        """What differs from the full forward KL, by name; nothing where nothing does."""
        # What is usual stays out: readers take an absent name for it, also in older files.
        found: dict[str, str | float | int] = {}
        if self.kind != "forward-kl":
            found["divergence"] = self.kind
        if self.kind == "jsd":
            found["beta"] = self.beta
        if self.top_k is not None:
            found |= {"top_k": self.top_k, "tail": int(self.tail)}
        if self.on_policy:
            found["on_policy"] = self.on_policy
        return found


@dataclass(frozen=True, slots=True)
class LabelSampling:
    """How a teacher draws the tokens of the text that is a student's hard labels."""

    temperature: float = 0.0
    """Of its softmax. 0: it takes the likeliest token, and `top_p` means nothing."""

    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn from, in (0, 1].
    Source: Holtzman et al. 2019 (arXiv:1904.09751), nucleus sampling."""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    @property
    def settings(self) -> dict[str, float]:
        """What differs from the likeliest token, by name; nothing where nothing does."""
        if self.temperature == 0:
            return {}
        return {"label_temperature": self.temperature, "label_top_p": self.top_p}


GREEDY = LabelSampling()

SETTINGS = (
    *Objective().settings,
    *("divergence", "beta", "top_k", "tail", "on_policy", "label_temperature", "label_top_p"),
)
"""Names under which documents keep what a student learned from."""


def check_loss(objective: Objective, divergence: Divergence, labels: LabelSampling) -> None:
    """Refuse what does not go together.

    Raises:
        UsageError: saying what has no meaning with what.
    """
    if objective.kind != "soft" and divergence.settings:
        raise UsageError(
            f"{' and '.join(divergence.settings)} mean nothing with the objective "
            f"{objective.kind}: no distance from the teacher is measured",
            hint="leave them out, or choose --objective soft",
        )
    if divergence.on_policy and objective.cross_entropy_share:
        raise UsageError(
            "of text that the student writes itself, only the teacher's soft labels can be learned",
            hint="leave out --alpha or --on-policy",
        )
    if (objective.kind == "sampled") != bool(labels.settings):
        raise UsageError(
            "a temperature of labels goes with text that the teacher samples, and with no other",
            hint="leave out --label-temperature, or choose --objective sampled",
        )


def in_words(settings: Mapping[str, Any]) -> str:
    """Return what a student learned from, of the settings of a document."""
    words = str(settings["objective"])
    if words == "soft":
        words += f", T = {settings['temperature']:g}"
        if settings["cross_entropy_share"]:
            words += f", {settings['cross_entropy_share']:g} cross-entropy"
        for key in ("divergence", "beta", "top_k"):
            if key in settings:
                words += f", {key.replace('_', '-')} {settings[key]}"
        words += " and a tail" if settings.get("tail") else ""
        if share := settings.get("on_policy"):
            words += f", {share:.0%} of the steps on text of the student"
    if "label_temperature" in settings:
        words += (
            f", sampled at T = {settings['label_temperature']:g}, top-p {settings['label_top_p']:g}"
        )
    return words
