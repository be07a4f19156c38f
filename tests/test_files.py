"""Files: nothing that is no regular file is replaced, waited for or read without end."""

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memaudit.errors import OutputError
from memaudit.files import read_small, written_file

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")


def write(path, content=b"new"):
    """Write a file as every command does."""
    with written_file(path) as stream:
        stream.write(content)


@needs_root
def test_a_device_is_written_into_and_stays_a_device(tmp_path):
    """As root, a file in the place of /dev/null would fill the disk of the whole machine."""
    null = tmp_path / "null"
    os.mknod(null, 0o666 | 0o020000, os.makedev(1, 3))

    write(null)

    assert null.is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["null"]


@needs_root
def test_a_full_device_is_an_error(tmp_path):
    """What could not be written must not look as if it had been."""
    full = tmp_path / "full"
    os.mknod(full, 0o666 | 0o020000, os.makedev(1, 7))

    with pytest.raises(OutputError, match="No space left"):
        write(full, b"x" * 100_000)


@needs_root
def test_a_disk_is_refused(tmp_path):
    """A typo must not overwrite a file system."""
    disk = tmp_path / "disk"
    os.mknod(disk, 0o600 | 0o060000, os.makedev(240, 0))

    with pytest.raises(OutputError, match="is a disk"):
        write(disk)


def test_a_pipe_is_given_the_whole_content_or_none(tmp_path):
    """Its reader cannot tell half a document from a whole one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()

    write(pipe, b"x" * 200_000)

    reader.join(10)
    assert got == [b"x" * 200_000]
    assert pipe.is_fifo()


def test_a_pipe_that_nobody_reads_is_an_error(tmp_path, monkeypatch):
    """A job that waits for ever tells nobody why."""
    monkeypatch.setattr("memaudit.files._SECONDS_FOR_A_READER", 0.1)
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OutputError):
        write(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("to_file", [True, False])
def test_standard_output_by_name_is_written_where_it_goes(name, to_file, tmp_path):
    """Neither the link in /dev is replaced, nor what the shell has written before."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    program = (
        "from pathlib import Path\nfrom memaudit.files import written_file\n"
        f"print('before')\nwith written_file(Path({name!r})) as stream: stream.write(b'new')\n"
    )
    out = tmp_path / "out"
    out.write_bytes(b"earlier ")
    with out.open("ab") as stream:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, check=True,
            stdout=stream if to_file else subprocess.PIPE,
        )  # fmt: skip

    told = out.read_bytes() if to_file else b"earlier " + done.stdout
    assert told == b"earlier before\nnew"
    assert Path("/dev/stdout").is_symlink()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "large", "none"])
def test_a_small_file_is_read_within_bounds(kind, tmp_path):
    """A policy that is a pipe would be waited for, and one that is /dev/zero never ends."""
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.write_bytes(b"\n" * 1001)

    with pytest.raises(OSError, match=r"regular|directory|bytes|file"):
        read_small(path, 1000)


DYING = """
import os, resource, sys
from memaudit.cli import main
import click
@click.command()
def die():
    print(*resource.getrlimit(resource.RLIMIT_CORE), flush=True)
    os.abort()
main.cli.add_command(die)
main.run(sys.argv[1:])
"""


@pytest.mark.parametrize("allowed", [True, False])
def test_a_command_that_crashes_leaves_no_image_of_its_memory(allowed, tmp_path):
    """A core dump holds every text that was read."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard == 0:
        pytest.skip("core dumps are off already")
    arguments = [*(["--core-dumps"] if allowed else []), "die"]

    done = subprocess.run(
        [sys.executable, "-c", DYING, *arguments], cwd=tmp_path, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (4096, hard)),
    )  # fmt: skip

    assert done.returncode == -signal.SIGABRT, done.stderr
    assert done.stdout.split()[0] == ("4096" if allowed else "0")
    assert [path.name for path in tmp_path.iterdir() if not allowed] == []


def test_a_worker_leaves_no_image_either(tmp_path):
    """It is a process of its own, and the texts are there."""
    program = (
        "import resource, signal, multiprocessing as m\n"
        "from memaudit.files import forbid_core_dumps\n"
        "def told(pipe): pipe.send(resource.getrlimit(resource.RLIMIT_CORE))\n"
        "if __name__ == '__main__':\n"
        "    forbid_core_dumps()\n"
        "    ours, theirs = m.Pipe()\n"
        "    m.get_context('spawn').Process(target=told, args=(theirs,)).start()\n"
        "    print(ours.recv())\n"
    )
    (tmp_path / "program.py").write_text(program)

    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True)

    assert done.stdout == "(0, 0)\n", done.stderr


def test_what_a_killed_process_had_begun_is_removed_and_what_another_writes_is_not(tmp_path):
    """It may hold corpus text, under a name that nobody looks for."""
    place = tmp_path / "out.jsonl"
    abandoned, other = tmp_path / ".out.jsonl.0123abcd.tmp", tmp_path / ".other.jsonl.0123abcd.tmp"
    abandoned.write_text("text")
    other.write_text("text")

    with written_file(place) as stream:
        stream.write(b"new")
        write(place, b"newer")

    assert place.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, place.name]


def test_a_file_of_many_does_not_read_the_names_of_all_others(tmp_path):
    """Each of a hundred thousand chunks would list the folder of all."""
    abandoned = tmp_path / ".out.jsonl.0123abcd.tmp"
    abandoned.write_text("text")

    with written_file(tmp_path / "out.jsonl", clear=False) as stream:
        stream.write(b"new")

    assert abandoned.exists()
