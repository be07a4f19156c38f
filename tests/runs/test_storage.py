"""Runs in an object store: the same files, without rename, fsync or lock."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.fake_run import (
    Interrupted,
    InterruptedEngine,
    audit_with,
    contents,
    fake_audit,
)

from memaudit.errors import MissingDependency, OutputError, UsageError
from memaudit.runs.files import open_path
from memaudit.runs.manifest import Shard, read_manifest, write_manifest
from memaudit.runs.run import read_run
from memaudit.runs.shards import merge_runs
from memaudit.runs.status import run_status


@pytest.fixture
def place():
    """A place in a store that is in memory."""
    pytest.importorskip("upath")
    yield open_path("memory://store/run")
    open_path("memory://store").fs.store.clear()


def test_a_run_in_a_store_has_the_files_of_one_in_a_folder(place, reference):
    """Chunks may be scored anywhere and looked at anywhere."""
    result = fake_audit(place)

    assert contents(place) == reference
    assert str(result.table_path) == "memory://store/run/risk.parquet"
    assert run_status(place).state == "finished"
    assert read_run(place).n_rows == 95


def test_a_run_in_a_store_goes_on_where_it_was(place, reference):
    """And mends what was damaged meanwhile."""
    with pytest.raises(Interrupted):
        audit_with(InterruptedEngine(4), place)
    (place / "chunks" / "00002.parquet").write_bytes(b"damaged")
    assert run_status(place).damaged == (2,)
    engine = InterruptedEngine()

    result = audit_with(engine, place)

    assert (engine.n_windows, result.kept_windows) == (64, 24)
    assert contents(place) == reference


def test_a_failed_upload_leaves_nothing_under_the_name(place, monkeypatch):
    """What is half written never leaves this machine."""
    fake_audit(place)
    before = contents(place)

    def fail(*arguments, **settings):
        raise ConnectionError("the cable is out")

    (place / "chunks" / "00002.parquet").unlink()
    monkeypatch.setattr(type(place.fs), "put_file", fail)
    with pytest.raises(OutputError, match=r"00002\.parquet: cannot be written: ConnectionError"):
        fake_audit(place)

    del before["chunks/00002.parquet"]
    assert contents(place) == before


def test_of_two_manifests_the_first_stays(place):
    """Two different runs begun at the same moment: one of them is refused."""
    fake_audit(place)
    manifest = read_manifest(place / "manifest.json")

    with pytest.raises(FileExistsError):
        write_manifest(place / "manifest.json", manifest)
    with pytest.raises(UsageError, match="chunk size was 8, is now 16"):
        fake_audit(place, chunk_size=16)


def test_to_start_over_is_refused_without_a_lock(place):
    """Another process may be at work there."""
    fake_audit(place)
    before = contents(place)

    with pytest.raises(UsageError, match="--restart needs a lock"):
        fake_audit(place, restart=True)

    assert contents(place) == before


def test_shards_in_a_store_are_merged(place, reference, tmp_path):
    """Machines that share nothing but a bucket."""
    parts = [place / str(index) for index in range(2)]
    for index, part in enumerate(parts):
        fake_audit(part, shard=Shard(index, 2))

    merge_runs(parts, place / "merged")
    merge_runs(parts, tmp_path / "merged")

    assert contents(place / "merged") == contents(tmp_path / "merged") == reference


def test_a_file_url_is_a_folder(tmp_path):
    """With all that a folder has: fsync, rename, a lock."""
    path = open_path(f"file://{tmp_path}/a%20b")

    assert path == tmp_path / "a b"
    assert type(path) is type(tmp_path)


def test_an_unknown_kind_of_place_is_told():
    """A typo in the scheme."""
    pytest.importorskip("upath")
    with pytest.raises(OutputError, match="s4://bucket/run: no such kind of place"):
        open_path("s4://bucket/run")


def test_the_package_for_a_store_is_named(monkeypatch):
    """The base installation has no network file systems."""
    monkeypatch.setitem(sys.modules, "upath", None)

    with pytest.raises(MissingDependency) as caught:
        open_path("gs://bucket/run")

    assert "memaudit-distill[gs]" in caught.value.hint


@pytest.fixture
def bucket(monkeypatch):
    """A place in a bucket of an S3 server on this machine."""
    pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with suppress(FileExistsError):  # servers of one process share their buckets
        open_path("s3://bucket").fs.mkdir("bucket")
    yield "s3://bucket/run"
    server.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_run_in_a_bucket_that_is_killed_goes_on(bucket, reference):
    """A real HTTP server, a real kill -9, the same bytes."""
    command = [
        sys.executable,
        Path(__file__).parents[1] / "support" / "fake_run.py",
        bucket,
        "--slow",
        "0.5",
    ]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    place = open_path(bucket)
    while not (place / "chunks" / "00002.parquet").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(run_status(place).missing) < 9

    result = fake_audit(place)

    assert result.kept_windows >= 24
    assert contents(place) == reference
    with pytest.raises(FileExistsError):
        write_manifest(place / "manifest.json", read_manifest(place / "manifest.json"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_bucket_that_is_not_there_is_told(bucket):
    """Before the corpus is read."""
    with pytest.raises(OutputError, match="s3://nowhere/run: cannot be reached"):
        fake_audit(open_path("s3://nowhere/run"))
