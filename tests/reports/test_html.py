"""The page: true, whole, and the same page whatever the names in it try."""

import base64
import hashlib
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
from markdown_it import MarkdownIt
from support.fake_run import ByteWiseEngine, audit_with
from support.hostile import PIECES, hostile_names
from support.report_runs import made_up_run, replace_names, with_rows

from memaudit.filtering.selection import FilterOptions, select_rows
from memaudit.reports.html import render_html
from memaudit.reports.markdown import render_markdown
from memaudit.reports.report import ReasonCount, budgets, histogram, make_report, remedies
from memaudit.reports.report_page import report_page
from memaudit.runs.run import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A real run, of a fake engine."""
    out = tmp_path_factory.mktemp("runs") / "run"
    audit_with(ByteWiseEngine(), out)
    return read_run(out)


class Skeleton(HTMLParser):
    """The elements and attributes of a page, without what is in them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}",))

    def handle_comment(self, data):
        self.tags.append(("!--",))

    def handle_decl(self, decl):
        self.tags.append(("!", decl))

    def unknown_decl(self, data):
        self.tags.append(("![", data))

    def handle_data(self, data):
        self.text.append(data)


def attributes(page, tag):
    """The attributes of every element with that tag."""
    found = []

    class Finder(HTMLParser):
        def handle_starttag(self, name, attrs):
            if name == tag:
                found.append(dict(attrs))

    Finder().feed(page)
    return found


def test_the_verdict_is_the_headline(run):
    """Who opens it wants one sentence."""
    page = render_html(report_page(make_report(run)))

    (headline,) = re.findall(r"<h1>(.*?)</h1>", page)
    assert headline.startswith("A student distilled from fake is expected to memorize ")
    assert " of 95 examples (" in headline


def test_the_policy_allows_its_own_style_and_script_and_nothing_else(run):
    """A hash that is off by a line break would leave a page without style."""
    page = render_html(report_page(make_report(run)))

    (policy,) = [tag["content"] for tag in attributes(page, "meta") if "http-equiv" in tag]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_nothing_is_loaded_or_linked_from_elsewhere(run):
    """It is read on machines without a network, and must tell nobody that it is read."""
    page = render_html(report_page(make_report(run)))

    tags = Skeleton(page).tags
    names = {name for _, *attrs in tags for group in attrs for name in group}
    assert not names & {"src", "srcset", "style", "action", "xlink:href", "data", "poster"}
    assert all(tag["href"].startswith("#") for tag in attributes(page, "a"))
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag[0] for tag in tags}
    assert "://" not in page


def test_every_link_inside_leads_somewhere(run):
    """A dead link in a contents list looks like a missing part."""
    page = render_html(report_page(make_report(run)))

    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {tag["href"][1:] for tag in attributes(page, "a")} <= set(ids)
    labels = re.findall(r'aria-labelledby="([^"]+)"', page)
    assert {label for group in labels for label in group.split()} <= set(ids)


def test_a_screen_reader_finds_its_way(run):
    """Landmarks, one first heading, no jump in levels, a caption for every table."""
    page = render_html(report_page(make_report(run)))

    tags = [tag[0] for tag in Skeleton(page).tags]
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert {"header", "nav", "main", "footer"} <= set(tags)
    assert tags.count("table") == tags.count("caption")
    charts = [tag for tag in attributes(page, "svg") if tag.get("role") == "img"]
    others = [tag for tag in attributes(page, "svg") if "aria-hidden" in tag]
    assert charts
    assert all("aria-labelledby" in chart for chart in charts)
    assert len(charts) + len(others) + page.count('viewBox="0 0 1000 1000"') == page.count("<svg")


def test_numbers_are_there_for_machines(run):
    """What a page shows can be read back, without ids and addresses."""
    report = make_report(run)
    page = render_html(report_page(report))

    source = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', page)[1]
    assert json.loads(source) == report.document()
    assert "id-" not in source


def test_histogram_and_budgets_add_up(run):
    """Every scored row is in one bar; dropping nothing leaves what the headline says."""
    bins, left = histogram(run.risks), budgets(run.risks)

    assert sum(each.rows for each in bins) == run.outcomes["scored"]
    assert sum(each.rows for each in bins if each.flagged) == run.risks.n_flagged
    assert left[0].rows == 0
    assert left[0].left == run.risks.expected
    means = [budget.left.mean for budget in left]
    assert means == sorted(means, reverse=True)
    assert run.risks.n_flagged in [budget.rows for budget in left]


def test_what_is_left_is_what_is_expected_of_the_rest(run):
    """The curve must be what an audit of the filtered corpus would say, texts being equal."""
    run = made_up_run(run.manifest, 600)

    probabilities = np.sort(run.probabilities[run.is_scored])[::-1]
    for budget in budgets(run.risks):
        assert budget.left.mean == pytest.approx(probabilities[budget.rows :].sum())


def test_worst_examples_come_once_and_riskiest_first(run):
    """Copies of one text would fill the table."""
    report = make_report(made_up_run(run.manifest, 3000), n_worst=10_000)

    probabilities = [row.probability for row in report.worst]
    assert len(report.worst) == 500
    assert probabilities == sorted(probabilities, reverse=True)
    assert len({row.row for row in report.worst}) == 500


def test_reasons_are_counted_without_the_counts_in_them(run):
    """`occurs 2 times` and `occurs 3 times` are one reason."""
    report = make_report(run)

    assert not any(re.search(r"occurs \d", count.reason) for count in report.reasons)
    assert all(0 < count.texts <= run.risks.n_flagged_texts for count in report.reasons)


def test_a_run_without_any_risk_has_a_page(run):
    """The best result must not be the one that fails."""
    classifier = run.risks.classifier
    strict = msgspec.structs.replace(classifier, threshold=0.999999)
    risks = replace(run.risks, classifier=strict)
    manifest = msgspec.structs.replace(run.manifest, classifier=strict)
    page = render_html(report_page(make_report(replace(run, risks=risks, manifest=manifest))))

    assert "None is at risk" in page
    assert "Why examples are at risk" not in page


def test_a_run_in_which_nothing_was_scored_has_a_page(run):
    """A cascade may leave every window out."""
    no_row = np.empty(0, dtype=np.int64)
    nothing = replace(run.risks, worst_windows=no_row, row_texts=no_row, X=run.risks.X[:0])
    empty = replace(
        run,
        risks=nothing,
        worst_windows=np.full(run.n_rows, -1),
        probabilities=np.full(run.n_rows, np.nan),
    )
    report = make_report(empty)

    assert "None is listed." in render_html(report_page(report))
    assert "expected to memorize 0.0 of 95 examples" in render_markdown(report_page(report))


def test_a_classifier_of_ones_own_is_told_to_have_no_card_at_hand(run):
    """Figures of another classifier would be worse than none."""
    assert "No card is at hand" in render_html(report_page(make_report(run)))


def test_unfamiliar_rows_are_told_before_the_numbers(run):
    """Out of range, a probability is no probability."""
    X = run.risks.X.copy()
    X[:, run.risks.feature_names.index("teacher_suffix_mean_logprob")] = -1000
    unlike = replace(run, risks=replace(run.risks, X=X))
    page = render_html(report_page(make_report(unlike)))

    assert "100% in teacher suffix mean logprob" in page
    assert page.index('id="unfamiliar"') < page.index('class="figures"')


def test_text_is_marked_and_only_there_if_it_was_asked_for(run):
    """A page that holds text of the corpus must say so at the top."""
    report = make_report(run)
    with_text = replace(report, row_texts={row.row: "CANARY <b>" for row in report.worst})

    assert "contains corpus text" not in render_html(report_page(report))
    page = render_html(report_page(with_text))
    assert page.index("This page contains corpus text.") < page.index("CANARY &lt;b&gt;")


def test_the_same_run_gives_the_same_page(run):
    """A page can be compared and signed."""
    assert render_html(report_page(make_report(run))) == render_html(report_page(make_report(run)))


def tame(text):
    """A name of the same use that tries nothing."""
    return re.sub(r"[^\w]", "x", text)


@pytest.mark.parametrize("n", [500, pytest.param(5_000, marks=pytest.mark.slow)])
def test_hostile_names_leave_the_skeleton_unchanged(run, n):
    """An id is data: no character of it may become an element, an attribute or a template."""
    names = hostile_names(n)
    for start in range(0, n, 500):
        batch = names[start : start + 500]
        pages = [
            render_html(
                report_page(
                    make_report(
                        made_up_run(
                            run.manifest, 750, ids=ids, addresses=ids[::-1], teacher=ids[0]
                        ),
                        n_worst=500,
                    )
                )
            )
            for ids in (batch, [tame(name) for name in batch])
        ]
        hostile, harmless = (Skeleton(page) for page in pages)
        assert hostile.tags == harmless.tags
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", pages[0])


def test_every_other_name_is_as_harmless(run):
    """Models, engines, versions, corpus options, reasons, texts: all come from files."""

    def page_with(texts):
        names = {"teacher": texts[0], "reference": texts[1], "memaudit_version": texts[10]}
        manifest = replace_names(run.manifest, **names)
        inputs = msgspec.structs.replace(
            manifest.inputs,
            corpus={text: text for text in texts},
            engine=texts[11],
            device=texts[12],
            versions={text: text for text in texts},
        )
        manifest = msgspec.structs.replace(manifest, inputs=inputs)
        report = make_report(with_rows(run, run.rows, manifest=manifest))
        report = replace(
            report,
            reasons=tuple(ReasonCount(text, 1, 1) for text in texts),
            row_texts=dict(
                zip((row.row for row in report.worst), itertools.cycle(texts), strict=False)
            ),
        )
        return Skeleton(render_html(report_page(report))).tags

    assert page_with(PIECES) == page_with([f"tame-{i}" for i in range(len(PIECES))])


@pytest.mark.slow
def test_a_million_rows_take_less_than_a_megabyte(run):
    """A page must be mailed and opened, whatever the corpus."""
    page = render_html(report_page(make_report(made_up_run(run.manifest, 1_000_000), n_worst=500)))

    assert len(page.encode()) < 1_000_000


def test_markdown_keeps_names_as_names(run):
    """A pull request shows it: an id must not become a heading, a cell, a mention or HTML."""

    def structure(names):
        report = make_report(
            made_up_run(run.manifest, 30, ids=names, addresses=names, teacher=names[3])
        )
        markdown = render_markdown(report_page(report))
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", markdown)
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown)
        return [(token.type, [child.type for child in token.children or ()]) for token in tokens]

    tame_structure = structure([f"tame-{i}" for i in range(20)])
    for start in range(0, 200, 20):
        assert structure(hostile_names(200)[start : start + 20]) == tame_structure


def test_a_remedy_leaves_what_the_filter_leaves(run):
    """Two commands that say different numbers of one choice are both in doubt."""
    made = made_up_run(run.manifest)
    nothing, once, cut, dropped = remedies(made)[:4]

    for remedy, strategy in ((once, "deduplicate"), (dropped, "drop")):
        selection = select_rows(made, FilterOptions(strategy=strategy), made.worst_windows)
        assert remedy.rows == made.n_rows - selection.is_removed.sum() < made.n_rows
    assert nothing.rows == cut.rows == made.n_rows

    windows = {window for window in made.worst_windows.tolist() if window >= 0}
    left = [
        made.risks.window_probabilities[window]
        for window in windows
        if made.risks.window_probabilities[window] < made.risks.classifier.threshold
    ]
    assert dropped.texts.mean == cut.texts.mean == pytest.approx(sum(left))
    assert once.texts.mean <= nothing.texts.mean == made.risks.expected_texts.mean
