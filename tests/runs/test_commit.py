"""Outputs are whole or not there, and nobody else's business."""

import os
from pathlib import Path

import pytest

from memaudit.errors import OutputError
from memaudit.runs.files import committed_file, lock_holder, locked, output_folder

root_can_write_anywhere = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


def test_a_file_appears_whole_and_private(tmp_path):
    """A reader sees the old file or the new one; others see neither."""
    path = tmp_path / "risk.parquet"
    with committed_file(path) as stream:
        stream.write(b"half")
        assert not path.exists()
        stream.write(b" and half")

    assert path.read_bytes() == b"half and half"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, failure):
    """Half a table would be taken for a whole one."""
    path = tmp_path / "risk.parquet"
    path.write_bytes(b"old")

    def write_half():
        with committed_file(path) as stream:
            stream.write(b"half")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_what_it_points_to_is_not(tmp_path):
    """A link planted in the folder must not make us overwrite another file."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = tmp_path / "risk.csv"
    path.symlink_to(victim)

    with committed_file(path) as stream:
        stream.write(b"table")

    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == b"table"
    assert not path.is_symlink()


def test_a_full_disk_is_told_as_such(tmp_path):
    """The message names the file and what the system said."""

    def write_too_much():
        with committed_file(tmp_path / "risk.csv"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"risk\.csv: cannot be written: No space left"):
        write_too_much()
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_private(tmp_path):
    """Whatever the umask, others cannot look in."""
    with output_folder(tmp_path / "runs" / "prose"):
        pass

    for folder in (tmp_path / "runs", tmp_path / "runs" / "prose"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_folders_made_for_nothing_are_removed(tmp_path):
    """A run that fails leaves no trace, but what was there before stays."""
    (tmp_path / "runs").mkdir()

    def fail():
        with output_folder(tmp_path / "runs" / "prose" / "deep"):
            raise ValueError("the work failed")

    with pytest.raises(ValueError, match="the work failed"):
        fail()
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_another_process_makes_at_the_same_moment_is_taken(tmp_path, monkeypatch):
    """It was not there when it was looked for. It stays, for it belongs to the other one."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(Path, "exists", lambda path: path != folder)

    with pytest.raises(ValueError, match="as it goes"), output_folder(folder):
        raise ValueError("as it goes")

    assert folder.is_dir()


def test_a_file_in_the_way_is_told(tmp_path):
    """A folder cannot be made where a file is."""
    (tmp_path / "taken").write_bytes(b"")

    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(OutputError, match=r"taken.*cannot be written"), output_folder(path):
            pass


@root_can_write_anywhere
def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path):
    """Not after hours of scoring."""
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), output_folder(tmp_path):
        pass


def test_a_file_that_is_no_lock_of_ours_is_left_alone(tmp_path):
    """Other programs have a file of this name, too."""
    (tmp_path / "lock").write_text("precious")

    with pytest.raises(OutputError, match="not a lock of memaudit"), locked(tmp_path / "lock"):
        raise KeyError
    assert (tmp_path / "lock").read_text() == "precious"


def test_a_pipe_in_the_place_of_a_lock_is_not_waited_for(tmp_path):
    """Nobody writes to it, and status would hang."""
    os.mkfifo(tmp_path / "lock")

    assert lock_holder(tmp_path / "lock") is None
    with pytest.raises(OutputError), locked(tmp_path / "lock"):
        raise KeyError
