"""What a study would cost, on a terminal; nothing of it has been run."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memaudit.reports.progress import clock
from memaudit.reports.style import make_console, untrusted
from memaudit.study.cost import StudyCost
from memaudit.study.paper import (
    PEAK_FLOPS,
    UTILISATION,
    PaperStudy,
    corpus_commands,
    differences,
    paper_cost,
    teacher_training,
    verify_commands,
)

_GB = 1e9


def print_study_cost(cost: StudyCost, *, color: str = "auto") -> None:
    """Print on standard output what is left to do of a study of miniatures."""
    console = make_console(sys.stdout, color)
    minutes = sum(cost.core_seconds.values()) / 60
    console.print(
        Text.assemble(
            (f"About {minutes:,.0f} core-minutes on this machine", "bold"),
            f": {cost.cells - cost.finished:,} of {cost.cells:,} cells and {cost.bases:,} bases "
            "are left. Nothing was run.",
        )
    )
    table = _columns("stage", "tokens", "steps", "operations", "core-time")
    for stage, work in cost.work.items():
        table.add_row(
            stage,
            f"{work.tokens:,}",
            f"{work.steps:,}",
            f"{work.flops:.1e}",
            clock(cost.core_seconds[stage]),
        )
    console.print()
    console.print(table)
    _note(
        console,
        "Operations: 6 N a token trained on, 2 N a token read or written, N parameters. Time: "
        "from two short trainings just now. Fitting and judging classifiers comes on top.",
    )


def print_paper_cost(study: PaperStudy, *, color: str = "auto") -> None:
    """Print on standard output what a study of models on the hub would cost, and what runs it."""
    console = make_console(sys.stdout, color)
    cost = paper_cost(study)
    hours = [f"{count:,.0f} {gpu}-hours" for gpu, count in cost.gpu_hours.items()]
    console.print(
        Text.assemble(
            (f"About {' or '.join(hours)}", "bold"),
            f", {sum(cost.flops.values()):.1e} operations, {cost.storage_bytes / _GB:,.0f} GB of "
            "storage. Nothing was run, and study does not run it.",
        )
    )
    console.print()
    console.print(_pair_table(study))
    console.print()
    console.print(_stages_table(study))
    peaks = ", ".join(f"{gpu} {peak / 1e12:,.0f} TFLOP/s" for gpu, peak in PEAK_FLOPS.items())
    _note(
        console,
        f"Operations: 6 N a token trained on, 2 N a token read or written, N parameters, over "
        f"{len(study.training.seeds)} seeds. GPU-hours: at {UTILISATION:.0%} of the dense bfloat16 "
        f"peak ({peaks}); greedy writing and float32 extraction reach less. Memory: weights, "
        "gradients and AdamW's two moments in float32, and the weights of a frozen teacher; "
        "activations and logits come on top. Storage: models of every seed, one checkpoint of the "
        "largest, token ids.",
    )
    _commands(console, study)


def _pair_table(study: PaperStudy) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for role, model in (("teacher", study.teacher), ("student", study.student)):
        table.add_row(role, untrusted(f"{model.model}, {model.parameters / 1e9:.2f} B parameters"))
    corpus = study.corpus
    config = "" if corpus.config is None else f" {corpus.config}"
    table.add_row(
        "corpus",
        untrusted(
            f"{corpus.source}{config}, {corpus.examples:,} examples of {corpus.example_tokens} tokens"
        ),
    )
    return table


def _stages_table(study: PaperStudy) -> Table:
    cost = paper_cost(study)
    gpu_hours, total = cost.gpu_hours, sum(cost.flops.values())
    table = _columns("stage", "tokens", "operations", *(f"{gpu}-hours" for gpu in gpu_hours), "GB")
    for stage, flops in cost.flops.items():
        tokens = cost.training_tokens.get(stage)
        memory = cost.memory_bytes.get(stage)
        table.add_row(
            stage,
            "" if tokens is None else f"{tokens:.2e}",
            f"{flops:.1e}",
            *(f"{hours * flops / total:,.0f}" for hours in gpu_hours.values()),
            "" if memory is None else f"{memory / _GB:,.0f}",
        )
    return table


def _commands(console: Console, study: PaperStudy) -> None:
    console.print()
    console.print(Text("To run it on a machine with GPUs", style="bold"))
    _script(console, "Fetch the corpus.", corpus_commands(study))
    _script(console, teacher_training(study), [])
    _script(console, "Distil and verify, for each seed and objective.", verify_commands(study))
    for difference in differences(study):
        _note(console, difference)


def _script(console: Console, comment: str, commands: Sequence[str]) -> None:
    console.print()
    console.print(untrusted(comment, "dim", max_len=4096))
    for command in commands:
        # Not folded: it is to be copied.
        console.print(untrusted(command, max_len=4096), soft_wrap=True)


def _columns(first: str, *names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _note(console: Console, text: str) -> None:
    console.print()
    console.print(untrusted(text, "dim", max_len=2000))
