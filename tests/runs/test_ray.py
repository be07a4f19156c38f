"""Ray: actors that are killed, alone or with their node, leave the files that one process makes."""

import os
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
    make_fake_models,
)
from support.fakes import make_classifier

from memaudit.errors import MemauditError, MissingDependency, ModelError
from memaudit.runs.options import RayOptions
from memaudit.runs.ray_executor import score_on_ray

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


def audit_on_ray(out, load, options=RayOptions(replicas=2), progress=None):  # noqa: B008
    """Audit the fake rows on Ray."""
    models = replace(make_fake_models(), score=partial(score_on_ray, load, options, 1))
    return audit_rows(
        fake_rows(88),
        models,
        make_classifier(),
        out=out,
        options=fake_options(),
        progress=progress,
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
def test_a_node_killed_at_its_work_leaves_no_trace(tmp_path, ray_folder):
    """Two nodes, each with its own raylet; one of them is gone for good."""
    fake_audit(tmp_path / "one")
    address = f"127.0.0.1:{free_port()}"
    head = ("--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false")
    killed = []
    with ExitStack() as nodes:
        nodes.callback(Node(*head, f"--temp-dir={ray_folder}").kill)
        doomed = Node(f"--address={address}")
        nodes.callback(doomed.kill)

        def kill_a_node(progress):
            if progress.stage == "score" and progress.done >= 24 and not killed:
                killed.append(doomed.kill())

        options = RayOptions(address=address, replicas=2)
        audit_on_ray(tmp_path / "ray", partial(load_fakes, 0.3), options, kill_a_node)

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


def test_without_ray_the_package_to_install_is_named(tmp_path, monkeypatch):
    """Before anything is scored."""
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(MissingDependency, match="--executor ray needs the package ray") as caught:
        audit_on_ray(tmp_path / "run", partial(load_fakes, 0.0))

    assert "memaudit-distill[ray]" in caught.value.hint
    assert not (tmp_path / "run").exists()
