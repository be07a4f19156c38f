"""Reports tell common text from what is sensitive; the run is made of arrays, no detector runs."""

import re
from dataclasses import replace

import numpy as np
import pytest
from support.fake_run import audit_rows
from support.fakes import make_classifier, make_models, make_rows
from support.report_runs import made_up_run, with_results

from memaudit.reports.html import render_html
from memaudit.reports.markdown import render_markdown
from memaudit.reports.predict import summary_page
from memaudit.reports.report import make_report
from memaudit.reports.report_page import report_page
from memaudit.reports.terminal import print_page
from memaudit.runs.folder import MANIFEST
from memaudit.runs.manifest import read_manifest
from memaudit.runs.options import AuditOptions
from memaudit.sensitivity import SENSITIVITY_COLUMNS, RowSensitivity, SensitivitySummary
from memaudit.windows import WindowShape

OPTIONS = AuditOptions(shape=WindowShape(4, 4), on_bad_row="skip")


@pytest.fixture
def run(tmp_path):
    """A run of 300 rows; the safest one holds a secret at risk, every tenth personal data."""
    models = make_models("recited!")
    audit_rows(
        make_rows("recited!", "unknown!"), models, make_classifier(), out=tmp_path, options=OPTIONS
    )
    plain = made_up_run(read_manifest(tmp_path / MANIFEST))
    values = np.zeros((plain.n_rows, len(SENSITIVITY_COLUMNS)))
    values[::10, SENSITIVITY_COLUMNS.index("personal_data")] = 1
    safest = int(np.nanargmin(plain.probabilities))
    for name in ("secrets", "secret_at_risk"):
        values[safest, SENSITIVITY_COLUMNS.index(name)] = 1
    risks = replace(plain.risks, sensitivity=RowSensitivity(values[plain.is_scored]))
    return replace(plain, risks=risks, sensitivity=RowSensitivity(values))


def test_a_secret_at_risk_leads_the_list_however_safe_it_looks(run):
    """What its own rule puts forward must not fall off the end of a list by probability."""
    report = make_report(run, n_worst=20)

    assert report.worst[0].holds[0] == "secret"
    assert not report.worst[0].flagged
    later = [row.probability for row in report.worst[1:]]
    assert later == sorted(later, reverse=True)


def test_the_page_names_filters_and_explains(run):
    """The reviewer who signs sees which of the rows at risk are more than boilerplate."""
    report = make_report(run, n_worst=20)

    page = render_html(report_page(report))

    assert run.sensitivity_summary.in_words(run.risks.n_flagged) in page
    assert '<option value="secret">' in page
    assert '<option value="personal">' in page
    assert re.search(r'<tr role="row" data-kind="rest secret">', page)
    assert page.count('<em class="badge">') == sum(len(row.holds) for row in report.worst)
    assert "names were not looked for" in page


def test_a_page_without_it_says_nothing_of_it(run):
    """No empty column, no chip that finds nothing."""
    risks = replace(run.risks, sensitivity=None)

    page = render_html(report_page(make_report(replace(run, risks=risks, sensitivity=None))))

    assert "secret" not in page.partition("</style>")[2].partition('<script type="application')[0]


def test_markdown_has_the_line_too(run):
    """It goes into pull requests, where most people read it."""
    report = make_report(run, n_worst=20)

    assert run.sensitivity_summary.in_words(run.risks.n_flagged) in render_markdown(
        report_page(report)
    )


@pytest.mark.parametrize("finds_names", [True, False])
def test_the_terminal_tells_it_in_one_line_and_what_was_not_looked_for(
    finds_names, capsys, monkeypatch
):
    """That names are missing is said, or their absence would be taken for a finding."""
    monkeypatch.setenv("COLUMNS", "400")
    result = audit_rows(
        make_rows("recited!", "unknown!"),
        make_models("recited!"),
        make_classifier(),
        options=OPTIONS,
    )
    found = SensitivitySummary(1, 2, 0, 1, 1, 1, finds_names)

    print_page(summary_page(with_results(result, sensitivity=found)), color="never")

    said = capsys.readouterr().out
    assert found.in_words(result.flagged) in said
    assert ("names were not looked for" in said) is not finds_names
