"""The GitHub Action: its steps run for real, and what a workflow learns from them."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from support.composite_action import ACTION, NOT_FOR_A_GATE, ROOT, install_here, run_step, step
from support.fake_run import ByteWiseEngine, audit_with
from support.hostile_checkout import hostile_files, infest

from memaudit.classifier import load_classifier
from memaudit.corpus import CorpusOptions, read_corpus
from memaudit.gate.policy import LIMITS

GATE = "Gate"
SLOW = (pytest.mark.slow, pytest.mark.ci)
LIGHT_SET = ROOT / "memaudit" / "requirements-gate.txt"


@pytest.fixture(scope="module")
def job_folder(tmp_path_factory):
    """A checkout with a corpus, and a run on it with a classifier that comes with memaudit."""
    folder = tmp_path_factory.mktemp("checkout")
    texts = [f"{i * 7919 % 100_003:06} is row {i}" for i in range(40)] * 2
    rows = [{"id": f"doc-{i}", "text": text} for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    audit_with(
        ByteWiseEngine(),
        folder / "runs",
        rows=read_corpus(CorpusOptions(str(folder / "corpus.jsonl"))),
        classifier=load_classifier(ROOT / "models" / "teacher"),
    )
    return folder


@pytest.fixture
def act(job_folder, tmp_path):
    """Runs the gate step in that checkout."""
    temporary = tmp_path / "runner"
    install_here(temporary)

    def run(*, infested=None, variables=(), **inputs):
        workspace = shutil.copytree(job_folder, tmp_path / "checkout", dirs_exist_ok=True)
        if infested is not None:
            infest(workspace, tmp_path / "marker", infested)
        named = {name.replace("_", "-"): value for name, value in inputs.items()}
        given = {"run": "runs", **named}
        return run_step(step(GATE), workspace, temporary, given, **dict(variables))

    return run


def test_a_run_within_its_limits_passes(act):
    """Exit code 0, and a summary that says what was held to what."""
    job = act(max_rate=1, data="corpus.jsonl")

    assert job.code == 0, job.log
    assert job.outputs["verdict"] == "pass"
    assert "::error" not in job.log
    assert "memaudit gate" in job.summary
    assert "pass" in job.summary


def test_findings_fail_the_step_and_are_handed_on(act, tmp_path):
    """Exit code 1, annotations, a summary, and files for the steps that follow."""
    job = act(max_rate=0, max_expected=0, data="corpus.jsonl")

    assert job.code == 1, job.log
    assert job.outputs["verdict"] == "fail"
    assert int(job.outputs["flagged"]) >= 0
    assert "::error" in job.log
    assert "fail" in job.summary
    assert job.summary.count("memaudit gate") == 1
    sarif = json.loads(Path(job.outputs["sarif"]).read_text())
    assert sarif["version"] == "2.1.0"
    assert Path(job.outputs["report"]).read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param({"run": "no-such-folder", "max_rate": 1}, id="no run"),
        pytest.param({"max_rate": 1, "data": "o.jsonl"}, id="no corpus", marks=SLOW),
        pytest.param({"max_rate": 7}, id="no rate", marks=SLOW),
        pytest.param({}, id="no limit", marks=SLOW),
        pytest.param({"max_rate": 1, "policy": "o.toml"}, id="no policy", marks=SLOW),
        pytest.param({"max_rate": 1, "policy_digest": "0" * 64}, id="other digest", marks=SLOW),
        pytest.param({"max_rate": 1, "baseline": "o.json"}, id="no baseline", marks=SLOW),
    ],
)
def test_what_cannot_be_judged_is_an_error(inputs, act):
    """Exit code 2: a gate that is not sure does not pass."""
    job = act(**inputs)

    assert job.code == 2, job.log
    assert job.outputs == {"verdict": "error"}
    assert "error: " in job.log
    assert "could not be judged" in job.summary


def test_a_policy_whose_digest_variable_is_not_set_is_an_error(act, tmp_path):
    """An unset variable is an empty text, and must not mean that any policy will do."""
    policy = tmp_path / "policy.toml"
    policy.write_text("[gate]\nmax-rate = 1.0\n")

    job = act(policy=str(policy), policy_digest="")

    assert (job.code, job.outputs) == (2, {"verdict": "error"}), job.log
    assert "policy-digest is empty" in job.log
    assert act(policy=str(policy), policy_digest="unpinned").code == 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "verify-key" else SLOW)
        for name in ACTION["inputs"]
        if name not in ("run", "key", "python")
    ],
)
def test_an_input_from_a_variable_that_is_not_set_is_an_error(name, act):
    """Else a gate whose workflow asks for a corpus, a limit or a signer would ask for none."""
    job = act(**{"max_rate": 1, name: ""})

    assert (job.code, job.outputs) == (2, {"verdict": "error"}), job.log
    assert f"error: {name} is empty" in job.log


KEY = "5e" * 32
KINDS = sorted({name.split("/")[0] for name in hostile_files("x")})


def assert_not_talked_round(job, tmp_path):
    """It failed as it must, ran nothing of the checkout, and told nobody the key."""
    marker = tmp_path / "marker"
    assert not marker.exists(), marker.read_text()
    assert (job.code, job.outputs["verdict"]) == (1, "fail"), job.log
    told = job.log + job.summary + str(job.outputs)
    assert KEY not in told
    kept = [path for path in (tmp_path / "checkout").rglob("*") if path.is_file()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]


def test_no_file_of_a_pull_request_turns_the_gate_round(act, tmp_path):
    """All kinds at once: modules, settings, programs, in the checkout that the gate looks at."""
    job = act(infested="", max_rate=0, max_expected=0, key=KEY, data="corpus.jsonl")

    assert len(KINDS) >= 20
    assert_not_talked_round(job, tmp_path)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("kind", KINDS)
def test_no_single_file_of_a_pull_request_turns_the_gate_round(kind, act, tmp_path):
    """One by one, since one kind could keep another from being looked at."""
    job = act(infested=kind, max_rate=0, max_expected=0, key=KEY)

    assert_not_talked_round(job, tmp_path)


@pytest.mark.slow
@pytest.mark.ci
def test_no_variable_of_an_earlier_step_turns_the_gate_round(act, tmp_path):
    """An earlier step may have set variables for all that follow."""
    checkout = str(tmp_path / "checkout")
    variables = {
        "MEMAUDIT_GATE_INCONCLUSIVE": "pass",
        "MEMAUDIT_GATE_MAX_RATE": "1",
        "MEMAUDIT_VERSION": "1",
        "_MEMAUDIT_COMPLETE": "bash_complete",
        "PATH": f".:{os.environ['PATH']}",
        "PYTHONPATH": checkout,
        "PYTHONSTARTUP": f"{checkout}/json.py",
        "PYTHONHOME": checkout,
    }

    job = act(infested="", variables=variables, max_rate=0, max_expected=0, key=KEY)

    assert_not_talked_round(job, tmp_path)


@pytest.mark.slow
@pytest.mark.ci
def test_a_pull_request_runs_nothing_while_memaudit_is_installed(job_folder, tmp_path):
    """Its venv.py and pip.py lie in the folder that the job starts in."""
    workspace = shutil.copytree(job_folder, tmp_path / "checkout")
    infest(workspace, tmp_path / "marker")
    temporary = tmp_path / "runner"
    temporary.mkdir()

    job = run_step(
        step("Install memaudit"), workspace, temporary, {"run": "runs"}, PIP_NO_INDEX="1"
    )

    assert (temporary / "memaudit-venv" / "bin" / "pip").exists(), job.log
    assert job.code != 0  # there is no network for what is to be installed
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
@pytest.mark.ci
def test_a_damaged_run_is_an_error(act, job_folder):
    """Someone may have edited the run until it passed."""
    chunk = job_folder / "runs" / "chunks" / "00000.parquet"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:200] + b"x" + content[201:])
    try:
        job = act(max_rate=1)
    finally:
        chunk.write_bytes(content)

    assert (job.code, job.outputs) == (2, {"verdict": "error"})


@pytest.mark.slow
@pytest.mark.ci
def test_a_rule_without_evidence_is_inconclusive(act):
    """It fails by default: nobody knows what else there is."""
    job = act(max_rate=1, max_verified=0)

    assert job.code == 2, job.log
    assert job.outputs["verdict"] == "inconclusive"
    assert job.outputs["sarif"]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", ["run", "data", "policy", "key", "max-rate", "baseline"])
def test_no_input_is_taken_for_a_command(name, act, tmp_path):
    """Inputs may come from a pull request."""
    touched = tmp_path / "touched"
    hostile = f'"; touch {touched}; $(touch {touched}) `touch {touched}` --inconclusive=pass'

    job = act(**{name: hostile, **({} if name == "max-rate" else {"max_rate": 1})})

    assert job.code == (0 if name == "key" and job.code == 0 else 2)
    assert not touched.exists()


@pytest.mark.slow
@pytest.mark.ci
def test_the_same_key_gives_the_same_fingerprints(act):
    """Code scanning would take every job's findings for new ones otherwise."""

    def fingerprints(key):
        job = act(max_rate=0, max_expected=0, key=key)
        sarif = json.loads(Path(job.outputs["sarif"]).read_text())
        results = sarif["runs"][0]["results"]
        return [result.get("partialFingerprints") for result in results]

    assert fingerprints("ab" * 32) == fingerprints("ab" * 32)


@pytest.mark.slow
@pytest.mark.ci
def test_nothing_is_left_in_the_checkout(act, tmp_path):
    """A later step may commit or publish it."""
    act(max_rate=1)

    names = {path.name for path in (tmp_path / "checkout").iterdir()}
    assert names == {"corpus.jsonl", "runs"}


def test_no_step_pastes_an_input_into_its_script():
    """Only variables reach a shell; that is what keeps inputs from being commands."""
    for one in ACTION["runs"]["steps"]:
        assert one["shell"] == "bash"
        assert "${{" not in one["run"]
        assert "uses" not in one


def test_every_input_and_output_is_used_and_told():
    """An input that does nothing would be a limit that is not held."""
    used = " ".join(str(one["env"]) for one in ACTION["runs"]["steps"])
    for name, setting in ACTION["inputs"].items():
        assert f"inputs.{name} " in used
        assert setting["description"]
        assert setting.get("required") or "default" in setting
    assert {name.replace("_", "-") for name in LIMITS} <= set(ACTION["inputs"])
    assert set(ACTION["outputs"]) == {"verdict", "flagged", "report", "sarif"}


def test_what_is_installed_are_our_requirements():
    """The floors are those without a known hole; the rest is not needed, as the tests above show."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = set(re.findall(r"^[\w-]+>=[\d.]+$", LIGHT_SET.read_text(), re.MULTILINE))

    assert "memaudit/requirements-gate.txt" in step("Install memaudit")["run"]
    signing = set(project["optional-dependencies"]["sign"])
    assert signing < installed
    installed -= signing
    assert installed < set(project["dependencies"])
    rest = {re.match(r"[\w-]+", name)[0] for name in set(project["dependencies"]) - installed}
    names = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
    imported = {names.get(name, name.replace("-", "_")) for name in rest}
    assert imported <= set(NOT_FOR_A_GATE)


@pytest.mark.parametrize("path", ["docs/ci/gitlab.yml", "docs/ci/Jenkinsfile"])
def test_other_pipelines_install_the_same(path):
    """From the file that the package brings along, since they have no checkout of memaudit."""
    lines = (ROOT / path).read_text()

    assert '--no-deps "$MEMAUDIT"' in lines
    assert "--requirement memaudit/lib/python3*/site-packages/memaudit/requirements" in lines


@pytest.fixture
def light(job_folder, tmp_path):
    """Runs memaudit with what a gate does not need hidden, as if it were not installed."""
    install_here(tmp_path / "light")
    program = tmp_path / "light" / "memaudit-venv" / "bin" / "memaudit"

    def run(*arguments):
        command = [str(program), *arguments]
        return subprocess.run(command, cwd=job_folder, capture_output=True, text=True)

    return run


@pytest.mark.slow
@pytest.mark.ci
def test_the_light_set_serves_finished_runs(light, tmp_path):
    """Each command that follows a run does its work without torch."""
    out = str(tmp_path / "out.jsonl")
    for arguments in (
        ("gate", "--run", "runs", "--data", "corpus.jsonl", "--max-expected", "1000"),
        ("report", "--run", "runs", "--html", str(tmp_path / "r.html")),
        ("filter", "--run", "runs", "--data", "corpus.jsonl", "--out", out),
        ("status", "runs"),
    ):
        done = light(*arguments)
        assert done.returncode in (0, 1), done.stderr


def test_a_command_beyond_the_light_set_says_what_to_install(light):
    """A traceback would ask for a report of a fault."""
    done = light("predict", "--teacher", ".", "--data", "corpus.jsonl", "--out", "new")

    assert done.returncode == 2
    assert "needs the package" in done.stderr
    assert "hint: pip install memaudit-distill\n" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "path", ["docs/ci/github.yml", "docs/ci/gitlab.yml", "docs/ci/Jenkinsfile"]
)
def test_every_example_names_corpus_policy_and_digest(path):
    """People copy examples, and one that leaves a check out passes for years."""
    text = (ROOT / path).read_text()
    asked = ("data:", "policy:", "policy-digest:") if path.endswith("github.yml") else (
        '--data "', '--policy "', '--policy-digest "')  # fmt: skip

    assert all(option in text for option in asked)
    if not path.endswith("github.yml"):
        assert not re.search(r"(?<!-I )-m (venv|pip|memaudit)", text)
        assert "allow_failure" not in text
        assert "|| true" not in text
