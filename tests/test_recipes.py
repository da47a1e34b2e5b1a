"""Every shipped recipe resolves for every stage, and the published ones say what the stages call published."""

from __future__ import annotations

import pytest

from stages.core.config import build_config, config_class, load_recipe, recipe_layers, recipe_names
from stages.core.registry import CHAIN


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipes__resolve_for_every_stage(recipe: str) -> None:
    layers = recipe_layers(recipe)
    for stage in CHAIN:
        model = config_class(stage)
        config = build_config(model, [(name, sections.get(stage, {})) for name, sections in layers])
        for key in load_recipe(recipe).get(stage, {}):
            assert key in type(config).model_fields


def test_recipes__the_documented_ones_exist() -> None:
    assert {"demo", "shapes", "toy", "offline"} <= set(recipe_names())
