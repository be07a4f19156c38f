"""The plan of an audit on a terminal: what it would read, compute and need."""

import sys

from rich.table import Table
from rich.text import Text

from memaudit.cost import GPUS, UTILISATION, AuditPlan
from memaudit.reports.style import make_console, untrusted

_FLOPS_UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))
_BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def print_plan(plan: AuditPlan, *, color: str = "auto") -> None:
    """Print a plan on standard output.

    Args:
        plan: of an audit.
        color: `auto`, `always` or `never`.
    """
    console = make_console(sys.stdout, color)
    console.print(Text("Nothing was written: this is a plan.", style="bold"))
    console.print()
    console.print(_counts(plan))
    console.print()
    console.print(_needs(plan))
    console.print()
    console.print(_gpus(plan))
    console.print()
    console.print(Text(_how_told(plan), style="dim"))


def duration(seconds: float) -> str:
    """Return a time as people say it, such as `4.2 s`, `38 min` or `12 days`."""
    for limit, size, unit in ((100, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            number = seconds / size
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{seconds / 86_400:,.1f} days"


def _counts(plan: AuditPlan) -> Table:
    table = _grid()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    table.add_row("examples", f"{plan.rows:,}", "")
    table.add_row("scored", f"{plan.outcomes.get('scored', 0):,}", "")
    table.add_row("too short", f"{plan.outcomes.get('too_short', 0):,}", "")
    table.add_row("bad", f"{plan.outcomes.get('bad', 0):,}", "")
    table.add_row("windows", f"{plan.windows:,}", f"{plan.distinct_windows:,} of them distinct")
    if plan.screened_windows or plan.asks_reference:
        note = f"{plan.screened_windows / plan.distinct_windows:.1%} of the distinct"
        if plan.asks_reference:
            note += f", by the corpus; the {list(plan.models)[1]} will spare the teacher more"
        table.add_row("screened", f"{plan.screened_windows:,}", note)
    table.add_row("tokens", f"{plan.tokens:,}", "of distinct windows, for each model")
    return table


def _needs(plan: AuditPlan) -> Table:
    table = _grid()
    table.add_column(overflow="fold")
    for role, sizes in plan.models.items():
        size = _scaled(sizes.parameters, ((1e9, "B"), (1e6, "M"), (1e3, "k")))
        table.add_row(role, untrusted(f"{sizes.source}, {size} parameters"))
    flops = _scaled(plan.body_flops + plan.head_flops, _FLOPS_UNITS)
    head_share = plan.head_flops / max(1, plan.body_flops + plan.head_flops)
    table.add_row("compute", f"{flops}, {head_share:.0%} of it in the output layer")
    table.add_row("memory", f"{_scaled(plan.memory, _BYTE_UNITS)}, models in {plan.dtype}")
    disk = _scaled(plan.disk, _BYTE_UNITS)
    table.add_row("disk", f"{disk} at most, {_scaled(plan.temporary_disk, _BYTE_UNITS)} meanwhile")
    table.add_row("here", _here(plan))
    return table


def _here(plan: AuditPlan) -> str:
    if plan.seconds is None or plan.cpu_seconds is None or plan.sample is None:
        why = "nothing to score" if plan.scored_windows == 0 else "not enough memory for the models"
        return f"not measured: {why}"
    rate = plan.sample.windows / plan.sample.seconds * plan.window_tokens
    return (
        f"{duration(plan.seconds)} at {rate:,.0f} tokens/s, {duration(plan.cpu_seconds)} of CPU "
        f"time; the sample took {duration(plan.sample.total_seconds)}"
    )


def _gpus(plan: AuditPlan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("on one GPU")
    table.add_column("time", justify="right")
    table.add_column("memory", justify="right")
    needed = _scaled(plan.model_memory("cuda"), _BYTE_UNITS)
    for gpu in GPUS:
        if plan.fits_on(gpu):
            table.add_row(gpu.name, duration(plan.seconds_on(gpu)), needed)
        else:
            table.add_row(gpu.name, "–", f"{needed}, too much")
    return table


def _how_told(plan: AuditPlan) -> str:
    number_format = "float32" if plan.dtype == "float32" else "bfloat16 (T4: float16)"
    return (
        f"Times on GPUs are derived, not measured: {UTILISATION:.0%} of the published dense peak, "
        f"bodies in {number_format}, output layers in float32. Time and memory here were "
        "measured on a few windows from all over the corpus, which was read whole for this plan."
    )


def _scaled(number: float, units: tuple[tuple[float, str], ...]) -> str:
    for size, unit in units:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / units[-1][0]:.3g} {units[-1][1]}"


def _grid() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=10)
    return table
