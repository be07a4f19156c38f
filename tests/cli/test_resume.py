"""`memaudit predict` twice in one folder, and the objective that a prediction is for."""

import json
import signal

import pytest
from msgspec.structs import replace
from support.fake_run import contents
from support.fakes import make_classifier

from memaudit.classifier import save_classifier, shipped_classifiers_dir
from memaudit.cli.main import run
from memaudit.cli.signals import Stopped
from memaudit.runs import models, opening
from memaudit.runs.chunks import write_failure
from memaudit.runs.scoring import score_chunk


@pytest.fixture
def predict(tiny_teacher, corpus, classifier, tmp_path, capsys):
    """Run the command on the corpus and return the code and what it printed."""

    def run_predict(*arguments, classifier=classifier):
        given = ["--teacher", tiny_teacher, "--data", corpus, "--out", tmp_path / "out"]
        shape = ["--prefix-tokens", 16, "--suffix-tokens", 16, "--chunk-size", 3, "--quiet"]
        if classifier is not None:
            given += ["--classifier", classifier]
        code = run(["predict", *map(str, [*given, *shape, *arguments])])
        return code, *capsys.readouterr()

    return run_predict


def test_a_command_given_again_scores_what_is_missing(predict, tmp_path):
    """The same files, from a run that lost two of its four chunks."""
    assert predict()[0] == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "chunks" / "00001.parquet").unlink()
    (tmp_path / "out" / "chunks" / "00003.parquet").write_bytes(b"damaged")

    assert predict()[0] == 0

    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["--temperature", "3"], "objective.temperature was 2.0, is now 3.0"),
        (["--alpha", "0.5"], "objective.cross_entropy_share was 0.0, is now 0.5"),
        (["--chunk-size", "4"], "chunk size was 3, is now 4"),
        (["--windows", "tile"], "windows was first, is now tile"),
        (["--dtype", "bfloat16"], "engine was hf-float32, is now hf-bfloat16"),
        (["--id-column", "id"], "corpus.id_column was None, is now id"),
    ],
)
def test_a_changed_setting_is_refused_by_name(predict, tmp_path, arguments, difference):
    """Chunks scored for soft labels at another temperature have other features."""
    assert predict()[0] == 0
    before = contents(tmp_path / "out")

    code, _, err = predict(*arguments)

    assert code == 2
    assert difference in " ".join(err.split())
    assert contents(tmp_path / "out") == before


def test_restart_takes_the_changed_setting(predict, tmp_path):
    """And says it in the summary."""
    assert predict()[0] == 0

    assert predict("--temperature", "3", "--restart")[0] == 0

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["manifest"]["inputs"]["objective"]["temperature"] == 3.0


@pytest.mark.parametrize("objective", ["hard", "cross-entropy"])
def test_a_classifier_of_another_objective_is_refused(predict, objective):
    """What is memorized under soft labels says little about hard ones."""
    code, _, err = predict("--objective", objective)

    assert code == 2
    said = " ".join(err.split())
    assert "was fitted on students that learned by soft labels" in said
    assert f"expected {objective}" in said


def test_a_classifier_of_the_objective_is_taken(predict, tmp_path):
    """One's own, fitted on students that learned from the teacher's text."""
    hard = replace(make_classifier(), objective="hard")
    save_classifier(hard, tmp_path / "hard")

    code, out, _ = predict("--objective", "hard", "--json", classifier=tmp_path / "hard")

    assert code == 0
    assert json.loads(out)["classifier"] == "by-heart"


@pytest.mark.parametrize("objective", ["hard", "cross-entropy"])
def test_the_shipped_classifier_of_the_objective_is_the_default(predict, objective):
    """Or, if none is shipped, its name is what is asked for."""
    name = f"teacher-{objective}"
    code, out, err = predict("--objective", objective, "--json", classifier=None)

    if (shipped_classifiers_dir() / name).exists():
        assert (code, json.loads(out)["classifier"]) == (0, name)
    else:
        assert code == 2
        assert f"no classifier {name}" in err


@pytest.mark.parametrize(
    "arguments", [["--temperature", "inf"], ["--temperature", "nan"], ["--alpha", "nan"]]
)
def test_a_number_that_is_none_is_a_usage_error(predict, arguments):
    """It parses as a float; it must not end in a traceback."""
    code, _, err = predict(*arguments)

    assert code == 2
    assert "internal error" not in err
    assert "is not a finite number" in err


def fail_at_chunk_1(engine, tokenizer, plan, works):
    """Score all chunks but one, which is given up."""
    for work in works:
        if work.number == 1:
            write_failure(plan, 1, "3 processes died at it, the last with exit code -9")
        else:
            score_chunk(plan, engine, tokenizer, work)
        yield work.number


def test_rows_that_could_not_be_scored_are_an_error_that_goes_away(predict, tmp_path, monkeypatch):
    """Exit code 2, though there is a table; the same command scores the rest."""
    assert predict()[0] == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "chunks" / "00001.parquet").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(models, "score_here", fail_at_chunk_1)
        code, out, err = predict()

    said = " ".join(err.split())
    assert code == 2
    assert "4 rows in chunk 1 could not be scored; chunk 1: 3 processes died at it" in said
    assert "give the same command again to try once more" in said
    assert "at risk" in out
    assert predict()[0] == 0
    assert contents(tmp_path / "out") == before


def test_a_document_of_rows_that_could_not_be_scored_is_the_error_alone(predict, monkeypatch):
    """A script that reads standard output must not take it for a result."""
    monkeypatch.setattr(models, "score_here", fail_at_chunk_1)

    code, out, _ = predict("--json")

    assert code == 2
    assert set(json.loads(out)) == {"error", "schema_version"}


def test_a_shard_with_a_failed_chunk_is_an_error(predict, monkeypatch):
    """Its chunk is missing in the merge."""
    monkeypatch.setattr(models, "score_here", fail_at_chunk_1)

    code, _, err = predict("--shard", "1/2")

    assert code == 2
    assert "chunk 1 could not be scored" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "2"], "--replicas is for Ray"),
        (["--address", "auto"], "--address is for Ray"),
        (["--executor", "ray", "--workers", "2"], "--workers is for this machine alone"),
        (["--executor", "ray", "--gpus-per-replica", "nan"], "nan is not a finite number"),
        (["--executor", "ray", "--device", "cuda"], "--device cuda with 0 GPUs for each replica"),
    ],
)
def test_options_of_ray_that_do_not_fit_are_usage_errors(predict, arguments, message):
    """Before a cluster is started."""
    code, _, err = predict(*arguments)

    assert code == 2
    assert message in " ".join(err.split())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_run_begins_has_its_code_and_a_hint(predict, monkeypatch, number, code):
    """As while models are loaded, which may take minutes."""

    def stop(sources):
        raise Stopped(number)

    monkeypatch.setattr(opening, "load_models", stop)

    found, _, err = predict()

    assert found == code
    assert "nothing had been scored yet: give the same command again" in " ".join(err.split())
