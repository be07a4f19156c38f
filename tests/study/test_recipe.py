"""Recipes: read strictly, completed from defaults and plans."""

from pathlib import Path

import pytest

from memaudit.errors import UsageError
from memaudit.study.recipe import read_recipe

SHIPPED = Path(__file__).parents[2] / "models" / "recipe.toml"


def test_the_shipped_recipe_covers_every_corpus_in_every_role():
    """Fitted on one kind of text alone, a classifier would not transfer."""
    cells = read_recipe(SHIPPED).cells

    for role in ("train", "calibration", "test"):
        assert {cell.corpus for cell in cells if cell.role == role} >= {"prose", "wiki", "mixed"}
    assert len({cell.seed for cell in cells}) == len(cells)


def test_a_cell_takes_from_its_plan_and_its_own_keys_win():
    """Natural cells are once each, graded ones up to 32 times."""
    recipe = read_recipe(SHIPPED)

    assert recipe.demo.n_examples == 360
    assert recipe.demo.max_repeats == 32


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vocabulary_size = 1024", "vocabulary_sise = 1024"),
        ("seed = 7", 'seed = "seven"'),
        ('plan = "graded-50"', 'plan = "no-such-plan"'),
        ("[demo]", "[demo"),
        ('name = "demo"', 'name = "train-natural-16-prose"'),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, old, new):
    """A typo must not silently become a default."""
    path = tmp_path / "recipe.toml"
    path.write_text(SHIPPED.read_text().replace(old, new, 1))

    with pytest.raises(UsageError, match=r"recipe\.toml"):
        read_recipe(path)
