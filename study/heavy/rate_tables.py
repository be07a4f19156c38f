"""What the tables of a study say, from the document that it leaves."""

from collections.abc import Mapping
from typing import Any

from study.heavy.classifier_tables import (
    classifiers_table,
    other_objectives_table,
    transfer_table,
)
from study.heavy.rates import ratio_figures
from study.tables import StudyTable, decimal, in_order, with_interval

Document = Mapping[str, Any]
"""What `study.heavy.workflow.conduct_study` returns."""

_INTERVALS_OVER_CELLS = (
    "Intervals (95 %) come from resampling cells: each is one teacher with its students, "
    "and examples of one teacher are not independent. A single cell has none."
)


def study_tables(document: Document) -> list[StudyTable]:
    """Return every table that the document has the numbers for."""
    tables = [
        rates_table(document),
        overlaps_table(document),
        plans_table(document),
        objectives_table(document),
        perplexities_table(document),
        classifiers_table(document),
        other_objectives_table(document),
        transfer_table(document),
    ]
    if document.get("interventions"):
        tables.append(interventions_table(document))
    return [table for table in tables if table.rows]


def rates_table(document: Document) -> StudyTable:
    """Return what teachers, baselines and students recite, by family and corpus."""
    rows = [(setting, *_rate_cells(entry)) for setting, entry in _settings(document).items()]
    return StudyTable(
        "rates",
        "Memorized by family and corpus, % of examples",
        ("family / corpus", "cells", "examples", "teacher", "baseline", "soft", "hard"),
        tuple(rows),
        (_INTERVALS_OVER_CELLS,),
    )


def plans_table(document: Document) -> StudyTable:
    """Return the same by plan: window length, repetition and start."""
    rows = [(plan, *_rate_cells(entry)) for plan, entry in document["rates"]["plan"].items()]
    return StudyTable(
        "plans",
        "Memorized by plan, % of examples",
        ("plan", "cells", "examples", "teacher", "baseline", "soft", "hard"),
        tuple(rows),
    )


def _rate_cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    figures = _known_intervals(entry)
    rates = (
        with_interval(figures[f"{model}_rate"], 2, scale=100)
        for model in ("teacher", "baseline", "soft", "hard")
    )
    return f"{entry['cells']}", f"{entry['counts']['examples']:,}", *rates


def overlaps_table(document: Document) -> StudyTable:
    """Return how the students' sets lie to the teacher's and the baseline's."""
    rows = []
    for setting, entry in _settings(document).items():
        counts, figures = entry["counts"], _known_intervals(entry)
        inherited = (counts["soft_inherited"], counts.get("hard_inherited"))
        rows.append(
            (
                setting,
                f"{counts['soft']:,}",
                with_interval(figures["soft_in_easy"], 1, scale=100),
                with_interval(figures["soft_against_baseline"], 2),
                f"{counts['teacher_only']:,}",
                *("–" if count is None else f"{count:,}" for count in inherited),
                with_interval(_inherited_ratio(document, setting, entry), 1),
            )
        )
    return StudyTable(
        "overlaps",
        "Where the soft student's set lies",
        (
            "family / corpus",
            "S",
            "% in T∩B",
            "S / B",
            "teacher-\nonly",
            "soft\ninherits",
            "hard\ninherits",
            "hard /\nsoft",
        ),
        tuple(rows),
        (
            "T, B, S: what teacher, baseline and soft student recite. Teacher-only: T without B. "
            "Inherited: of those, what the student recites.",
        ),
    )


def _settings(document: Document) -> dict[str, Any]:
    return {**document["rates"]["family and corpus"], **document["rates"]["all"]}


def _known_intervals(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures, without intervals where there is but one cell to resample."""
    if entry["cells"] > 1:
        return dict(entry["figures"])
    return {
        name: {**figure, "low": None, "high": None} for name, figure in entry["figures"].items()
    }


def _inherited_ratio(
    document: Document, setting: str, entry: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return how many times more hard labels hand on than soft ones, over cells that have both."""
    cells = [
        cell["counts"]
        for cell in document["cells"].values()
        if "hard_inherited" in cell["counts"]
        and cell["pretrained"]
        and cell["seen_by_teacher"] == 1
        and setting in ("all", f"{cell['family']} / {cell['corpus']}")
    ]
    if not cells:
        return None
    ratio = {"hard / soft": ("hard_inherited", "soft_inherited")}
    figure = ratio_figures(cells, ratio)["hard / soft"]
    return figure if entry["cells"] > 1 else {**figure, "low": None, "high": None}


def objectives_table(document: Document) -> StudyTable:
    """Return each student against the baseline of the same cells."""
    rows = []
    for name in in_order(document["objectives"], ("soft", "hard")):
        entry = document["objectives"][name]
        counts, figures = entry["counts"], _known_intervals(entry)
        rows.append(
            (
                name,
                f"{entry['cells']}",
                with_interval(figures["rate"], 2, scale=100),
                f"{counts[name]:,}",
                f"{counts['baseline']:,}",
                with_interval(figures["against_baseline"], 2),
                with_interval(figures["against_soft"], 2),
                with_interval(figures["in_easy"], 1, scale=100),
                with_interval(figures["inherited"], 1, scale=100),
            )
        )
    return StudyTable(
        "objectives",
        "Objectives and temperatures",
        (
            "student",
            "cells",
            "rate %",
            "memorized",
            "baseline",
            "/ baseline",
            "/ soft",
            "% in T∩B",
            "%\ninherited",
        ),
        tuple(rows),
        ("Each student is compared with the baseline and the soft student of its own cells.",),
    )


def perplexities_table(document: Document) -> StudyTable:
    """Return the perplexity of text that no model was trained on."""
    means: Mapping[str, float] = document["held_out_perplexity"]
    first = [name for name in ("base", "teacher", "baseline", "soft", "hard") if name in means]
    names = [*first, *(name for name in means if name not in first)]
    return StudyTable(
        "perplexities",
        "Held-out perplexity",
        ("model", "perplexity"),
        tuple((name, decimal(means[name], 2)) for name in names),
        ("Geometric mean over the cells that have the model: compare models of equal cells.",),
    )


ARMS = ("none", "flagged", "budget", "random", "random budget", "deduplicated", "both")
"""Interventions, in the order of the table."""


def interventions_table(document: Document) -> StudyTable:
    """Return what a student memorizes when some examples are left out."""
    rows = [
        (cell if arm == ARMS[0] else "", *_arm_cells(arm, arms[arm], arms["none"]))
        for cell, arms in document["interventions"].items()
        for arm in ARMS
        if arm in arms
    ]
    return StudyTable(
        "interventions",
        "Interventions: the soft student distilled again without some examples",
        (
            "cell",
            "left out",
            "dropped",
            "memorized",
            "left %",
            "new",
            "though\ndropped",
            "perplexity",
        ),
        tuple(rows),
        (
            "flagged: what a classifier that has not seen the family flags. budget: its riskiest, "
            "1.5 times as many as are memorized. random: as many by chance. deduplicated: equal "
            "examples once. both: that, without the flagged.",
        ),
        n_labels=2,
    )


def _arm_cells(arm: str, after: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[str, ...]:
    left = after["memorized"] / before["memorized"] if before["memorized"] else None
    return (
        "nothing" if arm == "none" else arm,
        f"{after['dropped']:,}",
        f"{after['memorized']:,}",
        "–" if left is None else f"{100 * left:.1f}",
        f"{after['newly_memorized']:,}",
        f"{after['memorized_though_dropped']:,}",
        decimal(after["held_out_perplexity"], 2),
    )
