"""The section of a dataset card: true, harmless and there once."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.fake_run import ByteWiseEngine, audit_with

from memaudit.errors import UsageError
from memaudit.reports.card_section import TAGS, card_section, with_card_section
from memaudit.runs.run import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose teacher has a name that Markdown could trip over."""
    out = tmp_path_factory.mktemp("runs") / "run"
    audit_with(ByteWiseEngine(), out, models={"teacher": "/home/me/`a|b`\n# <b>big"})
    return read_run(out)


def test_it_tells_counts_and_expectation(run):
    """What a reader of the card wants to know first."""
    section = card_section(run)

    assert "of 95 examples." in section
    assert "| scored | 93 |" in section
    assert "| too short | 1 |" in section
    assert f"| at risk | {run.is_flagged.sum()} " in section


def test_it_holds_no_id_address_path_or_text(run):
    """A card is public where the corpus may not be."""
    section = card_section(run)

    assert not re.search(r"id-\d|c\.jsonl|/home|is row", section)


def test_names_stay_names(run):
    """A folder's name must not become a heading, a cell or HTML."""
    (row,) = re.findall(r"^\| teacher \|.*$", card_section(run), flags=re.MULTILINE)

    assert row.startswith("| teacher | `\\u0060a\\u007cb\\u0060\\u000a# <b>big`, ")
    assert not re.search(r"^# <b>", card_section(run), flags=re.MULTILINE)


def test_it_takes_the_place_of_an_earlier_one(run):
    """Audits are repeated; cards must not grow."""
    card = "---\nlicense: mit\ntags:\n- text\n---\n# Mine\n\nBefore.\n"

    once = with_card_section(card, run)
    twice = with_card_section(once.replace("| scored | 93 |", "| scored | 1 |") + "\nAfter.\n", run)

    assert twice == once + "\nAfter.\n"
    assert once.startswith("---\nlicense: mit\n")
    assert "# Mine\n\nBefore.\n\n<!-- memaudit: start -->" in once


@pytest.mark.parametrize(
    ("card", "tags"),
    [
        ("", [*TAGS]),
        ("# Mine\n", [*TAGS]),
        ("---\ntags: text\n---\n", ["text", *TAGS]),
        ("---\ntags: [memaudit]\n---\n", ["memaudit", "memorization"]),
        ("---\r\nlicense: mit\r\n---\r\n# Mine\r\n", [*TAGS]),
    ],
)
def test_the_tags_are_added_once(card, tags, run):
    """The hub finds datasets by them."""
    new = with_card_section(card, run)
    (metadata,) = re.findall(r"\A---\r?\n(.*?)\r?\n---", new, flags=re.DOTALL)

    assert yaml.safe_load(metadata)["tags"] == tags
    assert new.count("## Memorization audit") == 1


@pytest.mark.parametrize(
    "card",
    [
        "---\ntags: [\n---\n",
        "---\n- a list\n---\n",
        "<!-- memaudit: start --> and no end",
        "<!-- memaudit: end --> before <!-- memaudit: start -->",
    ],
)
def test_a_card_that_cannot_be_read_is_refused(card, run):
    """Half of somebody's card must not be lost."""
    with pytest.raises(UsageError):
        with_card_section(card, run)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=50))
def test_the_text_before_it_stays(run, text):
    """It is somebody's own."""
    new = with_card_section(f"---\nlicense: mit\n---\n{text}", run)

    assert text.rstrip() in new
