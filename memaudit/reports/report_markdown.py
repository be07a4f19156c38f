"""A report in short, as Markdown: for a pull request, a ticket or a terminal."""

from collections.abc import Iterable, Iterator

from memaudit.evaluation import Rate
from memaudit.labels import ROLES
from memaudit.metrics import ExpectedCount
from memaudit.reports.report_numbers import percent_by_name
from memaudit.reports.report_view import (
    Report,
    approximately,
    budget_rows,
    objective_in_words,
    risk_in_words,
    verdict,
)
from memaudit.text import inert, safe_text

_WORST_SHOWN = 20
_METRICS = {
    "pr_auc": "average precision",
    "roc_auc": "ROC-AUC",
    "precision": "precision at the threshold",
    "recall": "recall at the threshold",
    "calibration_error": "calibration error",
}


def render_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown; names from outside stay names.

    It holds ids and addresses of the twenty worst examples, and no text of the corpus.
    """
    lines = [
        "# Memorization report",
        "",
        f"**{_escaped(verdict(report))}**",
        "",
        *_notes(report),
        *_table(("", "", "95 % interval"), _figures(report)),
        *_section("What dropping the riskiest would leave"),
        *_table(("examples dropped", "expected memorized", "95 % interval"), _budgets(report)),
        *_reasons(report),
        *_worst(report),
        *_verified(report),
        *_section("How good the classifier is"),
        *_card(report),
        *_section("What the numbers do not mean"),
        "A low probability is no promise: it speaks of verbatim continuation of these windows by "
        "greedy decoding, not of paraphrase, of other windows, or of what sampling may bring up.",
        *_section("Provenance"),
        *_table(("", ""), _facts(report)),
    ]
    return inert("\n".join(lines) + "\n")


def _notes(report: Report) -> list[str]:
    notes = []
    if report.sensitivity is not None:
        notes += [report.sensitivity.in_words(report.flagged), ""]
    if report.unfamiliar:
        notes += [
            "> Rows unlike those the classifier was trained on: "
            f"{percent_by_name(report.unfamiliar)}. Read the probabilities as an order rather "
            "than as numbers.",
            "",
        ]
    return notes


def _figures(report: Report) -> Iterator[tuple[str, ...]]:
    texts = report.expected_texts
    yield "examples", f"{report.rows:,}", ""
    yield "scored", f"{report.scored:,}", ""
    for outcome in ("screened", "too_short", "bad", "error"):
        if report.outcomes.get(outcome):
            yield outcome.replace("_", " "), f"{report.outcomes[outcome]:,}", ""
    yield "expected memorized", approximately(report.expected.mean), _interval(report.expected)
    yield "distinct texts expected", approximately(texts.mean), _interval(texts)
    yield "at risk", f"{report.flagged:,} ({risk_in_words(report.flagged / report.rows)})", ""
    yield "distinct texts at risk", f"{report.flagged_texts:,}", ""
    yield "teacher recites", f"{report.recited:,}", ""


def _budgets(report: Report) -> Iterator[tuple[str, ...]]:
    for budget in budget_rows(report):
        yield f"{budget.rows:,}", approximately(budget.left.mean), _interval(budget.left)


def _reasons(report: Report) -> list[str]:
    if not report.reasons:
        return []
    rows = [(each.reason, f"{each.texts:,}", f"{each.rows:,}") for each in report.reasons]
    return [
        *_section("Why examples are at risk"),
        *_table(("reason", "distinct texts", "examples"), rows),
    ]


def _worst(report: Report) -> list[str]:
    rows = [
        (
            _code(worst.example_id),
            _code(worst.address),
            risk_in_words(worst.probability),
            f"{worst.occurrences:,}",
            "; ".join((worst.reason, *worst.holds)),
        )
        for worst in report.worst[:_WORST_SHOWN]
    ]
    if not rows:
        return []
    names = ("example", "address", "probability", "occurs", "why")
    return [*_section("The worst examples"), *_table(names, rows)]


def _verified(report: Report) -> list[str]:
    verified = report.verified
    if verified is None:
        return []
    expected, found = verified.expected, verified.found
    sets = [
        (
            each.name,
            *("●" if role in each.recited_by else "" for role in ROLES),
            f"{each.examples:,}",
        )
        for each in verified.sets
    ]
    return [
        *_section("What a real distillation showed"),
        f"The student recites {found.count:,} of {found.of:,} distinct examples; "
        f"{approximately(expected.mean)} ({_interval(expected)}) were expected. Precision "
        f"{_rate(verified.precision)}, recall {_rate(verified.recall)}.",
        "",
        *_table(("set", *ROLES, "examples"), sets),
    ]


def _card(report: Report) -> list[str]:
    if report.card is None:
        name = _code(report.manifest.classifier.name)
        return [f"No card is at hand: {name} is none of the classifiers that come with memaudit."]
    rows = [
        (
            name,
            f"{figure.value:.3f}",
            "–" if figure.low is None else f"{figure.low:.3f} to {figure.high:.3f}",
        )
        for key, name in _METRICS.items()
        if (figure := report.card.own.get(key)) is not None
    ]
    return [
        f"On {len(report.card.runs)} held-out distillations, at natural prevalence.",
        "",
        *_table(("figure", "value", "95 % interval"), rows),
    ]


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    inputs, names = report.manifest.inputs, report.manifest.names
    yield "run", _code(inputs.fingerprint)
    yield "teacher", f"{_code(names.teacher)} {_code(inputs.teacher_digest)}"
    if names.reference is not None:
        yield "reference", f"{_code(names.reference)} {_code(inputs.reference_digest or '')}"
    yield "classifier", f"{_code(names.classifier)} {_code(inputs.classifier_digest)}"
    yield "texts", _code(inputs.texts_digest)
    yield "objective", objective_in_words(inputs.objective)
    yield "windows", f"{inputs.prefix_tokens} + {inputs.suffix_tokens} tokens, {inputs.windows}"
    yield "engine", _code(inputs.engine)
    yield "memaudit", _code(names.memaudit_version)


def _section(title: str) -> list[str]:
    return ["", f"## {title}", ""]


def _table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _interval(count: ExpectedCount) -> str:
    return f"{count.low:,} to {count.high:,}"


def _rate(rate: Rate) -> str:
    return f"{rate.count:,} of {rate.of:,}"


def _code(name: str) -> str:
    """Return a name as a code span of a table, where it can mean nothing else."""
    return "`" + (safe_text(name).replace("`", "'").replace("|", "¦") or " ") + "`"


def _escaped(text: str) -> str:
    """Return a sentence in which no character is markup."""
    return "".join(
        f"\\{character}" if character in "\\`*_{}[]()<>#+!|~&@:" else character
        for character in text
    )
