"""What a window's columns say, and the rule for secrets; the detector is a stand-in."""

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import ByteTokenizer

from memaudit.sensitivity import (
    KINDS,
    SENSITIVITY_COLUMNS,
    SensitiveSpan,
    is_secret_at_risk,
    row_sensitivity,
    secret_argmax_rate,
    sensitivity_counts,
    summarise,
    without_overlaps,
)

spans = st.builds(
    lambda start, length, kind: SensitiveSpan(start, start + length, kind),
    st.integers(0, 40),
    st.integers(1, 12),
    st.sampled_from(KINDS),
)


class MarkDetector:
    """Takes `#...#` for a secret and `@...@` for an email."""

    def find(self, text):
        marks = {"#": "random_string", "@": "email"}
        return tuple(
            SensitiveSpan(match.start(), match.end(), marks[match[1]])
            for match in re.finditer(r"([#@])[^#@]*\1", text)
        )


def argmax_rate(text, known):
    """Of a window of one token a byte, whose characters at some places the teacher gets right."""
    token_ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    is_argmax = np.isin(np.arange(1, len(token_ids)), list(known))
    return secret_argmax_rate(MarkDetector(), ByteTokenizer().decode, token_ids, is_argmax)


def test_counts_are_by_kind_and_in_all():
    """The table has both, and the two must agree."""
    counts = sensitivity_counts(MarkDetector(), "@a@ and #b# and @c@")

    assert (counts["personal_data"], counts["secrets"]) == (2, 1)
    assert (counts["email"], counts["random_string"], counts["phone"]) == (2, 1, 0)


def test_the_rate_is_of_the_tokens_of_the_secret_alone():
    """A teacher that knows the text around a secret, but not the secret, gives nothing away."""
    text = "see #abcd# now"

    assert argmax_rate(text, range(4, 10)) == 1.0
    assert argmax_rate(text, [*range(4), *range(10, 14)]) == 0.0
    assert argmax_rate(text, [4, 5, 6]) == 0.5


def test_of_several_secrets_the_best_known_counts():
    """One that leaks is enough."""
    assert argmax_rate("#ab# #cd#", range(5, 9)) == 1.0


def test_a_secret_at_the_start_is_judged_without_its_first_token():
    """The first token of a window has no prediction."""
    assert argmax_rate("#ab# x", [1, 2, 3]) == 1.0
    assert argmax_rate("#", []) == 0.0


def test_characters_of_several_tokens_do_not_shift_the_secret():
    """Byte-level tokens split characters: places in text and in tokens differ."""
    text = "ää€ #ab#"
    start = text.encode().index(b"#")

    assert argmax_rate(text, range(start, start + 4)) == 1.0


def test_a_secret_needs_evidence_and_evidence_needs_a_secret():
    """The rule: recited by half, or repeated; never for a window without a secret."""
    known = {"secrets": 1.0, "secret_argmax_rate": 0.5, "occurrences": 1.0}

    assert is_secret_at_risk(known)
    assert not is_secret_at_risk(known | {"secret_argmax_rate": 0.49})
    assert is_secret_at_risk(known | {"secret_argmax_rate": 0.0, "occurrences": 2.0})
    assert not is_secret_at_risk(known | {"secrets": 0.0, "occurrences": 9.0})


@given(st.lists(spans, max_size=12))
def test_of_overlapping_spans_one_stays_whatever_their_order(found):
    """What is counted must not depend on the order in which detectors were asked."""
    kept = without_overlaps(found)

    assert kept == without_overlaps(reversed(found))
    assert not any(a.overlaps(b) for i, a in enumerate(kept) for b in kept[i + 1 :])
    assert all(any(span.overlaps(other) for other in kept) for span in found)


def window(**values):
    """A row of the matrix: a feature of no interest, then the columns."""
    return [7.0, *(values.get(name, 0.0) for name in SENSITIVITY_COLUMNS)]


def test_a_row_holds_what_any_of_its_windows_holds():
    """The riskiest window need not be the one with the secret."""
    X = np.array([window(secrets=1, random_string=1, secret_at_risk=1), window(email=2), window()])
    names = ("feature", *SENSITIVITY_COLUMNS)

    rows = row_sensitivity(names, X, np.array([1, 0, 2, 1, 1]), np.array([2, 1, 2]))

    assert rows.column("email").tolist() == [2, 0, 4]
    assert rows.has_secret.tolist() == rows.is_secret_at_risk.tolist() == [True, False, False]
    assert row_sensitivity(("feature",), X[:, :1], np.array([0]), np.array([1])) is None


def test_a_summary_tells_common_text_from_what_is_sensitive():
    """The one line that a reader acts on."""
    X = np.array(
        [
            window(secrets=1, secret_at_risk=1),
            window(secrets=1),
            window(personal_data=1),
            window(personal_data=1, secrets=1),
            window(),
        ]
    )
    rows = row_sensitivity(("feature", *SENSITIVITY_COLUMNS), X, np.arange(5), np.ones(5, int))
    is_flagged = np.array([False, False, True, True, True])

    found = summarise(rows, is_flagged, finds_names=False)

    assert (found.secrets, found.personal_data) == (3, 2)
    assert (found.flagged_secrets, found.flagged_personal_data, found.flagged_sensitive) == (
        1,
        2,
        2,
    )
    assert found.in_words(3).startswith(
        "Of the 3 at risk, 1 holds a secret, 2 personal data, and 1 neither: common text. 1 more"
    )
    assert rows.secrets_at_risk(is_flagged).tolist() == [True, False, False, True, False]
    assert rows.sensitive_at_risk(is_flagged).tolist() == [True, False, True, True, False]
