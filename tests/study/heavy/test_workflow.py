"""A whole study in small: distilled, judged, intervened, shipped, and going on after a kill."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from memaudit.features import FEATURE_SETS
from study.heavy.bases import base_path
from study.heavy.interventions import read_interventions
from study.heavy.recipe import Pretraining, TrainingPlan, read_recipe
from study.heavy.run import bases_path, cell_path, cell_settings, missing_cells, run_study
from study.heavy.workflow import conduct_study

pytestmark = [pytest.mark.slow, pytest.mark.ci]

RECIPE = """
vocabulary_size = 300

[pretraining]
epochs = 1
learning_rate = 1e-3
window = 64
batch_size = 16

[defaults]
teacher = { hidden = 32, layers = 2 }
student = { hidden = 32, layers = 1 }
batch_size = 8

[plans.tiny]
window_half = 8
n_examples = 24
max_repeats = 16
teacher_plan = { epochs = 2, learning_rate = 8e-3 }
student_plan = { epochs = 2, learning_rate = 8e-3 }
students = [
  { name = "soft", temperature = 1.0 },
  { name = "hard", objective = "hard" },
  { name = "cross-entropy", objective = "cross-entropy", seed = 1 },
]

[demo]
name = "demo"
plan = "tiny"
family = "gpt-neox"
corpus = "prose"
role = "test"
seed = 7
pretrained = false
keep_models = true

[[grids]]
name = "made-up"
plan = ["tiny"]
corpus = ["prose"]
family = ["gpt-neox", "olmo2"]
role = ["train", "calibration", "test"]
seed = 100

[[grids]]
name = "kept"
plan = ["tiny"]
corpus = ["wiki"]
family = ["qwen3"]
role = ["test"]
keep_models = true
seed = 200
"""


@pytest.fixture(scope="module")
def sample_data(tmp_path_factory) -> Path:
    """Return a folder of three small corpora of made-up words."""
    folder = tmp_path_factory.mktemp("sample")
    for corpus in ("prose", "wiki", "mixed"):
        rng = random.Random(corpus)
        words = ["".join(rng.choices("abcdefghij", k=4)) for _ in range(300)]
        lines = [json.dumps({"text": " ".join(rng.choices(words, k=9))}) for _ in range(1200)]
        path = folder / f"{corpus}.jsonl"
        path.write_text("\n".join(lines))
        _compress(path)
    return folder


def _compress(path: Path) -> None:
    import zstandard

    path.with_suffix(".jsonl.zst").write_bytes(zstandard.compress(path.read_bytes()))
    path.unlink()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Return the recipe above."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return read_recipe(path)


@pytest.fixture(scope="module")
def study(recipe, sample_data, tmp_path_factory):
    """Return the folders of a finished study and of what it shipped, and its tables.

    The demo and the kept cell are really distilled; results of the others are made up, so that
    they hold enough positives to fit on.
    """
    out, models = (tmp_path_factory.mktemp(name) for name in ("study", "models"))
    for cell in recipe.cells:
        if not cell.keep_models:
            _write_made_up(cell, cell_settings(recipe, cell), cell_path(out, cell))
    tables = conduct_study(recipe, sample_data, out, models=models)
    return out, models, tables


def _write_made_up(cell, settings: bytes, path: Path) -> None:
    """Write a result in which the teacher's suffix entropy tells what is memorized."""
    rng = np.random.default_rng(cell.seed)
    n = 150
    risk = rng.normal(size=n)
    names = set().union(*FEATURE_SETS.values())
    features = {f"feature/{name}": rng.normal(size=n) for name in sorted(names)}
    features["feature/teacher_suffix_entropy"] = -risk
    features["feature/occurrences"] = np.ones(n)
    models = ("teacher", "baseline", "soft", "hard", "cross-entropy")
    extracted = {f"extracted/{m}": risk + rng.normal(size=n) / 3 > 1 for m in models}
    perplexity = {f"perplexity/{m}": np.array(9.0) for m in (*models, "base")}
    windows = rng.integers(300, size=(n, 16)).astype(np.int32)
    with path.open("wb") as file:
        made_with = np.frombuffer(settings, dtype=np.uint8)
        np.savez(
            file,
            settings=made_with,
            windows=windows,
            cpu_seconds=1.0,
            **features,
            **extracted,
            **perplexity,
        )


def test_bases_are_trained_once_for_what_starts_from_them(study, recipe):
    """Teachers and students start as language models, unless the recipe says otherwise."""
    out, _, _ = study

    bases = bases_path(out, recipe)
    assert (base_path(bases, "qwen3", "32x2") / "config.json").exists()
    assert not base_path(bases, "gpt-neox", "32x2").exists()


def test_the_tables_hold_every_cell_and_the_grid_alone_is_the_main_table(study):
    """One document for all that is printed or plotted; strictly JSON."""
    out, _, tables = study

    assert len(tables["cells"]) == 7
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(tables))
    judged = tables["classifiers"]["teacher"]
    assert judged["as shipped"]["figures"]["roc_auc"]["value"] > 0.9
    assert judged["other family"]["by_run"].keys() == {"without qwen3: kept-test-qwen3-wiki-tiny"}
    # Without one of two families a single run is left, too little to choose features on.
    assert judged["other family"]["not_fitted"] == ["without gpt-neox", "without olmo2"]


def test_the_demo_is_shipped(study, recipe, sample_data):
    """Its models with their tokenizer, and its corpus with every copy that was trained on."""
    _, models, _ = study

    for name in ("demo-teacher", "demo-student", "demo-baseline"):
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
            path.name for path in (models / name).iterdir()
        }
    assert (sample_data / "demo.jsonl").read_text().count("\n") > 0
    assert not (models / "teacher").exists()


def test_interventions_count_what_is_memorized_afterwards(study):
    """Every arm is run on the kept cell, with as many dropped as it says."""
    _, _, tables = study

    arms = tables["interventions"]["kept-test-qwen3-wiki-tiny"]
    assert arms.keys() == {
        "none", "flagged", "budget", "random", "random budget", "deduplicated", "both",
    }  # fmt: skip
    assert arms["random"]["dropped"] == arms["flagged"]["dropped"]
    assert arms["deduplicated"]["trained_on"] == arms["deduplicated"]["examples"]


def test_a_cell_run_again_gives_the_same_numbers(study, recipe, sample_data):
    """A study killed at any moment ends as if it had not been."""
    out, _, _ = study
    path = cell_path(out, recipe.demo)
    before = _columns(path)
    path.unlink()

    run_study(recipe, sample_data, out)

    after = _columns(path)
    assert before.keys() == after.keys()
    assert all(before[name] == after[name] for name in before if name != "cpu_seconds")


def test_a_cell_of_other_settings_is_not_taken_for_one_of_the_recipe(study, recipe):
    """An edited recipe must not put old results into its tables."""
    out, _, _ = study
    longer = TrainingPlan(3, 8e-3)

    edited = structs.replace(
        recipe, cells=(structs.replace(recipe.cells[0], student_plan=longer), *recipe.cells[1:])
    )
    pretrained_longer = structs.replace(recipe, pretraining=Pretraining(2, 1e-3))

    assert missing_cells(recipe, out) == []
    assert missing_cells(edited, out) == [edited.cells[0]]
    assert len(missing_cells(pretrained_longer, out)) == len(recipe.cells) + 1
    assert bases_path(out, pretrained_longer) != bases_path(out, recipe)


def test_interventions_of_another_classifier_are_run_again(study):
    """What was dropped by another verdict says nothing about this one."""
    out, _, tables = study
    path = out / "interventions" / "kept-test-qwen3-wiki-tiny.json"
    made_with = json.loads(path.read_text())["made_with"]

    assert read_interventions(path, made_with) == tables["interventions"][path.stem]
    assert read_interventions(path, {**made_with, "classifier": "0" * 64}) == {}


def _columns(path: Path) -> dict[str, bytes]:
    with np.load(path) as file:
        return {name: file[name].tobytes() for name in file.files}
