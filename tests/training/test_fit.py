"""A fit on one's own verification is as careful as the shipped ones, and says what it rests on."""

import json

import numpy as np
import pytest
from support.verified_tables import COUNT, SIGNAL, make_rows, write_run, write_runs

from memaudit.classifier import find_classifier, load_classifier
from memaudit.errors import ClassifierError, OutputError, UsageError
from memaudit.training.fit import fit_on_verification
from memaudit.training.result import FitOptions

OPTIONS = FitOptions(features=(SIGNAL, COUNT))


def fit(pairs, out, **changes):
    """Fit on the features that carry the risk."""
    fields = {"features": OPTIONS.features} | changes
    return fit_on_verification(pairs, out, FitOptions(**fields))


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory):
    """Three runs of different corpora, fitted on: pairs and result."""
    folder = tmp_path_factory.mktemp("three")
    pairs = write_runs(folder, 3)
    return pairs, fit(pairs, folder / "mine")


def test_what_is_saved_is_what_is_returned_and_stands_in_the_card(three_runs):
    """Programs read the file, people read the card."""
    _, result = three_runs

    card = json.loads((result.folder / "card.json").read_text())
    assert load_classifier(result.folder) == result.classifier
    assert result.classifier.name == card["name"] == "mine"
    assert card["digest"] == result.classifier.digest
    assert card["features"] == list(result.classifier.features) == [COUNT, SIGNAL]
    assert card["threshold"] == result.classifier.threshold
    files = {path.name: path.stat().st_mode & 0o777 for path in result.folder.iterdir()}
    assert files == {"classifier.json": 0o600, "card.json": 0o600}


def test_a_card_is_complete(three_runs):
    """Data, seeds, command, versions, prevalence, figures with intervals, limits."""
    _, result = three_runs

    card = json.loads((result.folder / "card.json").read_text())
    assert {run: entry["rows"]["distinct"] for run, entry in card["inputs"].items()} == {
        f"run-{i}": 300 for i in range(3)
    }
    assert {"command", "data", "seeds", "memaudit", "numpy", "scikit-learn"} <= set(
        card["provenance"]
    )
    names = [set(card["cells"][role]) for role in ("train", "calibration")]
    assert set.union(*names) == {"run-0", "run-1", "run-2"}
    assert not set.intersection(*names)
    assert card["cells"]["train"].popitem()[1].keys() >= {"examples", "extracted"}
    assert set(card["test_by_cell"]) == {"run-0", "run-1", "run-2"}
    assert all("expected_interval" in run for run in card["test_by_cell"].values())
    for figure in card["test"]["this classifier"].values():
        assert figure["low"] is not None
        assert figure["high"] is not None
    assert card["recall_promise"]["calibration_positives"] == result.n_calibration_positives
    assert card["limits"]
    assert card["split"]["unit"] == "run"


def test_figures_are_of_runs_that_were_not_fitted_on(three_runs):
    """They are near what the risk that made the labels would reach, and not above it."""
    _, result = three_runs
    best = []
    for run in result.runs:
        logit = 2 * run.run.features[SIGNAL] + run.run.features[COUNT]
        order = np.argsort(-logit, kind="stable")
        hits = run.run.extracted[order]
        best.append((np.cumsum(hits) / np.arange(1, 301))[hits].mean())

    assert result.held_out_kind == "run"
    assert result.figures["pr_auc"].value == pytest.approx(np.mean(best), abs=0.02)
    assert result.figures["calibration_error"].value < 0.06
    for part in result.held_out:
        assert (
            0.7 * part.run.n_extracted
            < part.compared.probabilities.sum()
            < 1.4 * part.run.n_extracted
        )


def test_the_shipped_classifier_stands_beside_it(three_runs):
    """Who fits wants to know whether it was worth it."""
    _, result = three_runs

    assert set(result.shipped_figures) == set(result.figures)
    assert result.shipped_figures["prevalence"] == result.figures["prevalence"]


def test_the_same_tables_give_the_same_bytes(three_runs, tmp_path):
    """A card with another digest is of another classifier."""
    pairs, result = three_runs

    fit(pairs, tmp_path / "mine")

    for name in ("classifier.json", "card.json"):
        assert (tmp_path / "mine" / name).read_bytes() == (result.folder / name).read_bytes()


def test_one_run_is_split_by_example_and_the_card_says_what_that_cannot_exclude(tmp_path):
    """Without text, near-duplicates may stand on both sides."""
    result = fit(write_runs(tmp_path, 1), tmp_path / "mine")

    card = json.loads((tmp_path / "mine" / "card.json").read_text())
    assert (result.unit, result.held_out_kind) == ("example", "example")
    assert card["not_judged"] == 0
    assert "Near-duplicates across the split cannot be excluded" in card["split"]["note"]
    assert len(result.held_out[0].run.extracted) == 300
    assert len(card["test_by_cell"]["run-0"]["features"]) == 5


def test_three_seeds_on_one_corpus_are_not_three_runs(tmp_path):
    """The same texts would stand on both sides."""
    scores, labels = make_rows()
    others = [
        [
            row | {"extracted_by_student": bool(rng.random() < 0.1) ^ row["extracted_by_student"]}
            for row in labels
        ]
        for rng in map(np.random.default_rng, range(2))
    ]
    pairs = [
        write_run(tmp_path, f"seed-{i}", scores, found) for i, found in enumerate([labels, *others])
    ]

    result = fit(pairs, tmp_path / "mine")

    assert result.unit == "example"
    sides = [
        {row for run in side for row in run.features[SIGNAL].tolist()}
        for side in (result.split.fit, result.split.calibration)
    ]
    assert not set.intersection(*sides)


def test_few_positives_leave_an_honest_order_and_no_figure_at_the_threshold(tmp_path):
    """Thirty make a classifier; holding some out would leave too few."""
    scores, labels = make_rows(n=200)
    labels = [row | {"extracted_by_student": False} for row in labels]
    riskiest = sorted(range(200), key=lambda i: -scores[i][SIGNAL])
    for i in riskiest[:60:2]:
        labels[i]["extracted_by_student"] = True

    result = fit([write_run(tmp_path, "run", scores, labels)], tmp_path / "mine")

    assert result.held_out_kind == "calibration"
    assert set(result.figures) == {"prevalence", "roc_auc", "pr_auc"}
    assert result.n_calibration_positives == 10


def test_features_are_chosen_over_runs_and_else_those_of_the_shipped_classifier(tmp_path):
    """Nothing has to be named."""
    expected = find_classifier(None, "teacher").features
    few = {"id", "row", "address", "outcome", SIGNAL, COUNT, *expected}
    pairs = []
    for i in range(2):
        scores, labels = make_rows(seed=i, n=150, name=f"corpus-{i}.jsonl")
        scores = [{key: row[key] for key in row if key in few} for row in scores]
        pairs.append(write_run(tmp_path, f"run-{i}", scores, labels))

    chosen = fit(pairs, tmp_path / "two", features=())
    shipped = fit(pairs[:1], tmp_path / "one", features=())

    assert chosen.selection is not None
    assert SIGNAL in chosen.classifier.features
    assert shipped.selection is None
    assert shipped.classifier.features == expected


def test_labels_that_are_all_false_are_refused_and_leave_nothing(tmp_path):
    """A student that memorized nothing teaches nothing about memorizing."""
    scores, labels = make_rows()
    labels = [row | {"extracted_by_student": False} for row in labels]

    with pytest.raises(ClassifierError, match=r"were extracted .*, the tables have 0"):
        fit([write_run(tmp_path, "run", scores, labels)], tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_an_export_stands_beside_it_and_an_earlier_one_does_not_outlive_its_classifier(tmp_path):
    """A pipeline that is not the classifier would be used for it."""
    pairs = write_runs(tmp_path, 1, n=150)

    fit(pairs, tmp_path / "mine", export="joblib")
    assert (tmp_path / "mine" / "classifier.joblib").exists()
    fit(pairs, tmp_path / "mine", seed=1)
    assert not (tmp_path / "mine" / "classifier.joblib").exists()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    """Not a traceback, after minutes of fitting."""
    pairs = write_runs(tmp_path, 1, n=150)
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputError):
        fit(pairs, tmp_path / "file" / "mine")


@pytest.mark.parametrize(
    ("folder", "name"),
    [("my model!", "my-model"), ("_.x", "x"), ("★", "fitted"), ("a" * 120, "a" * 100)],
)
def test_a_classifier_is_called_like_its_folder_in_plain_letters(tmp_path, folder, name):
    """Names of classifiers go into tables and terminals."""
    from memaudit.training.fit import classifier_name

    assert classifier_name(tmp_path / folder) == name


def test_a_share_of_nothing_is_refused():
    """One side would be empty."""
    with pytest.raises(UsageError, match="between 0 and 1, got 1"):
        FitOptions(calibration_share=1)
