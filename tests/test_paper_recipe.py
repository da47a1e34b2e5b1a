"""The recipe `paper` says what the rooms call published."""

from __future__ import annotations

from stages.core.config import load_recipe
from stages.wsis.config import PAPER


def test_paper_recipe__holds_every_published_value() -> None:
    section = load_recipe("paper")["wsis"]
    as_yaml = {key: list(value) if isinstance(value, tuple) else value for key, value in PAPER.items()}
    assert {key: section.get(key) for key in as_yaml} == as_yaml


def test_paper_recipe__masks_and_proposals_come_from_the_published_segmenter() -> None:
    recipe = load_recipe("paper")
    assert (recipe["propose"]["segmenter"], recipe["wsis"]["segmenter"]) == ("sam-vit-h", "sam-vit-h")
    assert recipe["pgt"]["mode"] == "paper"
