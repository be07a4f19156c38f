"""Windows scored again by the gate: what was forged differs, and rounding does not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.gated import make_run

from memaudit.cli.main import run as run_command
from memaudit.gate.rescore import EXACT_TOLERANCE, _differences, _plan
from memaudit.gate.result import found_share
from memaudit.runs.chunks import read_chunk, write_chunk
from memaudit.runs.folder import MANIFEST, RunFolder
from memaudit.runs.manifest import read_manifest
from memaudit.runs.run import read_run

DEMO = Path(__file__).parents[2]
TEACHER = str(DEMO / "models" / "demo-teacher")


@pytest.fixture
def plan(tmp_path):
    """Of a finished run."""
    return _plan(read_run(make_run(tmp_path)[1]))


def features(plan, **values):
    """Return (1, n_features) with these values, and ones elsewhere."""
    return np.array([[values.get(name, 0.5) for name in plan.features]])


def test_rounding_is_no_difference(plan):
    """Another processor, or another batch, ends in other digits."""
    stored = features(plan, teacher_suffix_logprob=-120.0)

    again = features(plan, teacher_suffix_logprob=-120.05)

    assert not _differences(plan, stored, again, EXACT_TOLERANCE).any()


def test_another_score_is_a_difference(plan):
    """Also where it is no number at all."""
    stored = features(plan, teacher_suffix_logprob=-120.0)
    for value in (-119.0, np.nan, np.inf):
        again = features(plan, teacher_suffix_logprob=value)

        assert _differences(plan, stored, again, EXACT_TOLERANCE).any()


def test_a_recital_is_hidden_only_where_tokens_tie(plan):
    """One rule of the gate counts nothing but recitals."""
    name, margin = "teacher_suffix_argmax_rate", "teacher_suffix_min_margin"
    almost = 1 - 1 / plan.shape.suffix_len
    close = _differences(
        plan, features(plan, **{name: almost, margin: 0.0}),
        features(plan, **{name: 1.0, margin: 0.0}), EXACT_TOLERANCE,
    )  # fmt: skip
    clear = _differences(
        plan, features(plan, **{name: almost, margin: 2.0}),
        features(plan, **{name: 1.0, margin: 2.0}), EXACT_TOLERANCE,
    )  # fmt: skip

    assert not close.any()
    assert clear.any()


def test_the_share_that_would_have_been_found():
    """Three in N, about: the rule of three."""
    assert found_share(1) == pytest.approx(0.95)
    assert found_share(100) == pytest.approx(0.0295, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rescore", "5", "--teacher", TEACHER], "needs the corpus"),
        (["--rescore", "5", "--data", "run.jsonl"], "needs the teacher"),
        (["--rescore", "0", "--teacher", TEACHER], "0 is not in the range"),
        (["--rescore", "5", "--teacher", TEACHER, "--reference", TEACHER, "--data", "run.jsonl"],
         "the run has none"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(options, said, tmp_path, monkeypatch, capsys):
    """And ends with 2."""
    make_run(tmp_path)
    monkeypatch.chdir(tmp_path)

    code = run_command(
        ["gate", "--run", "run", "--max-rate", "1", "--allow-custom-classifier", *options]
    )

    assert code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ci
def test_a_forged_run_is_found_and_an_honest_one_passes(tmp_path, monkeypatch, capsys):
    """With the demo's teacher; each forged chunk is sealed anew, as a forger would."""
    monkeypatch.chdir(tmp_path)
    lines = (DEMO / "sample_data" / "demo.jsonl").read_text().splitlines(keepends=True)[:24]
    Path("corpus.jsonl").write_text("".join(lines))
    predict = ["predict", "--teacher", TEACHER, "--data", "corpus.jsonl", "--chunk-size", "8"]
    assert run_command([*predict, "--out", "run", "--quiet"]) == 0
    asked = ["--max-rate", "1", "--data", "corpus.jsonl", "--rescore", "1000"]
    gate = ["gate", *asked, "--teacher", TEACHER, "--json"]
    capsys.readouterr()

    assert run_command([*gate, "--run", "run"]) == 0
    document = json.loads(capsys.readouterr().out)
    plan = RunFolder(Path("run"), read_manifest(Path("run") / MANIFEST)).plan
    assert document["judged"]["rescored"] == plan.n_windows

    for name, change in (
        ("teacher_suffix_logprob", 5.0), ("teacher_suffix_argmax_rate", 0.1),
        ("occurrences", 1.0), ("zlib_ratio", 0.1),
    ):  # fmt: skip
        shutil.copytree("run", "forged")
        forged = RunFolder(Path("forged"), read_manifest(Path("forged") / MANIFEST)).plan
        X = read_chunk(forged, 0)
        X[3, forged.features.index(name)] -= change
        write_chunk(forged, 0, X)

        assert run_command([*gate, "--run", "forged"]) == 2
        assert "1 has other scores than the run says" in capsys.readouterr().err
        shutil.rmtree("forged")

    shutil.copytree(TEACHER, "other")
    config = json.loads(Path("other/config.json").read_text())
    Path("other/config.json").write_text(json.dumps(config | {"comment": "x"}))
    assert run_command(["gate", "--run", "run", *asked, "--teacher", "other"]) == 2
