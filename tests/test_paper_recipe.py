"""The recipe `paper` against the published table where no other recipe's table covers it: masks on VOC12."""

from __future__ import annotations

from typing import Any

from stages.core.config import build_config, load_recipe
from stages.wsis.config import WsisConfig

PUBLISHED_MASKS: dict[str, Any] = {
    "backbone": "resnet50-fpn",
    "strides": (4, 8, 16, 32),
    "frozen_through": 4,
    "fpn_channels": 256,
    "anchor_sizes": (32, 64, 128, 256, 512),
    "tta_sizes": (480, 576, 688, 864, 1000, 1200),
    "photometric": 0.0,
    "rpn_candidates": 2000,
    "rois_per_image": 512,
    "head_width": 1024,
    "batch_size": 16,
    "optimizer": "sgd",
    "lr": 0.02,
    "lr_batch": 16,
    "trunk_lr_factor": 1.0,
    "weight_decay": 1e-4,
    "schedule": "steps",
    "clip_norm": 0.0,
    "ema_decay": 0.0,
    "train_sizes": (640, 672, 704, 736, 768, 800),
    "max_size": 1333,
    "test_size": 800,
    "epochs": 14,
    "milestones": (0.667, 0.889),
    "warmup": 0.111,
    "mask_channels": 256,
    "segmenter": "sam-vit-h",
    "mask_choice": "single",
}
"""VOC12 trainaug: 9,000 steps of 16 images, 1,000 of warm-up, drops at 6,000 and 8,000."""


def test_paper_recipe__holds_every_published_value() -> None:
    section = load_recipe("paper")["wsis"]
    found = build_config(WsisConfig, [("recipe paper", section)])
    assert {key: getattr(found, key) for key in PUBLISHED_MASKS} == PUBLISHED_MASKS
    assert set(PUBLISHED_MASKS) <= set(section), "said by the recipe, not left to the defaults"


def test_paper_recipe__masks_and_proposals_come_from_the_published_segmenter() -> None:
    recipe = load_recipe("paper")
    assert (recipe["propose"]["segmenter"], recipe["wsis"]["segmenter"]) == ("sam-vit-h", "sam-vit-h")
    assert recipe["pgt"]["mode"] == "paper"
