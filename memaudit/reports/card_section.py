"""A section for the card of a dataset on the hub: what an audit says about it, and tags."""

import yaml
from huggingface_hub import DatasetCard

from memaudit.errors import UsageError
from memaudit.reports import words
from memaudit.reports.markdown import render_markdown
from memaudit.reports.page import Page, Section, facts, model_name, name
from memaudit.runs.run import Run

TAGS = ("memaudit", "memorization")
"""Of a card that has the section."""

_START = "<!-- memaudit: start -->"
_END = "<!-- memaudit: end -->"

_UNSCORED = ("screened", "too_short", "bad", "error")
"""Outcomes of rows without a probability; those that no row has are not listed."""


def card_section(run: Run) -> str:
    """Return the section as Markdown, between two comments that mark it.

    It holds counts, names and digests: no id, no address and no text of the corpus.
    """
    inputs, names, outcomes = run.manifest.inputs, run.manifest.names, run.outcomes
    n_flagged = run.risks.n_flagged
    table = facts(
        {
            "examples": f"{run.n_rows:,}",
            "scored": f"{outcomes['scored']:,}",
            **{each.replace("_", " "): f"{n:,}" for each in _UNSCORED if (n := outcomes[each])},
            "at risk": f"{n_flagged:,} ({words.percent(n_flagged / run.n_rows)})",
            "window": words.windows(inputs),
            "teacher": (model_name(names.teacher), f", {inputs.teacher_digest[:12]}"),
            "classifier": (name(names.classifier), f", {inputs.classifier_digest[:12]}"),
            "run": inputs.fingerprint[:12],
            "memaudit": name(names.memaudit_version),
        }
    )
    page = Page(
        title="Memorization audit",
        verdict=(
            "memaudit predicts that a student distilled from ",
            model_name(names.teacher),
            f" by {words.training_in_words(inputs)}, would memorize "
            f"{words.expected(run.risks.expected)} of {run.n_rows:,} examples.",
        ),
        sections=(Section(blocks=(table,)),),
        notes=(words.not_a_guarantee(inputs.shape),),
    )
    return f"{_START}\n{render_markdown(page, level=2)}{_END}\n"


def with_card_section(card: str, run: Run) -> str:
    """Return a dataset card with the section, in place of an earlier one, and with the tags.

    Args:
        card: the README.md of a dataset, with or without metadata; may be empty.
        run: on that dataset.

    Raises:
        UsageError: its metadata is no YAML, or its comments do not mark one section.
    """
    try:
        # With an empty block of metadata: of a card without any the hub's package logs a warning.
        parsed = DatasetCard(card if card.startswith("---") else f"---\n{{}}\n---\n{card}")
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(
            "the metadata at the top of the dataset card is not valid",
            hint="mend the YAML between the two lines '---'",
        ) from error
    found = parsed.data.get("tags") or []
    # YAML may hold one tag without a list.
    tags = [found] if isinstance(found, str) else list(found)
    parsed.data["tags"] = tags + [tag for tag in TAGS if tag not in tags]
    section, text = card_section(run), parsed.text
    n_marks = (text.count(_START), text.count(_END))
    before, _, rest = text.partition(_START)
    if n_marks == (0, 0):
        parsed.text = f"{text.rstrip()}\n\n{section}".lstrip("\n")
    # What lies between marks out of order may be the user's own words: nothing is replaced.
    elif n_marks != (1, 1) or _END in before:
        raise UsageError(
            "the dataset card does not have one section of memaudit, from one comment to the other",
            hint="remove the comments '<!-- memaudit: … -->' from it",
        )
    else:
        parsed.text = f"{before}{section.rstrip()}{rest.partition(_END)[2]}"
    return str(parsed)
