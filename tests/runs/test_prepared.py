"""Shards that share the reading of their corpus: the windows wait in a folder of all of them."""

import os
import shutil
import signal
import stat
import time
from contextlib import contextmanager

import pyarrow as pa
import pytest
from support.fake_run import (
    ByteWiseEngine,
    audit_with,
    contents,
    fake_options,
    fake_rows,
    make_fake_models,
    score_part,
    score_prepared,
)
from support.fakes import make_classifier
from support.forks import exit_of, fork

from memaudit.errors import OutputError, UsageError
from memaudit.runs import opening, shards
from memaudit.runs.counting import EXPOSURE
from memaudit.runs.files import open_path
from memaudit.runs.folder import WINDOWS
from memaudit.runs.manifest import Shard, read_manifest
from memaudit.runs.sealed_parquet import sealed_writer
from memaudit.runs.shards import merge_runs

ASKS_EXPOSURE = make_classifier(features=("log_exposure", "teacher_suffix_mean_logprob"))


def inputs_of(rows=None, classifier=None, **options):
    """What the shards are given."""
    rows = fake_rows(88) if rows is None else rows
    models = make_fake_models()
    return opening.AuditInputs(
        rows, models, classifier or make_classifier(), fake_options(**options)
    )


def unread():
    """A corpus that must not be read."""
    raise AssertionError("it is read again")
    yield


def score_all(folder, shared, n=3, **given):
    """Score all shards, the first one reads; return their folders."""
    parts = [folder / f"part-{index}" for index in range(n)]
    for index, part in enumerate(parts):
        rows = given.get("rows") if index == 0 else unread()
        score_prepared(part, inputs_of(**given | {"rows": rows}), Shard(index, n), shared)
    return parts


@pytest.fixture
def shared(tmp_path):
    """A folder in which the first shard has left the windows."""
    score_prepared(tmp_path / "first", inputs_of(), Shard(0, 3), tmp_path / "shared")
    return tmp_path / "shared"


@pytest.mark.parametrize("classifier", [None, ASKS_EXPOSURE], ids=["plain", "with exposure"])
def test_shards_that_share_the_reading_leave_what_shards_that_do_not_leave(tmp_path, classifier):
    """Byte for byte, part by part and merged, though all but one read no row."""
    parts = score_all(tmp_path, tmp_path / "shared", classifier=classifier)
    for index, part in enumerate(parts):
        alone = tmp_path / f"alone-{index}"
        score_part(alone, inputs_of(classifier=classifier), Shard(index, 3))
        expected = contents(alone)
        expected.pop(EXPOSURE, None)  # what was counted lies with the windows
        assert contents(part) == expected

    merge_runs(parts, tmp_path / "merged")

    audit_with(ByteWiseEngine(), tmp_path / "whole", classifier=classifier)
    whole = contents(tmp_path / "whole")
    whole.pop(EXPOSURE, None)
    assert contents(tmp_path / "merged") == whole


def test_a_merge_into_the_shared_folder_removes_the_tokens(tmp_path):
    """Nobody needs them any more, and they are the corpus in another form."""
    parts = score_all(tmp_path, tmp_path / "shared")
    assert (tmp_path / "shared" / WINDOWS).exists()

    merge_runs(parts, tmp_path / "shared")

    audit_with(ByteWiseEngine(), tmp_path / "whole")
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_tokens_are_for_their_owner_alone(shared):
    """They are text of the corpus to whoever has the tokenizer."""
    assert stat.S_IMODE((shared / WINDOWS).stat().st_mode) == 0o600
    assert stat.S_IMODE(shared.stat().st_mode) == 0o700


def test_a_shard_goes_on_without_reading(tmp_path, shared):
    """One that lost a chunk, or died, is continued by the windows that are there."""
    before = contents(tmp_path / "first")
    (tmp_path / "first" / "chunks" / "00003.parquet").unlink()

    score_prepared(tmp_path / "first", inputs_of(unread()), Shard(0, 3), shared)

    assert contents(tmp_path / "first") == before


def test_a_reader_that_is_killed_leaves_no_windows(tmp_path, monkeypatch):
    """The next shard reads the corpus, and removes what was half written."""
    shared = tmp_path / "shared"

    @contextmanager
    def killed(*given):
        with sealed_writer(*given) as writer:
            writer.write_table = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            yield writer

    def die():
        monkeypatch.setattr(shards, "sealed_writer", killed)
        score_prepared(tmp_path / "part-0", inputs_of(), Shard(0, 3), shared)

    assert exit_of(fork(die)) == -signal.SIGKILL
    assert not (shared / WINDOWS).exists()
    assert list(shared.glob(f".{WINDOWS}.*.tmp"))

    merge_runs(score_all(tmp_path, shared), tmp_path / "merged")

    assert not list(shared.glob(".*.tmp"))
    audit_with(ByteWiseEngine(), tmp_path / "whole")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_of_shards_that_start_together_one_reads(tmp_path, monkeypatch):
    """The jobs of an array do; the others wait for it."""
    read = opening.cut_rows

    def slowly(*given, **named):
        with (tmp_path / "readers").open("a") as readers:
            readers.write("x")
        time.sleep(0.7)
        return read(*given, **named)

    monkeypatch.setattr(opening, "cut_rows", slowly)
    parts = [tmp_path / f"part-{index}" for index in range(3)]
    pids = [
        fork(lambda i=i: score_prepared(parts[i], inputs_of(), Shard(i, 3), tmp_path / "shared"))
        for i in range(3)
    ]

    assert [exit_of(pid) for pid in pids] == [0, 0, 0]

    assert (tmp_path / "readers").read_text() == "x"
    merge_runs(parts, tmp_path / "merged")
    audit_with(ByteWiseEngine(), tmp_path / "whole")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_a_shard_that_waited_and_is_refused_leaves_the_folder_as_it_is(tmp_path, monkeypatch):
    """What was made meanwhile is another's."""
    read = opening.cut_rows
    monkeypatch.setattr(opening, "cut_rows", lambda *a, **k: time.sleep(0.7) or read(*a, **k))
    shared = tmp_path / "shared"
    pid = fork(lambda: score_prepared(tmp_path / "0", inputs_of(), Shard(0, 3), shared))
    while not (shared / "lock").exists() or not (shared / "lock").read_text():
        time.sleep(0.01)

    with pytest.raises(UsageError, match="chunk size was 8, is now 16"):
        score_prepared(tmp_path / "1", inputs_of(chunk_size=16), Shard(1, 3), shared)

    assert exit_of(pid) == 0
    score_prepared(tmp_path / "1", inputs_of(unread()), Shard(1, 3), shared)


def test_other_options_are_refused_by_name(tmp_path, shared):
    """Shards that differ could not be merged; and the hint names the right option."""
    with pytest.raises(UsageError, match=r"shared: holds another run: chunk size was 8") as caught:
        score_prepared(tmp_path / "1", inputs_of(unread(), chunk_size=16), Shard(1, 3), shared)

    assert caught.value.hint == (
        "give the same again to continue it, remove that folder, or choose another folder "
        "with --prepared"
    )


def test_files_that_were_touched_are_read_again(tmp_path, shared):
    """If they say the same, nothing else happens."""
    before = (shared / WINDOWS).read_bytes()

    score_prepared(tmp_path / "1", inputs_of(), Shard(1, 3), shared, stamp="touched")

    assert (shared / WINDOWS).read_bytes() != before, "it says which files it was made from"
    score_prepared(tmp_path / "2", inputs_of(unread()), Shard(2, 3), shared, stamp="touched")


def test_another_corpus_is_refused(tmp_path, shared):
    """Its shards would be of another run; what is there stays."""
    before = contents(shared)

    with pytest.raises(UsageError, match="texts digest was"):
        score_prepared(tmp_path / "1", inputs_of(fake_rows(90)), Shard(1, 3), shared, "changed")

    assert contents(shared) == before


def forge(path, table, stamp="as it is"):
    """Write a file that is sealed, and says that it is of this run and corpus."""
    run = read_manifest(path.with_name("manifest.json")).inputs.fingerprint
    metadata = {"memaudit.run": run, "memaudit.corpus": stamp}
    with sealed_writer(path, table.schema, metadata) as writer:
        writer.write_table(table)


def forged_seal(path):
    """Write what has a seal and is no parquet."""
    import hashlib

    content = b"no parquet, but sealed sha256:" + b"0" * 64
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content[:-64] + digest)


DAMAGES = {
    "a changed bit": lambda path: path.write_bytes(path.read_bytes()[:-50] + bytes(50)),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "no parquet, but sealed": forged_seal,
    "other columns": lambda path: forge(path, pa.table({"tokens": [1, 2]})),
    "too few": lambda path: forge(
        path, pa.table([pa.array([b"x" * 32], pa.binary(32)), [1]], ["tokens", "occurrences"])
    ),
    "gone": lambda path: path.unlink(),
    "rows damaged": lambda path: path.with_name("rows.parquet").write_bytes(b"x" * 1000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_anew(tmp_path, shared, damage):
    """As a damaged chunk is: no score comes of it, and nobody has to be called."""
    expected = contents(shared)
    DAMAGES[damage](shared / WINDOWS)

    score_prepared(tmp_path / "1", inputs_of(), Shard(1, 3), shared)

    assert contents(shared) == expected
    score_part(tmp_path / "alone", inputs_of(), Shard(1, 3))
    assert contents(tmp_path / "1") == contents(tmp_path / "alone")


@pytest.mark.parametrize("value", [b"\xf0\xff\xff\xff" * 8, None], ids=["no tokens", "nothing"])
def test_windows_that_are_none_are_an_error(tmp_path, shared, value):
    """Whoever can forge a seal still gets no traceback out of it."""
    n = read_manifest(shared / "manifest.json").inputs.distinct_windows
    columns = [pa.array([value] * n, pa.binary(32)), pa.array([1] * n, pa.int64())]
    forge(shared / WINDOWS, pa.table(columns, ["tokens", "occurrences"]))

    with pytest.raises(OutputError, match=r"windows\.parquet: damaged"):
        score_prepared(tmp_path / "1", inputs_of(unread()), Shard(1, 3), shared)


def test_what_is_no_file_is_an_error(tmp_path, shared):
    """A pipe would be waited for; and a manifest that is damaged is never replaced."""
    (shared / WINDOWS).unlink()
    os.mkfifo(shared / WINDOWS)
    with pytest.raises(OutputError, match=r"windows\.parquet: cannot be read"):
        score_prepared(tmp_path / "1", inputs_of(unread()), Shard(1, 3), shared)

    (shared / "manifest.json").write_bytes(b"{}")
    with pytest.raises(OutputError, match="damaged") as caught:
        score_prepared(tmp_path / "1", inputs_of(unread()), Shard(1, 3), shared)
    assert "remove that folder, or choose another folder with --prepared" in caught.value.hint


def test_a_folder_that_was_merged_into_can_serve_once_more(tmp_path):
    """A shard is scored again after the merge, with exposure, which no chunk lacks there."""
    parts = score_all(tmp_path, tmp_path / "shared", classifier=ASKS_EXPOSURE)
    before = contents(parts[1])
    merge_runs(parts, tmp_path / "shared")
    shutil.rmtree(parts[1])

    inputs = inputs_of(classifier=ASKS_EXPOSURE)
    score_prepared(parts[1], inputs, Shard(1, 3), tmp_path / "shared")

    assert contents(parts[1]) == before


def test_a_store_is_shared_like_a_folder(tmp_path):
    """There is no lock in it, and none is needed: equal bytes go under equal names."""
    pytest.importorskip("upath")
    store = open_path("memory://store")
    try:
        parts = score_all(tmp_path, store / "shared")
        merge_runs(parts, store / "shared")
        audit_with(ByteWiseEngine(), tmp_path / "whole")
        assert contents(store / "shared") == contents(tmp_path / "whole")
    finally:
        store.fs.store.clear()
