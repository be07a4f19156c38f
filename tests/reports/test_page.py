"""A page says the same everywhere, fits where it is shown, and commands nobody."""

import io
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from support.ci_commands import SYSTEMS, hostile_lines
from support.hostile_gates import make_finding, make_result

from memaudit.reports.ci import SourceRoot, render_junit, render_sarif
from memaudit.reports.markdown import render_markdown
from memaudit.reports.page import Cell, Column, Page, Section, Table, Words, name, numbers
from memaudit.reports.terminal import print_page
from memaudit.reports.words import cleaned_name, percent


def page_of(rows):
    """A page with one table."""
    columns = (Column("id", "anywhere"), *numbers("n"), Column("why"))
    table = Table(columns=columns, rows=tuple(rows))
    return Page(title="t", verdict="A verdict.", sections=(Section(blocks=(table,)),))


def printed(page, monkeypatch, width=80, color="never"):
    """What a terminal of this width shows."""
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    print_page(page, stream, color=color)
    return stream.getvalue()


@pytest.mark.parametrize("n", [500, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_no_ci_system_finds_a_command_in_a_page(system, n, monkeypatch):
    """Thousands of strings as names, quotes, notes and verdicts, on a terminal and in Markdown."""
    obeys, lines = SYSTEMS[system], list(islice(hostile_lines(system, seed=2), n))

    for start in range(0, len(lines), 500):
        batch = lines[start : start + 500]
        rows = [(name(line), line, Cell(text=line, detail=line, quote=line)) for line in batch]
        table = Table(
            columns=(Column("id", "anywhere"), Column("x"), Column("why")), rows=tuple(rows)
        )
        page = Page(
            title=batch[0],
            verdict=(Words(batch[1], "risk"), batch[2]),
            lead=batch[3],
            sections=(Section(title=batch[4], anchor="a", blocks=(table,)),),
            notes=tuple(batch[5:50]),
        )
        assert not obeys(printed(page, monkeypatch))
        assert not obeys(printed(page, monkeypatch, width=33, color="always"))
        assert not obeys(render_markdown(page))


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_ci_system_finds_a_command_in_a_gate_for_other_programs(system):
    """SARIF and JUnit files are printed by jobs that want to see what went wrong."""
    for line in islice(hostile_lines(system, seed=3), 300):
        result = make_result([make_finding(line, line, line)], source=line, reasons=(line,))

        assert not SYSTEMS[system](render_sarif(result, root=SourceRoot("/repo")))
        assert not SYSTEMS[system](render_junit(result))


WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=12), min_size=1, max_size=12)


@given(rows=st.lists(st.tuples(st.integers(0, 10**9), WORDS), min_size=1, max_size=5))
def test_no_word_of_a_table_is_broken_in_80_columns(rows):
    """A broken word reads as two."""
    with pytest.MonkeyPatch.context() as patch:
        page = page_of((f"row-{n}", f"{n:,}", " ".join(words)) for n, words in rows)
        text = printed(page, patch)

    shown = text.split()
    assert all(word in shown for n, words in rows for word in (f"row-{n}", f"{n:,}", *words))
    assert max(map(cell_len, text.splitlines())) <= 80
    assert not any(line.endswith(" ") for line in text.splitlines())


@pytest.mark.parametrize("color", ["always", "never"])
def test_nothing_is_padded(color, monkeypatch):
    """A log or a diff shows trailing spaces."""
    text = printed(page_of([("a", "1", "why"), ("b", "2", "")]), monkeypatch, color=color)

    assert not any(line.replace("\x1b[0m", "").endswith(" ") for line in text.splitlines())


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (None, "–"),
        (0.0, "0.0%"),
        (0.0004, "<0.1%"),
        (0.419, "41.9%"),
        (0.99962, ">99.9%"),
        (1.0, "100.0%"),
    ],
)
def test_what_is_not_certain_never_reads_as_certain(share, shown):
    """Nobody asks twice about 100.0%."""
    assert percent(share) == shown


@pytest.mark.parametrize(
    ("source", "cleaned"),
    [
        ("data/corpus.jsonl.gz", "cleaned.jsonl.gz"),
        ("corpus.parquet", "cleaned.parquet"),
        ("folder", "cleaned"),
    ],
)
def test_the_next_command_names_an_output_that_filter_takes(source, cleaned):
    """It refuses another ending than the corpus has: the reader would meet an error."""
    assert cleaned_name(source) == cleaned


def test_markdown_leaves_out_what_only_html_shows():
    """Bars and folded numbers would be noise in a pull request."""
    columns = (Column("id"), Column("x", is_minor=True))
    folded = Table(title="Folded", columns=columns, rows=(("a", "b"),), is_folded=True)
    shown = Table(title="Shown", columns=columns, rows=(("c", "d"),))
    page = Page(title="t", verdict="v", sections=(Section(blocks=(folded, shown)),))

    text = render_markdown(page)
    assert "Folded" not in text
    assert "| id |\n|---|\n| c |" in text
