"""A verification on a terminal: what the student recites first, then what it is compared with."""

import sys
from pathlib import Path, PurePath

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memaudit.evaluation import Comparison, Rate
from memaudit.labels import ROLES, VerificationResult
from memaudit.reports.progress import clock, short_number
from memaudit.reports.style import make_console, untrusted
from memaudit.verification.estimate import Estimate

_MISSED_SHOWN = 10


def print_verification(result: VerificationResult, out: Path, *, color: str = "auto") -> None:
    """Print the summary of a verification on standard output.

    Args:
        result: of a verification.
        out: its folder.
        color: `auto`, `always` or `never`.
    """
    console = make_console(sys.stdout, color)
    console.print(_verdict(result))
    _block(console, None, _models_table(result))
    _block(console, None, _sets_table(result))
    if result.label_scan is not None:
        _block(console, "The teacher's text", _scan_table(result))
    if result.generation is not None:
        _block(console, "One pass against real generation", _generation_table(result))
    if result.comparison is not None:
        _block(console, "Predicted against found", _comparison_table(result.comparison))
        if result.comparison.missed:
            _block(console, "Missed", _missed_table(result.comparison))
    _block(console, None, _provenance(result, out))
    for note in _notes(result):
        console.print()
        console.print(Text(note, style="dim"))


def print_estimate(estimate: Estimate, *, color: str = "auto") -> None:
    """Print on standard output what a verification would cost.

    Args:
        estimate: of its costs.
        color: `auto`, `always` or `never`.
    """
    console = make_console(sys.stdout, color)
    seconds, flops = sum(estimate.seconds.values()), sum(estimate.flops.values())
    console.print(
        Text.assemble(
            (f"About {clock(seconds)} on this machine", "bold"),
            f", {estimate.memory_bytes / 1024**3:,.1f} GiB of memory, {flops:.1e} operations. "
            "Nothing was trained.",
        )
    )
    _block(console, None, _estimate_table(estimate))
    _block(console, None, _stages_table(estimate))
    console.print()
    note = (
        "Operations: 6 N a token trained on, 2 N a token read or written, N parameters. Memory: "
        "weights, gradients, AdamW's two moments, activations and logits in float32. Time: from "
        "a few examples measured just now."
    )
    console.print(Text(note, style="dim"))


def _verdict(result: VerificationResult) -> Text:
    student = result.extracted["student"]
    noun = "example" if student.of == 1 else "examples"
    teacher = PurePath(result.models["teacher"]).name or result.models["teacher"]
    return Text.assemble(
        (
            f"The student recites {student.count:,} of {student.of:,} {noun}",
            "bold red" if student.count else "bold green",
        ),
        f" ({_interval(student)}) after its distillation from ",
        untrusted(teacher, "bold"),
        f"; the baseline recites {result.extracted['baseline'].count:,}, "
        f"the teacher {result.extracted['teacher'].count:,}.",
    )


def _models_table(result: VerificationResult) -> Table:
    table = _columns("", "recites", "share", "95 %", "rows", "held-out perplexity", "held out")
    for role in ROLES:
        rate, perplexity = result.extracted[role], result.perplexity[role]
        table.add_row(
            role,
            f"{rate.count:,}",
            _percent(rate),
            _interval(rate),
            f"{result.extracted_rows[role]:,}",
            "-" if perplexity is None else f"{perplexity:,.2f}",
            f"{result.held_out_extracted[role]:,} of {result.held_out:,}",
        )
    return table


def _sets_table(result: VerificationResult) -> Table:
    sets, table = result.sets, _grid()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    student, inherited = result.student_in_easy, result.inherited
    table.add_row(
        "easy",
        f"{sets['easy']:,}",
        "teacher and baseline recite them; of what the student recites " + _share(student),
    )
    table.add_row(
        "inherited",
        f"{sets['inherited']:,}",
        "teacher and student, not the baseline; of what the teacher has over the baseline "
        + _share(inherited),
    )
    table.add_row("new", f"{sets['new']:,}", "the student alone")
    return table


def _scan_table(result: VerificationResult) -> Table:
    scan, table = result.label_scan, _grid()
    assert scan is not None
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    table.add_row("texts", f"{scan.texts:,}", "written by the teacher after a real prefix")
    table.add_row("own suffix", f"{scan.own_suffix:,}", "hold the suffix of their own window")
    table.add_row("other suffix", f"{scan.other_suffix:,}", "hold the suffix of another window")
    table.add_row("leaked", f"{scan.leaked_suffixes:,}", "distinct suffixes of the corpus")
    return table


def _generation_table(result: VerificationResult) -> Table:
    table = _columns("", "windows", "one pass", "generated", "disagree", "of them ties")
    for role, counts in (result.generation or {}).items():
        numbers = (
            counts.windows,
            counts.extracted_one_pass,
            counts.extracted_generated,
            counts.disagreements,
            counts.ties,
        )
        table.add_row(role, *(f"{number:,}" for number in numbers))
    return table


def _comparison_table(found: Comparison) -> Table:
    table = _grid()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    recall, precision = found.recall, found.precision
    basis = "" if found.interval_covers_level else ", chance alone"
    table.add_row(
        "expected",
        f"{found.expected:,.1f}",
        f"{found.expected_low:,} to {found.expected_high:,}{basis}; found {found.found:,}. "
        f"In rows {found.expected_rows:,.0f} and {found.found_rows:,}",
    )
    table.add_row("ROC-AUC", _number(found.roc_auc), "1 ranks perfectly, .5 by chance")
    prevalence = f"{found.found / found.examples:.1%}"
    table.add_row("PR-AUC", _number(found.pr_auc), f"{prevalence} by chance")
    table.add_row(
        "recall",
        _percent(recall),
        f"{recall.count:,} of {recall.of:,} flagged at {found.threshold:.1%} ({_interval(recall)})",
    )
    table.add_row(
        "precision",
        _percent(precision),
        f"{precision.count:,} of {precision.of:,} recited ({_interval(precision)})",
    )
    table.add_row("lift", _number(found.lift), "times as often as an example at random")
    table.add_row("Brier", _number(found.brier), "mean squared error of the probabilities")
    table.add_row("calibration", _number(found.calibration_error), "mean gap, predicted to found")
    return table


def _missed_table(found: Comparison) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("id", overflow="fold", max_width=40)
    table.add_column("where", overflow="fold")
    table.add_column("probability", justify="right", no_wrap=True)
    for missed in found.missed[:_MISSED_SHOWN]:
        table.add_row(
            untrusted(missed.id, max_len=64),
            untrusted(missed.address),
            f"{missed.probability:.1%}",
        )
    if found.n_missed > _MISSED_SHOWN:
        table.add_row(Text(f"and {found.n_missed - _MISSED_SHOWN:,} more", style="dim"))
    return table


def _provenance(result: VerificationResult, out: Path) -> Table:
    settings, table = result.settings, _grid()
    table.add_column(overflow="fold")
    objective = str(settings["objective"])
    if objective == "soft":
        objective += f", T = {settings['temperature']:g}"
        if settings["cross_entropy_share"]:
            objective += f", {settings['cross_entropy_share']:g} cross-entropy"
    outcomes = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in result.outcomes.items()
    )
    table.add_row("objective", objective)
    table.add_row(
        "training",
        f"{settings['epochs']:g} epochs, learning rate {settings['learning_rate']:g}, "
        f"{settings['batch_size']} examples a step, seed {settings['seed']}",
    )
    table.add_row("rows", f"{result.rows:,}: {outcomes}")
    table.add_row("results", untrusted(str(out), max_len=4096))
    table.add_row("took", f"{clock(result.seconds)}")
    return table


def _notes(result: VerificationResult) -> list[str]:
    notes = []
    if "baseline" in result.models:
        notes.append("The baseline was given: it may have seen what is held out here.")
    notes.append(
        "This is one student, from one seed: another one recites up to a third other examples. "
        "Intervals cover the choice of examples alone."
    )
    return notes


def _estimate_table(estimate: Estimate) -> Table:
    table = _grid()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for role, n_parameters in estimate.parameters.items():
        table.add_row(role, short_number(n_parameters), "parameters")
    examples = (
        f"distinct windows, {estimate.training_examples:,} rows; {estimate.held_out:,} held out"
    )
    table.add_row("examples", f"{estimate.examples:,}", examples)
    table.add_row("steps", f"{estimate.steps:,}", "of each training")
    table.add_row("tokens", f"{estimate.training_tokens:,}", "read in each training")
    if estimate.generated_tokens:
        table.add_row("", f"{estimate.generated_tokens:,}", "written by the teacher")
    table.add_row("", f"{estimate.scored_tokens:,}", "read by each model to decide extraction")
    return table


def _stages_table(estimate: Estimate) -> Table:
    table = _columns("stage", "operations", "time")
    for stage, seconds in sorted(estimate.seconds.items()):
        table.add_row(stage, f"{estimate.flops[stage]:.1e}", clock(seconds))
    return table


def _block(console: Console, title: str | None, table: Table) -> None:
    console.print()
    if title is not None:
        console.print(Text(title, style="bold"))
    console.print(table)


def _columns(*names: str) -> Table:
    """Return a table of numbers whose first column holds labels."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def _grid() -> Table:
    """Return a table without lines whose first column holds labels."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=10)
    return table


def _percent(rate: Rate) -> str:
    return "-" if rate.rate is None else f"{rate.rate:.1%}"


def _interval(rate: Rate) -> str:
    return "-" if rate.rate is None else f"{rate.low:.1%} to {rate.high:.1%}"


def _share(rate: Rate) -> str:
    if rate.rate is None:
        return "none, for there is nothing"
    return f"{rate.count:,} of {rate.of:,}, {_percent(rate)} ({_interval(rate)})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
