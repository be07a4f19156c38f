"""The folder of a run: continued wherever it was left, refused to others, and private."""

import errno
import json
import os
import re
from dataclasses import replace

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.fake_run import (
    Interrupted,
    InterruptedEngine,
    audit_with,
    contents,
    fake_audit,
    fake_rows,
)
from support.fakes import make_classifier, make_rows

from memaudit.corpus import Example
from memaudit.errors import CorpusError, OutputError, UsageError
from memaudit.objectives import Objective
from memaudit.runs.folder import begin_run, open_folder
from memaudit.runs.manifest import AnswersRead, ExposureCounted, RunInputs, read_manifest
from memaudit.windows import WindowShape

N_CHUNKS, CHUNK_SIZE = 11, 8


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run."""
    fake_audit(tmp_path / "run")
    return tmp_path / "run"


def interrupt(out, n_chunks):
    """Leave a run when some chunks are scored."""
    with pytest.raises(Interrupted):
        audit_with(InterruptedEngine(n_chunks), out)


@pytest.mark.parametrize("n_chunks", range(N_CHUNKS))
def test_a_run_interrupted_at_any_chunk_ends_like_one_that_was_not(tmp_path, reference, n_chunks):
    """The promise that lets a run of days be killed at any moment: the same bytes."""
    out = tmp_path / "run"
    interrupt(out, n_chunks)
    assert len(list(out.glob("chunks/*"))) == n_chunks

    engine = InterruptedEngine()
    result = audit_with(engine, out)

    assert engine.n_windows == (N_CHUNKS - n_chunks) * CHUNK_SIZE
    assert result.kept_windows == n_chunks * CHUNK_SIZE
    assert contents(out) == reference


def test_a_run_may_be_interrupted_again_and_again(tmp_path, reference):
    """A machine that dies every hour still gets there, one chunk at a time."""
    for done in range(1, N_CHUNKS):
        interrupt(tmp_path / "run", 1)
        assert len(list((tmp_path / "run").glob("chunks/*"))) == done

    audit_with(InterruptedEngine(1), tmp_path / "run")

    assert contents(tmp_path / "run") == reference


def test_a_finished_run_is_verified_and_gives_the_same_bytes(finished, reference):
    """To give a command twice costs no scoring and changes nothing."""
    result = audit_with(InterruptedEngine(0), finished)

    assert result.kept_windows == N_CHUNKS * CHUNK_SIZE
    assert contents(finished) == reference


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied", "removed", "exchanged"])
def test_a_chunk_that_is_not_as_it_was_written_is_scored_again(finished, reference, damage):
    """Disks and people damage files: a wrong number must not reach the table."""
    chunk = finished / "chunks" / "00003.parquet"
    content = chunk.read_bytes()
    if damage == "removed":
        chunk.unlink()
    else:
        middle = len(content) // 2
        chunk.write_bytes(
            {
                "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "cut": content[:middle],
                "emptied": b"",
                "exchanged": (finished / "chunks" / "00004.parquet").read_bytes(),
            }[damage]
        )
    engine = InterruptedEngine()

    audit_with(engine, finished)

    assert engine.n_windows == CHUNK_SIZE
    assert contents(finished) == reference


@pytest.mark.parametrize("name", ["rows.parquet", "risk.parquet", "summary.json"])
@pytest.mark.parametrize("damage", [None, b"", b"PAR1 damaged PAR1"])
def test_whatever_else_is_damaged_is_written_again(finished, reference, name, damage):
    """All of it follows from the corpus and the chunks."""
    if damage is None:
        (finished / name).unlink()
    else:
        (finished / name).write_bytes(damage)

    audit_with(InterruptedEngine(0), finished)

    assert contents(finished) == reference
    assert json.loads((finished / "summary.json").read_text())["rows"] == 95


OTHER_VALUES = {
    "corpus": ({"source": "other.jsonl"}, r"corpus\.source was None, is now other\.jsonl"),
    "on_bad_row": ("skip", "on bad row was error, is now skip"),
    "rows": (96, "rows was 95, is now 96"),
    "rows_digest": ("e" * 64, "rows digest was [0-9a-f]{12}, is now e{12}$"),
    "texts_digest": ("e" * 64, "texts digest was [0-9a-f]{12}, is now e{12}$"),
    "distinct_windows": (89, "distinct windows was 88, is now 89"),
    "teacher_digest": ("e" * 64, "teacher digest was 0{12}, is now e{12}$"),
    "reference_digest": ("e" * 64, "reference digest was None, is now e{12}$"),
    "feature_set": ("teacher+student", r"feature set was teacher, is now teacher\+student"),
    "features": (("one", "two"), r"features\.one was None, is now there"),
    "classifier_digest": ("e" * 64, "classifier digest was [0-9a-f]{12}, is now e{12}$"),
    "objective": (Objective(temperature=3), r"objective\.temperature was 2\.0, is now 3"),
    "engine": ("hf-bfloat16", "engine was byte-wise, is now hf-bfloat16"),
    "device": ("A100", "device was cpu, is now A100"),
    "threads": (7, "threads was None, is now 7"),
    "prefix_tokens": (5, "prefix tokens was 4, is now 5"),
    "suffix_tokens": (5, "suffix tokens was 4, is now 5"),
    "windows": ("tile", "windows was first, is now tile"),
    "chunk_size": (9, "chunk size was 8, is now 9"),
    "zlib": (None, r"zlib\.version was [\w.-]+, is now 0\.0"),
    "survival": (0.995, r"survival was None, is now 0\.995"),
    "answers": (AnswersRead("all", 16, 1, 1, 1, 0), r"answers\.rows was None, is now 1"),
    "exposure": (ExposureCounted(8, 5.0), r"exposure\.epochs was None, is now 5\.0"),
    "cascade_digest": ("e" * 64, "cascade digest was None, is now e{12}$"),
    "versions": ({"torch": "0.0"}, r"versions\.torch was [\w.+]+, is now 0\.0"),
}


@pytest.mark.parametrize("field", RunInputs.__struct_fields__)
def test_every_input_that_changes_is_refused_by_name(finished, field):
    """Two runs mixed in one folder would give a table that nobody can explain."""
    manifest = read_manifest(finished / "manifest.json")
    value, message = OTHER_VALUES[field]
    if field == "zlib":
        value = msgspec.structs.replace(manifest.inputs.zlib, version="0.0")
    elif field == "versions":
        value = manifest.inputs.versions | value
    inputs = msgspec.structs.replace(manifest.inputs, **{field: value})
    if field == "threads":  # they matter while there is something to score
        (finished / "chunks" / "00003.parquet").unlink()
    before = contents(finished)

    with pytest.raises(UsageError, match="holds another run: ") as caught:
        begin_run(finished, msgspec.structs.replace(manifest, inputs=inputs), restart=False)

    differences = caught.value.message.partition("another run: ")[2].split("; ")
    assert any(re.match(message, difference) for difference in differences), differences
    assert len(differences) == 1 or field in (
        "features",
        "answers",
        "exposure",
    )  # a field of several
    assert "--restart" in caught.value.hint
    assert contents(finished) == before


OTHER_COMMANDS = {
    "texts digest": {"rows": "other text"},
    "rows digest": {"rows": "other id"},
    "rows was 95, is now 94": {"rows": "one less"},
    "teacher digest": {"models": {"teacher_digest": "1" * 64}},
    "engine": {"models": {"engine": "another"}},
    "device": {"models": {"device": "A100"}},
    "threads": {"models": {"threads": 3}},
    "classifier digest": {"classifier": msgspec.structs.replace(make_classifier(), threshold=0.25)},
    "on bad row": {"on_bad_row": "skip"},
    "objective.temperature": {"objective": Objective(temperature=1.5)},
    "prefix tokens": {"shape": WindowShape(3, 5)},
    "windows was first": {"windows": "tile"},
    "chunk size": {"chunk_size": 16},
}


@pytest.mark.parametrize("difference", OTHER_COMMANDS)
def test_a_changed_command_is_refused_by_what_changed(finished, difference):
    """From the options that a user can change to the name in the message."""
    changes = dict(OTHER_COMMANDS[difference])
    if "rows" in changes:
        changes["rows"] = _other_rows(changes["rows"])
    if difference == "threads":  # they matter while there is something to score
        (finished / "chunks" / "00003.parquet").unlink()
    before = contents(finished)

    with pytest.raises(UsageError, match=difference):
        audit_with(InterruptedEngine(0), finished, **changes)

    assert contents(finished) == before


def _other_rows(change):
    rows = fake_rows(88)
    if change == "one less":
        return rows[:-1]
    # Beyond the window that is scored: the chunks would be equal, the corpus is not.
    changed = {"other text": {"text": rows[0].text + "!"}, "other id": {"example_id": "x"}}[change]
    assert isinstance(rows[0], Example)
    return [replace(rows[0], **changed), *rows[1:]]


@pytest.mark.parametrize(
    "changes", [{}, {"chunk_size": 16}, {"windows": "tile"}, {"rows": make_rows("another text")}]
)
def test_to_start_over_is_to_start_in_an_empty_folder(finished, tmp_path, changes):
    """Nothing of the former run may show through."""
    engine = InterruptedEngine()

    audit_with(engine, finished, restart=True, **changes)

    audit_with(InterruptedEngine(), tmp_path / "fresh", **changes)
    assert engine.n_windows == read_manifest(finished / "manifest.json").inputs.distinct_windows
    assert contents(finished) == contents(tmp_path / "fresh")


def test_to_start_over_leaves_what_is_not_a_runs(tmp_path):
    """A folder of somebody's project given as --out must not lose a file."""
    for name in ("manifest.json", "chunks/data.parquet", "chunks/00000.parquet", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"somebody's")
    before = contents(tmp_path)

    with pytest.raises(UsageError, match=r"manifest\.json: not the manifest of a run"):
        audit_with(InterruptedEngine(0), tmp_path, restart=True)

    assert contents(tmp_path) == before


def test_to_start_over_keeps_foreign_files_beside_a_run(finished):
    """Only what a run makes is a run's to remove."""
    for name in ("notes.txt", "chunks/data.parquet"):
        (finished / name).write_bytes(b"somebody's")

    audit_with(InterruptedEngine(), finished, restart=True, chunk_size=16)

    assert contents(finished)["chunks/data.parquet"] == b"somebody's"
    assert contents(finished)["notes.txt"] == b"somebody's"


def test_to_start_over_works_on_a_damaged_manifest_of_ours(finished, reference):
    """It is what the message about it says to do."""
    manifest = finished / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"rows": 95', b'"rows": 96'))
    with pytest.raises(OutputError, match="changed, damaged"):
        audit_with(InterruptedEngine(0), finished)

    audit_with(InterruptedEngine(), finished, restart=True)

    assert contents(finished) == reference


def test_a_table_of_the_run_before_goes_when_the_new_one_is_there(finished):
    """In whatever format: two tables side by side must be of one run."""
    audit_with(InterruptedEngine(0), finished, table_format="csv")
    assert (finished / "risk.parquet").exists()

    audit_with(InterruptedEngine(), finished, restart=True, chunk_size=16, table_format="jsonl")

    assert [path.name for path in finished.glob("risk.*")] == ["risk.jsonl"]


def test_how_results_are_told_may_change(finished):
    """The format of a table, the length of a list: no chunk depends on them."""
    result = audit_with(InterruptedEngine(0), finished, table_format="jsonl", n_worst=2)

    assert len(result.worst) == 2
    assert len((finished / "risk.jsonl").read_text().splitlines()) == 95


def test_a_second_writer_is_refused_and_touches_nothing(finished):
    """Two processes at work in one folder would undo each other's files."""
    before = contents(finished)

    with (
        open_folder(finished),
        pytest.raises(OutputError, match=rf"run: in use by process {os.getpid()}"),
    ):
        audit_with(InterruptedEngine(0), finished, restart=True)

    assert contents(finished) == before
    audit_with(InterruptedEngine(0), finished)


def test_every_file_is_its_owners_alone(finished):
    """Whatever the umask: what a corpus leaks is in the table."""
    paths = list(finished.rglob("*"))

    assert {path.name for path in paths} >= {"lock", "manifest.json", "chunks", "rows.parquet"}
    for path in (finished, *paths):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_no_file_holds_text_or_token_ids(tmp_path):
    """A run's folder is copied and shared; the corpus is not ours to give away."""
    rows = make_rows(*(f"CANARY {i} sings" for i in range(20)))
    out = tmp_path / "run"
    audit_with(InterruptedEngine(), out, rows=rows)

    token_ids = np.frombuffer(b"CANARY", np.uint8)
    patterns = [b"CANARY", *(token_ids.astype(kind).tobytes() for kind in (np.int32, np.int64))]
    listed = (str(token_ids.tolist()), ",".join(map(str, token_ids)))
    for path in out.rglob("*"):
        content = b"" if path.is_dir() else path.read_bytes()
        if path.suffix == ".parquet":
            content += str(pq.read_table(path).to_pydict()).encode()
        assert not any(pattern in content for pattern in patterns), path
        assert not any(text.encode() in content for text in listed), path
    chunk, rows_file = (
        pq.read_schema(out / "chunks" / "00000.parquet"),
        pq.read_schema(out / "rows.parquet"),
    )
    assert {str(field.type) for field in chunk} == {"double"}
    names = ["id", "row", "address", "outcome", "reason", "windows", "text"]
    assert rows_file.names == names


def test_what_a_killed_process_had_half_written_is_removed(finished, reference):
    """Otherwise a run that is killed often fills the disk; what is not ours stays."""
    for name in (".manifest.json.0123abcd.tmp", "chunks/.00003.parquet.0123abcd.tmp"):
        (finished / name).write_bytes(b"half")
    (finished / ".notes.tmp").write_bytes(b"somebody's")

    audit_with(InterruptedEngine(0), finished)

    assert contents(finished) == reference | {".notes.tmp": b"somebody's"}


def test_a_full_disk_is_told_with_the_space_that_is_needed(tmp_path, reference, monkeypatch):
    """And what has been scored before is kept."""
    out = tmp_path / "run"
    interrupt(out, 4)

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            audit_with(InterruptedEngine(), out)

    needed = int(caught.value.hint.split()[1].replace(",", ""))
    assert needed > sum(len(reference[name]) for name in reference if name > "chunks/00004")
    assert "give the same command again" in caught.value.hint
    assert len(list(out.glob("chunks/*"))) == 4
    audit_with(InterruptedEngine(), out)
    assert contents(out) == reference


def test_a_manifest_that_is_not_ours_survives_a_run_that_is_refused(tmp_path):
    """A folder of somebody's project given as --out must not lose its manifest.json."""
    (tmp_path / "manifest.json").write_bytes(b"somebody's")

    with pytest.raises(OutputError, match="changed, damaged or written by another version"):
        audit_with(InterruptedEngine(0), tmp_path)

    assert contents(tmp_path) == {"manifest.json": b"somebody's"}


def test_a_failure_before_the_run_begins_removes_nothing(tmp_path):
    """A typo in the corpus's path, with an --out that holds other things."""
    for name in ("manifest.json", "rows.parquet", "notes.txt"):
        (tmp_path / name).write_bytes(b"somebody's")

    with pytest.raises(CorpusError), open_folder(tmp_path):
        raise CorpusError("not there", hint="look again")

    assert len(contents(tmp_path)) == 3


@pytest.mark.parametrize("name", ["summary.json", "risk.parquet", "risk.csv", "rows.parquet"])
def test_files_that_no_run_has_made_are_not_replaced(tmp_path, name):
    """Somebody names a folder that holds results of another tool."""
    (tmp_path / name).write_bytes(b"somebody's")

    with pytest.raises(UsageError, match="of no run"):
        audit_with(InterruptedEngine(), tmp_path)

    assert {path.name for path in tmp_path.iterdir()} <= {name, "lock", "chunks"}
    assert (tmp_path / name).read_bytes() == b"somebody's"
    audit_with(InterruptedEngine(), tmp_path, restart=True)
    assert (tmp_path / "manifest.json").exists()


def test_a_restart_that_is_interrupted_at_once_may_be_continued(finished, tmp_path):
    """The new run's settings hold from then on; no chunk of the old one is taken."""
    with pytest.raises(Interrupted):
        audit_with(InterruptedEngine(0), finished, restart=True, chunk_size=16)

    audit_with(InterruptedEngine(), finished, chunk_size=16)

    audit_with(InterruptedEngine(), tmp_path / "fresh", chunk_size=16)
    assert contents(finished) == contents(tmp_path / "fresh")


def test_what_a_signal_left_half_written_is_removed_as_the_run_ends(tmp_path):
    """It may come while a file is being cleaned up, and people look before the next run."""

    def stopped(folder):
        (folder / "chunks").mkdir()
        for name in (".rows.parquet.0123abcd.tmp", "chunks/.0.parquet.0123abcd.tmp"):
            (folder / name).write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_folder(tmp_path / "run") as folder:
        stopped(folder)

    assert list(tmp_path.rglob("*.tmp")) == []
