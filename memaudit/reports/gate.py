"""The pages of `memaudit gate` and `memaudit filter`: the verdict first, then why."""

from collections.abc import Iterator
from os.path import commonprefix
from typing import TYPE_CHECKING

from memaudit.reports import words
from memaudit.reports.markdown import render_markdown
from memaudit.reports.page import (
    Cell,
    Column,
    Kind,
    Page,
    Section,
    Sentence,
    Table,
    Words,
    facts,
    name,
    numbers,
    path_name,
)
from memaudit.text import number_of

if TYPE_CHECKING:
    from memaudit.filtering.workflow import FilterResult
    from memaudit.gate.result import GateResult

_KINDS: dict[str, Kind] = {"pass": "good", "fail": "risk", "inconclusive": "warning"}
_MARKS = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "⚠ inconclusive"}
_VERDICTS = {
    "pass": "The gate passes",
    "fail": "The gate fails",
    "inconclusive": "The gate cannot be decided, so it fails",
}
_EVIDENCE = {
    "predicted": "",
    "recited": ", which the teacher recites",
    "verified": ", which the distilled student recites",
}
_DIGESTS = ("corpus_digest", "teacher_digest", "classifier_digest")


def gate_sentence(result: "GateResult") -> tuple[str | Words, ...]:
    """Return the verdict in one sentence."""
    n_broken = len(result.failed) + len(result.inconclusive)
    broken = f": {n_broken} of {len(result.rules)} rules do not hold" if n_broken else ""
    return (Words(_VERDICTS[result.verdict], _KINDS[result.verdict]), f"{broken}.")


def gate_page(result: "GateResult", *, n_findings: int = 10, with_marks: bool = False) -> Page:
    """Return what a gate found: the verdict, rule by rule, the worst examples.

    Args:
        result: of a gate.
        n_findings: examples listed at most.
        with_marks: show each status with a mark and every digest, as in a pull request.
    """
    policy, provenance = result.policy, result.provenance
    run: list[str | Words] = [
        "Run ",
        name(str(provenance["run"])[:12]),
        ", classifier ",
        name(str(provenance["classifier"])),
        ", policy from ",
        "flags" if policy.source is None else name(f"{policy.source}, {str(policy.digest)[:12]}"),
        ", pinned" if policy.is_pinned else "",
    ]
    if with_marks:
        digests = {key: provenance.get(key) for key in _DIGESTS} | {"policy_digest": policy.digest}
        for key, value in digests.items():
            if value:
                run += [f"; {key.replace('_', ' ')} ", name(str(value))]
    notes = [bound(result), name(result.judged.in_words, max_len=5000), tuple(run)]
    if result.variables:
        variables = name(", ".join(result.variables), max_len=2000)
        notes.append(("Set by environment variables: ", variables, "."))
    sections = [Section(blocks=(rules_table(result, with_marks=with_marks),))]
    if result.findings:
        sections.append(_findings(result, n_findings, is_short=not with_marks))
    return Page(
        title=f"memaudit gate: {_MARKS[result.verdict]}",
        verdict=gate_sentence(result),
        sections=tuple(sections),
        notes=tuple(filter(None, notes)),
    )


def gate_markdown(result: "GateResult") -> str:
    """Return the page for a comment or a job's summary, with up to fifty findings."""
    return render_markdown(gate_page(result, n_findings=50, with_marks=True), level=2)


def rules_table(result: "GateResult", *, title: str = "", with_marks: bool = False) -> Table:
    """Return what was found, rule by rule."""
    names = ("rule", "status", "what was found") if title or with_marks else ("", "", "")
    return Table(
        title=title,
        columns=(Column(names[0], "nowhere"), Column(names[1], "nowhere"), Column(names[2])),
        rows=tuple(
            (
                f"{rule.id} {rule.name}",
                _MARKS[rule.status] if with_marks else Words(rule.status, _KINDS[rule.status]),
                name(rule.message, max_len=2000),
            )
            for rule in result.rules
        ),
    )


def _findings(result: "GateResult", n_findings: int, *, is_short: bool) -> Section:
    """Return the worst examples; if short, without what is the same in every row."""
    listed = result.findings[:n_findings]
    title = f"The {len(listed):,} worst of {number_of(result.n_findings, 'distinct example')}"
    folder, levels = "", {finding.level for finding in listed}
    has_levels = not is_short or len(levels) > 1
    if is_short:
        shared = commonprefix([finding.address for finding in listed])  # noqa: RUF071  may be s3://
        # Up to a slash: names that only begin alike stay whole.
        folder = shared[: shared.rfind("/") + 1]
    if not has_levels:
        title += "".join(_EVIDENCE[level] for level in levels)
    rows = []
    for finding in listed:
        where = name(finding.address.removeprefix(folder), max_len=300)
        level = (finding.level,) if has_levels else ()
        probability = words.percent(finding.probability)
        example = name(finding.example_id, max_len=100)
        rows.append((example, where, *level, probability, name(finding.reason)))
    columns = (
        Column("example", "anywhere"),
        Column("where", "anywhere"),
        *((Column("evidence", "nowhere"),) if has_levels else ()),
        *numbers("probability"),
        Column("reason"),
    )
    return Section(title=title, blocks=(Table(columns=columns, rows=tuple(rows)),))


def bound(result: "GateResult") -> Sentence:
    """Return how many may be memorized at most; nothing if that is every example."""
    guarantee = result.guarantee
    if guarantee.status != "holds":
        reasons = name("; ".join(guarantee.reasons), max_len=1000)
        return ("There is no upper bound on what will be memorized: ", reasons, ".")
    # A bound of all scored examples says nothing, and reads like an alarm.
    if guarantee.upper >= result.counts.get("scored", guarantee.upper + 1):
        return ""
    return (
        f"With {guarantee.confidence:.1%} confidence at most "
        f"{number_of(guarantee.upper, 'example')} will be "
        "memorized, provided your corpus and training resemble the calibration runs."
    )


def filter_page(result: "FilterResult") -> Page:
    """Return what a filter did, or would do, then its price."""
    verb = "removed" if result.out else "would be removed"
    cut = f", {result.excised:,} cut" if result.excised else ""
    before, after = words.expected(result.before.expected), words.expected(result.after.expected)
    cut_rows = number_of(result.excised, "row, which stays", "rows, which stay")
    share, out = words.percent(result.removed_text_share), result.out
    rows: dict[str, Sentence | Cell | None] = {
        "why": f"{result.options.in_words}, {result.options.strategy}",
        "at risk": f"{result.before.flagged:,} before, {result.after.flagged:,} after",
        "copies": result.removed_copies
        and f"{result.removed_copies:,} of the removed rows; one of each text is kept",
        "alike": result.removed_alike
        and f"{result.removed_alike:,} of the removed rows; for each a row like it is kept",
        "cut": result.excised and f"{cut_rows} without risky parts",
        "not cut": result.not_cut
        and f"{number_of(result.not_cut, 'row keeps', 'rows keep')} a risky part, which cannot be "
        "cut cleanly",
        "price": f"{result.removed_text_bytes:,} of {result.text_bytes:,} bytes of text ({share})",
        "tokens": None
        if result.tokens is None
        else f"{result.removed_tokens:,} of {result.tokens:,} removed",
        "not scored": result.unscored_kept and f"{number_of(result.unscored_kept, 'row')}, kept",
        "corpus": path_name(out) if out else None,
        "removed": path_name(f"{out}.removed.parquet") if out else None,
        "parts": path_name(f"{out}.excised.parquet") if out and result.excised else None,
    }
    return Page(
        title="Filter",
        verdict=(
            Words(f"{result.removed:,} of {result.rows:,} rows {verb}{cut}", "strong"),
            f": expect {after} to be memorized, before {before}.",
        ),
        sections=(Section(blocks=(facts(rows),)),),
        notes=tuple(_filter_notes(result)),
    )


def _filter_notes(result: "FilterResult") -> Iterator[str]:
    if result.risky_texts > result.risky_windows:  # different texts, at risk for the same tokens
        kept = " All of them are kept. --strategy excise cuts the shared part out of them."
        yield (
            f"{result.risky_texts:,} different texts share "
            f"{number_of(result.risky_windows, 'risky window')}. They are not copies of each "
            f"other.{kept if result.options.strategy == 'deduplicate' else ''}"
        )
    if result.excised:
        yield (
            '"After" counts only the rows that stay whole. What is left of a row that was cut has '
            "not been scored. Run 'memaudit predict' on the cleaned file."
        )
    elif result.after.is_estimate:
        yield (
            "\"After\" is an estimate: only the repeat counts were updated. Run 'memaudit predict' "
            "on the cleaned file for the real number."
        )
    elif result.options.strategy == "drop":
        yield '"After" is the sum over the rows that stay. Their probabilities do not change.'
        if result.removed_generic is not None and result.removed_generic >= 0.5:
            yield (
                f"About {words.approximately(result.removed_generic)} of the different texts "
                "removed would be expected again if each went alone: other rows have the same "
                "wording. 'memaudit verify' on the cleaned file shows what is still recited."
            )
    elif result.removed:
        yield (
            "This classifier does not use repeat counts, so removing copies does not change the "
            "probability of the one that stays. Run 'memaudit predict' on the cleaned file."
        )
    if result.options.expected_at_most is not None:
        yield "The limit holds for the upper end of the 95% interval, not for its mean."
