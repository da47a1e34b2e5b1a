"""`docs/published.md`: its commands work with shipped recipes, and the sizes of its differences are computed here."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from stages.core.config import config_class, recipe_names
from stages.core.evaluation.suite import HEADLINES
from stages.wsod.batches import PCA_DEVIATIONS, PCA_VECTORS
from weaksam_cli.stage_command import resolve_settings

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "published.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line[:2] == "| "
]
COMMANDS = sorted(set(re.findall(r"`(make evaluate [^`]+)`", PAGE)))


def size_of(start: str) -> str:
    """The last cell of the row of differences that begins so."""
    (row,) = [row for row in ROWS if row[0].startswith(start) and len(row) == 4]
    return row[3].rstrip("|").strip()


@pytest.mark.parametrize("line", COMMANDS)
def test_command__has_a_recipe_and_settings_that_exist(line: str) -> None:
    words = dict(word.split("=", 1) for word in shlex.split(line)[2:])
    recipe = words.get("RECIPE", words["DATASET"])
    assert recipe in recipe_names()
    for assignment in words.get("SET", "").split():
        stage = assignment.split(".")[0]
        resolve_settings(stage, config_class(stage), recipe, None, [assignment], {})
    for role in ("TRAIN_SPLIT", "TEST_SPLIT"):
        assert words.get(role, f"{words['DATASET']}_x").startswith(words["DATASET"] + "_")


def test_page__every_published_figure_has_a_row() -> None:
    figures = "58.9 65.7 67.4 71.8 66.1 73.4 58.4 62.9 66.9 69.2 63.7 70.2 19.9 22.9 22.3 23.8 24.9 26.6"
    figures += " 68.4 70.7 71.1 72.8 59.6 64.4 20.6 25.2 21.0 25.9"
    named = " ".join(row[1] for row in ROWS if len(row) == 4)
    assert all(figure in named for figure in figures.split())
    metrics = {"mask_ap"} | {name for names in HEADLINES.values() for name in names}
    for name in re.findall(r"`(?:wsod|retrain|wsis)\.(?:voc|coco)\w+\.(\w+)`", PAGE):
        assert name in metrics, name


IMAGES = {"voc07": 5_011, "voc12": 11_540, "coco14": 82_081, "coco17": 118_287}
STEPS = {
    ("wsod", "voc07"): 30_000, ("wsod", "voc12"): 32_000, ("wsod", "coco14"): 125_000, ("retrain", "voc07"): 9_000,
    ("retrain", "voc12"): 16_000, ("retrain", "coco14"): 85_000, ("wsis", "voc12"): 9_000, ("wsis", "coco14"): 90_000,
    ("wsis", "coco17"): 90_000,
}  # fmt: skip


def test_difference__steps() -> None:
    parts = []
    for (stage, recipe), published in STEPS.items():
        found = dict(resolve_settings(stage, config_class(stage), recipe, None, [], {}).named_values())
        images = 10_582 if (stage, recipe) == ("wsis", "voc12") else IMAGES[recipe]
        parts.append(found["epochs"] * (images // found["batch_size"]) / published - 1)
    assert size_of("length of trainings") == f"steps: {100 * min(parts):+.1f} % to {100 * max(parts):+.1f} %"
    assert max(map(abs, parts)) < 0.03


def test_difference__warm_up_of_the_classifier() -> None:
    rate, first, last, epochs, warmup = 7.5e-5, 1e-6, 1e-5, 60, 5

    def scheduled(epoch: float) -> float:
        if epoch < warmup:
            return first + (rate - first) * epoch / warmup
        return last + (rate - last) * (1 + math.cos(math.pi * epoch / epochs)) / 2

    published = sum(scheduled(max(0, epoch - 1)) for epoch in range(epochs))
    ours = sum(scheduled(step / 100) for step in range(100 * epochs)) / 100
    size = size_of("classifier: warm-up")
    assert f"{scheduled(1) / first:.1f} times" in size
    assert f"{100 * (ours / published - 1):+.1f} %" in size


def test_difference__distance_of_points() -> None:
    reach = range(-9, 10)
    l1 = sum(abs(x) + abs(y) < 8 for x in reach for y in reach)
    euclid = sum(math.hypot(x, y) <= 8.5 for x in reach for y in reach)
    assert size_of("points: minimum distance") == f"{euclid} pixels around a point are barred, not {l1}"


def test_difference__views_of_the_maps() -> None:
    shown = [f"{1 / scale**2:.2f}" for scale in (0.8, 1.2)]
    assert " and ".join(shown) in size_of("maps: sum over views")


def test_difference__logarithm_and_clamp_of_oicr() -> None:
    size = size_of("OICR: logarithm")
    assert f"{math.log((1e-6 + 1e-6) / 1e-6):.2f} nats" in size
    assert f"{math.log((0.01 + 1e-6) / 0.01):.0e}".replace("e-0", "e-") in size
    assert f"{-math.log(1e-8):.1f} for 100" in size_of("OICR: image score")


def test_difference__one_pixel_in_overlaps() -> None:
    def iou(side: float, plus: float) -> float:
        shared = (side / 2 + plus) * (side + plus)
        return shared / (2 * (side + plus) ** 2 - shared)

    numbers = [f"{iou(side, plus):.3f}"[1:] for side in (20, 100) for plus in (1, 0)]
    assert re.findall(r"\.\d{3}", size_of("MIST: boxes one pixel longer")) == numbers


def test_difference__lighting_noise() -> None:
    channels = 0.1 * 255 * np.sqrt(((PCA_VECTORS * PCA_DEVIATIONS) ** 2).sum(axis=1))
    assert f"{channels.min():.1f} to {channels.max():.1f} of 255" in size_of("MIST: lighting noise")


def test_difference__rate_of_the_dropper() -> None:
    assert f"factor {3**2 / 0.1**2:.0f} after both drops" in size_of("MIST: rate of the dropper")


def test_difference__long_side_of_a_view() -> None:
    ours, theirs = 1800 / 333, min(1800 / 333, 2000 / 500)
    assert f"{ours / theirs:.2f} times" in size_of("Faster R-CNN: limit of a view")
