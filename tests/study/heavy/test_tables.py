"""A study's tables say what its document holds."""

import json
import re

from hypothesis import given
from hypothesis import strategies as st
from support.study_documents import judged, make_document

from study.heavy.classifier_tables import expected_against_found
from study.heavy.rate_tables import study_tables
from study.tables import StudyTable, markdown, with_interval


def tables(document=None):
    """All tables by name."""
    return {table.name: table for table in study_tables(document or make_document())}


def row(table, *labels):
    """The cells of the row with these labels, by header in one line."""
    headers = [column.replace("-\n", "-").replace("\n", " ") for column in table.columns]
    cells = next(row for row in table.rows if row[: len(labels)] == labels)
    return dict(zip(headers, cells, strict=True))


def test_every_table_has_as_many_cells_as_columns():
    """A shifted cell is a wrong number."""
    found = tables()

    assert list(found) == [
        "rates",
        "overlaps",
        "plans",
        "objectives",
        "perplexities",
        "classifiers",
        "other objectives",
        "transfer",
        "interventions",
    ]
    for table in found.values():
        assert {len(cells) for cells in table.rows} == {len(table.columns)}


def test_the_main_table_holds_rates_with_intervals():
    """3 families and 3 corpora, and all of them together."""
    table = tables(make_document({"olmo2 / wiki": {"soft": 15}}))["rates"]

    assert len(table.rows) == 10
    found = row(table, "olmo2 / wiki")
    assert found["examples"] == "2,000"
    assert found["teacher"] == "8.00\n8.00–8.00"
    assert found["soft"].startswith("1.50\n")
    low, high = row(table, "all")["soft"].split("\n")[1].split("–")
    assert float(low) < 1.94 < float(high)


def test_one_cell_alone_has_no_interval():
    """Resampling one cell would print an interval without width: a false promise."""
    document = make_document()
    document["rates"]["family and corpus"]["olmo2 / wiki"]["cells"] = 1

    assert row(tables(document)["rates"], "olmo2 / wiki")["soft"] == "2.00"
    assert row(tables(document)["overlaps"], "olmo2 / wiki")["hard / soft"] == "3.0"


def test_inheritance_compares_hard_with_soft_on_the_same_cells():
    """A cell without a hard student says nothing about the ratio."""
    document = make_document()
    first = document["cells"]["test-olmo2 / wiki-0"]
    first["counts"] = {k: v for k, v in first["counts"].items() if not k.startswith("hard")}
    first["counts"]["soft_inherited"] = 30

    found = row(tables(document)["overlaps"], "olmo2 / wiki")
    assert found["teacher-only"] == "90"
    assert found["hard / soft"].startswith("3.0")


def test_what_no_cell_has_is_a_dash():
    """Zero would be a finding."""
    document = make_document()
    for entry in document["rates"]["family and corpus"].values():
        entry["figures"]["hard_rate"] = {"value": None, "low": None, "high": None}
        del entry["counts"]["hard_inherited"]

    assert row(tables(document)["rates"], "olmo2 / wiki")["hard"] == "–"
    assert row(tables(document)["overlaps"], "olmo2 / wiki")["hard inherits"] == "–"


def test_classifiers_of_other_objectives_stand_apart():
    """They predict other students: a higher figure would not be a better classifier."""
    found = tables()

    assert [cells[0] for cells in found["other objectives"].rows] == ["teacher-hard"]
    assert "teacher-hard" not in {cells[0] for cells in found["classifiers"].rows}


def test_tables_do_not_depend_on_the_order_of_the_document():
    """The file is sorted, what a study returns is not."""
    document = make_document()

    assert study_tables(document) == study_tables(json.loads(json.dumps(document, sort_keys=True)))


def test_expected_is_held_against_found_where_enough_was_found():
    """1.3 expected and 1 found is no evidence; 20 expected and 10 found is."""
    found = row(tables()["transfer"], "teacher", "other family")

    assert expected_against_found(judged()["by_run"].values()) == [1.0, 2.0]
    assert (found["expected / found"], found["worst"], found["within 1.25"]) == (
        "1.50",
        "2.00",
        "1 of 2",
    )
    assert found["runs"] == "3"


def test_the_worst_ratio_is_the_farthest_from_one_in_either_direction():
    """Expecting a quarter is worse than expecting the double; expecting none is worst."""
    document = make_document()
    runs = document["classifiers"]["teacher"]["other family"]["by_run"]
    runs["a"]["expected"] = 2.5
    assert row(tables(document)["transfer"], "teacher", "other family")["worst"] == "0.25"

    runs["a"]["expected"] = 0.0
    assert row(tables(document)["transfer"], "teacher", "other family")["worst"] == "0.00"


def test_splits_that_could_not_be_fitted_are_named():
    """A missing row must not look like a forgotten one."""
    assert "teacher: olmo2" in " ".join(tables()["transfer"].notes)


def test_interventions_stand_below_what_they_are_compared_with():
    """Memorized before, after, and what that leaves."""
    table = tables()["interventions"]

    assert [cells[1] for cells in table.rows] == ["nothing", "flagged", "random", "deduplicated"]
    assert table.rows[1][2:] == ("25", "1", "5.0", "1", "0", "21.00")


def test_a_study_without_interventions_has_no_table_of_them():
    """A recipe may keep no models."""
    document = make_document()
    document["interventions"] = {}

    assert "interventions" not in tables(document)


def test_markdown_holds_numbers_with_their_intervals():
    """A figure without its interval looks more certain than it is."""
    lines = markdown(study_tables(make_document())).splitlines()

    assert "| qwen3 / prose | 2 | 2,000 | 8.00 (8.00–8.00) |" in " ".join(lines)
    assert "| teacher | as shipped | 3 | 0.980 (0.960–1.000) |" in " ".join(lines)


@given(st.text("ab|\\*`[]<>_\n", max_size=20))
def test_no_cell_breaks_a_markdown_table(text):
    """A name with a bar would shift every number after it."""
    table = StudyTable("t", "title", ("name", "value"), ((text, "1"),))

    rows = [line for line in markdown([table]).split("\n") if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in rows] == [3, 3, 3]


def test_a_figure_that_does_not_exist_is_a_dash():
    """None is not zero."""
    assert with_interval(None) == "–"
    assert with_interval({"value": None, "low": None, "high": None}) == "–"
    assert with_interval({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert (
        with_interval({"value": 0.5, "low": 0.25, "high": 1.0}, 1, scale=100) == "50.0\n25.0–100.0"
    )
