"""The pages of `memaudit verify`: what really happened, and what it would cost to find out."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from memaudit import distillation, objectives
from memaudit.evaluation import Comparison
from memaudit.labels import ROLES, GenerationCounts, VerificationResult
from memaudit.progress import clock, short_number
from memaudit.reports import words
from memaudit.reports.page import (
    Block,
    Column,
    Page,
    Paragraph,
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
from memaudit.text import number_of
from memaudit.verification.estimate import Estimate

_MISSED_SHOWN = 10


def verification_page(result: VerificationResult, out: Path) -> Page:
    """Return what the student recites first, then what it is compared with; `out` is its folder."""
    student, baseline = result.extracted["student"], result.extracted["baseline"]
    said = f"The student recites {student.count:,} of {number_of(student.of, 'example')}"
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
    titles = ("recites", "share", "95% interval", "rows", "held-out perplexity", "held out")
    models = (
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
    )
    return Page(
        title="Verification",
        verdict=verdict,
        sections=(
            Section(blocks=(_by_model(titles, models), _sets(result))),
            *_found(result),
            Section(blocks=(_settings(result, out),)),
        ),
        notes=tuple(_notes(result)),
    )


def _by_model(titles: Iterable[str], rows: Iterable[tuple[Sentence, ...]]) -> Table:
    """Return numbers with a row for each model."""
    return Table(columns=(Column(breaks="nowhere"), *numbers(*titles)), rows=tuple(rows))


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


def _found(result: VerificationResult) -> Iterator[Section]:
    if scan := result.label_scan:
        found = counts(
            ("texts", scan.texts, "written by the teacher after a real prefix"),
            ("own suffix", scan.own_suffix, "hold the suffix of their own window"),
            ("other suffix", scan.other_suffix, "hold the suffix of another window"),
            ("leaked", scan.leaked_suffixes, "distinct suffixes of the corpus"),
        )
        yield Section(title="The teacher's text", blocks=(found,))
    if sampled := result.sampled:
        sizes = next(iter(sampled.values()))
        titles = ("greedy", *(number_of(int(n), "sample") for n in sizes))
        shown = (role for role in ROLES if role in sampled)
        table = _by_model(
            titles,
            ((role, result.extracted[role].count, *sampled[role].values()) for role in shown),
        )
        yield Section(title="Examples that sampling reveals, more likely than not", blocks=(table,))
    if near := result.near_verbatim:
        # Beside the counts: how many examples one sample of each is on average.
        sizes = next(iter(near.values())).sampled
        titles = (*(number_of(int(n), "sample") for n in sizes), "mean near", "mean exact")
        means = {
            role: (words.figure(each.expected_near, 2), words.figure(each.expected_exact, 2))
            for role, each in near.items()
        }
        table = _by_model(
            titles, ((role, *each.sampled.values(), *means[role]) for role, each in near.items())
        )
        share = words.percent(result.settings["near_verbatim"])
        title = f"The same with up to {share} of the tokens edited, at least"
        yield Section(title=title, blocks=(table,))
    if result.generation is not None:
        yield Section(
            title="One pass against real generation", blocks=(_generation(result.generation),)
        )
    if result.comparison is not None:
        yield from _comparison(result.comparison)


def _generation(found: Mapping[str, GenerationCounts]) -> Table:
    titles = ("windows", "one pass", "generated", "disagree", "of them ties", "nearly generated")
    return _by_model(
        titles,
        (
            (
                role,
                each.windows,
                each.extracted_one_pass,
                each.extracted_generated,
                each.disagreements,
                each.ties,
                "–" if each.nearly_generated is None else each.nearly_generated,
            )
            for role, each in found.items()
        ),
    )


def _comparison(found: Comparison) -> Iterator[Section]:
    # Without the spread between trainings the interval is too narrow, so it says what it covers.
    basis = "" if found.interval_covers_level else ", chance alone"
    interval = f"{words.interval(found.expected_count)}{basis}; found {found.found:,}. "
    in_rows = f"In rows {found.expected_rows:,.0f} and {found.found_rows:,}"
    chance = f"chance is {words.percent(found.found / found.examples)}"
    recited = f"recited are at risk from {words.percent(found.threshold)}"
    gap = "mean gap between predicted and found"
    table = counts(
        ("expected", f"{found.expected:,.1f}", f"{interval}{in_rows}"),
        ("ROC-AUC", words.figure(found.roc_auc), "1 ranks perfectly, 0.5 is chance"),
        ("PR-AUC", words.figure(found.pr_auc), chance),
        ("recall", *words.rate_of(found.recall, recited)),
        ("precision", *words.rate_of(found.precision, "at risk are recited")),
        ("lift", words.figure(found.lift), "times as often recited as a random example"),
        ("Brier", words.figure(found.brier), "mean squared error of the probabilities"),
        ("calibration", words.figure(found.calibration_error), gap),
    )
    blocks: list[Block] = [table]
    if found.differences:
        other = name(", ".join(found.differences), max_len=200)
        said = ("Predicted for another training: ", other, ". Predict anew.")
        blocks.append(Paragraph(said, "warning"))
    yield Section(title="Predicted against found", blocks=tuple(blocks))
    if found.missed:
        missed = Table(
            columns=(
                Column("id", "anywhere"),
                Column("where", "anywhere"),
                *numbers("probability"),
            ),
            rows=tuple(
                (name(row.id, max_len=64), name(row.address), words.percent(row.probability))
                for row in found.missed[:_MISSED_SHOWN]
            ),
            rest=words.and_more(found.n_missed - _MISSED_SHOWN),
        )
        yield Section(title="Missed", blocks=(missed,))


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
    rows: list[tuple[Sentence, ...]] = []
    for key, result in results.items():
        rate, compared = result.extracted["student"], result.comparison
        expected = caught = "–"
        if compared is not None:
            expected = words.figure(compared.expected, 1)
            caught = f"{compared.recall.count:,} of {compared.recall.of:,}"
        sets = (result.sets[each] for each in ("easy", "inherited", "new"))
        found = (words.percent(rate.rate), words.rate_range(rate))
        rows.append((name(key, max_len=64), rate.count, *found, *sets, expected, caught))
    columns = (Column("student", "anywhere"), *numbers(*titles))
    table = Table(columns=columns, rows=tuple(rows))
    return Page(
        title="Verification of several students",
        verdict=(
            Words(
                f"{len(results)} students recite {min(counts_found):,} to {max(counts_found):,} "
                f"of {number_of(next(iter(results.values())).examples, 'example')}",
                "risk" if max(counts_found) else "good",
            ),
            ".",
        ),
        sections=(Section(blocks=(table, facts({"results": path_name(out)}))),),
        # Each once: one student may have another tokenizer, of which the others need no note.
        notes=tuple(dict.fromkeys(chain.from_iterable(map(_notes, results.values())))),
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
    examples = f"distinct windows, {number_of(estimate.training_examples, 'row')}; {estimate.held_out:,} held out"
    costs: list[tuple[str, str | int, str]] = [
        *((role, short_number(n), "parameters") for role, n in estimate.parameters.items()),
        ("examples", estimate.examples, examples),
        ("steps", estimate.steps, "of each training"),
        ("tokens", estimate.training_tokens, "read in each training"),
    ]
    if estimate.generated_tokens:
        costs.append(("", estimate.generated_tokens, "written by the teacher"))
    costs.append(("", estimate.scored_tokens, "read by each model to decide extraction"))
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
        sections=(Section(blocks=(counts(*costs), stages)),),
        notes=(note,),
    )
