"""Recipes: read strictly, completed from defaults, roles and plans."""

from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from memaudit.errors import UsageError
from study.heavy.recipe import read_recipe

SHIPPED = Path(__file__).parents[3] / "study" / "recipes" / "heavy.toml"


def test_the_shipped_recipe_covers_every_family_and_corpus_in_every_role():
    """Fitted on one kind of text or model alone, a classifier would not transfer."""
    cells = read_recipe(SHIPPED).cells

    covered = Counter((cell.family, cell.corpus, cell.role) for cell in cells)
    families, corpora = ("gpt-neox", "olmo2", "qwen3"), ("prose", "wiki", "mixed")
    for combination in product(families, corpora, ("train", "calibration", "test")):
        assert covered[combination] >= 1
    assert len({cell.seed for cell in cells}) == len(cells)


def test_one_pass_of_a_grid_holds_every_value_equally_often():
    """A study that ends early must not know one family better than another."""
    cells = [cell for cell in read_recipe(SHIPPED).cells if cell.name.startswith("a-")]

    assert len(cells) == 27
    for pair in (("family", "corpus"), ("plan", "role"), ("family", "plan"), ("corpus", "role")):
        assert set(Counter(tuple(getattr(c, key) for key in pair) for c in cells).values()) == {3}


def test_what_stands_nearest_to_a_cell_wins():
    """The family's plan before the plan, the plan before the role's, the grid before all."""
    recipe = read_recipe(SHIPPED)
    of = {cell.name: cell for cell in recipe.cells}

    assert recipe.demo.n_examples == 200
    assert of["a-train-qwen3-wiki-natural-16"].teacher_plan.epochs == 14
    assert of["a-train-gpt-neox-prose-natural-16"].teacher_plan.epochs == 22
    assert len(of["a-test-olmo2-prose-natural-16"].students) == 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vocabulary_size = 1024", "vocabulary_sise = 1024"),
        ("seed = 7\n", 'seed = "seven"\n'),
        ('plan = "graded-50"', 'plan = "no-such-plan"'),
        ("[demo]", "[demo"),
        ('name = "demo"', 'name = "a-train-gpt-neox-prose-natural-16"'),
        ('{ name = "soft" },', '{ name = "soft-t2" },'),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, old, new):
    """A typo must not silently become a default."""
    path = tmp_path / "recipe.toml"
    path.write_text(SHIPPED.read_text().replace(old, new, 1))

    with pytest.raises(UsageError, match=r"recipe\.toml"):
        read_recipe(path)
