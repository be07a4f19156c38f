"""The work folder: private, for one verification, and whole or not there."""

import fcntl
import stat
from contextlib import suppress

import numpy as np
import pytest
from safetensors import SafetensorError

from memaudit.errors import OutputError, UsageError
from memaudit.verification.models import commit_folder, model_write_errors
from memaudit.verification.stages import begin, finish, stage_arrays, work_folder

SETTINGS = {"epochs": 3.0, "seed": 0, "baseline_digest": None}


def mode(path):
    """Who may do what with a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_private_and_vanishes_in_the_end(tmp_path):
    """It holds models and texts."""
    with work_folder(tmp_path / "out") as work:
        begin(work, SETTINGS)
        assert mode(work) == mode(work.parent) == 0o700
        assert mode(work / "manifest.json") == 0o600
        (work / "student").mkdir()
        finish(work)

    assert list((tmp_path / "out").iterdir()) == []


def test_an_error_before_any_stage_leaves_nothing(tmp_path):
    """A typo in a path must not leave folders behind."""
    with pytest.raises(KeyError), work_folder(tmp_path / "a/b"):
        raise KeyError

    assert list(tmp_path.iterdir()) == []


def test_work_that_has_begun_survives_an_error(tmp_path):
    """The next run goes on from there."""
    with suppress(KeyError), work_folder(tmp_path) as work:
        begin(work, SETTINGS)
        raise KeyError

    assert (tmp_path / "work/manifest.json").exists()
    with work_folder(tmp_path) as work:
        begin(work, SETTINGS)


@pytest.mark.parametrize("name", ["notes.txt", ".notes.tmp", "data/notes.txt"])
def test_a_folder_of_somebody_else_is_not_taken_for_work(tmp_path, name):
    """It would be removed as soon as anything goes wrong, or when all went well."""
    path = tmp_path / "work" / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")

    with pytest.raises(UsageError, match="work: holds something else"), work_folder(tmp_path):
        raise KeyError
    assert path.read_text() == "precious"


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"epochs": 1}'])
def test_a_manifest_of_something_else_is_refused(tmp_path, content):
    """Nothing in its folder may be touched then."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work/manifest.json").write_text(content)
    (tmp_path / "work/.notes.tmp").write_text("precious")

    with pytest.raises(UsageError), work_folder(tmp_path) as work:
        begin(work, SETTINGS)
    assert (tmp_path / "work/.notes.tmp").read_text() == "precious"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 4.0}, "epochs was 3.0, is now 4.0"),
        ({"baseline_digest": "ab"}, "baseline_digest was None, is now ab"),
        ({"threads": 2}, "threads was None, is now 2"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, changed, message):
    """Half of one verification and half of another would be neither."""
    with work_folder(tmp_path) as work:
        begin(work, SETTINGS)

    with pytest.raises(UsageError, match=message), work_folder(tmp_path) as work:
        begin(work, SETTINGS | changed)


def test_two_processes_do_not_share_it(tmp_path):
    """Both would train, and each would overwrite the other's checkpoints."""
    (tmp_path / "work").mkdir()
    with (tmp_path / "work/lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="in use by process"):
            work_folder(tmp_path).__enter__()


def test_halves_of_a_kill_are_removed(tmp_path):
    """Folders and files under temporary names, once it is sure whose they are."""
    with suppress(KeyError), work_folder(tmp_path) as work:
        begin(work, SETTINGS)
        raise KeyError
    (tmp_path / "work/.student.tmp").mkdir()
    (tmp_path / "work/.student.tmp/model.safetensors").write_text("half")
    (tmp_path / "work/.labels.npz.1234.tmp").write_text("half")
    (tmp_path / "mine.tmp").write_text("whole")

    with work_folder(tmp_path) as work:
        begin(work, SETTINGS)
        assert {path.name for path in work.iterdir()} == {"manifest.json", "lock"}
        finish(work)

    assert [path.name for path in tmp_path.iterdir()] == ["mine.tmp"]


def test_a_stage_is_computed_once(tmp_path):
    """The second time it is read."""
    calls = []

    def compute():
        calls.append(1)
        return {"a": np.arange(3), "b": np.ones(2, np.bool_)}

    first, second = (stage_arrays(tmp_path / "stage.npz", compute) for _ in range(2))

    assert len(calls) == 1
    assert first["a"].tolist() == second["a"].tolist() == [0, 1, 2]
    assert second["b"].dtype == np.bool_
    assert mode(tmp_path / "stage.npz") == 0o600


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "array"])
def test_what_a_stage_left_is_checked(tmp_path, damage):
    """Disks lose bytes: it says which file to remove, and the rest of the work stays."""
    path = tmp_path / "stage.npz"
    stage_arrays(path, lambda: {"a": np.arange(300)})
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "array":
        with path.open("wb") as stream:
            np.save(stream, np.arange(3))
    else:
        path.write_bytes(
            {
                "cut": content[:middle],
                "flipped": content[:middle] + b"\xff\xff" + content[middle + 2 :],
                "empty": b"",
                "other": b"not an archive",
            }[damage]
        )

    with pytest.raises(UsageError, match=r"stage\.npz: damaged") as error:
        stage_arrays(path, dict)

    assert error.value.hint == "remove it: what it holds is computed again"


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    """It is done again, whole."""

    def compute():
        raise KeyError

    with pytest.raises(KeyError):
        stage_arrays(tmp_path / "stage.npz", compute)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_its_name_when_all_is_in_it(tmp_path):
    """A half-written model would look like a model."""

    def write(folder):
        (folder / "config.json").write_text("{}")
        (folder / "config.json").chmod(0o644)
        assert not (tmp_path / "student").exists()

    commit_folder(tmp_path / "student", write)

    assert mode(tmp_path / "student") == 0o700
    assert mode(tmp_path / "student/config.json") == 0o600


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_full_disk_is_told_as_one(tmp_path, error):
    """Each library has its own way to say it."""
    with pytest.raises(OutputError, match="cannot be written"), model_write_errors(tmp_path):
        raise error


def test_a_bug_is_not_told_as_a_full_disk(tmp_path):
    """Else nobody would find it."""
    with pytest.raises(RuntimeError, match="a bug"), model_write_errors(tmp_path):
        raise RuntimeError("a bug")
