"""Secrets, by the patterns of detect-secrets. Imported only where they are asked for.

The patterns of its plugins are applied to the text; what would verify a secret at its vendor's
is in another method, which is never called.
"""

import math
import re
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.filters import heuristic
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.basic_auth import BasicAuthDetector
from detect_secrets.plugins.high_entropy_strings import (
    Base64HighEntropyString,
    HexHighEntropyString,
    HighEntropyStringsPlugin,
)
from detect_secrets.plugins.ip_public import IPPublicDetector
from detect_secrets.plugins.keyword import (
    CONFIG_DENYLIST_REGEX_TO_GROUP,
    DENYLIST,
    QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP,
    KeywordDetector,
)
from detect_secrets.plugins.private_key import PrivateKeyDetector

from memaudit.sensitivity import SensitiveSpan

_KEY_BODY = re.compile(r"[^\n]*\n(?:[A-Za-z-]+: [^\n]*\n)*\s*((?:[A-Za-z0-9+/=]{16,}\s*)+)")
_RUN = re.compile(r"(?<![\w/+.-])[A-Za-z0-9+/_-]{20,}={0,2}(?![\w/+=-])")
_CUT_OFF = re.compile(
    r"(?<![A-Za-z0-9])(?:gh[oprsu]_|glpat-|npm_|[rs]k_live_|xox[abop]-|AKIA|SG\.)[A-Za-z0-9_-]{8,}\Z"
)
"""A vendor's token that ends where its window does: too short by then for the vendor's pattern."""

_HEX = re.compile(r"[0-9a-fA-F]+")
_KEYWORDS = re.compile("|".join(DENYLIST), re.IGNORECASE)
_LONGEST_LINE = 1000
"""In which names such as `password` are looked for: the time it takes grows with its square."""

_NAMED_SECRET = re.compile(
    r"(?:secret|token|passw(?:or)?d|api.?key|access.?key|private.?key|credential|auth)",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"example|sample|dummy|change.?me|your|placeholder|redacted|todo|x{4}|\*{3}|\.{3}|12345|abcde"
    r"|\A(?:my)?(?:pass(?:word|wd)?|pwd?|secret|token|key)\Z",
    re.IGNORECASE,
)
_CALL = re.compile(r"[\w.]+[(\[]")
"""A value that code looks up or computes."""


class SecretDetector:
    """Finds secrets in text, code and configuration; asks no vendor whether they are valid."""

    def __init__(self) -> None:
        classes = get_mapping_from_secret_type_to_class()
        self._patterns = [
            classes[name]()
            for name in sorted(classes)
            if issubclass(classes[name], RegexBasedDetector)
            and classes[name] not in (IPPublicDetector, PrivateKeyDetector)
        ]
        self._keyword = KeywordDetector()
        self._base64, self._hex = Base64HighEntropyString(), HexHighEntropyString()

    def find(self, text: str) -> Iterator[SensitiveSpan]:
        """Yield where secrets stand, in no order; they may overlap."""
        yield from _private_keys(text)
        cut = _CUT_OFF.search(text)
        if cut is not None and not _is_placeholder(cut.group()):
            yield SensitiveSpan(*cut.span(), "access_key")
        start = 0
        for line in text.splitlines(keepends=True):
            squeezed, places = _squeezed(line)
            for span in self._find_in_line(squeezed):
                last = places[span.end - 1]
                yield SensitiveSpan(start + places[span.start], start + last + 1, span.kind)
            start += len(line)

    def _find_in_line(self, line: str) -> Iterator[SensitiveSpan]:
        for plugin in self._patterns:
            # Asked first, for what a plugin checks beyond its pattern.
            if not any(plugin.analyze_string(line)):
                continue
            is_password = isinstance(plugin, BasicAuthDetector)
            for pattern in plugin.denylist:
                for match in pattern.finditer(line):
                    start, end = match.span(1 if is_password else 0)
                    if not _is_placeholder(line[start:end]):
                        yield SensitiveSpan(start, end, "password" if is_password else "access_key")
        if len(line) <= _LONGEST_LINE and _KEYWORDS.search(line) is not None:
            yield from _assigned(self._keyword, line)
        yield from self._random(line)

    def _random(self, line: str) -> Iterator[SensitiveSpan]:
        """Yield strings that look random, quoted or not."""
        for match in _RUN.finditer(line):
            run = match.group().rstrip("=")
            is_hex = _HEX.fullmatch(run) is not None
            plugin: HighEntropyStringsPlugin = self._hex if is_hex else self._base64
            if plugin.calculate_shannon_entropy(run) <= _limit(plugin, run):
                continue
            # A digest in hexadecimal is no secret and looks like one: go by what it is called.
            named = _NAMED_SECRET.search(line, 0, match.start())
            if (named if is_hex else _is_mixed(run)) and not _is_harmless(run):
                yield SensitiveSpan(match.start(), match.end(), "random_string")


def versions() -> dict[str, str]:
    """Return the version of all that decides what is found, by package."""
    return {"detect-secrets": version("detect-secrets")}


def _squeezed(line: str) -> tuple[str, list[int]]:
    """Return a line with one space for many, and where each of its characters stood.

    Of a long run some patterns try every way to share it out, and take minutes.
    """
    places = [
        place
        for place, character in enumerate(line)
        if not (place and character.isspace() and line[place - 1].isspace())
    ]
    return "".join(line[place] for place in places), places


def _private_keys(text: str) -> Iterator[SensitiveSpan]:
    """Yield the bodies of private keys; the pattern is of the line before."""
    for pattern in PrivateKeyDetector.denylist:
        for match in pattern.finditer(text):
            body = _KEY_BODY.match(text, match.end())
            if body is not None:
                yield SensitiveSpan(*body.span(1), "private_key")


def _assigned(plugin: KeywordDetector, line: str) -> Iterator[SensitiveSpan]:
    """Yield what is assigned to a name such as `password`, if it looks like one."""
    for patterns in (QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP, CONFIG_DENYLIST_REGEX_TO_GROUP):
        for value in plugin.analyze_string(line, denylist_regex_to_group=patterns):
            secret = value.split()[0].rstrip(",;)") if value.split() else ""
            if _is_password(secret) and not _is_harmless(secret):
                start = line.find(secret)
                yield SensitiveSpan(start, start + len(secret), "password")


def _is_password(value: str) -> bool:
    """Whether a value is made like a password: long enough, and no word or name of code."""
    has_digit = any(character.isdigit() for character in value)
    has_letter = any(character.isalpha() for character in value)
    return 8 <= len(value) <= 128 and has_digit and has_letter


def _is_mixed(run: str) -> bool:
    """Whether small letters, capitals and digits take turns as they do by chance.

    Of two neighbours in a random string of all three, six in ten are of different sorts; in names
    that are put together from words, three or four.
    """
    sorts = [
        "digit" if character.isdigit() else "capital" if character.isupper() else "small"
        for character in run
        if character.isalnum()
    ]
    n_changes = sum(sort != after for sort, after in pairwise(sorts))
    return len(set(sorts)) == 3 and n_changes >= 0.45 * (len(sorts) - 1)


def _limit(plugin: HighEntropyStringsPlugin, run: str) -> float:
    """Return the entropy from which a run looks random, bits per character.

    A string of n characters has at most log2(n), so the plugin's limit is out of reach for short
    ones; nearly all random ones come within three quarters of a bit of that.
    """
    return float(min(plugin.entropy_limit, math.log2(len(run)) - 0.75))


def _is_harmless(secret: str) -> bool:
    return (
        heuristic.is_sequential_string(secret)
        or heuristic.is_potential_uuid(secret)
        or heuristic.is_templated_secret(secret)
        or heuristic.is_prefixed_with_dollar_sign(secret)
        or _CALL.match(secret) is not None
        or _is_placeholder(secret)
    )


def _is_placeholder(secret: str) -> bool:
    return _PLACEHOLDER.search(secret) is not None
