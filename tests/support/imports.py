"""What a program imports: help that takes seconds is help that nobody reads."""

import subprocess
import sys

HEAVY = {"torch", "sklearn", "transformers", "datasets", "pandas", "scipy", "vllm", "matplotlib"}
"""What a command need not wait for that runs no model."""

COMMAND = "from memaudit.cli.main import run; code = run(sys.argv[1:])"


def loaded_after(program, *arguments):
    """Return what a program leaves in `code`, or 0, and the names of the modules it has loaded."""
    script = f"import sys\ncode = 0\n{program}\nprint('\\n', code, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    code, *modules = done.stdout.splitlines()[-1].split()
    return int(code), {*modules}
