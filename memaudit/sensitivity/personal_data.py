"""Personal data, by the recognizers of Presidio. Imported only where they are asked for."""

import ipaddress
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version

import spacy
import tldextract
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
        email = PatternRecognizer("EMAIL_ADDRESS", patterns=EmailRecognizer.PATTERNS)
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
            is_personal = self._is_personal.get(kind, _always)
            for result in recognizer.analyze(text, recognizer.supported_entities, None):
                start, end = result.start, result.end
                if result.score >= _MIN_SCORE and is_personal(text, start, end):
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
    return found


def _always(text: str, start: int, end: int) -> bool:
    return True


def _is_phone_number(text: str, start: int, end: int) -> bool:
    """Whether a number that some country could dial is written as one, or called one."""
    number, before = text[start:end], text[max(0, start - _CONTEXT) : start]
    if _PART_OF_MORE.search(before) or _NAMED_OTHERWISE.search(before):
        return False
    if _DOTTED_QUAD.match(number) or _YEARS.match(number):
        return False
    return _GROUPED_NUMBER.match(number) is not None or _CALLED_PHONE.search(before) is not None


def _is_public_host(text: str, start: int, end: int) -> bool:
    """Whether an address can be somebody's: neither private nor reserved, nor a version."""
    address = ipaddress.ip_interface(text[start:end]).ip
    # Of real hosts, one in four thousand has no number above 31; versions and sections have none.
    is_version = address.version == 4 and max(address.packed) < 32
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not is_version
    )
