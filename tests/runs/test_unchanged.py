"""Risk tables that were changed after the run: said, and read by nobody."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.finished_runs import finish_run
from support.gated import TEXTS, make_run, shipped

from memaudit.cli.main import run as run_command
from memaudit.runs.run import read_run
from memaudit.runs.unchanged import changed_tables

KINDS = ("parquet", "jsonl", "csv")


def table(folder, kind):
    """Return the run of a corpus with a bad row and odd ids, its table in one format."""
    ids = ["=SUM(A1)", "'quoted", 'a,"b"', "é", "\n=two\r\nlines", "-\0", "'=x", "＝x"]
    rows = [{"id": i, "text": text} for i, text in zip(ids, TEXTS[-9:-1], strict=True)]
    rows += [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    finish_run(corpus, folder / "run", table_format=kind, on_bad_row="skip")
    return folder / "run"


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_as_it_was_written_matches_its_run(kind, tmp_path):
    """No alarm without a reason, whatever the ids are."""
    assert changed_tables(read_run(table(tmp_path, kind))) == []


def change_parquet(path, change):
    """Rewrite a table with one value changed, or a row less or more."""
    found = pq.read_table(path)
    if change == "a row less":
        found = found.slice(1)
    elif change == "a row more":
        found = pa.concat_tables([found, found.slice(0, 1)])
    else:
        column = found.column(change).to_pylist()
        column[2] = 0.5 if change == "probability" else not column[2]
        place = found.schema.get_field_index(change)
        found = found.set_column(place, found.schema.field(place), [column])
    pq.write_table(found, path)


def change_text(path, change):
    """The same for a table of lines."""
    lines = path.read_text().splitlines(keepends=True)
    if change == "a row less":
        lines.pop()
    elif change == "a row more":
        lines.append(lines[-1])
    elif path.suffix == ".jsonl":
        row = json.loads(lines[2])
        row[change] = 0.5 if change == "probability" else not row[change]
        lines[2] = json.dumps(row) + "\n"
    else:
        new = r"0.5,\2" if change == "probability" else r"\1,Maybe"
        lines = [re.sub(r"(\d\.[\de-]+),(True|False)", new, line) for line in lines]
    path.write_text("".join(lines))


CHANGES = {
    "probability": None, "flagged": None, "a row less": None, "a row more": None,
    "cut": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, _: path.write_bytes(b""),
    "nested": lambda path, _: path.write_bytes(b'{"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}\n"),
    "one long line": lambda path, _: path.write_bytes(b'{"id":"' + b"a" * 3_000_000 + b'"}\n'),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_table_that_was_changed_is_named(kind, change, tmp_path):
    """Someone may filter by it, or send it on."""
    folder = table(tmp_path, kind)
    make = CHANGES[change] or (change_parquet if kind == "parquet" else change_text)

    make(folder / f"risk.{kind}", change)

    assert changed_tables(read_run(folder)) == [f"risk.{kind}"]


def test_gate_and_report_say_so_and_go_by_the_run(tmp_path, monkeypatch, capsys):
    """A table in which a finding was made harmless."""
    shipped(monkeypatch, tmp_path / "shipped")
    _, folder = make_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = pq.read_table(folder / "risk.parquet")
    place = found.schema.get_field_index("probability")
    zeros = [None if p is None else 0.0 for p in found.column("probability").to_pylist()]
    pq.write_table(
        found.set_column(place, found.schema.field(place), [zeros]), folder / "risk.parquet"
    )

    assert run_command(["gate", "--run", "run", "--max-rate", "0"]) == 1
    assert "Do not rely on risk.parquet" in " ".join(capsys.readouterr().out.split())
    assert run_command(["report", "--run", "run", "--html", "page.html"]) == 0
    assert "risk.parquet was changed" in capsys.readouterr().err
    assert "risk.parquet was changed" in (tmp_path / "page.html").read_text()
