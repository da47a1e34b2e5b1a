"""The recipe `paper` says what the rooms call published."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from stages.core.config import load_recipe


@pytest.mark.parametrize("stage", ["cam", "prompt", "propose", "retrain", "wsis"])
def test_paper_recipe__holds_every_published_value(stage: str) -> None:
    published: dict[str, Any] = importlib.import_module(f"stages.{stage}.config").PAPER
    section = load_recipe("paper")[stage]
    as_yaml = {key: list(value) if isinstance(value, tuple) else value for key, value in published.items()}
    assert {key: section.get(key) for key in as_yaml} == as_yaml


def test_paper_detr_recipe__holds_every_published_value() -> None:
    from stages.retrain.config import PAPER_DETR

    as_yaml = {key: list(value) if isinstance(value, tuple) else value for key, value in PAPER_DETR.items()}
    section = load_recipe("paper_detr")["retrain"]
    assert {key: section.get(key) for key in as_yaml} == as_yaml


def test_paper_recipe__masks_and_proposals_come_from_the_published_segmenter() -> None:
    recipe = load_recipe("paper")
    assert (recipe["propose"]["segmenter"], recipe["wsis"]["segmenter"]) == ("sam-vit-h", "sam-vit-h")
    assert recipe["pgt"]["mode"] == "paper"
