"""The page of a run: for the person who approves a release and the one who cleans the data."""

import shlex
from collections.abc import Iterator
from dataclasses import replace

from memaudit.gate.rules import run_date
from memaudit.reports import words
from memaudit.reports.charts import Bar, Chart, Curve, Pillar, Rule, counted, counted_log, shares
from memaudit.reports.gate import bound, gate_sentence, rules_table
from memaudit.reports.page import (
    BARS,
    Block,
    Cell,
    Column,
    Figures,
    Page,
    Paragraph,
    Section,
    Sentence,
    Table,
    Words,
    facts,
    model_name,
    name,
    numbers,
    path_name,
    pieces,
)
from memaudit.reports.report import REASONS_OF, Bin, Budget, Report, budgets, histogram
from memaudit.reports.report_evidence import (
    classifier_section,
    limits_section,
    provenance_section,
    reciters_of,
    remedies_table,
    verified_section,
)
from memaudit.runs.risks import Worst
from memaudit.text import number_of, shown_path

_OUTCOMES = {
    "screened": "skipped by --cascade, and not in the expected number",
    "too_short": "too short for a window, so they cannot be extracted as defined",
    "bad": "unreadable",
    "error": "in chunks that could not be scored",
}
_ID_LEN, _ADDRESS_LEN = 100, 160


def report_page(report: Report) -> Page:
    """Return a report as a page: the verdict first, then what it rests on."""
    sections = [Section(blocks=(_answers(report), *_first(report)))]
    if (gate := report.gate) is not None:
        source = path_name(gate.policy.source or "the command line")
        said = Paragraph(("Policy: ", source, ". ", *pieces(bound(gate))))
        rules = rules_table(gate, title="Rules of the policy")
        sections.append(Section("Does it pass the policy?", "policy", "Policy", (rules, said)))
    sections += [_risk(report), _budget(report), _worst(report)]
    if report.verified is not None:
        sections.append(verified_section(report.verified))
    classifier = report.run.manifest.classifier.name
    sections.append(classifier_section(report.card, classifier))
    return Page(
        title="Memorization report",
        verdict=verdict(report),
        sections=(*sections, limits_section(report), provenance_section(report)),
        notes=report.warnings,
        document=report.document(),
        made_by=report.run.manifest.names.memaudit_version,
    )


def verdict(report: Report) -> Sentence:
    """Return what the report comes to, in one sentence."""
    expected, n_rows = report.run.risks.expected, report.run.n_rows
    return (
        "A student distilled from ",
        model_name(report.run.manifest.names.teacher),
        f" is expected to memorize {words.approximately(expected.mean)} of "
        f"{number_of(n_rows, 'example')} ({words.interval(expected)}).",
    )


def result_page(report: Report) -> Page:
    """Return what the terminal says of a report: the verdict, and the gate's if there is one."""
    lead = gate_sentence(report.gate) if report.gate else ""
    return Page(title="", verdict=verdict(report), lead=lead, sections=())


def _answers(report: Report) -> Table:
    """Return what who approves a release asks first; it must fit the first screen of a phone."""
    run, risks, gate = report.run, report.run.risks, report.gate
    passes: Sentence = "Not decided: no limits were given. Give them with --policy FILE."
    if gate is not None:
        broken = ", ".join(f"{rule.id} {rule.name}" for rule in (*gate.failed, *gate.inconclusive))
        passes = (*gate_sentence(gate), f" {broken}." if broken else "")
    next_step: Sentence = "Nothing is at risk. Hold the run to your limits with 'memaudit gate'."
    if risks.n_flagged:
        corpus = run.manifest.inputs.corpus.get("source", "CORPUS")
        parts = (run.folder, corpus, words.cleaned_name(corpus))
        folder, data, out = (shlex.quote(shown_path(path)) for path in parts)
        command = name(f"memaudit filter --run {folder} --data {data} --out {out}", max_len=4096)
        next_step = ("Remove copies or examples at risk, then predict again: ", command)
    tested = ""
    if report.card is not None:
        n_tested = number_of(len(report.card.runs), "distillation")
        tested = f" that was tested on {n_tested} it never saw"
    evidence = (
        f"A prediction by a classifier{tested}. No student was distilled: 'memaudit verify' does "
        "that."
    )
    if report.verified is not None:
        found = report.verified.result.extracted["student"]
        count = f"{found.count:,} of {number_of(found.of, 'distinct example')}"
        evidence = f"A student that was really distilled recites {count}."
    rows, texts = words.expected(risks.expected), words.expected(risks.expected_texts)
    answers = facts(
        {
            "Does it pass?": passes,
            "How many texts?": f"{texts} of {number_of(len(risks.texts.windows), 'different text')}; "
            f"with their copies {rows} of {number_of(run.n_rows, 'example')}.",
            "What should I do?": next_step,
            "On what evidence?": evidence,
            "What is not covered?": "Paraphrases, other parts of a text, "
            f"{'' if risks.expected_if_sampled else 'random sampling, '}and tests of membership. "
            "See the limits.",
        }
    )
    return replace(answers, style="answers")


def _at_risk(report: Report) -> Iterator[str]:
    run, risks = report.run, report.run.risks
    threshold = words.percent(run.manifest.classifier.threshold)
    n_flagged, n_texts = risks.n_flagged, risks.n_flagged_texts
    if not n_flagged:
        yield f"None is at risk: no probability reaches {threshold}."
    else:
        verb = "is" if n_flagged == 1 else "are"
        copies = f" ({number_of(n_texts, 'different text')})" if n_flagged > n_texts else ""
        length = run.manifest.inputs.shape.length
        yield (
            f"{n_flagged:,} {verb} at risk, with a probability of {threshold} or more{copies}."
            f"{words.shared_windows(n_texts, risks.n_flagged_windows, length)}"
        )
    yield from filter(None, (words.generic(risks), words.sampled(risks)))
    if sensitivity := run.sensitivity_summary:
        yield sensitivity.in_words(n_flagged)


def _first(report: Report) -> Iterator[Block]:
    risks, n_rows, outcomes = report.run.risks, report.run.n_rows, report.run.outcomes
    if report.row_texts is not None:
        text = Words("This page contains corpus text.", "strong")
        what = "the suffix that would be recited" if report.has_suffixes else "its row"
        said = (
            f" Share it no further than the corpus. Below each example stands the start of {what}."
        )
        yield Paragraph((text, said), "warning", "contains-text")
    if risks.unfamiliar:
        found = words.percent_by_name(risks.unfamiliar)
        text = Words(f"{words.NOT_FAMILIAR}:", "strong")
        yield Paragraph((text, f" {found}. {words.READ_AS_ORDER}"), "warning", "unfamiliar")
    expected, texts, of = risks.expected, risks.expected_texts, f"of {n_rows:,} examples"
    of_texts = f"{words.interval(texts)} of {len(risks.texts.windows):,} texts"
    copies, about = f"{words.interval(expected)} {of}", words.approximately
    at_risk, recited = (words.percent(n / n_rows) for n in (risks.n_flagged, risks.n_recited))
    # Of what --cascade spared the teacher nobody knows whether it recites it.
    of_read = f"of the {outcomes['scored']:,} that it read"
    yield Figures(
        (
            ("Different texts expected to be memorized", about(texts.mean), of_texts),
            ("Examples expected, copies included", about(expected.mean), copies),
            ("At risk", f"{risks.n_flagged:,}", f"{at_risk} {of}"),
            (
                "Teacher recites",
                f"{risks.n_recited:,}",
                of_read if outcomes["screened"] else f"{recited} {of}",
            ),
        )
    )
    others = "".join(
        f"; {outcomes[key]:,} {text}" for key, text in _OUTCOMES.items() if outcomes[key]
    )
    yield Paragraph(" ".join(_at_risk(report)))
    date, inputs = run_date(report.run), report.run.manifest.inputs
    yield Paragraph(
        (
            f"Intervals cover 95%. {outcomes['scored']:,} of {n_rows:,} examples of ",
            path_name(inputs.corpus.get("source", "the corpus")),
            f" were scored{others}{f', on {date[:10]}' if date else ''}. The student learns from "
            f"{words.training_in_words(inputs)}. The classifier is ",
            name(f"{report.run.manifest.classifier.name}, {inputs.classifier_digest[:12]}"),
            ".",
        ),
        "quiet",
    )


def _risk(report: Report) -> Section:
    bins = histogram(report.run.risks)
    in_numbers = Table(
        title="Examples by probability",
        columns=(Column("probability"), *numbers("examples"), Column("at risk")),
        rows=tuple(
            (words.percent_range(each.low, each.high), each.rows, "yes" if each.flagged else "no")
            for each in bins
        ),
        is_folded=True,
        style="numbers",
    )
    blocks: list[Block] = [_histogram_chart(report, bins), in_numbers]
    if report.reasons:
        n_flagged = report.run.risks.n_flagged_texts
        n_texts = min(n_flagged, REASONS_OF)
        of = f"the {n_texts:,} riskiest of " if n_flagged > REASONS_OF else ""
        bars = (Cell(bar=Bar(each.texts / n_texts, is_risk=True)) for each in report.reasons)
        reasons = Table(
            title=f"Why examples are at risk: reasons among {of}{n_flagged:,} different "
            "texts, of which one may have several",
            columns=(Column("reason"), *numbers("different texts"), BARS, *numbers("examples")),
            rows=tuple(
                (each.reason, each.texts, bar, each.rows)
                for each, bar in zip(report.reasons, bars, strict=True)
            ),
            style="bars",
        )
        blocks.append(reasons)
    return Section("How the risk is distributed", "risk", "Risk", tuple(blocks))


def _histogram_chart(report: Report, bins: tuple[Bin, ...]) -> Chart:
    threshold, n_flagged = report.run.manifest.classifier.threshold, report.run.risks.n_flagged
    reached = words.percent(threshold)
    pillars = (Pillar(each.low, each.high, each.rows, each.flagged) for each in bins if each.rows)
    return Chart(
        name="risk",
        title="Examples by probability of being memorized",
        description="Bars over probabilities from 0 to 100%; their heights are counts on a "
        f"logarithmic scale. {number_of(n_flagged, 'example lies', 'examples lie')} at or above "
        f"{reached}, where risk begins.",
        caption="The scale is logarithmic: each step up is ten times as many examples.",
        x=shares("probability of being memorized"),
        # Most rows lie near 0: on an even scale the few at risk would have no height.
        y=counted_log("examples", max(each.rows for each in bins)),
        marks=(*pillars, Rule(across=threshold, label=f"at risk from {reached}")),
    )


def _budget(report: Report) -> Section:
    risks, n_rows = report.run.risks, report.run.n_rows
    found, n_flagged = budgets(risks), risks.n_flagged
    # About eight of them make a table, the one that drops all at risk among them.
    steps = range(0, len(found), max(1, (len(found) - 1) // 6))
    exact = (i for i, budget in enumerate(found) if budget.rows == n_flagged)
    columns = numbers("share of the corpus", "examples expected", "95% interval")
    table = Table(
        title="Expected to be memorized among the examples that are kept",
        columns=(Column("examples dropped"), *columns),
        rows=tuple(
            (
                f"{budget.rows:,}"
                + (" (all at risk)" if budget.rows == n_flagged and budget.rows else ""),
                words.percent(budget.rows / n_rows),
                words.approximately(budget.left.mean),
                words.interval(budget.left),
            )
            for budget in (found[i] for i in sorted({0, len(found) - 1, *steps, *exact}))
        ),
        is_folded=True,
        style="numbers",
    )
    blocks = (remedies_table(report), _budget_chart(found, n_flagged), table)
    return Section("What would lower the risk", "budget", "Remedies", blocks)


def _budget_chart(found: tuple[Budget, ...], n_flagged: int) -> Chart:
    first, last = found[0].left, found[-1]
    curve = Curve(
        tuple((budget.rows, budget.left.mean) for budget in found),
        upper=tuple((budget.rows, float(budget.left.high)) for budget in found),
        lower=tuple((budget.rows, float(budget.left.low)) for budget in found),
    )
    at_risk = Rule(across=n_flagged, label="all at risk dropped")
    return Chart(
        name="budget",
        title="Expected to be memorized, by examples dropped",
        description=f"A falling line with a band, its 95% interval: {first.mean:,.0f} with "
        f"nothing dropped, {last.left.mean:,.1f} once the {last.rows:,} riskiest are dropped.",
        caption="All copies of a text are dropped together. The band is the 95% interval.",
        x=counted("riskiest examples dropped", last.rows),
        y=counted("examples expected to be memorized", max(b.left.high for b in found)),
        marks=(curve, *([at_risk] if 0 < n_flagged <= last.rows else [])),
    )


def _worst(report: Report) -> Section:
    n_texts = len(report.run.risks.texts.windows)
    choices = [("risk", "at risk"), ("rest", "not at risk")]
    choices += [] if report.verified is None else [("student", "recited by the student")]
    if report.run.risks.sensitivity is not None:
        choices += [("secret", "holds a secret"), ("personal", "holds personal data")]
    found = [_worst_row(report, i, row) for i, row in enumerate(report.worst, start=1)]
    table = Table(
        title=f"The {len(report.worst):,} riskiest of {number_of(n_texts, 'different text')}, each by its "
        "first row",
        columns=(
            Column("#", is_number=True, is_minor=True),
            Column("example", "anywhere"),
            *numbers("probability", "copies"),
            *([] if report.verified is None else [Column("recited by")]),
            Column("why"),
        ),
        rows=tuple(cells for cells, _ in found),
        anchor="examples",
        row_kinds=tuple(kinds for _, kinds in found),
        choices=tuple(choices),
    )
    blocks = (table,) if report.worst else (Paragraph("None is listed."),)
    return Section("The worst examples", "worst", "Worst examples", blocks)


def _worst_row(report: Report, rank: int, row: Worst) -> tuple[tuple[Sentence | Cell, ...], str]:
    """Return the cells of an example, and what a filter chooses it by."""
    recited_by: list[str] = []
    kinds = {
        "risk" if row.flagged else "rest": True,
        "student": False,
        "secret": "secret" in row.holds,
        "personal": "personal data" in row.holds,
    }
    if report.verified is not None:
        roles = reciters_of(report.verified, row.row)
        recited_by = ["not tested" if roles is None else ", ".join(roles) or "no model"]
        kinds["student"] = "student" in (roles or ())
    probability = Words(words.percent(row.probability), "risk" if row.flagged else "")
    cells: tuple[Sentence | Cell, ...] = (
        Cell(text=f"{rank}", value=rank),
        Cell(
            text=name(row.example_id, max_len=_ID_LEN),
            detail=name(row.address, max_len=_ADDRESS_LEN),
            quote=None if report.row_texts is None else report.row_texts.get(row.row, ""),
        ),
        Cell(text=probability, value=row.probability),
        Cell(text=f"{row.occurrences:,}", value=row.occurrences),
        *recited_by,
        Cell(text=row.reason, badges=row.holds),
    )
    return cells, " ".join(kind for kind, is_so in kinds.items() if is_so)
