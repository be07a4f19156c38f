"""Markdown: a comment or a job's summary, in which nothing of a corpus is markup."""

import re

import pytest
from support.hostile_gates import CONTROL, hostile_results, make_finding, make_result

from memaudit.reports.gate import gate_markdown
from memaudit.reports.markdown import code_span, cut

_OURS = {
    "heading_open", "heading_close", "inline", "table_open", "table_close", "thead_open",
    "thead_close", "tbody_open", "tbody_close", "tr_open", "tr_close", "th_open", "th_close",
    "td_open", "td_close", "paragraph_open", "paragraph_close", "bullet_list_open",
    "bullet_list_close", "list_item_open", "list_item_close",
}  # fmt: skip


def test_the_verdict_comes_first():
    """A reader of a hundred comments reads one line of each."""
    text = gate_markdown(make_result([make_finding()]))

    assert text.splitlines()[0] == "## memaudit gate: ❌ fail"
    assert "| MEM001 flagged-rate | ❌ fail | `5 examples of 10" in text
    assert "| `row-1` | `data/corpus.jsonl:17` | predicted | 87.5% | `occurs 3 times` |" in text


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("a", "`a`"),
        ("", "` `"),
        ("  ", "` `"),
        ("a`b|c", "`a\\u0060b\\u007cc`"),
        ("\n", "`\\u000a`"),
    ],
)
def test_a_span_ends_where_it_should(text, span):
    """A backtick or a pipe would let the rest out."""
    assert code_span(text) == span


def test_a_summary_fits():
    """GitHub drops one that is too large, all of it."""
    text = "".join(f"line {i}\n" for i in range(10_000))

    assert cut(text, 10**6) == text
    shorter = cut(text, 5000)
    assert len(shorter.encode()) <= 5000
    assert text.startswith(shorter.removesuffix("\n_cut: there is more_\n"))


def test_no_hostile_string_is_markup():
    """10,000 of them: no link, image, heading, HTML or table cell that is not ours."""
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    for result in hostile_results():
        text = gate_markdown(result)

        assert not CONTROL.search(text)
        assert not re.search(r"^::", text, re.MULTILINE)
        tokens = parser.parse(text)
        assert {token.type for token in tokens} <= _OURS
        inside = {child.type for token in tokens for child in token.children or ()}
        assert inside <= {"text", "code_inline"}
        assert sum(token.type == "heading_open" for token in tokens) == 2
        n_cells = sum(token.type == "td_open" for token in tokens)
        assert n_cells == 3 * len(result.rules) + 5 * min(50, len(result.findings))
        outside = [
            child.content
            for token in tokens
            for child in token.children or ()
            if child.type == "text"
        ]
        assert not re.search(r"evil|alert|pwned|everyone|smile", " ".join(outside))
