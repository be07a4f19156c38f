"""`memaudit demo`: what it copies, from a checkout and from a wheel."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from memaudit.classifier import shipped_classifiers_dir
from memaudit.cli.main import run as memaudit

ROOT = Path(__file__).parents[2]


def test_it_copies_what_predict_needs_and_says_what_to_try(tmp_path, monkeypatch, capsys):
    """Whoever has only the wheel can try the whole thing."""
    monkeypatch.chdir(tmp_path)

    assert memaudit(["demo"]) == 0

    assert "memaudit predict --teacher demo/demo-teacher --data demo/demo.jsonl" in (
        capsys.readouterr().out
    )
    corpus = (tmp_path / "demo" / "demo.jsonl").read_bytes()
    assert corpus == (shipped_classifiers_dir().parent / "sample_data/demo.jsonl").read_bytes()
    assert (tmp_path / "demo" / "demo-teacher" / "model.safetensors").exists()


def test_it_overwrites_nothing(tmp_path, capsys):
    """The folder may be somebody's own."""
    (tmp_path / "demo.jsonl").write_text("mine")

    assert memaudit(["demo", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "demo.jsonl").read_text() == "mine"


@pytest.mark.slow
def test_a_wheel_outside_the_checkout_has_demo_and_classifiers(tmp_path):
    """Built, installed into an empty environment without dependencies of its own, and used."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "memaudit/sample_data/demo.jsonl" in names
    assert "memaudit/requirements-gate.txt" in names
    venv.create(tmp_path / "empty", with_pip=False)
    (packages,) = (tmp_path / "empty" / "lib").glob("python3*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    # The dependencies of this environment, without the checkout.
    paths = [path for path in sys.path if path.endswith("-packages")]
    (packages / "dependencies.pth").write_text("\n".join(paths) + "\n")
    python = str(tmp_path / "empty" / "bin" / "python")

    def memaudit_there(*arguments):
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        return subprocess.run(
            [python, "-I", "-m", "memaudit", *arguments],
            cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    assert "demo/demo-teacher" in memaudit_there("demo")
    predicted = ("predict", "--teacher", "demo/demo-teacher", "--data", "demo/demo.jsonl", "-q")
    record = json.loads((ROOT / "tests" / "golden" / "demo.json").read_text())
    assert f"{record['flagged']} of 518" in memaudit_there(*predicted)
    assert "gate passes" in memaudit_there("gate", "--run", "runs/demo", "--max-rate", "0.5")
