"""A two-stage detector of a size for tests, and a batch it learns from."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.core.detectors.spec import DetectorSpec, Kind

CLASSES = ("circle", "square")
TINY = DetectorSpec(
    backbone="resnet10t", out_strides=(8, 16), freeze_through_stride=8, fpn_channels=16, anchor_sizes=(16, 32),
    test_short_side=64, max_size=64, rpn_pre_nms_top_n=50, box_batch_size_per_image=16, fc_dim=32, mask_channels=8,
    score_thresh=0.0, detections_per_image=5,
)  # fmt: skip


def tiny(kind: Kind = "faster-rcnn", **changes: object) -> DetectorSpec:
    return TINY.model_copy(update={"kind": kind, **changes})


def batch(masks: bool = False) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    images = [torch.rand(3, 64, 64, generator=generator), torch.rand(3, 64, 48, generator=generator)]
    targets = [
        {"boxes": torch.tensor([[4.0, 4, 40, 36], [30, 30, 60, 60]]), "labels": torch.tensor([1, 2])},
        {"boxes": torch.tensor([[8.0, 8, 40, 60]]), "labels": torch.tensor([2])},
    ]
    if masks:
        for image, target in zip(images, targets, strict=True):
            target["masks"] = torch.ones(len(target["labels"]), *image.shape[1:], dtype=torch.uint8)
    return images, targets
