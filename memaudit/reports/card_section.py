"""A section for the card of a dataset on the hub: what an audit says about it, and tags."""

from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from memaudit.errors import UsageError
from memaudit.text import inert, safe_text

if TYPE_CHECKING:
    from memaudit.objectives import Objective
    from memaudit.runs.finished import FinishedRun

TAGS = ("memaudit", "memorization")
"""Of a card that has the section."""

_START = "<!-- memaudit: start -->"
_END = "<!-- memaudit: end -->"

_UNSCORED = ("screened", "too_short", "bad", "error")
"""Outcomes of rows without a probability; those that no row has are not listed."""

_LIMITS = (
    "A low probability is no promise: it speaks of verbatim continuation of these windows by "
    "greedy decoding, not of paraphrase, of other windows, or of what sampling may bring up."
)


def card_section(run: "FinishedRun") -> str:
    """Return the section as Markdown, between two comments that mark it.

    It holds counts, names and digests: no id, no address and no text of the corpus.
    """
    lines = [
        _START,
        "## Memorization audit",
        "",
        _verdict(run),
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(run)),
        "",
        _LIMITS,
        _END,
    ]
    return inert("\n".join(lines) + "\n")


def with_card_section(card: str, run: "FinishedRun") -> str:
    """Return a dataset card with the section, in place of an earlier one, and with the tags.

    Args:
        card: the README.md of a dataset, with or without metadata; may be empty.
        run: on that dataset.

    Raises:
        UsageError: its metadata is no YAML, or its comments do not mark one section.
    """
    import yaml
    from huggingface_hub import DatasetCard

    try:
        parsed = DatasetCard(card if card.startswith("---") else f"---\n{{}}\n---\n{card}")
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(
            "the metadata at the top of the dataset card is not valid",
            hint="mend the YAML between the two lines '---'",
        ) from error
    found = parsed.data.get("tags") or []
    tags = [found] if isinstance(found, str) else list(found)
    parsed.data["tags"] = tags + [tag for tag in TAGS if tag not in tags]
    parsed.text = _with_section(parsed.text, card_section(run))
    return str(parsed)


def _with_section(text: str, section: str) -> str:
    n_marks = (text.count(_START), text.count(_END))
    if n_marks == (0, 0):
        return f"{text.rstrip()}\n\n{section}".lstrip("\n")
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    if n_marks != (1, 1) or _END in before:
        raise UsageError(
            "the dataset card does not have one section of memaudit, from one comment to the other",
            hint="remove the comments '<!-- memaudit: … -->' from it",
        )
    return f"{before}{section.rstrip()}{after}"


def _verdict(run: "FinishedRun") -> str:
    expected = run.judgement.classifier.expected_count(*_distinct(run))
    teacher = PurePath(run.manifest.names.teacher).name
    return (
        f"memaudit predicts that a student distilled from {_code(teacher)} by "
        f"{_objective(run.manifest.inputs.objective)} would memorize {expected.mean:,.0f} "
        f"({expected.low:,.0f} to {expected.high:,.0f}) of {run.n_rows:,} examples."
    )


def _objective(objective: "Objective") -> str:
    share = f" with {objective.cross_entropy_share:.0%} cross-entropy"
    words = {
        "soft": f"soft labels at T = {objective.temperature:g}",
        "hard": "hard labels",
        "cross-entropy": "cross-entropy on the corpus",
    }[objective.kind]
    return words + (share if objective.kind == "soft" and objective.cross_entropy_share else "")


def _facts(run: "FinishedRun") -> list[tuple[str, str]]:
    inputs, names, outcomes = run.manifest.inputs, run.manifest.names, run.outcomes
    rate = run.is_flagged.sum() / run.n_rows
    return [
        ("examples", f"{run.n_rows:,}"),
        ("scored", f"{outcomes['scored']:,}"),
        *((name.replace("_", " "), f"{outcomes[name]:,}") for name in _UNSCORED if outcomes[name]),
        ("at risk", f"{run.is_flagged.sum():,} ({rate:.2%})"),
        ("window", f"{inputs.prefix_tokens} + {inputs.suffix_tokens} tokens, {inputs.windows}"),
        ("teacher", f"{_code(PurePath(names.teacher).name)}, {inputs.teacher_digest[:12]}"),
        ("classifier", f"{_code(names.classifier)}, {inputs.classifier_digest[:12]}"),
        ("run", inputs.fingerprint[:12]),
        ("memaudit", _code(names.memaudit_version)),
    ]


def _distinct(run: "FinishedRun") -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of each distinct window that decides a row, and of how many rows."""
    distinct, copies = np.unique(run.judgement.worst_windows, return_counts=True)
    return run.judgement.window_probabilities[distinct], copies


def _code(name: str) -> str:
    """Return a name as a code span of a table, where it can mean nothing else."""
    return "`" + safe_text(name).replace("`", "'").replace("|", "¦") + "`"
