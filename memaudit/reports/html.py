"""A page as one HTML document that needs no network, no server and no script to be read."""

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from memaudit.reports.charts import draw, draw_bar
from memaudit.reports.page import (
    Bullets,
    Figures,
    Page,
    Paragraph,
    Table,
    as_cell,
    pieces,
    plain,
)
from memaudit.text import safe_text


def render_html(page: Page) -> str:
    """Return a document that loads nothing and runs only its own script.

    Every text that the template writes passes `safe_text` and its escaping. The same page gives the
    same bytes.
    """
    source = files("memaudit.reports").joinpath("assets")
    style, script, template = (
        source.joinpath(name).read_text(encoding="utf-8")
        for name in ("style.css", "script.js", "page.html.jinja")
    )
    environment = Environment(
        autoescape=True,
        # Of a plain text alone: what is markup, made of safe text by a macro, stays as it is.
        finalize=lambda value: safe_text(value, len(value)) if type(value) is str else value,
        # A misspelt name in the template is an error, and no empty place in a report.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"pieces": pieces, "plain": plain, "cell": as_cell}
    environment.tests |= {
        kind.__name__.lower(): lambda block, kind=kind: isinstance(block, kind)
        for kind in (Bullets, Figures, Paragraph, Table)
    }
    return environment.from_string(template).render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        # Nothing is loaded but its own style and script, told by their hashes: with a nonce the
        # same page would have other bytes each time.
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        draw=lambda chart: Markup(draw(chart)),
        draw_bar=lambda bar: Markup(draw_bar(bar)),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
