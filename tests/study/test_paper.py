"""The paper's recipes: its own settings, costed by arithmetic, never taken for a run."""

import shlex
from pathlib import Path

import pytest

from memaudit.cli.verify import verify
from memaudit.errors import UsageError
from memaudit.study.paper import (
    corpus_commands,
    differences,
    is_paper_recipe,
    paper_cost,
    paper_document,
    read_paper_study,
    teacher_training,
    verify_commands,
)

FOLDER = Path(__file__).parents[2] / "models" / "recipes"
RECIPES = sorted(FOLDER.glob("paper-*.toml"))
MAIN = FOLDER / "paper-pythia-fineweb.toml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_the_papers_settings(path):
    """Borkar et al. 2026, section 2."""
    study = read_paper_study(path)

    assert is_paper_recipe(path)
    assert (study.windows.prefix_tokens, study.windows.suffix_tokens) == (50, 50)
    assert study.corpus.example_tokens == 256
    training = study.training
    assert (training.learning_rate, training.temperature, training.teacher_epochs) == (5e-5, 2, 3)
    assert training.student_epochs == (4 if "pythia" in path.stem else 5)
    assert len(training.seeds) == 3
    assert set(training.objectives) == {"soft", "hard"}


def test_the_recipes_are_the_papers_five_settings():
    """Three families on FineWeb, Pythia on two corpora more."""
    pairs = {
        (read_paper_study(p).teacher.model, read_paper_study(p).corpus.source) for p in RECIPES
    }

    assert pairs == {
        ("EleutherAI/pythia-12b", "HuggingFaceFW/fineweb"),
        ("EleutherAI/pythia-12b", "Salesforce/wikitext"),
        ("EleutherAI/pythia-12b", "nvidia/Nemotron-CC-v2"),
        ("allenai/OLMo-2-1124-7B", "HuggingFaceFW/fineweb"),
        ("Qwen/Qwen3-8B-Base", "HuggingFaceFW/fineweb"),
    }


def test_a_recipe_of_miniatures_is_another_kind():
    """The same command runs those."""
    assert not is_paper_recipe(FOLDER / "cpu.toml")
    assert not is_paper_recipe(FOLDER / "no-such-file.toml")


def test_the_cost_is_what_the_formulas_say():
    """6 N a token of training, 2 N a token of a pass, three seeds, worked out by hand."""
    cost = paper_cost(read_paper_study(MAIN))

    tokens = 3 * 256_000_000
    assert cost.training_tokens["teacher"] == 3 * tokens
    assert cost.flops["teacher"] == pytest.approx(6 * 11_846_072_320 * 3 * tokens)
    assert cost.flops["soft student"] == pytest.approx(6 * 1_414_647_808 * 4 * tokens)
    assert cost.flops["soft labels"] == pytest.approx(2 * 11_846_072_320 * 4 * tokens)
    assert cost.flops["hard labels"] == pytest.approx(2 * 11_846_072_320 * tokens)
    assert cost.memory_bytes["teacher"] == 16 * 11_846_072_320
    assert cost.memory_bytes["soft student"] == 16 * 1_414_647_808 + 4 * 11_846_072_320
    hours = sum(cost.flops.values()) / (312e12 * 0.4) / 3600
    assert cost.gpu_hours["A100"] == pytest.approx(hours)
    assert cost.gpu_hours["H100"] == pytest.approx(hours * 312 / 989)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_verify_understands_the_commands(path):
    """A command that cannot be parsed is worse than none."""
    study = read_paper_study(path)
    commands = [shlex.split(command) for command in verify_commands(study)]

    assert len(commands) == len(study.training.seeds) * len(study.training.objectives)
    for words in commands:
        assert words[:2] == ["memaudit", "verify"]
        flags = verify.make_context("verify", words[2:]).params
        assert flags["epochs"] == study.training.student_epochs
        assert flags["learning_rate"] == study.training.learning_rate
    assert len({words[words.index("--out") + 1] for words in commands}) == len(commands)


def test_one_baseline_serves_all_objectives_of_a_seed():
    """It costs as much to train as a student."""
    first, second, *_ = (shlex.split(line) for line in verify_commands(read_paper_study(MAIN)))

    assert "--baseline" not in first
    assert "--keep-models" in first
    out = first[first.index("--out") + 1]
    assert second[second.index("--baseline") + 1] == f"{out}/baseline"


def test_the_corpus_command_is_valid_python():
    """It is quoted twice."""
    for path in RECIPES:
        study = read_paper_study(path)
        program, flag, code = shlex.split(*corpus_commands(study))
        assert (program, flag) == ("python", "-c")
        compile(code, "<command>", "exec")
        assert study.corpus.source in code


def test_what_the_commands_do_otherwise_is_said():
    """Whoever runs them must not believe to have repeated the paper to the letter."""
    study = read_paper_study(MAIN)

    assert "190 GB" in teacher_training(study)
    assert any("100 tokens" in line and "256" in line for line in differences(study))


def test_the_document_says_that_nothing_was_run():
    """A script must not take a cost for a result."""
    document = paper_document(read_paper_study(MAIN))

    assert document["dry_run"] is True
    assert document["study"]["teacher"]["model"] == "EleutherAI/pythia-12b"
    assert set(document["gpu_hours"]) == {"A100", "H100"}
    assert len(document["commands"]) == 7


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("teacher_epochs = 3", "teacher_epoch = 3", "teacher_epoch"),
        ("temperature = 2.0", "temperature = 0.0", "temperature"),
        ("examples = 1_000_000", "examples = 0", "examples"),
        ('"soft", "hard"', '"soft", "hart"', "hart"),
        ('"soft", "hard"', '"soft", "soft"', "distinct objectives"),
        ("seeds = [0, 1, 2]", "seeds = []", "seeds"),
        ("seeds = [0, 1, 2]", "seeds = [0, 1, 1]", "distinct seeds"),
        ("suffix_tokens = 50", "suffix_tokens = 250", "got 300"),
        ("[teacher]", "[teacher", "paper.toml"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, old, new, message):
    """A typo must not cost a week of GPUs."""
    path = tmp_path / "paper.toml"
    text = MAIN.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")

    with pytest.raises(UsageError, match=r"paper\.toml") as error:
        read_paper_study(path)
    assert message in error.value.message
