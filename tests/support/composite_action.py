"""The composite action, run step by step as a runner runs it."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from memaudit.cli.main import NOT_FOR_A_GATE

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Job:
    """What a run of the action left."""

    code: int
    log: str
    outputs: dict[str, str]
    summary: str


def step(name):
    """Return a step by its name."""
    (found,) = [step for step in ACTION["runs"]["steps"] if step["name"] == name]
    return found


def install_here(temporary):
    """Make a virtual environment like the one of the first step, with this code in it."""
    folder = temporary / "memaudit-venv"
    program = Path(os.path.realpath(sys.executable))
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    for made in (folder / "bin", packages):
        made.mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(f"home = {program.parent}\n")
    (folder / "bin" / "python").symlink_to(program)
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("-packages"))]
    # As if what a gate does not need were not installed.
    hidden = f"import sys; sys.modules.update(dict.fromkeys({NOT_FOR_A_GATE!r}))"
    (packages / "here.pth").write_text("\n".join([*paths, hidden]) + "\n")
    command = folder / "bin" / "memaudit"
    command.write_text(f'#!/bin/sh\nexec {folder}/bin/python -I -m memaudit "$@"\n')
    command.chmod(0o755)


def run_step(one, workspace, temporary, inputs, **variables):
    """Run one step with a runner's shell, variables and files."""
    given = {name: setting.get("default", "") for name, setting in ACTION["inputs"].items()}
    given |= {name: str(value) for name, value in inputs.items()}
    files = {name: temporary / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        file.touch()
    script = temporary / "step.sh"
    script.write_text(one["run"])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(temporary),
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_WORKSPACE": str(workspace),
        "RUNNER_TEMP": str(temporary),
        **{name: str(file) for name, file in files.items()},
        **{name: _resolved(value, given) for name, value in one["env"].items()},
        **variables,
    }
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    done = subprocess.run(
        shell, cwd=workspace, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = files["GITHUB_OUTPUT"].read_text().splitlines()
    outputs = dict(line.split("=", 1) for line in lines)
    return Job(done.returncode, done.stdout, outputs, files["GITHUB_STEP_SUMMARY"].read_text())


def _resolved(value, inputs):
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: inputs[match[1]], value)
