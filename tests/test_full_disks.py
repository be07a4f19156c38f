"""Full and read-only disks: every command that writes says so, ends with 2, and leaves what was."""

import errno
import os
import resource
import shutil

import pytest
from support.fake_run import fake_audit
from support.gated import make_run, shipped

from memaudit.cli.main import run as run_command
from memaudit.errors import OutputError
from memaudit.runs.manifest import Shard

GATE = ["gate", "--run", "run", "--max-rate", "1"]
REPORT = ["report", "--run", "run"]
COMMANDS = {
    # name: (arguments, what is written)
    "gate --output": ([*GATE, "--output-format", "junit", "--output", "out"], "out"),
    "gate --output of SARIF": ([*GATE, "--output-format", "sarif", "--output", "out"], "out"),
    "gate --attest": ([*GATE, "--attest", "out"], "out"),
    "gate --write-baseline": ([*GATE, "--write-baseline", "out"], "out"),
    "gate --write-policy": ([*GATE, "--write-policy", "out"], "out"),
    "gate --github-files": ([*GATE, "--github-files", "."], "gate.json"),
    "report --html": ([*REPORT, "--html", "out"], "out"),
    "report --markdown": ([*REPORT, "--markdown", "out"], "out"),
    "report --plots": ([*REPORT, "--plots", "plots"], "plots/probabilities.svg"),
    "filter": (["filter", "--run", "run", "--data", "run.jsonl", "--out", "out.jsonl", "--top", "1",
                "--force"], "out.jsonl"),
    "merge": (["merge", "part-0", "part-1", "--out", "whole"], "whole/risk.parquet"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A run, and one in two parts."""
    folder = tmp_path_factory.mktemp("full") / "made"
    folder.mkdir()
    make_run(folder)
    for part in range(2):
        fake_audit(folder / f"part-{part}", n_windows=40, shard=Shard(part, 2))
    return folder


@pytest.fixture
def folder(made_once, tmp_path, monkeypatch):
    """A copy of them to work in."""
    shipped(monkeypatch, tmp_path / "shipped")
    copy = shutil.copytree(made_once, tmp_path / "here")
    monkeypatch.chdir(copy)
    return copy


def break_disk(monkeypatch, kind):
    """Let every file that is made, or every sync, fail as the system lets them fail."""
    real_open, number = os.open, getattr(errno, kind)

    def failing_open(path, flags, *rest, **settings):
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return real_open(path, flags, *rest, **settings)

    def failing_sync(descriptor):
        raise OSError(number, os.strerror(number))

    if kind == "EROFS":
        monkeypatch.setattr(os, "open", failing_open)
    else:
        monkeypatch.setattr(os, "fsync", failing_sync)


@pytest.mark.parametrize("kind", ["ENOSPC", "EDQUOT", "EIO", "EROFS"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_takes_nothing_is_an_error_and_nothing_is_lost(
    name, kind, folder, monkeypatch, capsys
):
    """A job that goes on with half a file, or without the file, must not look well."""
    arguments, written = COMMANDS[name]
    place = folder / written
    place.parent.mkdir(exist_ok=True)
    if name != "merge":
        place.write_bytes(b"what was there before")
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    break_disk(monkeypatch, kind)

    code = run_command(arguments)

    monkeypatch.undo()
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err
    if name != "merge":
        assert place.read_bytes() == b"what was there before"
    after = {path.relative_to(folder) for path in folder.rglob("*") if path.suffix == ".tmp"}
    assert after <= set(before)


@pytest.mark.parametrize("kind", ["ENOSPC", "EROFS"])
def test_a_run_that_cannot_be_written_says_what_it_needs(kind, tmp_path, monkeypatch):
    """What was scored before stays, and the same command goes on."""
    break_disk(monkeypatch, kind)

    with pytest.raises(OutputError):
        fake_audit(tmp_path / "run")
    monkeypatch.undo()

    assert fake_audit(tmp_path / "run").scored > 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
@pytest.mark.parametrize(
    "arguments",
    [
        [*GATE, "--output-format", "json", "--output", "/dev/full"],
        [*GATE, "--attest", "/dev/full"],
        [*REPORT, "--html", "/dev/full"],
        [*REPORT, "--markdown", "/dev/full"],
    ],
)
def test_a_device_that_is_full_is_an_error(arguments, folder, capsys):
    """It is the disk that is always full."""
    assert run_command(arguments) == 2
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("n_bytes", [1, 500, 4_000, 9_000, 20_000, 50_000, 80_000])
def test_a_limit_on_the_size_of_files_is_an_error(n_bytes, tmp_path):
    """Wherever it is met: what is left in a buffer then meets it once more when the file is closed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
            fake_audit(tmp_path / "run", n_windows=3_000)
        except OutputError:
            code = 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
