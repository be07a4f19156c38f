"""Personal data by the recognizers of Presidio, secrets by the patterns of detect-secrets.

Imported only where they are asked for. Of detect-secrets the patterns of its plugins are applied to
the text; what would verify a secret at its vendor's is in another method, which is never called.
"""

import ipaddress
import math
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise

import spacy
import tldextract
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
from presidio_analyzer import EntityRecognizer, PatternRecognizer
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    EmailRecognizer,
    IbanRecognizer,
    IpRecognizer,
    PhoneRecognizer,
    UsSsnRecognizer,
)

from memaudit.sensitivity import NAMES_MODEL, PersonalKind, SensitiveSpan

_MODELS = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")
# Phone numbers have just 0.4; cards have 0.3 and, by their check digit, 1 or 0.
_MIN_SCORE = 0.4
"""Below it are patterns such as "nine digits" that Presidio itself calls weak."""

_RESERVED_DOMAINS = {"example", "test", "invalid", "localhost", "local"}
_RESERVED_NAMES = {"example.com", "example.org", "example.net"}
_SHARED_MAILBOX = re.compile(
    r"(?:abuse|admin|bugs?|contact|do-?not-?reply|feedback|git|help|hello|hostmaster|info|inquir(?:y|ies)|jobs|list|mail"
    r"|no-?reply|office|postmaster|press|privacy|root|sales|security|service|submit|support|team"
    r"|user|username|webmaster|you|your[._-]?name)(?:\+[^@]*)?@|[^@]*@(?:lists?|bugs)\.",
    re.IGNORECASE,
)
"""Of a service, a mailing list or nobody: no person can be told by it."""

_LONG_NUMBER = re.compile(r"\d(?:[ ()./-]{0,3}\d){6}")
_GROUPED_NUMBER = re.compile(r"\+|\(?\d{2,5}\)?[ .-]|1[ .-]")
_PART_OF_MORE = re.compile(r"[\w./_='\"-]\Z|\d[:,]\Z")
_DOTTED_QUAD = re.compile(r"\d+(?:\.\d+){3}")
_CALLED_PHONE = re.compile(r"\b(?:phone|tele?|mobile|cell|call|fax|whatsapp|sms)", re.IGNORECASE)
_YEARS = re.compile(r"\(?(?:1\d|20)\d\d[ .–-]+(?:1\d|20)\d\d(?!\d)")
_NAMED_OTHERWISE = re.compile(r"\b(?:ISBN|ISSN|pages?|pp\.|lines?)[ :.]*\Z", re.IGNORECASE)
_CONTEXT = 40
"""Characters before a finding in which it is looked for what it is called."""


class PersonalDataDetector:
    """Finds personal data in English text; people's names only if a spaCy model is installed."""

    def __init__(self) -> None:
        # Without an explicit list it would fetch one from the network.
        self._public_suffixes = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
        # Not EmailRecognizer: its check of domains may fetch a list from the network.
        email = PatternRecognizer("EMAIL_ADDRESS", patterns=EmailRecognizer.PATTERNS)
        # One by one: Presidio's own engine loads a spaCy model first, whatever it looks for.
        self._recognizers: dict[PersonalKind, EntityRecognizer] = {
            "email": email,
            "phone": PhoneRecognizer(),
            "credit_card": CreditCardRecognizer(),
            "iban": IbanRecognizer(),
            "ip_address": IpRecognizer(),
            "national_id": UsSsnRecognizer(),
        }
        self._is_personal: dict[PersonalKind, Callable[[str, int, int], bool]] = {
            "email": self._is_persons_address,
            "phone": _is_phone_number,
            "ip_address": _is_public_host,
        }
        model = installed_model()
        self._names = None if model is None else spacy.load(model)

    def find(self, text: str) -> Iterator[SensitiveSpan]:
        """Yield where personal data stand, in no order; they may overlap."""
        for kind, recognizer in self._recognizers.items():
            if kind == "phone" and _LONG_NUMBER.search(text) is None:
                continue  # it tries eight countries, and takes the most time by far
            is_personal = self._is_personal.get(kind)
            for result in recognizer.analyze(text, recognizer.supported_entities, None):
                start, end = result.start, result.end
                if result.score >= _MIN_SCORE and (
                    is_personal is None or is_personal(text, start, end)
                ):
                    yield SensitiveSpan(start, end, kind)
        if self._names is not None:
            for entity in self._names(text).ents:
                if entity.label_ == "PERSON":
                    yield SensitiveSpan(entity.start_char, entity.end_char, "person")

    def _is_persons_address(self, text: str, start: int, end: int) -> bool:
        address = text[start:end].lower()
        domain = address.rpartition("@")[2]
        parts = self._public_suffixes(domain)
        return (
            bool(parts.domain and parts.suffix)
            and domain.rpartition(".")[2] not in _RESERVED_DOMAINS
            and parts.top_domain_under_public_suffix not in _RESERVED_NAMES
            and "/" not in address
            and _SHARED_MAILBOX.match(address) is None
        )


def installed_model() -> str | None:
    """Return the best English spaCy model that is installed, or None."""
    installed = set(spacy.util.get_installed_models())
    return next((model for model in _MODELS if model in installed), None)


def versions() -> dict[str, str]:
    """Return the versions of all that decides what is found, by package."""
    packages = ["presidio-analyzer", "phonenumbers", "tldextract"]
    found = {package: version(package) for package in packages}
    model = installed_model()
    found[NAMES_MODEL] = "none" if model is None else f"{model} {spacy.info(model)['version']}"
    return found | {"detect-secrets": version("detect-secrets")}


def _is_phone_number(text: str, start: int, end: int) -> bool:
    """Whether a number that some country could dial is written as one, or called one."""
    # Presidio tries eight countries: years, times and network masks are valid in one of them.
    number, before = text[start:end], text[max(0, start - _CONTEXT) : start]
    if _PART_OF_MORE.search(before) or _NAMED_OTHERWISE.search(before):
        return False
    if _DOTTED_QUAD.match(number) or _YEARS.match(number):
        return False
    return _GROUPED_NUMBER.match(number) is not None or _CALLED_PHONE.search(before) is not None


def _is_public_host(text: str, start: int, end: int) -> bool:
    """Whether an address can be somebody's: neither private nor reserved, nor a version."""
    # The pattern takes the size of a network along, as in 10.0.0.0/24.
    address = ipaddress.ip_interface(text[start:end]).ip
    # Of real hosts, one in four thousand has no number above 31; versions and sections have none.
    is_version = address.version == 4 and max(address.packed) < 32
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not is_version
    )


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
            # IP addresses are personal data here, and of a private key the body counts alone.
            for name in sorted(classes)
            if issubclass(classes[name], RegexBasedDetector)
            and classes[name] not in (IPPublicDetector, PrivateKeyDetector)
        ]
        self._keyword = KeywordDetector()
        self._base64, self._hex = Base64HighEntropyString(), HexHighEntropyString()

    def find(self, text: str) -> Iterator[SensitiveSpan]:
        """Yield where secrets stand, in no order; they may overlap."""
        for pattern in PrivateKeyDetector.denylist:  # of the line before the key
            for match in pattern.finditer(text):
                if (body := _KEY_BODY.match(text, match.end())) is not None:
                    yield SensitiveSpan(*body.span(1), "private_key")
        cut = _CUT_OFF.search(text)
        if cut is not None and not _is_placeholder(cut.group()):
            yield SensitiveSpan(*cut.span(), "access_key")
        start = 0
        for line in text.splitlines(keepends=True):
            # One space for many: of a long run some patterns try every way to share it out, and
            # take minutes.
            places = [
                place
                for place, character in enumerate(line)
                if not (place and character.isspace() and line[place - 1].isspace())
            ]
            for span in self._find_in_line("".join(line[place] for place in places)):
                last = places[span.end - 1]
                yield SensitiveSpan(start + places[span.start], start + last + 1, span.kind)
            start += len(line)

    def _find_in_line(self, line: str) -> Iterator[SensitiveSpan]:
        for plugin in self._patterns:
            # Asked first, for what a plugin checks beyond its pattern. It tells no places, so that
            # its patterns are applied once more.
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
            # A string of n characters has at most log2(n) bits per character, so the plugin's limit
            # is out of reach for short ones; nearly all random ones come within 3/4 of a bit of that.
            limit = min(plugin.entropy_limit, math.log2(len(run)) - 0.75)
            if plugin.calculate_shannon_entropy(run) <= limit:
                continue
            # Small letters, capitals and digits take turns as they do by chance: of two neighbours in
            # a random string six in ten are of different sorts, in names put together from words
            # three or four.
            sorts = [
                "digit" if character.isdigit() else "capital" if character.isupper() else "small"
                for character in run
                if character.isalnum()
            ]
            n_changes = sum(sort != after for sort, after in pairwise(sorts))
            is_mixed = len(set(sorts)) == 3 and n_changes >= 0.45 * (len(sorts) - 1)
            # A digest in hexadecimal is no secret and looks like one: go by what it is called.
            named = _NAMED_SECRET.search(line, 0, match.start())
            if (named if is_hex else is_mixed) and not _is_harmless(run):
                yield SensitiveSpan(match.start(), match.end(), "random_string")


def _assigned(plugin: KeywordDetector, line: str) -> Iterator[SensitiveSpan]:
    """Yield what is assigned to a name such as `password`, if it looks like one."""
    # Also without quotes, as in files of settings: a window has no name that tells its format.
    for patterns in (QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP, CONFIG_DENYLIST_REGEX_TO_GROUP):
        for value in plugin.analyze_string(line, denylist_regex_to_group=patterns):
            secret = value.split()[0].rstrip(",;)") if value.split() else ""
            is_mixed = any(map(str.isdigit, secret)) and any(map(str.isalpha, secret))
            # A word, or a name in code, is none: it has no digit or is short.
            if 8 <= len(secret) <= 128 and is_mixed and not _is_harmless(secret):
                # The plugin tells the value, and not where it stands.
                start = line.find(secret)
                yield SensitiveSpan(start, start + len(secret), "password")


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
