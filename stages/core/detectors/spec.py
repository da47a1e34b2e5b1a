"""What a detector is built from; plain data, so that settings can be read without loading torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

BoxLoss = Literal["l1", "smooth-l1"]
Kind = Literal["faster-rcnn", "mask-rcnn"]
DetrKind = Literal["rt-detr", "deformable-detr"]
AnyKind = Literal["faster-rcnn", "mask-rcnn", "rt-detr", "deformable-detr"]
Heads = Literal["v1", "v2"]
ALIASES = {"resnet50-fpn": "resnet50.tv_in1k", "resnet50-fpn-v2": "resnet50.tv2_in1k"}
"""Names users know from detection code, and the timm weights they stand for."""


class DetectorSpec(BaseModel):
    """Everything a two-stage detector is built from, except its class names.

    Attributes:
        kind: with or without a mask head.
        heads: `v1`, or the deeper, normalised ones of torchvision's `fasterrcnn_resnet50_fpn_v2`: see `detectors`.
        backbone: trunk name (`lite0-embedded`, `resnet50-fpn`, `resnet50-fpn-v2`, any timm feature model).
        strides: trunk maps under the pyramid, pixels per cell, ascending.
        frozen_through: trunk layers up to this stride stay as pretrained; 0 trains all.
        fpn_channels: channels of every pyramid level.
        anchor_sizes: square-root area of the anchors, pixels, one per level; one more than `strides` adds a
            pooled level.
        anchor_ratios: height / width of the anchors.
        test_size, max_size: short and long side at test, pixels.
        rpn_candidates: proposals per level before their NMS in training; half as many before it at test, and
            per image after it.
        rois_per_image: RoIs sampled for the second stage in training.
        head_width: units of the two fully connected layers.
        mask_channels: channels of the four mask convolutions.
        box_loss, matcher, match_top_k: see `roi_heads`.
        score_threshold, nms_iou, max_detections: what leaves the detector, per image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "faster-rcnn"
    heads: Heads = "v1"
    backbone: str = "lite0-embedded"
    strides: tuple[int, ...] = (4, 8, 16, 32)
    frozen_through: int = 4
    fpn_channels: int = 256
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    test_size: int = 800
    max_size: int = 1333
    rpn_candidates: int = 2000
    rois_per_image: int = 512
    head_width: int = 1024
    mask_channels: int = 256
    box_loss: BoxLoss = "l1"
    matcher: Literal["iou", "top-k"] = "iou"
    match_top_k: int = 3
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100


class DetrSpec(BaseModel):
    """Everything a detection transformer is built from, except its class names.

    Attributes:
        kind: `rt-detr` (RT-DETRv2: queries chosen by the encoder, denoising, varifocal loss) or
            `deformable-detr` (learnt queries, box refinement, focal loss).
        backbone: trunk name, as in `DetectorSpec`.
        strides: trunk maps that the encoder sees, pixels per cell, ascending; `deformable-detr` adds a
            coarser one.
        frozen_through: trunk layers up to this stride stay as pretrained; 0 trains all.
        transformer_width, attention_heads, feedforward: channels, heads and hidden units of every layer.
        encoder_layers, decoder_layers: depth.
        queries: boxes proposed per image.
        denoising: noisy copies of the targets that the decoder learns to restore, per image (`rt-detr`); 0: none.
        test_size, max_size: short and long side at test, pixels.
        score_threshold, nms_iou, max_detections: what leaves the detector, per image; an `nms_iou` of 1
            leaves duplicates to the set loss, as published.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: DetrKind = "rt-detr"
    backbone: str = "lite0-embedded"
    strides: tuple[int, ...] = (8, 16, 32)
    frozen_through: int = 4
    transformer_width: int = 256
    attention_heads: int = 8
    feedforward: int = 1024
    encoder_layers: int = 1
    decoder_layers: int = 6
    queries: int = 300
    denoising: int = 100
    test_size: int = 800
    max_size: int = 1333
    score_threshold: float = 0.05
    nms_iou: float = 1.0
    max_detections: int = 100
