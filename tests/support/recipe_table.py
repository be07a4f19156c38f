"""What memaudit makes of the configuration that each trainer documents, on the demo: a Markdown table.

    python -m tests.support.recipe_table        a minute or two

It stands in docs/recipes.md.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_recipes import FILES  # noqa: E402

from memaudit.recipes import read_recipe  # noqa: E402

DEMO = ("--teacher", "models/demo-teacher", "--data", "sample_data/demo.jsonl")


def row(name, folder):
    """Return a trainer's name, what was understood of its file, and how many texts are expected."""
    path = folder / name
    path.write_text(FILES[name])
    recipe = read_recipe(str(path))
    predict = [sys.executable, "-m", "memaudit", "predict", "--json", "--recipe", path]
    predict += ["--out", folder / f"run-{name}"]
    told = subprocess.run([*predict, *DEMO], check=True, capture_output=True, cwd=ROOT).stdout
    found = json.loads(told)
    low, high = found["expected_memorized_distinct_interval"]
    trainer, _, understood = recipe.in_words.partition(": ")
    number = f"{found['expected_memorized_distinct']:.0f} ({low} to {high})"
    is_beyond = recipe.beyond_prediction or recipe.objective.cross_entropy_share
    return trainer, understood, number, "no" if is_beyond else "yes"


def main():
    """Print the table."""
    lines = ["| trainer | what its file says | expected texts | covered |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            lines.append("| " + " | ".join(row(name, Path(folder))) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
