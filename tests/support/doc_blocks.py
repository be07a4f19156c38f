"""The code blocks of the documentation, and how they are run."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]

_FENCED = re.compile(
    r"^(?P<marks>(?:[ ]*<!--[^\n]*-->\n)*)(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_RUN_ELSEWHERE = {"README.md": ("demo", "tests")}  # by .ci/run, in a fresh environment


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, and what the comments right above it say."""

    page: str
    line: int
    language: str
    code: str
    marks: tuple[str, ...]

    @property
    def is_run(self):
        """Whether it is a command or a program that must work."""
        skipped = any(mark.startswith("not run: ") for mark in self.marks)
        elsewhere = set(self.marks) & set(_RUN_ELSEWHERE.get(self.page, ()))
        return self.language in ("sh", "python") and not skipped and not elsewhere

    @property
    def is_output(self):
        """Whether it shows what the block before it prints."""
        return "output" in self.marks

    @property
    def exit_code(self):
        """What it must end with."""
        codes = [mark.removeprefix("exits with ") for mark in self.marks if "exits with " in mark]
        return int(codes[0]) if codes else 0


def blocks_of(path):
    """Return the blocks of a page."""
    content = path.read_text(encoding="utf-8")
    blocks = []
    for match in _FENCED.finditer(content):
        indent = match["indent"]
        code = re.sub(f"^{indent}", "", match["code"], flags=re.MULTILINE)
        marks = tuple(re.findall(r"<!-- *(.*?) *-->", match["marks"]))
        line = content.count("\n", 0, match.start("language")) + 1
        blocks.append(Block(path.name, line, match["language"], code, marks))
    return blocks


def run_block(block, folder, programs):
    """Run a block in a folder as its reader would; return what it printed."""
    command = {
        "sh": ["bash", "--norc", "-euo", "pipefail", "-c", block.code],
        "python": [sys.executable, "-c", block.code],
    }[block.language]
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "COLUMNS": "80",
        "HF_HUB_OFFLINE": "1",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    place = f"{block.page}:{block.line}"
    assert done.returncode == block.exit_code, f"{place}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def comparable(line):
    """Return a line without what differs from run to run: figures, and how wide columns are."""
    without_numbers = re.sub(r"\d[\d,.:]*", "#", line)
    return re.sub(r"[\s─━]+", " ", without_numbers).strip()


def missing_lines(shown, printed):
    """Return the lines of a shown output that were not printed; a line of `…` stands for any."""
    there = {comparable(line) for line in printed.splitlines()}
    lines = [line for line in shown.splitlines() if line.strip() not in ("", "…")]
    return [line for line in lines if comparable(line) not in there]
