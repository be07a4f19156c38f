"""What a page says beyond the run: the classifier's card, and what a real distillation showed."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from support.fake_run import ByteWiseEngine, audit_with
from support.report_runs import made_up_run

from memaudit.classifier import SampledRisk, load_classifier, shipped_classifiers_dir
from memaudit.evaluation import Rate
from memaudit.labels import NearVerbatim, VerificationResult, match_run
from memaudit.reports.annex import Release, annex_page
from memaudit.reports.charts import draw_alone
from memaudit.reports.html import render_html
from memaudit.reports.markdown import render_markdown
from memaudit.reports.report import OWN, find_card, make_report, read_card
from memaudit.reports.report_evidence import extraction_sets, reciters_of
from memaudit.reports.report_page import report_page
from memaudit.runs.run import read_run

N_ROWS = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A made-up run of 60 rows."""
    out = tmp_path_factory.mktemp("runs") / "run"
    audit_with(ByteWiseEngine(), out)
    return made_up_run(read_run(out).manifest, N_ROWS)


@pytest.fixture(scope="module")
def card():
    """Of the shipped classifier that needs the teacher alone."""
    digest = load_classifier(shipped_classifiers_dir() / "teacher").digest
    return find_card("teacher", digest)


@pytest.fixture(scope="module")
def verified(run):
    """Rows 0 to 39 were looked at: a student recites the even ones, no other model does."""
    import pyarrow as pa

    looked_at = (np.arange(N_ROWS) < 40) & run.is_scored
    recited = np.where(looked_at, np.arange(N_ROWS) % 2 == 0, None).tolist()
    nothing = np.where(looked_at, False, None).tolist()
    examples = np.where(looked_at, np.arange(N_ROWS), None).tolist()
    table = pa.table(
        {
            **{name: run.rows.column(name) for name in ("id", "row", "address")},
            "outcome": np.where(looked_at, "scored", "held_out").tolist(),
            "extracted_by_teacher": nothing,
            "extracted_by_baseline": nothing,
            "extracted_by_student": recited,
            "example": pa.array(examples, type=pa.int64()),
        }
    )
    n, n_recited = int(looked_at.sum()), sum(map(bool, recited))
    names = ("easy", "inherited", "baseline_and_student", "teacher_only", "baseline_only")
    result = VerificationResult(
        settings={"seed": 0},
        models={"teacher": "t", "student": "s"},
        outcomes={"scored": n, "held_out": N_ROWS - n},
        examples=n,
        held_out=0,
        extracted={
            "teacher": Rate.of_counts(0, n),
            "baseline": Rate.of_counts(0, n),
            "student": Rate.of_counts(n_recited, n),
        },
        extracted_rows={"teacher": 0, "baseline": 0, "student": n_recited},
        sets=dict.fromkeys(names, 0) | {"new": n_recited, "none": n - n_recited},
        student_in_easy=Rate.of_counts(0, n_recited),
        inherited=Rate.of_counts(0, 0),
        perplexity={"teacher": 2.0, "baseline": None, "student": 3.0},
        held_out_extracted={"teacher": 0, "baseline": 0, "student": 0},
        label_scan=None,
        generation=None,
        comparison=None,
        labels_digest="0" * 64,
        seconds=1.0,
    )
    return match_run(result, table, run)


def test_the_card_is_the_classifiers_own_or_none(card):
    """Figures of a namesake would lend trust that nobody earned."""
    assert next(iter(card.methods)) == OWN
    own = card.methods[OWN]["pr_auc"]
    assert 0 < own.interval.low < own.value < own.interval.high < 1
    assert 0 < card.prevalence < 1
    assert find_card("teacher", "0" * 64) is None
    assert find_card("nobody's", "0" * 64) is None


def test_the_page_shows_the_card(run, card):
    """A reviewer must see how often such predictions were right, and what else would do."""
    page = render_html(report_page(replace(make_report(run), card=card)))

    assert f"Tested on {len(card.runs)} distillations that it never saw" in page
    assert "exposure alone" in page
    assert page.count('class="dot"') == len(card.runs)
    assert 'id="precision-recall-title"' in page
    assert "| average precision (PR-AUC) | 0." in render_markdown(
        report_page(replace(make_report(run), card=card))
    )


def test_a_card_without_a_curve_draws_none(run, card, tmp_path):
    """Cards of an earlier memaudit hold the operating point alone."""
    assert card.curve[0][0] == 0
    assert card.curve[-1][0] == 1
    document = json.loads((shipped_classifiers_dir() / "teacher" / "card.json").read_text())
    del document["curves"]
    (tmp_path / "card.json").write_text(json.dumps(document))

    without = read_card(tmp_path / "card.json", document["digest"])

    page = render_html(report_page(replace(make_report(run), card=without)))
    assert 'id="precision-recall-title"' not in page


def test_predicted_is_compared_with_found_on_what_was_looked_at(run, verified):
    """Held-out rows have no label, so they prove nothing."""
    looked_at = [row for row in range(40) if run.is_scored[row]]
    flagged = {row for row in looked_at if run.is_flagged[row]}
    recited = {row for row in looked_at if row % 2 == 0}

    assert (verified.comparison.recall.count, verified.comparison.recall.of) == (
        len(flagged & recited),
        len(recited),
    )
    assert (verified.comparison.precision.count, verified.comparison.precision.of) == (
        len(flagged & recited),
        len(flagged),
    )
    assert verified.comparison.expected == pytest.approx(run.probabilities[looked_at].sum())
    assert reciters_of(verified, 0) == ("student",)
    assert reciters_of(verified, 1) == ()
    assert reciters_of(verified, 50) is None


def test_what_was_missed_is_named_the_least_expected_first(run, verified):
    """Those are where the classifier is wrong, so they are what one looks at."""
    probabilities = [row.probability for row in verified.comparison.missed]

    assert probabilities == sorted(probabilities)
    assert all(
        row.row % 2 == 0 and not run.is_flagged[row.row] for row in verified.comparison.missed
    )
    assert len(verified.comparison.missed) == min(
        20, verified.comparison.recall.of - verified.comparison.recall.count
    )


def test_sets_are_disjoint_and_add_up(verified):
    """Every example is in one row of the table."""
    sets = extraction_sets(verified.result)

    assert sum(n for _, _, n in sets) == verified.result.examples
    assert len({roles for _, roles, _ in sets}) == 8


def test_page_and_markdown_show_the_verification(run, verified, card):
    """What really happened stands beside what was expected."""
    page = report_page(replace(make_report(run, verified=verified), card=card))
    html, markdown = render_html(page), render_markdown(page)

    assert "What a real distillation showed" in html
    assert '<option value="student">' in html
    assert f"The student recites {verified.result.extracted['student'].count} of" in markdown


def test_every_chart_of_the_page_is_a_file_of_its_own(run, card):
    """A slide wants one chart: it is the page's, with colours of its own, and always the same."""
    charts = report_page(replace(make_report(run), card=card)).charts

    assert [chart.name for chart in charts] == ["risk", "budget", "precision-recall", "calibration"]
    for chart in charts:
        drawn = draw_alone(chart)
        assert drawn == draw_alone(chart)
        root = ElementTree.fromstring(drawn)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert chart.title in "".join(root.itertext())
        assert root.find("{http://www.w3.org/2000/svg}style") is not None


def sampling(classifier):
    """The classifier, fitted for samples as well."""
    found = SampledRisk(
        intercept=1.0, slope=0.5, nats_slope=0.5, interaction=0.0, count_log_sds=((1000, 0.3),)
    )
    return msgspec.structs.replace(classifier, sampled=found)


def test_the_annex_says_what_sampling_reveals_or_how_to_find_out(run, verified):
    """Verify knows it: a reviewer must not read that it is not covered."""
    counts = {"1": 3, "1000": 7}
    near = {"student": NearVerbatim(sampled={"1": 4, "1000": 9}, expected_exact=1, expected_near=2)}
    known = replace(verified.result, sampled={"student": counts}, near_verbatim=near)

    def told(verified):
        report = replace(make_report(run), verified=verified)
        return render_markdown(annex_page(report, Release()))

    assert "random sampling | no | run 'memaudit verify' |" in told(None)
    estimated = replace(run, risks=replace(run.risks, classifier=sampling(run.risks.classifier)))
    page = render_markdown(annex_page(make_report(estimated), Release()))
    assert "random sampling | estimated | " in page
    assert "different texts in 1,000 samples of each |" in page
    assert "| no | run 'memaudit verify --near-verbatim 0.1' |" in told(verified)
    page = told(replace(verified, result=known))
    assert "| exact continuation by random sampling | tested | 7 examples in 1,000 samples" in page
    assert "| tested | at least 9 examples in 1,000 samples of each |" in page


def test_what_the_teacher_was_not_asked_is_not_called_tested(run):
    """A cascade spares it most of a corpus: it may recite that, too."""
    at = run.fates.column_names.index("outcome")
    outcomes = ["screened", *run.fates["outcome"].to_pylist()[1:]]
    spared = replace(run, fates=run.fates.set_column(at, "outcome", pa.array(outcomes)))
    n_read = spared.outcomes["scored"]

    annex, whole = (render_markdown(annex_page(make_report(r), Release())) for r in (spared, run))

    assert f"| tested in part | {run.risks.n_recited} of {n_read} examples that it read |" in annex
    assert "| exact continuation by the teacher | tested |" in whole
    assert f"of the {n_read} that it read" in render_html(report_page(make_report(spared)))
