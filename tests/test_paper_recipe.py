"""The recipe `paper` against the published table where no other recipe's table covers it: masks on VOC12."""

from __future__ import annotations

from typing import Any

from stages.core.config import build_config, load_recipe
from stages.wsis.config import WsisConfig

PUBLISHED_MASKS: dict[str, Any] = {
    "backbone": "resnet50-fpn",
    "out_strides": (4, 8, 16, 32),
    "freeze_through_stride": 4,
    "mask_rcnn.fpn_channels": 256,
    "mask_rcnn.anchor_sizes": (32, 64, 128, 256, 512),
    "tta_short_sides": (480, 576, 688, 864, 1000, 1200),
    "color_jitter": 0.0,
    "mask_rcnn.rpn_pre_nms_top_n": 2000,
    "mask_rcnn.box_batch_size_per_image": 512,
    "mask_rcnn.fc_dim": 1024,
    "batch_size": 16,
    "optimizer": "sgd",
    "lr": 0.02,
    "lr_base_size": 16,
    "backbone_lr_factor": 1.0,
    "weight_decay": 1e-4,
    "schedule": "multistep",
    "clip_grad_norm": 0.0,
    "ema_decay": 0.0,
    "train_short_sides": (640, 672, 704, 736, 768, 800),
    "max_size": 1333,
    "test_short_side": 800,
    "epochs": 14,
    "milestones": (0.667, 0.889),
    "warmup_fraction": 0.111,
    "mask_rcnn.mask_channels": 256,
    "segmenter": "sam-vit-h",
    "mask_choice": "single",
}
"""VOC12 trainaug: 9,000 steps of 16 images, 1,000 of warm-up, drops at 6,000 and 8,000."""


def test_paper_recipe__holds_every_published_value() -> None:
    section = load_recipe("paper")["wsis"]
    found = build_config(WsisConfig, [("recipe paper", section)])
    values = dict(found.named_values())
    assert {key: values[key] for key in PUBLISHED_MASKS} == PUBLISHED_MASKS
    said = {*section, *(f"mask_rcnn.{name}" for name in section["mask_rcnn"])}
    assert set(PUBLISHED_MASKS) <= said, "said by the recipe, not left to the defaults"


def test_paper_recipe__masks_and_proposals_come_from_the_published_segmenter() -> None:
    recipe = load_recipe("paper")
    assert (recipe["propose"]["segmenter"], recipe["wsis"]["segmenter"]) == ("sam-vit-h", "sam-vit-h")
    assert recipe["pgt"]["mode"] == "paper"
