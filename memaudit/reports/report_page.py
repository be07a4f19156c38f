"""The page of a run: for the person who approves a release and the one who cleans the data."""

from collections.abc import Iterator, Mapping

from memaudit.gate.result import GateResult
from memaudit.reports import words
from memaudit.reports.charts import (
    Bar,
)
from memaudit.reports.gate import bound, gate_sentence, rules_table
from memaudit.reports.page import (
    BARS,
    PATH_LEN,
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
    name,
    numbers,
    pieces,
)
from memaudit.reports.report import Report
from memaudit.reports.report_charts import budget_chart, histogram_chart
from memaudit.reports.report_evidence import (
    classifier_section,
    limits_section,
    reciters_of,
    verified_section,
)
from memaudit.reports.report_numbers import REASONS_OF
from memaudit.runs.risks import Worst

_OUTCOMES = {
    "screened": "skipped by --cascade, and not in the expected number",
    "too_short": "too short for a window, so they cannot be extracted as defined",
    "bad": "unreadable",
    "error": "in chunks that could not be scored",
}
_ID_LEN, _ADDRESS_LEN = 100, 160


def report_page(report: Report) -> Page:
    """Return a report as a page: the verdict first, then what it rests on."""
    verified = [] if report.verified is None else [verified_section(report.verified)]
    return Page(
        title="Memorization report",
        verdict=verdict(report),
        lead=(
            *(() if report.gate is None else (*gate_sentence(report.gate), " ")),
            " ".join(_lead(report)),
        ),
        sections=(
            Section(blocks=tuple(_first(report))),
            *([] if report.gate is None else [_policy(report.gate)]),
            _risk(report),
            _budget(report),
            _worst(report),
            *verified,
            classifier_section(report.card, report.manifest.classifier.name),
            limits_section(report),
            _provenance(report),
        ),
        document=report.document(),
        made_by=report.manifest.names.memaudit_version,
    )


def verdict(report: Report) -> Sentence:
    """Return what the report comes to, in one sentence."""
    expected = report.expected
    noun = "example" if report.rows == 1 else "examples"
    return (
        "A student distilled from ",
        name(report.teacher),
        f" is expected to memorize {words.approximately(expected.mean)} of {report.rows:,} {noun} "
        f"({words.interval(expected)}).",
    )


def _lead(report: Report) -> Iterator[str]:
    threshold = words.percent(report.manifest.classifier.threshold)
    if not report.flagged:
        yield f"None is at risk: no probability reaches {threshold}."
    else:
        verb = "is" if report.flagged == 1 else "are"
        copies = f" ({report.flagged_texts:,} distinct texts)"
        yield (
            f"{report.flagged:,} {verb} at risk, with a probability of {threshold} or more"
            + (copies if report.flagged > report.flagged_texts else "")
            + "."
        )
    if report.sensitivity is not None:
        yield report.sensitivity.in_words(report.flagged)
    if report.verified is not None:
        found = report.verified.result.extracted["student"]
        yield (
            f"A student that was really distilled recites {found.count:,} of {found.of:,} distinct "
            "examples."
        )
    if report.flagged:
        yield (
            "Next: remove repeats or examples at risk with 'memaudit filter', predict again on "
            "the cleaned file, and check the result against your limits with 'memaudit gate'."
        )


def _first(report: Report) -> Iterator[Block]:
    if report.row_texts is not None:
        text = Words("This page contains corpus text.", "strong")
        yield Paragraph(
            (text, " Share it no further than the corpus itself."), "warning", "contains-text"
        )
    if report.unfamiliar:
        found = words.percent_by_name(report.unfamiliar)
        text = Words(f"{words.NOT_FAMILIAR}:", "strong")
        yield Paragraph((text, f" {found}. {words.READ_AS_ORDER}"), "warning", "unfamiliar")
    texts, of = report.expected_texts, f"of {report.rows:,} examples"
    of_texts = f"{words.interval(texts)} of {report.texts:,} texts"
    copies = f"{words.interval(report.expected)} {of}"
    at_risk, recited = (words.percent(n / report.rows) for n in (report.flagged, report.recited))
    yield Figures(
        (
            ("Distinct texts expected to be memorized", words.approximately(texts.mean), of_texts),
            (
                "Examples expected, copies included",
                words.approximately(report.expected.mean),
                copies,
            ),
            ("At risk", f"{report.flagged:,}", f"{at_risk} {of}"),
            ("Teacher recites", f"{report.recited:,}", f"{recited} {of}"),
        )
    )
    others = "".join(
        f"; {report.outcomes[outcome]:,} {text}"
        for outcome, text in _OUTCOMES.items()
        if report.outcomes.get(outcome)
    )
    yield Paragraph(
        f"Intervals cover 95%. {report.scored:,} of {report.rows:,} examples were scored{others}. "
        f"The student learns from {words.objective_in_words(report.manifest.inputs.objective)}.",
        "quiet",
    )


def _policy(result: GateResult) -> Section:
    source = result.policy.source or "the command line"
    said = Paragraph(("Policy: ", name(source, max_len=PATH_LEN), ". ", *pieces(bound(result))))
    return Section(
        title="Does it pass the policy?",
        anchor="policy",
        nav="Policy",
        blocks=(rules_table(result, title="Rules of the policy"), said),
    )


def _risk(report: Report) -> Section:
    in_numbers = Table(
        title="Examples by probability",
        columns=(Column("probability"), *numbers("examples"), Column("at risk")),
        rows=tuple(
            (
                words.percent_range(each.low, each.high),
                each.rows,
                "yes" if each.flagged else "no",
            )
            for each in report.histogram
        ),
        is_folded=True,
        style="numbers",
    )
    reasons = [_reasons(report)] if report.reasons else []
    return Section(
        title="How the risk is distributed",
        anchor="risk",
        nav="Risk",
        blocks=(histogram_chart(report), in_numbers, *reasons),
    )


def _reasons(report: Report) -> Table:
    n_texts = min(report.flagged_texts, REASONS_OF)
    of = f"the {n_texts:,} riskiest of " if report.flagged_texts > REASONS_OF else ""
    return Table(
        title=f"Why examples are at risk: reasons among {of}{report.flagged_texts:,} distinct "
        "texts, of which one may have several",
        columns=(Column("reason"), *numbers("distinct texts"), BARS, *numbers("examples")),
        rows=tuple(
            (
                each.reason,
                each.texts,
                Cell(bar=Bar(each.texts / n_texts, is_risk=True)),
                each.rows,
            )
            for each in report.reasons
        ),
        style="bars",
    )


def _budget(report: Report) -> Section:
    table = Table(
        title="Expected to be memorized among the examples that are kept",
        columns=(
            Column("examples dropped"),
            *numbers("share of the corpus", "examples expected", "95% interval"),
        ),
        rows=tuple(
            (
                f"{budget.rows:,}"
                + (" (all at risk)" if budget.rows == report.flagged and budget.rows else ""),
                words.percent(budget.rows / report.rows),
                words.approximately(budget.left.mean),
                words.interval(budget.left),
            )
            for budget in report.budgets_listed
        ),
        style="numbers",
    )
    return Section(
        title="What dropping the riskiest would leave",
        anchor="budget",
        nav="Budget",
        blocks=(budget_chart(report), table),
    )


def _worst(report: Report) -> Section:
    verified, sensitivity = report.verified, report.sensitivity
    choices = [("risk", "at risk"), ("rest", "not at risk")]
    choices += [] if verified is None else [("student", "recited by the student")]
    if sensitivity is not None:
        choices += [("secret", "holds a secret"), ("personal", "holds personal data")]
    table = Table(
        title=f"The {len(report.worst):,} riskiest of {report.texts:,} distinct texts, each by its "
        "first row",
        columns=(
            Column("#", is_number=True, is_minor=True),
            Column("example", "anywhere"),
            *numbers("probability", "copies"),
            *([] if verified is None else [Column("recited by")]),
            Column("why"),
            *(
                Column(feature.replace("_", " "), is_number=True, is_minor=True)
                for feature in report.features
            ),
        ),
        rows=tuple(_worst_row(report, i, row) for i, row in enumerate(report.worst, start=1)),
        anchor="examples",
        row_kinds=tuple(_row_kind(report, row) for row in report.worst),
        choices=tuple(choices),
    )
    blocks = (table,) if report.worst else (Paragraph("None is listed."),)
    return Section(title="The worst examples", anchor="worst", nav="Worst examples", blocks=blocks)


def _worst_row(report: Report, rank: int, row: Worst) -> tuple[Sentence | Cell, ...]:
    reciters: list[str] = []
    if report.verified is not None:
        roles = reciters_of(report.verified, row.row)
        reciters = ["not tested" if roles is None else ", ".join(roles) or "no model"]
    return (
        Cell(text=f"{rank}", value=rank),
        Cell(
            text=name(row.example_id, max_len=_ID_LEN),
            detail=name(row.address, max_len=_ADDRESS_LEN),
            quote=None if report.row_texts is None else report.row_texts.get(row.row, ""),
        ),
        Cell(
            text=Words(words.percent(row.probability), "risk" if row.flagged else ""),
            value=row.probability,
        ),
        Cell(text=f"{row.occurrences:,}", value=row.occurrences),
        *reciters,
        Cell(text=row.reason, badges=row.holds),
        *(
            Cell(text=f"{row.features[name]:.3g}", value=row.features[name])
            for name in report.features
        ),
    )


def _row_kind(report: Report, row: Worst) -> str:
    reciters = None if report.verified is None else reciters_of(report.verified, row.row)
    kinds = {
        "risk" if row.flagged else "rest": True,
        "student": bool(reciters and "student" in reciters),
        "secret": "secret" in row.holds,
        "personal": "personal data" in row.holds,
    }
    return " ".join(kind for kind, is_so in kinds.items() if is_so)


def _provenance(report: Report) -> Section:
    first, *others = provenance(report).items()
    return Section(
        title="Provenance",
        anchor="provenance",
        nav="Provenance",
        blocks=(
            facts(_as_names(first[1])),
            *(facts(_as_names(values), title=group, is_folded=True) for group, values in others),
        ),
    )


def _as_names(values: Mapping[str, object]) -> dict[str, Sentence | Cell]:
    return {key: name(str(value), max_len=1000) for key, value in values.items()}


def provenance(report: Report) -> dict[str, dict[str, object]]:
    """Return all that decides the numbers, by kind; what identifies the run comes first."""
    manifest = report.manifest
    inputs, names, classifier = manifest.inputs, manifest.names, manifest.classifier
    reference = {}
    if names.reference is not None:
        role = inputs.feature_set.removeprefix("teacher+")
        reference = {role: names.reference, f"sha256 of the {role}": inputs.reference_digest or ""}
    groups: dict[str, dict[str, object]] = {
        "Run": {
            "run": inputs.fingerprint,
            "memaudit": names.memaudit_version,
            "teacher": names.teacher,
            "sha256 of the teacher": inputs.teacher_digest,
            **reference,
            "classifier": classifier.name,
            "sha256 of the classifier": inputs.classifier_digest,
            "sha256 of the texts": inputs.texts_digest,
            "objective": words.objective_in_words(inputs.objective),
            "windows": f"{inputs.prefix_tokens} + {inputs.suffix_tokens} tokens, {inputs.windows}",
        },
        "Computation": {
            "engine": f"{inputs.engine} on {inputs.device}",
            "threads": inputs.threads if inputs.threads is not None else "default",
            "distinct windows": f"{inputs.distinct_windows:,}",
            "bad rows": inputs.on_bad_row,
        },
        "Corpus": {
            key.replace("_", " "): value
            for key, value in inputs.corpus.items()
            if value is not None
        }
        | {"sha256 of rows": inputs.rows_digest},
        "Classifier": {
            "features": ", ".join(classifier.features),
            "threshold": f"{classifier.threshold:.6f}",
            "zlib": classifier.zlib.version,
            **classifier.provenance,
        },
        "Versions": {**inputs.versions},
    }
    if report.verified is not None:
        result = report.verified.result
        groups["Verification"] = {
            "sha256 of labels": result.labels_digest,
            **{
                key.replace("_", " "): value
                for key, value in result.settings.items()
                if value is not None
            },
        }
    return groups
