"""The page as a browser shows it: quiet, alone, sortable, readable on any screen."""

import base64
import http.server
import json
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.devtools import CHROMIUM, open_browser
from support.fake_run import ByteWiseEngine, audit_with
from support.hostile import hostile_names
from support.report_runs import made_up_run

from memaudit.reports.html import render_html
from memaudit.reports.report import make_report
from memaudit.reports.report_page import report_page
from memaudit.runs.run import read_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

_AXE = find_spec("axe_core_python")
_ORDER = "[...document.querySelectorAll('#examples tbody tr')].filter(row => !row.hidden)"
_SKELETON = """
JSON.stringify([...document.querySelectorAll('*')].map(element =>
  [element.tagName, element.namespaceURI, element.getAttributeNames()]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A real run, of a fake engine, for its manifest."""
    out = tmp_path_factory.mktemp("runs") / "run"
    audit_with(ByteWiseEngine(), out)
    return read_run(out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser with an empty profile."""
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(run, browser, tmp_path):
    """The browser with the page of a made-up run of 300 rows."""
    file = tmp_path / "page.html"
    file.write_text(render_html(report_page(make_report(made_up_run(run.manifest)))))
    browser.look(width=1280, height=900)
    browser.go_to(file.as_uri())
    yield browser
    assert browser.complaints() == []
    assert browser.requests() == [file.as_uri()]


def click(page, name):
    """Press the button at the head of a column, and return how it is sorted now."""
    column = f"[...document.querySelectorAll('#examples th button')].find(b => b.textContent === {name!r})"
    page.evaluate(f"{column}.click()")
    return page.evaluate(f"{column}.parentElement.getAttribute('aria-sort')")


def column(page, i, of="dataset.value"):
    """The values of a column, from the top, of the rows that are shown."""
    return json.loads(page.evaluate(f"JSON.stringify({_ORDER}.map(row => row.cells[{i}].{of}))"))


def test_columns_sort_by_value_and_back(page):
    """`9%` comes before `10%`, whatever they look like as text."""
    assert click(page, "probability") == "descending"
    probabilities = [float(value) for value in column(page, 2)]
    assert probabilities == sorted(probabilities, reverse=True)

    assert click(page, "probability") == "ascending"
    assert [float(value) for value in column(page, 2)] == sorted(probabilities)

    assert click(page, "example") == "ascending"
    numbers = [
        int(text.split("-")[1].split("corpus")[0]) for text in column(page, 1, "textContent")
    ]
    assert numbers == sorted(numbers)
    assert page.evaluate("document.querySelectorAll('#examples [aria-sort]').length") == 1

    assert click(page, "#") == "ascending"
    assert [int(value) for value in column(page, 0)] == list(range(1, len(numbers) + 1))


def type_in(page, control, text):
    """Fill in a control as a person would, and return what is said of it."""
    page.evaluate(
        f"document.getElementById({control!r}).value = {text!r};"
        f"document.getElementById({control!r}).dispatchEvent(new Event('input'))"
    )
    return page.evaluate("document.getElementById('count').value")


def test_words_and_risk_narrow_the_table(page):
    """Who cleans a corpus looks for a file or an id."""
    assert type_in(page, "filter", "") == "196 of 196 shown"
    assert type_in(page, "filter", "ROW-1 corpus.jsonl:1").endswith(" of 196 shown")
    shown = column(page, 1, "textContent")
    assert shown
    assert all("row-1" in text for text in shown)

    type_in(page, "filter", "")
    type_in(page, "show", "risk")
    at_risk = [float(value) for value in column(page, 2)]
    assert at_risk
    assert min(at_risk) >= 0.5

    assert type_in(page, "filter", "nothing is called so") == "0 of 196 shown"
    assert type_in(page, "filter", "") != "0 of 196 shown"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_nothing_is_cut_off_and_letters_stand_out(page, width, height, dark):
    """No sideways scrolling, no letters too small or too faint, on a phone as on a desk."""
    page.look(width=width, height=height, dark=dark)

    assert page.evaluate("document.documentElement.scrollWidth") == width
    sizes = page.evaluate(
        "Math.min(...[...document.querySelectorAll('body *')].filter(e => e.textContent.trim())"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert sizes >= 12
    colors = json.loads(
        page.evaluate(
            "JSON.stringify([getComputedStyle(document.body).backgroundColor,"
            "...['body', '.quiet', 'a', '.worst .risk', 'caption', 'nav a'].map(name =>"
            "getComputedStyle(document.querySelector(name)).color)])"
        )
    )
    paper, *inks = [luminance(color) for color in colors]
    assert (paper < 0.1) == dark
    assert min((max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) for ink in inks) >= 4.5


def luminance(color):
    """Relative luminance as WCAG defines it, of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_paper_gets_twenty_rows_and_no_controls(page):
    """A reviewer signs what is printed: a few pages, with a place for the name."""
    page.look(width=800, height=1100, media="print")

    assert page.evaluate("getComputedStyle(document.getElementById('tools')).display") == "none"
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"
    shown = f"{_ORDER}.filter(row => getComputedStyle(row).display !== 'none').length"
    assert page.evaluate(shown) == 20
    assert page.evaluate("getComputedStyle(document.querySelector('.sign')).display") == "grid"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0


@pytest.fixture
def page_with_text(run, browser, tmp_path):
    """The browser with a page that shows 400 characters of each example."""
    report = make_report(made_up_run(run.manifest))
    report = replace(report, row_texts={row.row: "four " * 80 for row in report.worst})
    file = tmp_path / "page.html"
    file.write_text(render_html(report_page(report)))
    browser.look(width=390, height=844)
    browser.go_to(file.as_uri())
    return browser


def test_the_first_screen_of_a_phone_answers_what_is_asked_first(page_with_text):
    """Who approves a release may read no further."""
    assert page_with_text.evaluate("document.querySelectorAll('.answers dt').length") == 5
    bottom = "document.querySelector('.answers').getBoundingClientRect().bottom"
    assert page_with_text.evaluate(bottom) <= 844


def test_the_page_prints_on_six_sheets_at_most(page_with_text):
    """However much text was asked for: what is signed is read."""
    printed = page_with_text.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)

    pdf = base64.b64decode(printed["data"])
    assert 1 <= pdf.count(b"/Type /Page\n") <= 6


@pytest.mark.skipif(_AXE is None, reason="axe-core-python is not installed")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_an_accessibility_checker_finds_nothing(page_with_text, width, dark):
    """It looks at what nobody here would: roles, names, order and contrast of every element."""
    page_with_text.look(width=width, height=844, dark=dark)
    page_with_text.evaluate((Path(_AXE.origin).parent / "axe.min.js").read_text() + ";0")
    page_with_text.evaluate(
        "document.querySelectorAll('details').forEach(each => each.open = true)"
    )
    found = page_with_text.send(
        "Runtime.evaluate",
        expression="axe.run().then(found => JSON.stringify(found.violations))",
        awaitPromise=True,
        returnByValue=True,
    )

    assert json.loads(found["result"]["value"]) == []


def test_a_server_is_asked_for_the_page_alone(run, browser):
    """Not even for an icon."""
    asked = []
    content = render_html(report_page(make_report(made_up_run(run.manifest)))).encode()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.go_to(f"http://127.0.0.1:{server.server_port}/page.html")
        browser.evaluate("document.title")
        server.shutdown()

    assert asked == ["/page.html"]
    assert browser.complaints() == []


def test_hostile_names_build_no_elements(run, browser, tmp_path):
    """What a real parser makes of the page is the same for hostile names as for tame ones."""
    names = hostile_names(500, seed=1)
    skeletons = []
    for ids in (names, [f"tame-{i}" for i in range(500)]):
        file = tmp_path / "page.html"
        report = make_report(
            made_up_run(run.manifest, 750, ids=ids, addresses=ids[::-1], teacher=ids[0]),
            n_worst=500,
        )
        file.write_text(render_html(report_page(report)))
        browser.go_to(file.as_uri())
        skeletons.append(browser.evaluate(_SKELETON))
        assert browser.requests() == [file.as_uri()]
        assert browser.complaints() == []

    assert skeletons[0] == skeletons[1]
