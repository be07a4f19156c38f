"""A study's tables say what its document holds, and where it is not what the paper found."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.study_documents import arm, judged, make_document

from memaudit.reports import study_findings as findings
from memaudit.reports.study import StudyTable, markdown, print_study, with_interval
from memaudit.reports.study_classifiers import expected_against_found
from memaudit.reports.study_tables import study_tables

AS_PAPER = {"soft": 10, "soft_in_easy": 10, "soft_inherited": 0}
"""Counts that contradict nothing."""


def tables(document=None):
    """All tables by name."""
    return {table.name: table for table in study_tables(document or make_document())}


def row(table, *labels):
    """The cells of the row with these labels, by header in one line."""
    headers = [column.replace("-\n", "-").replace("\n", " ") for column in table.columns]
    cells = next(row for row in table.rows if row[: len(labels)] == labels)
    return dict(zip(headers, cells, strict=True))


def shown(document, capsys, monkeypatch, tmp_path, width=120, color="never"):
    """What is printed for a document on a terminal of this width."""
    monkeypatch.setenv("COLUMNS", str(width))
    print_study(study_tables(document), tmp_path / "results.json", written=[], color=color)
    return capsys.readouterr().out


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


def test_nothing_is_called_a_contradiction_where_the_paper_is_confirmed():
    """The lines come from the data."""
    document = make_document(
        {
            f"{f} / {c}": AS_PAPER
            for f in ("gpt-neox", "olmo2", "qwen3")
            for c in ("mixed", "prose", "wiki")
        }
    )
    for group in document["rates"].values():
        for entry in group.values():
            entry["figures"]["hard_rate"] = entry["figures"]["soft_rate"]

    assert findings.about_rates(document) == []
    assert findings.about_overlaps(document) == []
    assert findings.about_objectives(document) == []
    assert findings.about_perplexities(document) == []
    assert findings.about_interventions(document) == []
    assert not any("zlib" in line for line in findings.about_classifiers(document))


def test_soft_students_above_the_baseline_are_told():
    """The paper's title finding does not hold there."""
    lines = findings.about_rates(make_document({"qwen3 / prose": {"soft": 60}}))

    assert "more than the baseline in qwen3 / prose (120 against 80)" in lines[0]
    assert "gpt-neox / wiki (0.50)" in lines[1]


def test_teachers_that_know_nearly_all_are_told():
    """What holds for an overfitted miniature need not hold at the paper's few percent."""
    document = make_document()
    document["rates"]["all"]["all"]["figures"]["teacher_rate"]["value"] = 0.4

    assert "recite 40% of the examples; there, 0.05% to 8.9%" in findings.about_rates(document)[0]


def test_hard_students_far_above_soft_ones_are_told():
    """The paper has both at the same rate."""
    document = make_document()
    document["rates"]["all"]["all"]["figures"]["hard_rate"]["value"] = 0.04

    assert "2.0 times" in findings.about_rates(document)[-1]


def test_students_that_leave_the_easy_examples_are_told():
    """The paper's share is 96 %."""
    changed = {"soft_in_easy": 8, "soft_inherited": 9}
    lines = findings.about_overlaps(make_document({"olmo2 / wiki": changed}))

    assert "olmo2 / wiki (40%)" in lines[0]
    assert "olmo2 / wiki (6 against 18)" in lines[1]


def test_heat_that_does_not_help_is_told():
    """Temperatures are compared in their own order, whatever the students' names."""
    document = make_document()
    cold, warm = document["objectives"]["soft"], document["objectives"]["soft-t4"]
    warm["figures"]["against_baseline"]["value"] = 1.2

    assert findings.temperatures(document) == {2.0: 0.5, 4.0: 1.2}
    lines = findings.about_objectives(document)
    assert "T = 4 (1.20)" in lines[0]
    assert "0.50 at T = 2, 1.20 at T = 4" in lines[1]
    cold["objective"]["cross_entropy_share"] = 0.5
    assert findings.temperatures(document) == {4.0: 1.2}


def test_a_document_without_objectives_has_no_temperatures():
    """Names of students are not parsed."""
    document = make_document()
    for entry in document["objectives"].values():
        del entry["objective"]

    assert findings.temperatures(document) == {}
    assert findings.about_objectives(document) == []


def test_classifiers_are_held_against_the_papers_figures():
    """Near chance for zlib, the four features below .9997, precision at another prevalence."""
    document = make_document()
    document["classifiers"]["zlib entropy alone"]["as shipped"] = judged(0.52)
    document["classifiers"]["the paper's four"]["as shipped"] = judged(0.9, 0.4, precision=0.2)

    lines = " ".join(findings.about_classifiers(document))
    assert "ROC-AUC of 0.520" in lines
    assert "ROC-AUC of 0.900 (there 0.9997)" in lines
    assert "0.20 at natural prevalence" in lines
    assert "PR-AUC 0.450 against 0.400" in lines


def test_worse_language_models_are_told():
    """Less memorization by learning less is no gain."""
    document = make_document()
    document["held_out_perplexity"]["soft"] = 25.0

    assert "25.00 against 22.00" in findings.about_perplexities(document)[0]


def test_interventions_that_fail_are_told():
    """The paper is left with 4 of 706, all new."""
    document = make_document()
    document["interventions"]["test-qwen3-prose"]["flagged"] = arm(25, 6, 1, though_dropped=2)

    lines = findings.about_interventions(document)
    assert "6 of 20" in lines[0]
    assert "2 examples" in lines[1]


def test_the_terminal_shows_the_main_tables_and_where_the_rest_is(capsys, monkeypatch, tmp_path):
    """Rates, classifiers and interventions; transfer is for the document."""
    output = shown(make_document(), capsys, monkeypatch, tmp_path, width=200)

    for title in ("Memorized by family", "Predicting the soft student", "Interventions"):
        assert title in output
    assert "Transfer" not in output
    assert f"results  {tmp_path / 'results.json'}" in output


@pytest.mark.parametrize("width", [80, 120])
def test_no_number_is_cut_by_a_narrow_terminal(capsys, monkeypatch, tmp_path, width):
    """0.9… could be anything: intervals go before digits do."""
    output = shown(make_document(), capsys, monkeypatch, tmp_path, width)

    assert "…" not in output
    assert max(map(len, output.splitlines())) <= max(width, len(str(tmp_path)) + 30)
    assert ("Intervals are left out" in output) == (width == 80)


def test_markdown_and_terminal_hold_the_same_numbers():
    """Both come from one table."""
    lines = markdown(study_tables(make_document())).splitlines()

    assert "| qwen3 / prose | 2 | 2,000 | 8.00 (8.00–8.00) |" in " ".join(lines)
    assert "| teacher | as shipped | 3 | 0.980 (0.960–1.000) |" in " ".join(lines)


@given(st.text("ab|\\*`[]<>_\n", max_size=20))
def test_no_cell_breaks_a_markdown_table(text):
    """A name with a bar would shift every number after it."""
    table = StudyTable("t", "title", ("name", "value"), ((text, "1"),))

    rows = [line for line in markdown([table]).split("\n") if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in rows] == [3, 3, 3]


def test_nothing_in_a_document_steers_the_terminal(capsys, monkeypatch, tmp_path):
    """A recipe from a stranger names its plans and cells."""
    document = make_document()
    groups = document["rates"]["family and corpus"]
    groups["\x1b[31mred\x1b[0m [bold]x"] = groups.pop("olmo2 / wiki")

    output = shown(document, capsys, monkeypatch, tmp_path)
    assert "\x1b" not in output
    assert "[bold]x" in output.replace("\n", "")


def test_a_figure_that_does_not_exist_is_a_dash():
    """None is not zero."""
    assert with_interval(None) == "–"
    assert with_interval({"value": None, "low": None, "high": None}) == "–"
    assert with_interval({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert (
        with_interval({"value": 0.5, "low": 0.25, "high": 1.0}, 1, scale=100) == "50.0\n25.0–100.0"
    )
