"""The annex of a report for reviewers: what was tested, what was not, and the numbers behind it."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from memaudit.errors import UsageError
from memaudit.files import read_small
from memaudit.gate.policy import MAX_POLICY_BYTES, sections
from memaudit.reports import words
from memaudit.reports.gate import gate_sentence
from memaudit.reports.page import (
    Bullets,
    Cell,
    Column,
    Page,
    Paragraph,
    Section,
    Sentence,
    Table,
    facts,
    model_name,
    name,
    plain,
)
from memaudit.reports.report import Report
from memaudit.reports.report_evidence import remedies_table
from memaudit.text import number_of, safe_text, shown_path

_NOT_GIVEN = "not given: name it in the section [release] of the policy file"
_NOT_LEGAL = "This is evidence, not legal advice."
_NOT_COVERED = ("paraphrase", "membership inference", "model inversion and attribute inference")
_NOT_TESTED = (
    "A question that is not covered is open: nothing in this document speaks for or against it."
)
_REFERENCES = Table(
    title="Numbers of documents, and the parts of this annex that bear on them",
    columns=(Column("document"), Column("here")),
    rows=(
        ("EDPB Opinion 28/2024, paragraph 46", "What was tested; What identifies the evidence"),
        ("EDPB Opinion 28/2024, paragraph 55", "Threat model and definition"),
        ("EDPB Opinion 28/2024, paragraph 58", "What was tested; Mitigation; Risk that stays"),
        ("GPAI Code of Practice, copyright, Measure 1.4", "Mitigation, before and after"),
        ("NIST AI 600-1, MS-2.10-001", "What was tested; Risk that stays"),
    ),
)
_BOTH_RUNS = Paragraph(
    "'memaudit filter' cleans the corpus, and 'memaudit diff' names what was removed and what "
    "that changed. Give both runs to the reviewer."
)


class Release(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """What only the people who release the model know: section [release] of a policy file."""

    model: str = ""
    """What is released: the student and its use."""
    access: str = ""
    """Who gets it and how: weights, an interface, inside the company."""
    personal_data: str = ""
    """Whether the corpus is meant to hold any, and on what ground."""
    owner: str = ""
    """Who answers for the risk that stays."""
    residual_risk: str = ""
    """Why what stays is acceptable, in the owner's words."""
    test_again: str = ""
    """When: a date, or what must change."""


def read_release(path: Path | None) -> Release:
    """Return the section [release] of a policy file; all empty without one.

    Raises:
        UsageError: the file cannot be read, or has another key.
    """
    if path is None:
        return Release()
    try:
        document = tomllib.loads(read_small(path, MAX_POLICY_BYTES).decode())
        found = sections(document, shown_path(path)).get("release", {})
        return msgspec.convert(found, Release)
    # Deep nesting ends the TOML parser in a RecursionError.
    except (OSError, ValueError, RecursionError) as error:  # msgspec's is a ValueError
        raise UsageError(
            f"{shown_path(path)}: the section [release] cannot be read: {safe_text(str(error))}",
            hint="its keys are model, access, personal-data, owner, residual-risk, test-again",
        ) from error


def annex_page(report: Report, release: Release) -> Page:
    """Return the annex: every line names the digest or the figure that it rests on.

    Args:
        report: of a finished run, with the gate's result if a policy was given.
        release: what the people who release the model say.
    """
    risks, teacher = report.run.risks, report.run.manifest.names.teacher
    verdict: Sentence = (
        f"Before the release of a student of {safe_text(model_name(teacher).text)}: "
        f"{words.expected(risks.expected)} of {report.run.n_rows:,} examples are expected to be "
        "memorized.",
    )
    context = facts(
        {
            "model": _given(release.model),
            "access": _given(release.access),
            "personal data": _given(release.personal_data),
            "owner": _given(release.owner),
        }
    )
    return Page(
        title="Annex for reviewers: memorization",
        verdict=verdict,
        lead=_NOT_LEGAL if report.gate is None else (*gate_sentence(report.gate), f" {_NOT_LEGAL}"),
        sections=(
            _section("Release context", "context", context),
            _section("What was tested", "tested", _tested(report), Paragraph(_NOT_TESTED)),
            _section("Threat model and definition", "threat", _threat(report)),
            _section(
                "Mitigation, before and after", "mitigation", remedies_table(report), _BOTH_RUNS
            ),
            _section("Risk that stays", "residual", _residual(report, release)),
            _section("Where reviewers ask for it", "references", _REFERENCES),
            _section("What identifies the evidence", "digests", facts(_digests(report))),
        ),
        made_by=report.run.manifest.names.memaudit_version,
    )


def _section(title: str, anchor: str, *blocks: Table | Paragraph | Bullets) -> Section:
    return Section(title=title, anchor=anchor, nav=title, blocks=blocks)


def _given(text: str, max_len: int = 2000) -> Sentence:
    """Return what a policy file says, or that it does not."""
    return name(text, max_len=max_len) if text else _NOT_GIVEN


def _tested(report: Report) -> Table:
    run, risks = report.run, report.run.risks
    verified, sensitivity = report.verified, run.sensitivity_summary
    student = None if verified is None else verified.result.extracted["student"]
    rows: list[tuple[Sentence, ...]] = [
        (
            "exact continuation by the student",
            "predicted",
            f"{risks.n_flagged:,} of {run.n_rows:,} examples at risk; expected "
            f"{words.expected(risks.expected)}, distinct texts {words.expected(risks.expected_texts)}",
        ),
        (
            "exact continuation by a student that was really distilled",
            "no" if student is None else "tested",
            "run 'memaudit verify'"
            if student is None
            else f"{student.count:,} of {number_of(student.of, 'distinct example')}",
        ),
        (
            "exact continuation by the teacher",
            "tested in part" if run.outcomes["screened"] else "tested",
            f"{risks.n_recited:,} of {number_of(run.outcomes['scored'], 'example')} that it read",
        ),
        (
            "personal data and secrets in examples at risk",
            "no" if sensitivity is None else "tested, by form",
            "run 'memaudit predict --sensitive'"
            if sensitivity is None
            else sensitivity.in_words(risks.n_flagged),
        ),
        *_sampled(report),
        *((what, "not covered", "needs a tool of its own") for what in _NOT_COVERED),
    ]
    columns = (Column("question"), Column("tested?"), Column("result, or what to do"))
    return Table(title="What was looked at", columns=columns, rows=tuple(rows))


def _threat(report: Report) -> Bullets:
    inputs = report.run.manifest.inputs
    n_prefix, n_suffix = inputs.shape.prefix_len, inputs.shape.suffix_len
    which = "first window" if inputs.windows == "first" else "windows"
    return Bullets(
        (
            f"Somebody who may ask the student knows or guesses {n_prefix} tokens of a training "
            f"text and takes the most likely continuation. Memorized means that the next "
            f"{n_suffix} tokens come out exactly (Carlini et al., arXiv:2202.07646).",
            f"The {which} of each example was scored, for a student that learns from "
            f"{words.training_in_words(inputs)}. Only the corpus of this run was looked "
            "at, not what the student learned elsewhere.",
        )
    )


def _sampled(report: Report) -> Iterator[tuple[Sentence, ...]]:
    """Yield what sampling a student reveals, exactly and nearly."""
    verified, estimated = report.verified, report.run.risks.expected_if_sampled
    exact = None if verified is None else verified.result.sampled
    near = None if verified is None else verified.result.near_verbatim
    for what, found, option in (
        ("exact continuation by random sampling", exact and exact["student"], ""),
        (
            "nearly exact continuation by random sampling",
            near and near["student"].sampled,
            " --near-verbatim 0.1",
        ),
    ):
        if not found and estimated and not option:
            count = words.expected(estimated[max(estimated)])
            told = f"{count} different texts in {max(estimated):,} samples of each"
            yield what, "estimated", told
        elif not found:
            yield what, "no", f"run 'memaudit verify{option}'"
        else:
            n = max(found, key=int)
            # The search follows the likeliest near texts alone: its count is a lower bound.
            least = "at least " if option else ""
            revealed = number_of(found[n], "example")
            yield what, "tested", f"{least}{revealed} in {int(n):,} samples of each"


def _residual(report: Report, release: Release) -> Table:
    unfamiliar = report.run.risks.unfamiliar
    policy = "none was given" if report.gate is None else plain(gate_sentence(report.gate))
    return facts(
        {
            "expected, with a 95% interval": words.expected(report.run.risks.expected),
            "unlike the classifier's training data": words.percent_by_name(unfamiliar)
            or "at most 5% of the rows in any feature",
            "policy": policy,
            "why it is acceptable": _given(release.residual_risk),
            "owner": _given(release.owner, 200),
            "test again": _given(release.test_again, 200),
        }
    )


def _digests(report: Report) -> dict[str, Sentence | Cell]:
    inputs, names = report.run.manifest.inputs, report.run.manifest.names
    return {
        "run": name(inputs.fingerprint),
        "texts of the corpus": name(inputs.texts_digest),
        "teacher": name(inputs.teacher_digest),
        "classifier": name(f"{names.classifier}, {names.classifier_digest}"),
        "policy": ""
        if report.gate is None or report.gate.policy.digest is None
        else name(report.gate.policy.digest),
        "memaudit": name(names.memaudit_version),
    }
