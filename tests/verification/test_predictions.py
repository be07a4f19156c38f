"""Predicted against found: joined row by row, compared as if by hand."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fakes import make_classifier

from memaudit.errors import UsageError
from memaudit.evaluation import compare
from memaudit.labels import ROW_COLUMNS, found_rows
from memaudit.metrics import pr_auc, roc_auc
from memaudit.verification.predictions import match_predictions, read_predictions
from memaudit.windows import WindowShape

SHAPE = WindowShape(8, 8)
PROBABILITIES = (0.9, 0.9, 0.6, 0.2, 0.1, None, 0.4)
EXAMPLES = (0, 0, 1, 2, 3, None, None)
RECITED = (True, True, False, True, False, None, None)
OUTCOMES = ("scored", "scored", "scored", "scored", "scored", "too_short", "held_out")


def predicted_row(i, **changes):
    """A row of a risk table."""
    probability = PROBABILITIES[i]
    row = {
        "id": f"id-{i}",
        "row": i,
        "address": f"runs/c.jsonl:{i + 1}",
        "outcome": "scored" if probability is not None else "too_short",
        "probability": probability,
        "flagged": probability is not None and probability >= 0.5,
        "reason": "",
    }
    return {**row, **changes}


def write_run(folder, rows=None, table_format="parquet", **summary):
    """A folder as predict leaves it."""
    rows = [predicted_row(i) for i in range(7)] if rows is None else rows
    folder.mkdir(exist_ok=True)
    default = {
        "window_policy": "first",
        "prefix_tokens": 8,
        "suffix_tokens": 8,
        "threshold": 0.5,
        "classifier": "by-heart",
        "classifier_digest": "0",
        "feature_set": "teacher",
    }
    (folder / "summary.json").write_text(json.dumps(default | summary))
    path = folder / f"risk.{table_format}"
    if table_format == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, write_page_checksum=True)
    elif table_format == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(rows)
    return folder


def found_table():
    """A table of labels: four examples, the first of them twice."""
    return pa.table(
        {
            "id": [f"id-{i}" for i in range(7)],
            "row": list(range(7)),
            "address": [f"c.jsonl:{i + 1}" for i in range(7)],
            "outcome": list(OUTCOMES),
            "extracted_by_student": list(RECITED),
            "example": list(EXAMPLES),
        }
    )


def compared(folder):
    """The comparison with a run."""
    told, table = read_predictions(folder, SHAPE), found_table()
    return compare(found_rows(table), match_predictions(told, places(table)))


def places(table):
    """Id, ordinal, address and outcome of each row."""
    return zip(*(table[name].to_pylist() for name in ROW_COLUMNS[:4]), strict=True)


@pytest.mark.parametrize("table_format", ["parquet", "jsonl", "csv"])
def test_every_format_of_a_risk_table_gives_the_same(tmp_path, table_format):
    """Whichever predict was asked for."""
    found = compared(write_run(tmp_path / "run", table_format=table_format))

    assert (found.examples, found.found, found.found_rows) == (4, 2, 3)
    assert found.expected == pytest.approx(0.9 + 0.6 + 0.2 + 0.1)
    assert found.expected_rows == pytest.approx(2 * 0.9 + 0.6 + 0.2 + 0.1)
    assert (found.precision.count, found.precision.of) == (1, 2)
    assert (found.recall.count, found.recall.of) == (1, 2)
    assert found.lift == pytest.approx(0.5 / 0.5)
    assert [(missed.id, missed.probability) for missed in found.missed] == [("id-3", 0.2)]
    assert found.n_missed == 1


def test_ranking_counts_equal_windows_once(tmp_path):
    """Copies of one text are one success, not many."""
    found = compared(write_run(tmp_path / "run"))

    extracted, probability = np.array([1, 0, 1, 0], np.bool_), np.array([0.9, 0.6, 0.2, 0.1])
    assert found.roc_auc == roc_auc(extracted, probability)
    assert found.pr_auc == pr_auc(extracted, probability)
    assert found.brier == pytest.approx(np.square(probability - extracted).mean())


def test_the_least_probable_miss_comes_first(tmp_path):
    """It is the one that the classifier was most wrong about."""
    rows = [predicted_row(i, probability=0.4 - i / 100, flagged=False) for i in range(5)]
    rows += [predicted_row(5), predicted_row(6)]

    found = compared(write_run(tmp_path / "run", rows))

    assert [missed.id for missed in found.missed] == ["id-3", "id-0"]


def test_the_interval_says_whether_it_covers_the_level(tmp_path, monkeypatch):
    """Only the classifier itself knows how far its counts have been off."""
    assert not compared(write_run(tmp_path / "run")).interval_covers_level

    classifier = make_classifier()
    monkeypatch.setattr("memaudit.classifier.find_classifier", lambda *names: classifier)
    known = compared(write_run(tmp_path / "run", classifier_digest=classifier.digest))
    assert known.interval_covers_level
    assert known.expected_high >= compared(write_run(tmp_path / "run")).expected_high


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "other"}, "id differs between .* in 1 of 7 rows, first at id id-2"),
        ({"address": "d.jsonl:3"}, "address differs between .* in 1 of 7 rows, first at id id-2"),
        ({"row": 70}, "row 2 is missing"),
        ({"probability": None, "outcome": "bad"}, "row 2 has no probability"),
    ],
)
def test_predictions_for_another_corpus_are_refused(tmp_path, changes, message):
    """Labels joined to the wrong rows would look like a bad classifier."""
    rows = [predicted_row(i, **(changes if i == 2 else {})) for i in range(7)]
    told = read_predictions(write_run(tmp_path / "run", rows), SHAPE)

    with pytest.raises(UsageError, match=message):
        match_predictions(told, places(found_table()))


def test_ids_that_a_spreadsheet_would_run_still_match(tmp_path):
    """In csv such an id has a ' in front."""
    rows = [predicted_row(i, **({"id": "'=id"} if i == 0 else {})) for i in range(7)]
    told = read_predictions(write_run(tmp_path / "run", rows, "csv"), SHAPE)

    found = match_predictions(told, [("=id", 0, "c.jsonl:1", "scored")])

    assert (found.probabilities.tolist(), found.flagged.tolist()) == ([0.9], [True])


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"prefix_tokens": 50}, "speaks of windows of 50 \\+ 8 tokens, expected 8 \\+ 8"),
        ({"suffix_tokens": 4}, "speaks of windows of 8 \\+ 4 tokens, expected 8 \\+ 8"),
    ],
)
def test_predictions_about_other_windows_are_refused(tmp_path, summary, message):
    """They answer another question."""
    with pytest.raises(UsageError, match=message):
        read_predictions(write_run(tmp_path / "run", **summary), SHAPE)


@pytest.mark.parametrize(
    ("summary", "windows"),
    [
        ({}, {"windows": "first"}),
        ({"window_policy": "tile"}, {"windows": "tile"}),
        (
            {
                "window_policy": "answers",
                "answers": {"turns": "last", "min_suffix_tokens": 4, "rows": 7},
            },
            {"windows": "answers", "turns": "last", "min_suffix_len": 4},
        ),
    ],
)
def test_the_windows_of_predictions_are_those_that_are_verified(tmp_path, summary, windows):
    """Whoever predicted for every answer wants to know about every answer."""
    assert read_predictions(write_run(tmp_path / "run", **summary), SHAPE).windows == windows


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "summary.json").unlink(),
        lambda run: (run / "risk.parquet").unlink(),
        lambda run: (run / "summary.json").write_text("{"),
        lambda run: (run / "summary.json").write_text("[]"),
        lambda run: (run / "risk.parquet").write_bytes(b"PAR1 and nothing more"),
        lambda run: pq.write_table(pa.table({"id": ["a"]}), run / "risk.parquet"),
    ],
)
def test_a_folder_that_predict_did_not_write_is_refused(tmp_path, damage):
    """Told before any training."""
    run = write_run(tmp_path / "run")
    damage(run)

    with pytest.raises(UsageError, match="expected a folder that predict wrote"):
        read_predictions(run, SHAPE)


@pytest.mark.parametrize(
    ("told", "differences"),
    [
        ({"objective": "soft", "temperature": 2.0, "epochs": 9.0, "teacher_digest": "a"}, []),
        ({"epochs": 3.0}, ["epochs 3 instead of 9"]),
        ({"objective": "hard", "epochs": None}, ["objective hard instead of soft"]),
        ({"temperature": 1.0}, ["temperature 1 instead of 2"]),
        ({"teacher_digest": "b"}, ["another teacher"]),
        ({}, []),
    ],
)
def test_predictions_for_another_training_are_told(tmp_path, told, differences):
    """A student of nine epochs says nothing of what was predicted for three."""
    write_run(tmp_path, **told)
    settings = {"objective": "soft", "temperature": 2.0, "epochs": 9.0, "teacher_digest": "a"}

    found = read_predictions(tmp_path, SHAPE).differences(settings)

    assert [*found] == differences
