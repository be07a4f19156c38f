"""The kinds of what is sensitive: a small, fixed vocabulary."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

PersonalKind = Literal[
    "email", "phone", "credit_card", "iban", "ip_address", "national_id", "person"
]
"""Personal data. A `person` is found only where a spaCy model is installed.

Dates, places, links and nationalities are none by themselves: nearly every text has them.
"""

SecretKind = Literal["private_key", "access_key", "password", "random_string"]
"""Secrets: key material, a vendor's token by its form, what is assigned to a name such as
`password`, and a string that looks random."""

Kind = PersonalKind | SecretKind

PERSONAL_KINDS: tuple[PersonalKind, ...] = get_args(PersonalKind)
"""In the order of the columns."""

SECRET_KINDS: tuple[SecretKind, ...] = get_args(SecretKind)
"""In the order of the columns, the surest first."""

KINDS: tuple[Kind, ...] = (*PERSONAL_KINDS, *SECRET_KINDS)
"""All of them."""

NAMES_MODEL = "spacy-model"
"""Among the versions of a run, the one of what finds people's names; `none` if nothing does."""

_SUREST_FIRST: tuple[Kind, ...] = (
    *SECRET_KINDS,
    "iban",
    "credit_card",
    "email",
    "national_id",
    "ip_address",
    "phone",
    "person",
)


@dataclass(frozen=True, slots=True, order=True)
class SensitiveSpan:
    """Where something sensitive stands in a text; not what."""

    start: int
    """First character."""

    end: int
    """Character after the last."""

    kind: Kind
    """What it is."""

    def overlaps(self, other: "SensitiveSpan") -> bool:
        """Whether the two share a character."""
        return self.start < other.end and other.start < self.end


def without_overlaps(spans: Iterable[SensitiveSpan]) -> tuple[SensitiveSpan, ...]:
    """Return spans of which no two share a character, in the order of the text.

    Of two that do, the surer kind stays, then the longer one: digits in a key are no phone number.
    """
    kept: list[SensitiveSpan] = []
    for span in sorted(
        spans, key=lambda span: (_SUREST_FIRST.index(span.kind), span.start - span.end, span.start)
    ):
        if not any(span.overlaps(other) for other in kept):
            kept.append(span)
    return tuple(sorted(kept))
