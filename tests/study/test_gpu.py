"""What runs on a borrowed GPU, without one: weights in parts, and stages that go on."""

import random
import subprocess
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "study"
STAND_IN = """#!/usr/bin/env bash
folder=$(dirname "$0")
echo "$*" >> "$folder/calls"
case "$*" in
  *unpack.py*) mkdir -p "$3" && touch "$3/tokenizer.json" ;;
  *"-m pytest"*) echo told; exit "$(cat "$folder/code")" ;;
esac
"""


def run(script, *arguments, **options):
    """Run a script of the study."""
    command = [STUDY / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def parts(tmp_path):
    """A file of 2.5 MiB in parts of 1."""
    whole = tmp_path / "SmolLM2-tiny.gguf"
    whole.write_bytes(random.Random(1).randbytes(5 << 19))
    assert run("parts.sh", "split", whole, tmp_path / "parts", "1").returncode == 0
    return tmp_path / "parts"


def test_a_file_in_parts_is_put_together_again(parts):
    """Each part is small enough to travel, and the whole is what was split."""
    sizes = [path.stat().st_size for path in sorted(parts.glob("*.part0?"))]

    assert run("parts.sh", "join", parts, parts / "out").returncode == 0
    assert sizes == [1 << 20, 1 << 20, 1 << 19]
    name = "SmolLM2-tiny.gguf"
    assert (parts / "out" / name).read_bytes() == (parts.parent / name).read_bytes()


@pytest.mark.parametrize("harm", ["missing", "corrupt"])
def test_a_part_that_is_missing_or_corrupt_is_named(parts, harm):
    """Weights with a gap would load, and give figures of another model."""
    part = parts / "SmolLM2-tiny.gguf.part01"
    if harm == "missing":
        part.unlink()
    else:
        part.write_bytes(bytes(1) + part.read_bytes()[1:])

    done = run("parts.sh", "join", parts, parts / "out")

    assert done.returncode == 1
    assert part.name in done.stdout + done.stderr
    assert "SmolLM2-tiny.gguf: a part is missing or corrupt" in done.stderr
    assert not list((parts / "out").glob("*.gguf"))


def test_a_second_call_on_a_gpu_repeats_only_what_failed(parts, tmp_path):
    """There are ten minutes: one stage that fails costs none of the others."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    (tmp_path / "code").write_text("3")

    def call():
        (tmp_path / "calls").write_text("")
        options = {"env": {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}, "cwd": tmp_path}
        done = run("gpu.sh", "parts", "work", "out", **options)
        return done, (tmp_path / "calls").read_text()

    first, calls = call()
    assert first.returncode == 1
    assert "== tests: exit code 3" in first.stdout
    assert "gemma3: no weights" in first.stdout
    for made in ("benchmarks/unpack.py", "benchmarks.softmax", "benchmarks.device", "-m study"):
        assert made in calls
    assert calls.count("--no-later") == calls.count("-m study") / 2 == 1
    assert "--device cuda --dtype bfloat16" in calls

    (tmp_path / "code").write_text("0")
    second, calls = call()
    assert second.returncode == 0
    assert [call.split()[:3] for call in calls.splitlines()] == [["-m", "pytest", "-q"]]
    assert (tmp_path / "out/log.txt").read_text().count("told") == 2

    (tmp_path / "work/SmolLM2-tiny.gguf").unlink()
    (parts / "SmolLM2-tiny.gguf.part02").unlink()
    third, _ = call()
    assert third.returncode == 1
    assert "SmolLM2-tiny.gguf: a part is missing" in third.stdout
