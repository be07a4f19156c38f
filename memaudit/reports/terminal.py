"""The summary of an audit on a terminal: the verdict first, then what it rests on."""

import sys
from pathlib import PurePath

from rich.table import Table
from rich.text import Text

from memaudit.metrics import ExpectedCount
from memaudit.objectives import Objective
from memaudit.reports.style import make_console, untrusted
from memaudit.runs.manifest import AnswersRead
from memaudit.runs.result import AuditResult


def print_summary(result: AuditResult, *, color: str = "auto") -> None:
    """Print the summary on standard output.

    Args:
        result: of an audit.
        color: `auto`, `always` or `never`.
    """
    console = make_console(sys.stdout, color)
    console.print(verdict(result))
    if result.sensitivity is not None:
        console.print(Text(result.sensitivity.in_words(result.flagged)))
    console.print()
    console.print(_outcomes(result))
    if result.worst:
        console.print()
        console.print(Text("Worst examples", style="bold"))
        console.print(_worst_table(result))
    console.print()
    console.print(_provenance(result))
    for note in notes(result):
        console.print()
        console.print(Text(note, style="dim"))


def verdict(result: AuditResult) -> Text:
    """Return how many examples are at risk and how many are expected to be memorized."""
    noun = "example" if result.rows == 1 else "examples"
    verb = "is" if result.flagged == 1 else "are"
    teacher = PurePath(result.names.teacher).name or result.names.teacher
    return Text.assemble(
        (
            f"{result.flagged:,} of {result.rows:,} {noun} {verb} at risk",
            "bold red" if result.flagged else "bold green",
        ),
        f": expect {_count(result.expected)} to be memorized by a student distilled from ",
        untrusted(teacher, "bold"),
        f" {_objective(result.objective)}",
        f". Counting equal texts once, {result.flagged_distinct:,} are at risk: expect "
        f"{_count(result.expected_distinct)}."
        if result.flagged > result.flagged_distinct
        else ".",
    )


def _objective(objective: Objective) -> str:
    """Return what the student was taken to learn from, in words."""
    if objective.kind == "hard":
        return "by hard labels"
    if objective.kind == "cross-entropy":
        return "by cross-entropy on the corpus"
    share = f" with {objective.cross_entropy_share:.0%} cross-entropy"
    words = f"by soft labels at T = {objective.temperature:g}"
    return words + (share if objective.cross_entropy_share else "")


def _count(expected: ExpectedCount) -> str:
    mean = f"{expected.mean:,.1f}" if expected.mean < 10 else f"{expected.mean:,.0f}"
    return f"{mean} ({expected.low:,} to {expected.high:,})"


def notes(result: AuditResult) -> list[str]:
    """Return what a reader must know before relying on the numbers."""
    found = []
    if result.unfamiliar:
        by_rate = sorted(result.unfamiliar.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{rate:.0%} in {name}" for name, rate in by_rate)
        found.append(
            f"Rows unlike those the classifier was trained on: {shares}. Read the probabilities "
            "as an order rather than as numbers."
        )
    if result.screened:
        found.append(_cascade_note(result))
    if result.sensitivity is not None and not result.sensitivity.finds_names:
        found.append(
            "People's names were not looked for: that takes a spaCy model, such as "
            "'python -m spacy download en_core_web_lg'."
        )
    if any(example.text is not None for example in result.worst):
        found.append("This summary and summary.json contain text of the corpus.")
    found.append(
        "A low probability is no promise: it speaks of verbatim continuation of these windows by "
        "greedy decoding, not of paraphrase, of other windows, or of what sampling may bring up."
    )
    return found


def _cascade_note(result: AuditResult) -> str:
    promise = (
        "nothing that a model could say would flag them"
        if result.survival == 1
        else f"of all that would be flagged, {result.survival:.1%} survives such a cascade (95 % "
        "confidence, on corpora like those of its calibration)"
    )
    return (
        f"Screened examples were not scored: {promise}. Their probability in the table is the "
        "first stage's, and the expected number does not count them."
    )


def _outcomes(result: AuditResult) -> Table:
    shape = result.shape
    n_read = result.distinct_windows - result.screened_windows
    explanations = {
        "scored": f"in {n_read:,} distinct windows of "
        f"{shape.prefix_len} + {shape.suffix_len} tokens",
        "too short": f"no window of {shape.length} tokens: cannot be extracted as defined",
        "bad": "could not be used",
    }
    counts = [result.scored, result.too_short, result.bad]
    if result.survival is not None:
        explanations["screened"] = "left out by the cascade: the teacher did not read them"
        counts.append(result.screened)
    if result.errors:
        explanations["error"] = "in chunks that could not be scored"
        counts.append(result.errors)
    table = _grid()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    table.add_row("examples", f"{result.rows:,}", "")
    if (found := result.answers) is not None:
        table.add_row("answers", f"{found.windows:,}", _looked_at(found))
    for (outcome, explanation), count in zip(explanations.items(), counts, strict=True):
        table.add_row(outcome, f"{count:,}", explanation if count else "")
    return table


def _looked_at(found: AnswersRead) -> str:
    """Return which part of what is trained on was looked at."""
    turns = " of the last turn" if found.turns == "last" else ""
    told = f"of {found.all_windows:,} windows lie in trained text{turns}"
    if found.unseen_rows:
        told += f"; of {found.unseen_rows:,} of {found.rows:,} examples no answer is in a window"
    return told


def _worst_table(result: AuditResult) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("#", justify="right", style="dim")
    table.add_column("id", overflow="fold", max_width=40)
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("reason")
    for rank, example in enumerate(result.worst, start=1):
        flagged = example.probability >= result.threshold
        reason = untrusted(example.reason)
        if example.text is not None:
            reason.append("\n")
            reason.append_text(untrusted(example.text, "dim italic", max_len=len(example.text)))
        table.add_row(
            str(rank),
            untrusted(example.example_id, max_len=64),
            Text(f"{example.probability:.1%}", style="bold red" if flagged else ""),
            reason,
        )
    return table


def _provenance(result: AuditResult) -> Table:
    names, rate = result.names, f"{result.tokens_per_second:,.0f} tokens/s"
    classifier = f"{names.classifier}, {names.classifier_digest[:12]}"
    table = _grid()
    table.add_column(overflow="fold")
    if result.table is not None:
        table.add_row("risk table", untrusted(str(result.table), max_len=4096))
    table.add_row("classifier", untrusted(f"{classifier}, at risk from {result.threshold:.1%}"))
    table.add_row("engine", untrusted(f"{names.engine}, {rate}, {result.seconds:,.1f} s"))
    if result.survival is not None:
        share = result.screened_windows / result.distinct_windows
        table.add_row("cascade", f"{result.tokens_saved:,} teacher tokens saved, {share:.1%}")
    return table


def _grid() -> Table:
    """Return a table without lines whose first column holds labels."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=10)
    return table
