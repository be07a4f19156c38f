"""What a report rests on: the classifier's card, a real distillation, and what decides the numbers."""

from collections.abc import Mapping

from memaudit.labels import ROLES, VerificationResult, VerifiedRows
from memaudit.reports import words
from memaudit.reports.charts import Bar, Chart, Curve, Dot, Rule, counted_log, shares
from memaudit.reports.page import (
    BARS,
    Block,
    Bullets,
    Cell,
    Column,
    Figures,
    Paragraph,
    Section,
    Table,
    facts,
    name,
    numbers,
)
from memaudit.reports.report import OWN, Card, Report, StudyRun, remedies
from memaudit.text import number_of

_METRICS = {
    "pr_auc": "average precision (PR-AUC)",
    "roc_auc": "ROC-AUC",
    "equal_count_auc": "ROC-AUC among examples that occur equally often",
    "precision": "flagged that were memorized (precision)",
    "recall": "memorized that were flagged (recall)",
    "calibration_error": "calibration error",
}


def classifier_section(card: Card | None, classifier: str) -> Section:
    """Return how the classifier was tested, by its card."""
    titles = ("How good the classifier is", "classifier", "Classifier")
    if card is None:
        no_card = " does not come with memaudit. The card beside its file says how it was tested."
        return Section(*titles, (Paragraph(("No card is at hand: ", name(classifier), no_card)),))
    tested = f"Tested on {number_of(len(card.runs), 'distillation')} that it never saw."
    if card.prevalence is not None:
        tested += f" {words.percent(card.prevalence)} of their examples were memorized."
    own = card.methods[OWN]
    figures = Table(
        title="Figures of this classifier on those distillations",
        columns=(Column("figure"), *numbers("value", "95% interval")),
        rows=tuple(
            (label, words.figure(own[key].value), words.figure_range(own[key]) or "–")
            for key, label in _METRICS.items()
            if key in own
        ),
        style="numbers",
    )
    by_run = Table(
        title="Expected and found, by held-out distillation",
        columns=(Column("distillation"), *numbers("examples", "expected", "found")),
        rows=tuple(
            (run.name, run.examples, f"{run.expected:,.1f}", run.found) for run in card.runs
        ),
        is_folded=True,
        style="numbers",
    )
    blocks: list[Block] = [Paragraph(tested), figures]
    blocks += [_curve_chart(card)] if card.curve else []
    blocks.append(_methods(card))
    blocks += [_calibration_chart(card.runs), by_run] if card.runs else []
    blocks += [Paragraph(card.statistics, "quiet")] if card.statistics else []
    return Section(*titles, tuple(blocks))


def _methods(card: Card) -> Table:
    rows: list[tuple[str | Cell, ...]] = []
    for method, figures in card.methods.items():
        # What memaudit shipped before says nothing of this run; the card has it.
        if (found := figures.get("pr_auc")) and not method.startswith("shipped before"):
            low, high = (
                (found.interval.low, found.interval.high) if found.interval else (None, None)
            )
            # The first one is this classifier: its bar alone stands out.
            bar = Bar(found.value or 0.0, is_risk=not rows, low=low, high=high)
            text, detail = words.figure(found.value, 2), words.figure_range(found, 2)
            rows.append((method, Cell(bar=bar), Cell(text=text, detail=detail)))
    return Table(
        title="Average precision (area under precision and recall) of this classifier and of "
        "simpler rules, on the same distillations",
        columns=(Column("by"), BARS, Column("average precision")),
        rows=tuple(rows),
        style="ranking",
    )


def _curve_chart(card: Card) -> Chart:
    chance = [] if card.prevalence is None else [Rule(up=card.prevalence)]
    return Chart(
        name="precision-recall",
        title="Precision against recall on held-out distillations",
        description="A curve from high precision at low recall to low precision at full recall; "
        f"chance is {words.percent(card.prevalence)}.",
        caption="The dashed line is chance.",
        x=shares("recall"),
        y=shares("precision"),
        marks=(Curve(card.curve), *chance),
        height=300,
    )


def _calibration_chart(runs: tuple[StudyRun, ...]) -> Chart:
    highest = 1.2 * max(1.0, *(max(run.expected, float(run.found)) for run in runs))
    dots = [(run, f"{run.expected:,.1f} expected, {run.found:,} found") for run in runs]
    return Chart(
        name="calibration",
        title="Found against expected, by held-out distillation",
        description=f"{len(runs)} dots on logarithmic scales, close to the diagonal where as many "
        "were memorized as expected. The numbers are in the table below.",
        caption="Each dot is a distillation. Above the line more was memorized than expected.",
        # Both axes end alike: only then the diagonal is where as many were found as expected.
        x=counted_log("examples expected", highest, with_thirds=True),
        y=counted_log("examples found", highest, with_thirds=True),
        marks=tuple(Dot(run.expected, run.found, f"{run.name}: {said}") for run, said in dots),
        has_diagonal=True,
        height=300,
    )


_MISSED_SHOWN = 20


def verified_section(verified: VerifiedRows) -> Section:
    """Return what a real distillation showed, beside what was predicted of it."""
    result, found = verified.result, verified.comparison
    student = result.extracted["student"]
    chance = f"chance is {words.percent(student.rate)}"
    figures = Figures(
        (
            ("Precision", *words.rate_of(found.precision, "at risk are recited")),
            ("Recall", *words.rate_of(found.recall, "recited are at risk")),
            ("ROC-AUC", words.figure(found.roc_auc), "0.5 is chance, 1 is perfect"),
            ("Average precision", words.figure(found.pr_auc), chance),
        )
    )
    text = (
        f"Of {student.of:,} distinct examples that were tested, "
        f"{words.expected(found.expected_count)} were expected to be memorized. The student "
        f"recites {student.count:,} of {student.of:,}."
    )
    missed = Table(
        title="Recited, but not at risk",
        columns=(Column("example", "anywhere"), *numbers("predicted probability")),
        rows=tuple(
            (Cell(text=name(row.id), detail=name(row.address)), words.percent(row.probability))
            for row in found.missed[:_MISSED_SHOWN]
        ),
        style="numbers",
    )
    blocks = (Paragraph(text), figures, _models(result), _sets(result))
    return Section(
        "What a real distillation showed",
        "verified",
        "Verified",
        (*blocks, missed) if found.missed else blocks,
    )


def _models(result: VerificationResult) -> Table:
    perplexity = numbers("held-out perplexity")
    return Table(
        title="What each model recites",
        columns=(Column("model"), *numbers("recites"), BARS, Column("share"), *perplexity),
        rows=tuple(
            (
                role,
                rate.count,
                Cell(bar=Bar(rate.rate or 0, is_risk=role == "student")),
                Cell(text=words.percent(rate.rate), detail=words.rate_range(rate)),
                words.figure(result.perplexity[role], 1),
            )
            for role, rate in ((role, result.extracted[role]) for role in ROLES)
        ),
        style="bars",
    )


def reciters_of(verified: VerifiedRows, row: int) -> tuple[str, ...] | None:
    """Return the roles of the models that recite a row; None if they were not asked."""
    if not verified.looked_at[row]:
        return None
    return tuple(role for role in ROLES if verified.recited_by[role][row])


def extraction_sets(result: VerificationResult) -> list[tuple[str, tuple[str, ...], int]]:
    """Return the names, the reciting models and the sizes of sets that have nothing in common."""
    found, in_all = result.sets, result.student_in_easy.count
    return [
        ("easy, and the student's", ROLES, in_all),
        ("easy, but not the student's", ("teacher", "baseline"), found["easy"] - in_all),
        ("inherited", ("teacher", "student"), found["inherited"]),
        ("new", ("student",), found["new"]),
        ("baseline and student", ("baseline", "student"), found["baseline_and_student"]),
        ("teacher only", ("teacher",), found["teacher_only"]),
        ("baseline only", ("baseline",), found["baseline_only"]),
        ("nobody", (), found["none"]),
    ]


def _sets(result: VerificationResult) -> Table:
    sets = extraction_sets(result)
    # What nobody recites is most of a corpus: with a bar of its own it would flatten all others.
    most = max(1, *(n for _, roles, n in sets if roles))
    return Table(
        title="Which models recite the same examples",
        columns=(Column("set"), *map(Column, ROLES), *numbers("examples"), BARS),
        rows=tuple(
            (
                label,
                *("recites" if role in roles else "–" for role in ROLES),
                n,
                Cell(bar=Bar(n / most, is_risk="student" in roles) if roles else None),
            )
            for label, roles, n in sets
        ),
        style="sets",
    )


def limits_section(report: Report) -> Section:
    """Return what the numbers mean, and what they do not."""
    inputs, sensitivity = report.run.manifest.inputs, report.run.sensitivity_summary
    items = [
        words.not_a_guarantee(inputs.shape),
        "The expected number is the sum of the probabilities. Its interval covers chance, and a "
        "common factor by which all probabilities may be too low or too high.",
        "All copies of a text are memorized or none are, so the example count moves in jumps. "
        "Different texts is the steadier number.",
        'The "dropped" numbers count the examples that are kept, and assume the same training. '
        "Near-duplicates of dropped texts can still be memorized.",
    ]
    if inputs.windows == "first":
        items.append("Only the first window of each example was scored.")
    if sensitivity is not None:
        names = "" if sensitivity.finds_names else " People’s names were not looked for."
        items.append(
            "Personal data and secrets are found by their form, in one window at a time. What the "
            f"edge of a window cuts in two, or what looks like ordinary text, is missed.{names}"
        )
    if unfamiliar := report.run.risks.unfamiliar:
        items.append(
            "Some rows are unlike those the classifier was trained on "
            f"({words.percent_by_name(unfamiliar)}): "
            "their order is more reliable than their probabilities."
        )
    if report.card is not None and report.card.limits:
        items.append(report.card.limits)
    items.append("Only a real distillation can confirm the numbers: run 'memaudit verify'.")
    return Section(
        "What the numbers mean, and what they do not", "limits", "Limits", (Bullets(tuple(items)),)
    )


def provenance_section(report: Report) -> Section:
    """Return all that decides the numbers, by kind; what identifies the run comes first."""
    manifest = report.run.manifest
    inputs, names, classifier = manifest.inputs, manifest.names, manifest.classifier
    reference = {}
    if names.reference is not None:
        role = str(inputs.role).replace("_", " ")
        reference = {role: names.reference, f"sha256 of the {role}": inputs.reference_digest or ""}
    groups: dict[str, dict[str, object]] = {
        "": {
            "run": inputs.fingerprint,
            "memaudit": names.memaudit_version,
            "teacher": names.teacher,
            "sha256 of the teacher": inputs.teacher_digest,
            **reference,
            "classifier": classifier.name,
            "sha256 of the classifier": inputs.classifier_digest,
            "sha256 of the texts": inputs.texts_digest,
            "training": words.training_in_words(inputs),
            "windows": words.windows(inputs),
        },
        "Computation": {
            "engine": f"{inputs.engine} on {inputs.device}",
            "threads": inputs.threads if inputs.threads is not None else "default",
            "distinct windows": f"{inputs.distinct_windows:,}",
            "bad rows": inputs.on_bad_row,
        },
        "Corpus": _spaced(inputs.corpus) | {"sha256 of rows": inputs.rows_digest},
        "Classifier": {
            "features": ", ".join(classifier.features),
            "threshold": f"{classifier.threshold:.6f}",
            "zlib": classifier.zlib.version,
            **classifier.provenance,
        },
        "Versions": {**inputs.versions},
    }
    if report.verified is not None:
        labels = {"sha256 of labels": report.verified.result.labels_digest}
        groups["Verification"] = labels | _spaced(report.verified.result.settings)
    blocks = []
    for title, values in groups.items():
        # Text from outside: all of it comes from files.
        rows = {key: name(str(value), max_len=1000) for key, value in values.items()}
        blocks.append(facts(rows, title=title, is_folded=title != ""))
    return Section("Provenance", "provenance", "Provenance", tuple(blocks))


def _spaced(values: Mapping[str, object]) -> dict[str, object]:
    """Return what was set, under names that read as words."""
    return {key.replace("_", " "): value for key, value in values.items() if value is not None}


def remedies_table(report: Report) -> Table:
    """Return what each way to lower the risk would leave, side by side."""
    return Table(
        title="Estimates, until you predict the cleaned corpus",
        columns=(Column("what you do"), *numbers("examples left", "different texts expected")),
        rows=tuple(
            (Cell(text=each.name, detail=each.option), each.rows, words.expected(each.texts))
            for each in remedies(report.run)
        ),
        style="numbers",
    )
