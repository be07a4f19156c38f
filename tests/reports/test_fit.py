"""The summary of a fit tells what was left out and what could not be judged."""

import dataclasses

import pytest
from support.verified_tables import COUNT, SIGNAL, write_runs

from memaudit.evaluation import Figure
from memaudit.reports.fit import fit_notes, fit_page, fit_verdict
from memaudit.reports.page import plain
from memaudit.reports.terminal import print_page
from memaudit.training.fit import fit_on_verification
from memaudit.training.result import FitOptions


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Of a fit on three runs."""
    folder = tmp_path_factory.mktemp("fit")
    options = FitOptions(features=(SIGNAL, COUNT))
    return fit_on_verification(write_runs(folder, 3, n=150), folder / "mine", options)


def test_a_sound_fit_has_one_note(result):
    """The promise; whole runs were held out, and no row was left out."""
    assert [note.split(" calibrate it")[0] for note in fit_notes(result)] == [
        f"{result.n_calibration_positives} memorized examples"
    ]


def test_rows_that_were_left_out_are_told(result):
    """A label that has no row may be a mistake in the pairing."""
    counts = dataclasses.replace(result.runs[0].counts, unlabelled=7, unscored=2, conflicting=1)
    run = dataclasses.replace(result.runs[0], counts=counts)

    note = list(fit_notes(dataclasses.replace(result, runs=(run, *result.runs[1:]))))[-1]

    assert note.startswith("run-0: 7 scored rows without a label and 2 labels without")
    assert "1 example has both labels and counts" in note


def test_what_could_not_be_judged_is_told(result, capsys):
    """A mean over two of three runs is not one over three."""
    partly = dataclasses.replace(result, held_out=result.held_out[:2])

    assert "150 examples could not be judged" in list(fit_notes(partly))[1]
    print_page(fit_page(partly), color="never")
    assert "–" in capsys.readouterr().out
    ranking = {name: result.figures[name] for name in ("prevalence", "roc_auc", "pr_auc")}
    order = dataclasses.replace(result, held_out_kind="calibration", figures=ranking)
    assert "the threshold was chosen on them" in list(fit_notes(order))[1]
    assert "At its threshold" not in plain(fit_verdict(order))


def test_figures_that_do_not_exist_are_called_unknown(result):
    """Nothing flagged has no precision; a number in its place would be made up."""
    absent = {"pr_auc": Figure(None, None), "precision": Figure(None, None)}
    figures = {**result.figures, "roc_auc": Figure(0.5, None)} | absent

    shown = plain(fit_verdict(dataclasses.replace(result, figures=figures, shipped_figures={})))

    assert "PR-AUC of unknown" in shown
    assert "ROC-AUC of 0.500." in shown
    assert "and an unknown share of what it flags" in shown
    assert "shipped" not in shown


@pytest.mark.parametrize(("color", "colored"), [("always", True), ("never", False)])
def test_colour_can_be_chosen(result, capsys, color, colored):
    """A file gets none unless asked for."""
    print_page(fit_page(result), color=color)

    assert ("\x1b[" in capsys.readouterr().out) == colored
