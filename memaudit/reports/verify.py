"""The pages of `memaudit verify`: what really happened, and what it would cost to find out."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from memaudit import distillation, objectives
from memaudit.evaluation import Comparison
from memaudit.labels import ROLES, NearVerbatim, VerificationResult
from memaudit.progress import clock, short_number
from memaudit.reports import words
from memaudit.reports.page import (
    Block,
    Column,
    Page,
    Paragraph,
    Section,
    Table,
    Words,
    counts,
    facts,
    model_name,
    name,
    numbers,
    path_name,
)
from memaudit.verification.estimate import Estimate

_MISSED_SHOWN = 10


def verification_page(result: VerificationResult, out: Path) -> Page:
    """Return what the student recites first, then what it is compared with; `out` is its folder."""
    student, baseline = result.extracted["student"], result.extracted["baseline"]
    said = f"The student recites {student.count:,} of {words.examples(student.of)}"
    verdict = (
        Words(said, "risk" if student.count else "good"),
        f" ({words.rate_range(student)}) after its distillation from ",
        model_name(result.models["teacher"], "strong"),
        # Without a baseline nothing is said of it.
        f"; the baseline recites {baseline.count:,}, the teacher "
        if baseline.of
        else "; the teacher recites ",
        f"{result.extracted['teacher'].count:,}.",
    )
    return Page(
        title="Verification",
        verdict=verdict,
        sections=(
            Section(blocks=(_models(result), _sets(result))),
            *_found(result),
            Section(blocks=(_settings(result, out),)),
        ),
        notes=tuple(_notes(result)),
    )


def _found(result: VerificationResult) -> Iterator[Section]:
    if scan := result.label_scan:
        found = counts(
            ("texts", scan.texts, "written by the teacher after a real prefix"),
            ("own suffix", scan.own_suffix, "hold the suffix of their own window"),
            ("other suffix", scan.other_suffix, "hold the suffix of another window"),
            ("leaked", scan.leaked_suffixes, "distinct suffixes of the corpus"),
        )
        yield Section(title="The teacher's text", blocks=(found,))
    if result.sampled is not None:
        yield Section(
            title="Examples that sampling reveals, more likely than not",
            blocks=(_sampled(result.sampled, result),),
        )
    if result.near_verbatim:
        share = words.percent(result.settings["near_verbatim"])
        yield Section(
            title=f"The same with up to {share} of the tokens edited, at least",
            blocks=(_near_verbatim(result.near_verbatim),),
        )
    if result.generation is not None:
        yield Section(title="One pass against real generation", blocks=(_generation(result),))
    if result.comparison is not None:
        other = ", ".join(result.comparison.differences)
        blocks: tuple[Block, ...] = (_comparison(result.comparison),)
        if other:
            said = ("Predicted for another training: ", name(other, max_len=200), ". Predict anew.")
            blocks = (*blocks, Paragraph(said, "warning"))
        yield Section(title="Predicted against found", blocks=blocks)
        if result.comparison.missed:
            yield Section(title="Missed", blocks=(_missed(result.comparison),))


def _models(result: VerificationResult) -> Table:
    titles = ("recites", "share", "95% interval", "rows", "held-out perplexity", "held out")
    return Table(
        columns=(Column(breaks="nowhere"), *numbers(*titles)),
        rows=tuple(
            (
                role,
                rate.count,
                words.percent(rate.rate),
                words.rate_range(rate),
                result.extracted_rows[role],
                words.figure(result.perplexity[role], 2),
                f"{result.held_out_extracted[role]:,} of {result.held_out:,}",
            )
            for role in ROLES
            if (rate := result.extracted[role]).of  # none of none: there was no such model
        ),
    )


def _sets(result: VerificationResult) -> Table:
    sets, easy, inherited = result.sets, result.student_in_easy, result.inherited
    in_easy = (
        "too (the student recites nothing)"
        if easy.rate is None
        else f"too: {easy.count:,} of the {easy.of:,} that the student recites, {words.rate(easy)}"
    )
    of_teacher = (
        " (the teacher recites nothing that the baseline does not)"
        if inherited.rate is None
        else f": {inherited.count:,} of the {inherited.of:,} that the teacher recites and the "
        f"baseline does not, {words.rate(inherited)}"
    )
    return counts(
        ("easy", sets["easy"], f"recited by teacher and baseline {in_easy}"),
        (
            "inherited",
            sets["inherited"],
            f"recited by teacher and student, not by the baseline{of_teacher}",
        ),
        ("new", sets["new"], "recited by the student alone"),
    )


def _sampled(found: Mapping[str, Mapping[str, int]], result: VerificationResult) -> Table:
    shown = [role for role in ROLES if role in found]
    titles = _sample_titles(next(iter(found.values())))
    return Table(
        columns=(Column(breaks="nowhere"), *numbers("greedy", *titles)),
        rows=tuple((role, result.extracted[role].count, *found[role].values()) for role in shown),
    )


def _sample_titles(sizes: Iterable[str]) -> list[str]:
    return [f"{int(n):,} sample{'s' * (n != '1')}" for n in sizes]


def _near_verbatim(found: Mapping[str, NearVerbatim]) -> Table:
    """Return counts, and how many examples one sample of each is on average."""
    titles = _sample_titles(next(iter(found.values())).sampled)
    return Table(
        columns=(Column(breaks="nowhere"), *numbers(*titles, "mean near", "mean exact")),
        rows=tuple(
            (
                role,
                *each.sampled.values(),
                words.figure(each.expected_near, 2),
                words.figure(each.expected_exact, 2),
            )
            for role, each in found.items()
        ),
    )


def _generation(result: VerificationResult) -> Table:
    titles = ("windows", "one pass", "generated", "disagree", "of them ties", "nearly generated")
    return Table(
        columns=(Column(breaks="nowhere"), *numbers(*titles)),
        rows=tuple(
            (
                role,
                found.windows,
                found.extracted_one_pass,
                found.extracted_generated,
                found.disagreements,
                found.ties,
                "–" if found.nearly_generated is None else found.nearly_generated,
            )
            for role, found in (result.generation or {}).items()
        ),
    )


def _comparison(found: Comparison) -> Table:
    recall, precision = found.recall, found.precision
    # Without the spread between trainings the interval is too narrow, so it says what it covers.
    basis = "" if found.interval_covers_level else ", chance alone"
    rows = (
        (
            "expected",
            f"{found.expected:,.1f}",
            f"{found.expected_low:,} to {found.expected_high:,}{basis}; found {found.found:,}. "
            f"In rows {found.expected_rows:,.0f} and {found.found_rows:,}",
        ),
        ("ROC-AUC", words.figure(found.roc_auc), "1 ranks perfectly, 0.5 is chance"),
        (
            "PR-AUC",
            words.figure(found.pr_auc),
            f"chance is {words.percent(found.found / found.examples)}",
        ),
        (
            "recall",
            words.percent(recall.rate),
            f"{recall.count:,} of {recall.of:,} recited are at risk from "
            f"{words.percent(found.threshold)} ({words.rate_range(recall)})",
        ),
        (
            "precision",
            words.percent(precision.rate),
            f"{precision.count:,} of {precision.of:,} at risk are recited ({words.rate_range(precision)})",
        ),
        ("lift", words.figure(found.lift), "times as often recited as a random example"),
        ("Brier", words.figure(found.brier), "mean squared error of the probabilities"),
        (
            "calibration",
            words.figure(found.calibration_error),
            "mean gap between predicted and found",
        ),
    )
    return counts(*rows)


def _missed(found: Comparison) -> Table:
    n_more = found.n_missed - _MISSED_SHOWN
    return Table(
        columns=(Column("id", "anywhere"), Column("where", "anywhere"), *numbers("probability")),
        rows=tuple(
            (name(missed.id, max_len=64), name(missed.address), words.percent(missed.probability))
            for missed in found.missed[:_MISSED_SHOWN]
        ),
        rest=f"and {n_more:,} more" if n_more > 0 else "",
    )


def _settings(result: VerificationResult, out: Path) -> Table:
    settings = result.settings
    outcomes = ", ".join(
        f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in result.outcomes.items()
    )
    return facts(
        {
            "objective": objectives.in_words(settings),
            "training": "elsewhere; the objective is what you said"
            if "distilled" in settings
            else f"{distillation.in_words(settings)}, seed {settings['seed']}",
            "rows": f"{result.rows:,}: {outcomes}",
            "results": path_name(out),
            "took": clock(result.seconds),
        }
    )


def students_page(results: Mapping[str, VerificationResult], out: Path) -> Page:
    """Return one table of several students by name, each with a folder in `out`."""
    titles = ("recites", "share", "95% interval", "easy", "inherited", "new", "expected", "caught")
    counts_found = [result.extracted["student"].count for result in results.values()]
    table = Table(
        columns=(Column("student", "anywhere"), *(Column(each, is_number=True) for each in titles)),
        rows=tuple((name(key, max_len=64), *_student(each)) for key, each in results.items()),
    )
    return Page(
        title="Verification of several students",
        verdict=(
            Words(
                f"{len(results)} students recite {min(counts_found):,} to {max(counts_found):,} "
                f"of {next(iter(results.values())).examples:,} examples",
                "risk" if max(counts_found) else "good",
            ),
            ".",
        ),
        sections=(Section(blocks=(table, facts({"results": path_name(out)}))),),
        # Each once: one student may have another tokenizer, of which the others need no note.
        notes=tuple(dict.fromkeys(chain.from_iterable(map(_notes, results.values())))),
    )


def _student(result: VerificationResult) -> tuple[str, ...]:
    rate, sets, found = result.extracted["student"], result.sets, result.comparison
    return (
        f"{rate.count:,}",
        words.percent(rate.rate),
        words.rate_range(rate),
        *(f"{sets[key]:,}" for key in ("easy", "inherited", "new")),
        "–" if found is None else words.figure(found.expected, 1),
        "–" if found is None else f"{found.recall.count:,} of {found.recall.of:,}",
    )


def _notes(result: VerificationResult) -> Iterator[str]:
    if "distilled" in result.settings:
        if "baseline" not in result.models:
            yield (
                "Without a baseline, 'inherited' is all that teacher and student share: some of "
                "it any model of the student's size would recite."
            )
        yield "Nothing was held out by memaudit, so there is no perplexity on unseen text."
    elif "baseline" in result.models:
        yield "You gave the baseline: it may have seen what is held out here."
    if aligned := result.settings.get("aligned"):
        yield (
            f"Other tokenizers than the teacher's: {', '.join(aligned)}. Such a model recites a text if "
            "each of its own tokens that reaches into the suffix is its first choice."
        )
    yield (
        "This is one student, from one seed. Up to a third of what another student recites is "
        "different. The intervals cover the choice of examples only."
    )


def estimate_page(estimate: Estimate) -> Page:
    """Return what a verification would cost."""
    seconds, flops = sum(estimate.seconds.values()), sum(estimate.flops.values())
    stages = Table(
        columns=(Column("stage", "nowhere"), *numbers("operations", "time")),
        rows=tuple(
            (stage, f"{estimate.flops[stage]:.1e}", clock(taken))
            for stage, taken in sorted(estimate.seconds.items())
        ),
    )
    note = (
        "Operations: 6 N per token trained on, 2 N per token read or written, for N parameters. "
        "Memory: weights, gradients, AdamW's two moments, activations and logits in float32. "
        "Time: from a few examples measured just now."
    )
    return Page(
        title="Cost of a verification",
        verdict=(
            Words(f"About {clock(seconds)} on this machine", "strong"),
            f", {estimate.memory_bytes / 1024**3:,.1f} GiB of memory, {flops:.1e} operations. "
            "Nothing was trained.",
        ),
        sections=(Section(blocks=(_costs(estimate), stages)),),
        notes=(note,),
    )


def _costs(estimate: Estimate) -> Table:
    examples = (
        f"distinct windows, {estimate.training_examples:,} rows; {estimate.held_out:,} held out"
    )
    rows: list[tuple[str, str | int, str]] = [
        *((role, short_number(n), "parameters") for role, n in estimate.parameters.items()),
        ("examples", estimate.examples, examples),
        ("steps", estimate.steps, "of each training"),
        ("tokens", estimate.training_tokens, "read in each training"),
    ]
    if estimate.generated_tokens:
        rows.append(("", estimate.generated_tokens, "written by the teacher"))
    rows.append(("", estimate.scored_tokens, "read by each model to decide extraction"))
    return counts(*rows)
