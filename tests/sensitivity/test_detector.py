"""The detectors, on texts whose sensitive parts are known."""

import socket
from collections import Counter
from itertools import pairwise

import pytest
from support.labelled_texts import HARMLESS, SENSITIVE, drawn

pytest.importorskip("presidio_analyzer")
pytest.importorskip("detect_secrets")

from memaudit import sensitivity
from memaudit.errors import MissingDependency
from memaudit.sensitivity import KINDS, detector_versions, load_detector


@pytest.mark.parametrize(("text", "kinds"), SENSITIVE, ids=[text[:40] for text, _ in SENSITIVE])
def test_what_is_sensitive_is_found_and_named(text, kinds):
    """A miss is a leak that nobody is told of; a wrong kind sends the reader the wrong way."""
    found = Counter(span.kind for span in load_detector().find(text))

    assert found == Counter(kinds)


@pytest.mark.parametrize("text", HARMLESS, ids=[text[:40] for text in HARMLESS])
def test_what_only_looks_sensitive_is_left_alone(text):
    """Marks on versions, digests, years and placeholders would bury the real ones."""
    assert load_detector().find(text) == ()


def test_a_span_is_the_secret_itself():
    """Whether a teacher knows a secret is asked of the secret's tokens, not of their neighbours."""
    secret = drawn("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", 36, 3)
    text = f"first line\nGITHUB_TOKEN=ghp_{secret} # keep\n"

    (span,) = load_detector().find(text)

    assert text[span.start : span.end] == f"ghp_{secret}"


def test_a_span_is_right_behind_a_run_of_spaces():
    """Code is indented and aligned: places are those of the text as it stands."""
    text = "    db_password   =      'mT5rWq81xz'   # here"

    (span,) = load_detector().find(text)

    assert text[span.start : span.end] == "mT5rWq81xz"


@pytest.mark.parametrize("piece", ["password", "password=", "a@", "1 ", "-", "://a:", "AC", "ab:"])
def test_text_made_to_be_slow_is_done_with(piece):
    """A window of code can hold thousands of spaces: some patterns would try them all for hours."""
    for text in (piece * (1500 // len(piece)), piece + " " * 3000, piece + "=" * 1500):
        assert load_detector().find(text) == ()


def test_a_token_that_the_end_of_a_window_cuts_off_is_found_all_the_same():
    """Half of a key that a student recites is worth as much to a thief as his next guess."""
    secret = drawn("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", 10, 4)

    (span,) = load_detector().find(f"GITHUB_TOKEN=ghp_{secret}")

    assert span.kind == "access_key"
    assert load_detector().find(f"GITHUB_TOKEN=ghp_{secret} is too short") == ()


def test_spans_do_not_overlap_and_stand_in_order():
    """One thing is counted once: the digits of a key are no phone number as well."""
    for text, _ in SENSITIVE:
        spans = load_detector().find(text)
        assert all(one.end <= other.start for one, other in pairwise(spans))
        assert all(span.kind in KINDS for span in spans)


def test_nothing_is_asked_of_the_network(monkeypatch):
    """Text under audit, and the fact that it is, stay on this machine."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    load_detector.__wrapped__().find("\n".join(text for text, _ in SENSITIVE))


def test_versions_name_all_that_decides_what_is_found():
    """Two runs whose detectors differ must not be taken for equal."""
    names = {"presidio-analyzer", "phonenumbers", "tldextract", "detect-secrets", "spacy-model"}

    assert names < set(detector_versions())
    assert all(detector_versions().values())


def test_a_detector_that_is_missing_says_what_to_install(monkeypatch):
    """The detectors are an extra: without it there is a remedy, not an ImportError."""
    monkeypatch.setattr(sensitivity, "is_installed", lambda module: False)

    with pytest.raises(MissingDependency) as caught:
        load_detector.__wrapped__()

    assert "memaudit-distill[sensitive]" in caught.value.hint
