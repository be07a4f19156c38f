"""`memaudit fit`, from its arguments to a classifier that predict takes."""

import json
import re

import pyarrow.parquet as pq
import pytest
from support.verified_tables import COUNT, SIGNAL, make_rows, write_run, write_runs, write_table

from memaudit.classifier import load_classifier
from memaudit.cli.main import run

FEATURES = ("--features", f"{SIGNAL}, {COUNT}")
SHAPE = ("--prefix-tokens", "8", "--suffix-tokens", "8")


@pytest.fixture
def fit(tmp_path, capsys, monkeypatch):
    """Run the command and return the code and what it printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def run_fit(pairs, *arguments):
        given = [part for pair in pairs for part in ("--labels", pair[0], "--scores", pair[1])]
        given += ["--out", tmp_path / "mine", *arguments]
        return run(["fit", *map(str, given)]), *capsys.readouterr()

    return run_fit


def test_the_verdict_comes_first_and_the_promise_is_told(fit, tmp_path):
    """How good it is on the unseen, then why, then what it cannot promise."""
    code, out, err = fit(write_runs(tmp_path, 1), *FEATURES)

    assert (code, err) == (0, "")
    assert out.startswith("mine ranks examples that the fit had not seen with a PR-AUC of 0.")
    words = " ".join(out.split())
    n_memorized = sum(row["extracted_by_student"] for row in make_rows()[1])
    n_calibrating = round(0.3 * n_memorized)
    titles = "run rows used distinct memorized expected flagged caught"
    assert f"{titles} run-0 300 300 300 {n_memorized} " in words
    assert f"{n_calibrating} memorized examples calibrate it. If it misses none of them" in words
    bound = f"{0.05 ** (1 / n_calibrating):.1%}"
    assert f"at least {bound} with 95% confidence; a bound of 90% needs 29." in words
    assert "Near-duplicates across the split cannot be excluded" in words
    assert max(map(len, out.splitlines())) <= 80


def test_the_document_is_the_card_and_all_of_standard_output(fit, tmp_path):
    """Programs read it."""
    code, out, err = fit(write_runs(tmp_path, 1), *FEATURES, "--json")

    document = json.loads(out)
    card = json.loads((tmp_path / "mine" / "card.json").read_text())
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert document == card | {"schema_version": 1, "folder": str(tmp_path / "mine")}
    command = card["provenance"]["command"]
    assert command.startswith("memaudit fit --labels ")
    assert re.findall(r"--\S+", command)[-4:] == [
        "--out",
        "--features",
        "--calibration-share",
        "--seed",
    ]


def test_predict_takes_what_was_fitted_on_its_own_scores(fit, tmp_path, tiny_teacher, capsys):
    """From a corpus to a classifier for it, and back."""
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"text": f"{i * 7919:x} row {i} of a corpus {i % 13}"} for i in range(120)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict = ["predict", "--teacher", str(tiny_teacher), "--data", str(corpus), *SHAPE, "-q"]
    assert run([*predict, "--out", str(tmp_path / "scored")]) == 0
    capsys.readouterr()
    scores = pq.read_table(tmp_path / "scored" / "risk.parquet").to_pylist()
    middle = sorted(row[SIGNAL] for row in scores)[60]
    labels = [
        {"id": row["id"], "row": row["row"], "extracted_by_student": row[SIGNAL] > middle}
        for row in scores
    ]
    found = write_table(tmp_path / "labels.csv", labels)

    code, _, err = fit([(found, tmp_path / "scored")], *FEATURES)
    assert (code, err) == (0, "")
    again = [*predict, "--classifier", str(tmp_path / "mine"), "--out", str(tmp_path / "again")]
    assert run([*again, "--json"]) == 0

    document = json.loads(capsys.readouterr().out)
    assert document["classifier"] == "mine"
    flagged = [
        row["flagged"] for row in pq.read_table(tmp_path / "again" / "risk.parquet").to_pylist()
    ]
    wanted = [row["extracted_by_student"] for row in labels]
    assert sum(f == w for f, w in zip(flagged, wanted, strict=True)) >= 110


def test_the_objective_of_labels_made_elsewhere_can_be_told(fit, tmp_path):
    """The command predict refuses a classifier for another objective, so it has to be known."""
    code, _, _ = fit(write_runs(tmp_path, 1), *FEATURES, "--objective", "hard")

    assert code == 0
    assert load_classifier(tmp_path / "mine").objective == "hard"


def test_a_pilot_of_a_hundred_rows_recalibrates(fit, tmp_path):
    """The level becomes the user's own without a fit."""
    code, _, err = fit(write_runs(tmp_path, 1), *FEATURES, "--out", tmp_path / "low")
    assert (code, err) == (0, "")
    pair = write_run(tmp_path, "pilot", *make_rows(seed=9, n=100, level=0.0))

    code, out, err = fit([pair], "--recalibrate", tmp_path / "low")

    assert (code, err) == (0, "")
    assert out.startswith("mine expects ")
    assert "The order of examples has not changed." in " ".join(out.split())
    code, out, _ = fit([pair], "--recalibrate", tmp_path / "low", "--json")
    document = json.loads(out)
    card = json.loads((tmp_path / "mine" / "card.json").read_text())
    assert document == card | {"schema_version": 1, "folder": str(tmp_path / "mine")}
    assert load_classifier(tmp_path / "mine").digest == card["digest"]
    code, _, err = fit([pair], "--recalibrate", tmp_path / "low", *FEATURES)
    assert code == 2
    assert "--features has no meaning with --recalibrate" in err


def spoilt(tmp_path, change_scores=None, change_labels=None):
    """A pair of which some rows were changed."""
    scores, labels = make_rows(n=150)
    scores = [change_scores(row) if change_scores else row for row in scores]
    labels = [change_labels(row) if change_labels else row for row in labels]
    return write_run(tmp_path, "run", scores, labels, "jsonl")


def renamed(old, new):
    """A change of a column's name."""
    return lambda row: {new if key == old else key: value for key, value in row.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"change_labels": renamed("extracted_by_student", "memorized")},
            "expected the column extracted_by_student, got id",
        ),
        (
            {"change_scores": renamed(SIGNAL, "signal")},
            f"expected the column {SIGNAL} for the feature set teacher",
        ),
        (
            {"change_scores": lambda row: row | {SIGNAL: None}},
            f"feature {SIGNAL} is not a finite number in 150 of 150",
        ),
        ({"change_labels": lambda row: row | {"extracted_by_student": False}}, "the tables have 0"),
        (
            {"change_labels": lambda row: row | {"extracted_by_student": None}},
            "has both a score and a label",
        ),
        ({"change_labels": lambda row: row | {"id": "x"}}, "id differs between"),
    ],
)
def test_a_bad_table_ends_with_code_2_and_a_hint_and_leaves_nothing(
    fit, tmp_path, changes, message
):
    """The message says what is wrong and the hint what to do."""
    code, out, err = fit([spoilt(tmp_path, **changes)], *FEATURES)

    assert (code, out) == (2, "")
    assert message in err
    assert "\nhint: " in err
    assert not (tmp_path / "mine").exists()


def test_missing_empty_and_broken_files_end_with_code_2(fit, tmp_path):
    """As do arguments that do not go together."""
    labels, scores = write_runs(tmp_path, 1, n=40)[0]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")

    for pair, message in [
        ((tmp_path / "missing", scores), "there is no such file or folder"),
        ((empty, scores), "empty"),
        ((labels, tmp_path), "expected one of risk.parquet, risk.jsonl, risk.csv, got none"),
    ]:
        code, out, err = fit([pair])
        assert (code, out) == (2, "")
        assert message in err
    code, _, err = fit([(labels, scores)], "--scores", scores)
    assert code == 2
    assert "expected one --labels for each --scores, got 1 and 2" in err
    code, _, err = fit([(labels, scores)], "--features", "teacher_sufix_entropy")
    assert code == 2
    assert "did you mean teacher_suffix_entropy?" in err


def test_errors_are_a_document_too(fit, tmp_path):
    """A program must not have to parse prose."""
    code, out, _ = fit([(tmp_path / "missing", tmp_path)], "--json")

    assert code == 2
    assert "no such file" in json.loads(out)["error"]["message"]


def test_nothing_a_table_holds_steers_the_terminal(fit, tmp_path):
    """Names of folders and ids are written by strangers."""
    labels, scores = write_run(tmp_path, "run\x1b]0;owned\x07", *make_rows(n=150))

    _, out, err = fit([(labels, scores)], *FEATURES)

    assert "\x1b" not in out + err
    assert "\x1b" not in (tmp_path / "mine" / "card.json").read_text()
