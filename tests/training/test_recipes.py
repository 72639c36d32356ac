"""Recipes: names, stages and rates."""

import pytest

from mattecompress.models import MODELS
from mattecompress.training.recipes import RECIPES, Rates, Recipe, RecipeError, Stage, find_recipe

RATES = Rates(1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train_known_models(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.model in MODELS
    assert all(min(stage.height, stage.width) >= 64 for stage in recipe.stages)


def test_typo_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="did you mean rvm-small"):
        find_recipe("rvm-smal")


def test_steps_fall_into_their_stages() -> None:
    first, second = Stage(3, 1, 1, 64, 64, RATES), Stage(2, 1, 1, 64, 64, RATES)
    recipe = Recipe("rvm-mobilenetv3", (first, second))
    assert recipe.steps == 5
    assert [recipe.locate(step) for step in range(5)] == [
        *((first, local) for local in range(3)),
        *((second, local) for local in range(2)),
    ]
    with pytest.raises(ValueError, match="behind the last stage"):
        recipe.locate(5)


def test_rates_warm_up_and_fade() -> None:
    recipe = Recipe("rvm-mobilenetv3", (Stage(100, 1, 1, 64, 64, RATES, fade=0.2),), warmup=10)
    assert recipe.scale(0) == pytest.approx(0.1, rel=1e-3)
    assert recipe.scale(50) == pytest.approx(0.6)
    assert recipe.scale(99) == pytest.approx(0.2, rel=1e-2)
    assert all(recipe.scale(step) >= recipe.scale(step + 1) for step in range(10, 99))


@pytest.mark.parametrize("name", RECIPES)
def test_a_teacher_is_mimicked_in_the_first_stage_or_distilled_in_all(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.teacher in ("", *MODELS)
    first, *others = recipe.stages
    if recipe.model.startswith("mematte"):
        assert recipe.teacher and all(stage.routing for stage in recipe.stages)
    else:
        assert bool(first.mimicking) == bool(recipe.teacher)
        assert not any(stage.mimicking for stage in others)


def test_sides_are_drawn_where_a_smallest_is_given() -> None:
    drawn = Stage(5, 1, 1, 128, 192, RATES, smallest=64)
    sides = [drawn.sides(1, step) for step in range(200)]
    assert sides == [drawn.sides(1, step) for step in range(200)]
    assert {height for height, _ in sides} == set(range(64, 129, 16))
    assert {width for _, width in sides} == set(range(64, 193, 16))
    assert Stage(5, 1, 1, 64, 96, RATES).sides(1, 0) == (64, 96)
