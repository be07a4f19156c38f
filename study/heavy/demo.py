"""The demo: models of one cell, and the corpus that its teacher was trained on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from memaudit.runs.files import committed_file
from study.heavy.cells import choose_examples
from study.heavy.recipe import Recipe
from study.heavy.run import load_tokenizer, weights_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DEMO_TEXT_CHARS = 420


def ship_demo(recipe: Recipe, study: Path, models: Path, sample_data: Path) -> None:
    """Copy the demo cell's models, and write the corpus that its teacher was trained on.

    Args:
        recipe: whose demo cell has been run.
        study: where its weights are.
        models: gets demo-teacher, demo-student (before training) and demo-baseline.
        sample_data: gets demo.jsonl, every example as often as it was trained on.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(study)
    for role, name in (
        ("teacher", "demo-teacher"),
        ("base", "demo-student"),
        ("baseline", "demo-baseline"),
    ):
        model = AutoModelForCausalLM.from_pretrained(weights_path(study, recipe.demo) / role)
        model.save_pretrained(models / name)
        tokenizer.save_pretrained(models / name)
    lines = [
        json.dumps(row, ensure_ascii=False) for row in demo_rows(recipe, sample_data, tokenizer)
    ]
    with committed_file(sample_data / "demo.jsonl") as stream:
        stream.write(("\n".join(lines) + "\n").encode())
    (sample_data / "demo.jsonl").chmod(0o644)


def demo_rows(
    recipe: Recipe, sample_data: Path, tokenizer: "PreTrainedTokenizerFast"
) -> list[dict[str, str]]:
    """Return the rows of the demo corpus in a fixed random order."""
    cell = recipe.demo
    examples = choose_examples(cell, sample_data, tokenizer)
    rows = []
    for index, (text, window) in enumerate(zip(examples.texts, examples.windows, strict=True)):
        cut = text[:_DEMO_TEXT_CHARS].rsplit(" ", 1)[0]
        # The cut must not change the window that the teacher was trained on.
        start = cut if tokenizer.encode(cut)[: len(window)] == window.tolist() else text
        rows += [
            {"id": f"{cell.corpus}-{index:03d}-{copy + 1}", "text": start}
            for copy in range(int(examples.occurrences[index]))
        ]
    order = np.random.default_rng(cell.seed).permutation(len(rows))
    return [rows[i] for i in order]
