"""Ray: actors that are killed, alone or with their node, leave the files that one process makes."""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.fake_run import (
    audit_rows,
    contents,
    fake_audit,
    fake_options,
    fake_rows,
    load_failing,
    load_fakes,
    make_failing_tokenizer,
    make_fake_models,
    meet,
)
from support.fakes import ByteTokenizer, make_classifier, make_rows

from memaudit.corpus import Example
from memaudit.engines.models import ModelOptions, open_tokenizer
from memaudit.errors import MemauditError, MissingDependency, ModelError, WorkerError
from memaudit.exposure import GramTable
from memaudit.runs import counting, reading
from memaudit.runs.options import RayOptions
from memaudit.runs.ray_executor import connected, score_on_ray, tasks_on_ray

TESTS = Path(__file__).parents[1]

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")

# Ray leaves sockets and files to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture
def ray_folder(monkeypatch):
    """A short path for Ray's sockets, removed in the end, and what its processes import from."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    settings = {
        "RAY_TMPDIR": folder,
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_enable_worker_prestart": "0",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


TWO = RayOptions(replicas=2)
EXPOSED = make_classifier(features=("log_exposure", "teacher_suffix_mean_logprob"))


def audit_on_ray(out, load, options=TWO, progress=None):
    """Audit the fake rows, which one process reads, on Ray."""
    models = replace(make_fake_models(), score=partial(score_on_ray, load, options, 1))
    return audit_fakes(out, models, progress=progress)


def audit_fakes(out, models, rows=None, classifier=None, progress=None, **options):
    """Audit the fake rows, or others."""
    rows = fake_rows(88) if rows is None else rows
    classifier = classifier or make_classifier()
    options = fake_options(**options)
    return audit_rows(rows, models, classifier, out=out, options=options, progress=progress)


def models_on_ray(options=TWO, tokenizer=None, seconds=0.0):
    """Models of which tasks on Ray cut and count, and actors score."""
    return replace(
        make_fake_models(),
        tokenizer=tokenizer or ByteTokenizer(),
        score=partial(score_on_ray, partial(load_fakes, seconds), options, 1),
        tasks=partial(tasks_on_ray, options, 1),
    )


@pytest.mark.slow
@pytest.mark.ci
@needs_ray
def test_an_actor_killed_at_a_chunk_leaves_no_trace(tmp_path, ray_folder):
    """Two actors on a cluster of the run's own, one of them gone with its chunk half scored."""
    fake_audit(tmp_path / "one")
    before = signal.getsignal(signal.SIGTERM)
    load = partial(load_failing, "is killed once", str(tmp_path / "marker"))

    result = audit_on_ray(tmp_path / "ray", load)

    assert (tmp_path / "marker").exists()
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    assert result.failures == {}
    assert signal.getsignal(signal.SIGTERM) is before


_N_STARTS = 5
"""A node gives up if a busy machine does not start it within half a minute."""


class Node:
    """A node of a cluster on this machine: `ray start` and all that it starts."""

    def __init__(self, *arguments):
        self._mark = f"MEMAUDIT_TEST_NODE={secrets.token_hex(8)}"
        for _ in range(_N_STARTS):
            if self._start(*arguments):
                return
            self.kill()
        raise RuntimeError("a node does not start")

    def _start(self, *arguments):
        name, _, value = self._mark.partition("=")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments]
        command += ["--num-cpus=1", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        command += ["--object-store-memory=83886080"]
        started = subprocess.run(
            command,
            env=os.environ | {name: value},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return started.returncode == 0

    def kill(self):
        """Kill it as a power cut would; return how many processes it had."""
        found = [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._owns(path)]
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    def _owns(self, process):
        try:
            return self._mark.encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


def free_port():
    """Return a port nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["read", "count", "score"])
def test_a_node_killed_at_its_work_leaves_no_trace(tmp_path, ray_folder, monkeypatch, stage):
    """Two nodes, each with its own raylet; one of them is gone for good."""
    monkeypatch.setattr(reading, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(counting, "_TOKENS_AT_ONCE", 50)
    audit_fakes(tmp_path / "one", make_fake_models(), classifier=EXPOSED)
    address = f"127.0.0.1:{free_port()}"
    head = ("--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false")
    killed = []
    with ExitStack() as nodes:
        nodes.callback(Node(*head, f"--temp-dir={ray_folder}").kill)
        doomed = Node(f"--address={address}")
        nodes.callback(doomed.kill)

        def kill_a_node(progress):
            heard.append(progress.stage)
            if heard.count(stage) == 6 and not killed:
                killed.append(doomed.kill())

        heard = []
        models = models_on_ray(RayOptions(address=address, replicas=2), seconds=0.3)
        audit_fakes(tmp_path / "ray", models, classifier=EXPOSED, progress=kill_a_node)

    assert killed[0] >= 2
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.ci
@needs_ray
def test_a_chunk_that_kills_its_actors_ends_as_error_rows(tmp_path, ray_folder):
    """After three of them; the rest of the run goes on."""
    load = partial(load_failing, "is killed by row 24", "")

    result = audit_on_ray(tmp_path / "run", load)

    assert result.outcomes == {"scored": 85, "too_short": 1, "bad": 1, "error": 8}
    assert result.failures == {3: "3 processes died at it, the last with ActorDiedError"}


@needs_ray
@pytest.mark.slow
def test_what_an_actor_refuses_is_told_as_if_it_happened_here(tmp_path, ray_folder):
    """Message and hint survive the way through Ray."""
    with pytest.raises(MemauditError, match="broken weights") as caught:
        audit_on_ray(tmp_path / "run", partial(load_failing, "refuses", ""))

    assert caught.value.hint == "get them again"
    assert not (tmp_path / "run").exists()


@needs_ray
@pytest.mark.slow
def test_an_actor_that_crashes_shows_where(tmp_path, ray_folder):
    """A bug in an actor must not look like a lost node."""
    with pytest.raises(RuntimeError, match=r"(?s)a replica crashed:.*ZeroDivisionError"):
        audit_on_ray(tmp_path / "run", partial(load_failing, "crashes", ""))


@needs_ray
@pytest.mark.slow
def test_actors_that_cannot_start_end_the_run(tmp_path, ray_folder, monkeypatch):
    """Such as on nodes where something is not installed."""
    monkeypatch.setenv("PYTHONPATH", "")

    with pytest.raises(ModelError, match="3 replicas in a row died before they had their models"):
        audit_on_ray(tmp_path / "run", partial(load_fakes, 0.0))


def chats():
    """Conversations, texts of all lengths and what cannot be read."""
    rng = random.Random(0)
    texts = [f"{i} {'abcdefgh'[i % 8] * rng.randrange(40)} and so on" for i in range(600)]
    rows = make_rows(*texts, *texts[:5], "", "short", None, "a row " * 300)
    return [
        replace(row, answers=((3, 9), (10, len(row.text)))) if row.row % 7 == 3 else row
        for row in rows
        if isinstance(row, Example)
    ] + [row for row in rows if not isinstance(row, Example)]


@pytest.mark.slow
@pytest.mark.ci
@needs_ray
def test_tasks_cut_and_count_as_one_process_does(tmp_path, ray_folder, monkeypatch):
    """Whatever is cut, with exposure and without, in one pass or many."""
    monkeypatch.setattr(reading, "_ROWS_AT_ONCE", 100)
    monkeypatch.setattr(counting, "_TOKENS_AT_ONCE", 5_000)
    with connected(TWO, 1):
        for windows, classifier, a_gram in (
            ("first", make_classifier(), 24),
            ("tile", EXPOSED, 24),
            ("answers", EXPOSED, 1 << 22),  # so that a few grams are counted in a pass
        ):
            monkeypatch.setattr(counting, "_SHARED_BYTES_PER_GRAM", a_gram)
            for name, models in (("one", make_fake_models()), ("ray", models_on_ray())):
                given = {"out": tmp_path / windows / name, "windows": windows, "chunk_size": 256}
                audit_fakes(models=models, rows=chats(), classifier=classifier, **given)
            assert contents(tmp_path / windows / "one") == contents(tmp_path / windows / "ray")


@pytest.mark.slow
@needs_ray
def test_answers_come_in_order_and_few_parts_are_under_way(ray_folder):
    """A corpus is larger than memory: no more of it is read than tasks are about to need."""
    pulled = []

    def parts():
        for i in range(40):
            pulled.append(i)
            yield [i] * (40 - i)

    with tasks_on_ray(TWO, 1) as tasks:
        for n, answer in enumerate(tasks.map(sum, parts())):
            assert answer == n * (40 - n)
            assert len(pulled) <= n + 4
        with pytest.raises(WorkerError, match=r"(?s)a task crashed:.*TypeError"):
            list(tasks.map(sum, ["text of a corpus"]))


class KilledTable(GramTable):
    """Kills the first process that counts in it."""

    marker = ""

    def count(self, rows, weights=None):
        meet("is killed once", self.marker)
        return super().count(rows, weights)


@pytest.mark.slow
@pytest.mark.ci
@needs_ray
def test_a_task_killed_while_it_cuts_or_counts_leaves_no_trace(tmp_path, ray_folder, monkeypatch):
    """Its part is given to another: the driver has it still, and stays connected all the time."""
    audit_fakes(tmp_path / "one", make_fake_models(), classifier=EXPOSED)
    markers = [str(tmp_path / name) for name in ("cut", "counted")]

    class Killed(KilledTable):
        marker = markers[1]

    import ray

    connections, init = [], ray.init
    monkeypatch.setattr(ray, "init", lambda **given: connections.append(given) or init(**given))
    monkeypatch.setattr("memaudit.exposure.GramTable", Killed)
    models = models_on_ray(tokenizer=make_failing_tokenizer("is killed once", markers[0]))

    audit_fakes(tmp_path / "ray", models, classifier=EXPOSED)

    assert all(Path(marker).exists() for marker in markers)
    assert len(connections) == 1
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


@needs_ray
@pytest.mark.slow
def test_what_a_task_meets_is_told_as_if_it_happened_here(tmp_path, ray_folder):
    """Message and hint, or where it crashed; of the text that it failed at nothing."""
    with connected(TWO, 1):
        for trouble, message in (
            ("refuses", "^broken weights$"),
            ("crashes", r"(?s)a task crashed:.*ZeroDivisionError"),
            ("is killed", "a part of the corpus was given up on Ray: .*WorkerCrashedError"),
        ):
            models = models_on_ray(tokenizer=make_failing_tokenizer(trouble))
            with pytest.raises((MemauditError, WorkerError), match=message) as caught:
                audit_fakes(tmp_path / "run", models)
            assert "090053" not in str(caught.value)
            assert trouble != "refuses" or caught.value.hint == "get them again"
        files = [path for path in Path(ray_folder).rglob("*") if path.is_file()]
        assert len(files) > 10
        assert not any(b"090053" in path.read_bytes() for path in files)
    assert not (tmp_path / "run").exists()


@needs_ray
@pytest.mark.slow
def test_a_tokenizer_with_code_of_its_own_stays_here(ray_folder):
    """Its code is in no package that a node has; all others travel, and are unpacked once."""
    tokenizer, _ = open_tokenizer("models/demo-teacher", ModelOptions(device="cpu", offline=True))
    own, _ = open_tokenizer("models/demo-teacher", ModelOptions(device="cpu", offline=True))
    kind = type(own._tokenizer)
    own._tokenizer.__class__ = type("Own", (kind,), {"__module__": "transformers_modules.own"})
    texts = [[reading.Rendered(f"{i} texts of some words")] for i in range(9)]
    found = []
    with tasks_on_ray(TWO, 1) as tasks:
        for each in (tokenizer, own):
            cutter = reading.Cutter(each, fake_options().window_choice, keeps_tokens=True)
            here = [cutter(part).tokens.tolist() for part in texts]
            assert [cut.tokens.tolist() for cut in tasks.map(cutter, texts)] == here
            found.append(here)
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.ci
@needs_ray
def test_a_corpus_from_a_pipe_is_audited_on_ray(tmp_path, ray_folder):
    """It can be read once: by the driver, which hands it on."""
    corpus = Path("sample_data/demo.jsonl").read_bytes().splitlines(keepends=True)[:60]
    command = [sys.executable, "-m", "memaudit", "predict", "--teacher", "models/demo-teacher"]
    command += ["--data", "-", "--device", "cpu", "--threads", "1", "--engine", "hf", "--quiet"]
    ray = ["--executor", "ray", "--replicas", "2"]
    for name, more in (("one", []), ("ray", ray)):
        done = subprocess.run(
            [*command, *more, "--out", str(tmp_path / name)],
            input=b"".join(corpus),
            capture_output=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr.decode()
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def test_without_ray_the_package_to_install_is_named(tmp_path, monkeypatch):
    """Before anything is scored."""
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(MissingDependency, match="--executor ray needs the package ray") as caught:
        audit_on_ray(tmp_path / "run", partial(load_fakes, 0.0))

    assert "memaudit-distill[ray]" in caught.value.hint
    assert not (tmp_path / "run").exists()
