"""The pages of `memaudit predict`: its summary, the plan of a dry run, and the status of a run."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from memaudit.features import is_aligned
from memaudit.objectives import Objective
from memaudit.progress import clock, short_number
from memaudit.reports import words
from memaudit.reports.page import (
    Cell,
    Column,
    Page,
    Section,
    Sentence,
    Table,
    Words,
    counts,
    facts,
    model_name,
    name,
    numbers,
    path_name,
)
from memaudit.runs.manifest import chunk_ranges
from memaudit.runs.results import AuditResult
from memaudit.runs.status import RunStatus
from memaudit.text import number_of

if TYPE_CHECKING:
    from memaudit.cost import AuditPlan

_FLOPS_UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))
_BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_PARAMETER_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
_EPOCHS = (1.0, 3.0, 9.0)
"""For which the expected number stands beside that of the run."""


def summary_page(result: AuditResult, *, objective_given: bool = True) -> Page:
    """Return the summary of a run: the verdict first, then what it rests on.

    Args:
        result: of the run.
        objective_given: whether the user has said how the student is trained. If not, the numbers
            of other ways stand beside that of the default.
    """
    risks = result.finished.risks
    sensitive = [] if result.sensitivity is None else [result.sensitivity.in_words(result.flagged)]
    ways = [] if objective_given or not result.scored else [_other_ways(result)]
    worst = [Section(title="Worst examples", blocks=(_worst(result),))] if result.worst else []
    return Page(
        title="Memorization summary",
        verdict=verdict(result),
        lead=" ".join(filter(None, [words.generic(risks), words.sampled(risks), *sensitive])),
        sections=(
            *ways,
            Section(blocks=(_outcomes(result),)),
            *worst,
            Section(blocks=(_provenance(result),)),
        ),
        notes=tuple(notes(result)),
    )


def verdict(result: AuditResult) -> Sentence:
    """Return how many examples are at risk and how many are expected to be memorized."""
    verb = "is" if result.flagged == 1 else "are"
    texts = (
        f". Counting equal texts once, {number_of(result.flagged_distinct, 'is', 'are')} at risk: expect "
        f"{words.expected(result.expected_distinct)}."
        if result.flagged > result.flagged_distinct
        else "."
    )
    shared = words.shared_windows(
        result.flagged_distinct, result.flagged_windows, result.shape.length
    )
    return (
        Words(
            f"{result.flagged:,} of {number_of(result.rows, 'example')} {verb} at risk",
            "risk" if result.flagged else "good",
        ),
        f": expect {words.expected(result.expected)} to be memorized by a student distilled from ",
        model_name(result.names.teacher, "strong"),
        f" by {words.training_in_words(result.finished.manifest.inputs)}{texts}{shared}",
    )


def _other_ways(result: AuditResult) -> Section:
    """Return the expected numbers of the usual ways to train, and how to ask for each."""
    ways = {
        ("soft labels at T = 2", ""): Objective(temperature=2.0),
        ("soft labels at T = 1", "--temperature 1"): Objective(temperature=1.0),
        ("the teacher's likeliest text", "--objective hard"): Objective("hard"),
        ("text that the teacher samples", "--objective sampled"): Objective("sampled"),
        ("plain fine-tuning", "--objective cross-entropy"): Objective("cross-entropy"),
    }
    risks, exposure = result.finished.risks, result.finished.manifest.inputs.exposure
    found = {way: risks.expected_if(each) for way, each in ways.items()}
    if exposure is not None:
        for epochs in _EPOCHS:
            if epochs != exposure.epochs:
                way = f"soft labels, in {number_of(epochs, 'epoch')}", f"--epochs {epochs:g}"
                found[way] = risks.expected_if(Objective(), epochs)
    rows = tuple(
        (*way, "no classifier" if count is None else words.expected(count))
        for way, count in found.items()
    )
    table = Table(columns=(Column("you train by"), Column("option"), Column("texts")), rows=rows)
    return Section(title="Different texts expected, by how you train", blocks=(table,))


def notes(result: AuditResult) -> Iterator[str]:
    """Return what a reader must know before relying on the numbers."""
    yield from _about_models(result)
    if result.unfamiliar:
        found = words.percent_by_name(result.unfamiliar)
        yield f"{words.NOT_FAMILIAR}: {found}. {words.READ_AS_ORDER}"
    if result.survival is None and (n := result.finished.risks.n_out_of_reach):
        share = words.percent(n / result.distinct_windows)
        yield (
            f"{number_of(n, 'distinct window')} ({share}) could not have been flagged, whatever the teacher says. "
            "'predict --cascade --survival 1' does not score them, and flags the same examples."
        )
    if result.screened:
        kept = (
            "No model could have made them at risk"
            if result.survival == 1
            else f"Of all examples that would be at risk, {result.survival:.1%} are still found "
            "(95% confidence, if your corpus resembles the calibration runs)"
        )
        yield (
            f"Screened examples were not read by the teacher. {kept}. Their probability in the "
            "table is a first estimate, and the expected number does not count them."
        )
    if result.sensitivity is not None and not result.sensitivity.finds_names:
        yield (
            "People's names were not looked for: that takes a spaCy model, such as "
            "'python -m spacy download en_core_web_lg'."
        )
    if any(example.text is not None for example in result.worst):
        yield "This summary and summary.json contain text of the corpus."
    yield words.not_a_guarantee(result.shape)


def _about_models(result: AuditResult) -> Iterator[str]:
    manifest = result.finished.manifest
    if manifest.unused_weights:
        yield f"Is this the model that was trained? {manifest.unused_weights}."
    if result.objective.kind == "cross-entropy":
        yield (
            "With plain fine-tuning the teacher stands for the student: the number holds if the teacher "
            "was trained on this corpus, too. Of one that was not, it says nothing."
        )
    if is_aligned(manifest.inputs.role or ""):
        yield (
            "The second model has a tokenizer of its own. It was compared with the teacher character "
            "by character. The shipped classifiers do not look at it: it is in the table, and "
            "'memaudit fit' can use it."
        )


def _outcomes(result: AuditResult) -> Table:
    shape = result.shape
    n_read = result.distinct_windows - result.screened_windows
    read = f"in {number_of(n_read, 'distinct window')} of {shape.prefix_len} + {shape.suffix_len} tokens"
    answers: list[tuple[str, int, str]] = []
    # Which part of the text that the student is trained on was looked at.
    if (found := result.answers) is not None:
        turns = " of the last turn" if found.turns == "last" else ""
        unseen = f"; of {found.unseen_rows:,} of {found.rows:,} examples no answer is in a window"
        told = f"of {found.all_windows:,} windows lie in trained text{turns}"
        answers = [("answers", found.windows, told + (unseen if found.unseen_rows else ""))]
    too_short = f"no window of {shape.length} tokens: cannot be extracted as defined"
    rows = [
        ("examples", result.rows, ""),
        *answers,
        ("scored", result.scored, read),
        ("too short", result.too_short, too_short),
        ("bad", result.bad, "could not be used"),
    ]
    if result.survival is not None:
        rows.append(("screened", result.screened, "skipped: the teacher did not read them"))
    if result.errors:
        rows.append(("error", result.errors, "in chunks that could not be scored"))
    return counts(*((key, n, explained if n else "") for key, n, explained in rows))


def _worst(result: AuditResult) -> Table:
    return Table(
        columns=(
            Column("#", is_number=True, kind="quiet"),
            Column("id", "anywhere"),
            Column("probability", is_number=True),
            Column("reason"),
        ),
        rows=tuple(
            (
                f"{rank}",
                name(example.example_id, max_len=64),
                Words(
                    words.percent(example.probability),
                    "risk" if example.probability >= result.threshold else "",
                ),
                Cell(text=example.reason, quote=example.text),
            )
            for rank, example in enumerate(result.worst, start=1)
        ),
    )


def _provenance(result: AuditResult) -> Table:
    names = result.names
    cascade = None
    if result.survival is not None:
        share = words.percent(result.screened_windows / result.distinct_windows)
        cascade = f"{result.tokens_saved:,} teacher tokens saved, {share}"
    return facts(
        {
            "risk table": path_name(result.table_path) if result.table_path else None,
            "corpus": result.corpus_read,
            "classifier": (
                name(f"{names.classifier}, {names.classifier_digest[:12]}"),
                f", at risk from {words.percent(result.threshold)}",
            ),
            "engine": (
                name(names.engine),
                # A run that was finished before has scored nothing, at no speed.
                f", {result.tokens_per_second:,.0f} tokens/s" if result.tokens_per_second else "",
                f", {result.seconds:,.1f} s",
            ),
            "compile": result.finished.manifest.compile_choice,
            "cascade": cascade,
        }
    )


def plan_page(plan: "AuditPlan") -> Page:
    """Return what an audit would read, compute and need."""
    from memaudit.cost import GPUS, UTILISATION  # imports torch

    number_format = "float32" if plan.dtype == "float32" else "bfloat16 (T4: float16)"
    note = (
        f"Times on GPUs are derived, not measured: {UTILISATION:.0%} of the published dense peak, "
        f"in {number_format}. Time and memory here were measured on a few windows from all over "
        "the corpus, which was read whole for this plan."
    )
    needed = _scaled(plan.model_memory("cuda"), _BYTE_UNITS)
    gpus = Table(
        columns=(Column("on one GPU"), *numbers("time", "memory")),
        rows=tuple(
            (gpu.name, words.duration(plan.seconds_on(gpu)), needed)
            if plan.fits_on(gpu)
            else (gpu.name, "–", f"{needed}, too much")
            for gpu in GPUS
        ),
    )
    return Page(
        title="Plan of a run",
        verdict=Words("Nothing was written: this is a plan.", "strong"),
        sections=(Section(blocks=(_plan_counts(plan), _needs(plan), gpus)),),
        notes=(note,),
    )


def _plan_counts(plan: "AuditPlan") -> Table:
    rows = [
        ("examples", plan.rows, ""),
        *(
            (outcome.replace("_", " "), plan.outcomes.get(outcome, 0), "")
            for outcome in ("scored", "too_short", "bad")
        ),
        ("windows", plan.windows, f"{plan.distinct_windows:,} of them distinct"),
    ]
    if plan.out_of_reach_windows:
        note = "cannot be flagged: --cascade --survival 1 leaves them out"
        rows.append(("out of reach", plan.out_of_reach_windows, note))
    if plan.screened_windows or plan.asks_reference:
        note = f"{words.percent(plan.screened_windows / plan.distinct_windows)} of the distinct"
        if plan.asks_reference:
            note += f", by repeat counts; the {list(plan.models)[1]} will spare the teacher more"
        rows.append(("screened", plan.screened_windows, note))
    rows.append(("tokens", plan.tokens, "in distinct windows, for each model"))
    return counts(*rows)


def _needs(plan: "AuditPlan") -> Table:
    flops = plan.body_flops + plan.head_flops
    head_share = plan.head_flops / max(1, flops)
    disk, meanwhile = (_scaled(size, _BYTE_UNITS) for size in (plan.disk, plan.temporary_disk))
    here = "not measured: " + (
        "not enough memory for the models" if plan.scored_windows else "nothing to score"
    )
    if plan.seconds is not None and plan.cpu_seconds is not None and plan.sample is not None:
        rate = plan.sample.windows / plan.sample.seconds * plan.window_tokens
        here = (
            f"{words.duration(plan.seconds)} at {rate:,.0f} tokens/s, "
            f"{words.duration(plan.cpu_seconds)} of CPU time; the sample took "
            f"{words.duration(plan.sample.total_seconds)}"
        )
    return facts(
        {
            **{
                role.replace("_", " "): (
                    name(sizes.source),
                    f", {_scaled(sizes.parameters, _PARAMETER_UNITS)} parameters",
                )
                for role, sizes in plan.models.items()
            },
            "compute": f"{_scaled(flops, _FLOPS_UNITS)}, {head_share:.0%} of it in the output layer",
            "memory": f"{_scaled(plan.memory, _BYTE_UNITS)}, models in {plan.dtype}",
            "disk": f"{disk} at most, {meanwhile} while it runs",
            "here": here,
            "compile": None if plan.sample is None else plan.sample.compile_choice,
        }
    )


def _scaled(number: float, units: tuple[tuple[float, str], ...]) -> str:
    for size, unit in units:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / units[-1][0]:.3g} {units[-1][1]}"


def status_page(status: RunStatus) -> Page:
    """Return how far a run is, and what there is to do."""
    share = status.windows_done / status.windows if status.windows else 1.0
    of_shard = f"of shard {status.shard} " if status.shard else ""
    reason = next(iter(status.failures.values()), None)
    n_gone = len(status.missing) + len(status.failures) + len(status.damaged)
    table = facts(
        {
            "folder": path_name(status.folder),
            "process": None if status.process is None else f"{status.process or 'unknown'}",
            "examples": f"{status.rows:,}",
            "windows": f"{status.windows_done:,} of {status.windows:,}",
            "chunks": f"{status.chunks - n_gone:,} of {status.chunks:,}",
            "missing": chunk_ranges(list(status.missing)),
            "failed": chunk_ranges(list(status.failures)),
            "reason": reason and name(reason),
            "damaged": chunk_ranges(list(status.damaged)),
            "rate": None if status.rate is None else f"{short_number(status.rate)} windows/s",
            "time left": None if status.eta_seconds is None else clock(status.eta_seconds),
            "run": status.run[:12],
        }
    )
    return Page(
        title="Status of a run",
        verdict=(
            Words(status.state, "good" if status.state in ("finished", "scored") else "strong"),
            f": {words.percent(share)} of the windows {of_shard}are scored",
        ),
        sections=(Section(blocks=(table,)),),
        notes=(what_next(status),),
    )


def what_next(status: RunStatus) -> str:
    """Return what there is to do for a run in this state."""
    if status.state == "scored" and status.shard is not None:
        return "This shard is complete. When all shards are, run: memaudit merge DIR... --out DIR"
    if status.state != "running" and status.failures:
        return "Run the same command again to retry the failed chunks."
    return {
        "running": "You can stop it at any time: the same command continues where it was.",
        "stopped": "Run the same command again to score what is missing.",
        "finished": "The run is complete.",
        "scored": "Run the same command again to write the results.",
    }[status.state]
