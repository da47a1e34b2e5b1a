"""What a detector is built from; plain data, so that settings can be read without loading torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

BoxLoss = Literal["l1", "smooth-l1"]
Kind = Literal["faster-rcnn", "mask-rcnn"]
DetrKind = Literal["rt-detr", "deformable-detr", "dino"]
AnyKind = Literal["faster-rcnn", "mask-rcnn", "rt-detr", "deformable-detr", "dino", "mask2former"]
Heads = Literal["v1", "v2"]
PredictorInit = Literal["uniform", "normal"]


class DetectorSpec(BaseModel):
    """Everything a two-stage detector is built from, except its class names.

    Attributes:
        kind: with or without a mask head.
        heads: `v1`, or the deeper, normalized ones of torchvision's `fasterrcnn_resnet50_fpn_v2`: see `detectors`.
        backbone: name (`lite0-embedded`, `resnet50-fpn`, `resnet50-fpn-v2`, any timm feature model).
        out_strides: maps of the backbone under the pyramid, pixels per cell, ascending.
        freeze_through_stride: backbone layers up to this stride stay as pretrained; 0 trains all.
        fpn_channels: channels of every pyramid level.
        anchor_sizes: square-root area of the anchors, pixels, one per level; one more than `out_strides` adds a
            pooled level.
        aspect_ratios: height / width of the anchors.
        test_short_side, max_size: short and long side at test, pixels.
        rpn_pre_nms_top_n: proposals per level before their NMS in training; half as many before it at test, and
            per image after it.
        box_batch_size_per_image: RoIs sampled for the second stage in training.
        fc_dim: units of the two fully connected layers.
        mask_channels: channels of the four mask convolutions.
        box_loss, matcher, match_top_k: see `roi_heads`.
        rpn_box_loss: regression loss of the region proposal network; smooth-l1 has a beta of 1/9.
        sampling_ratio: samples of RoIAlign per bin and side; 0: as many as cells.
        predictor_init: `uniform` as torch's linear layers, or `normal` with deviation 0.01 (classes) and 0.001 (boxes).
        score_thresh, nms_thresh, detections_per_image: what leaves the detector, per image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "faster-rcnn"
    heads: Heads = "v1"
    backbone: str = "lite0-embedded"
    out_strides: tuple[int, ...] = (4, 8, 16, 32)
    freeze_through_stride: int = 4
    fpn_channels: int = 256
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    test_short_side: int = 800
    max_size: int = 1333
    rpn_pre_nms_top_n: int = 2000
    box_batch_size_per_image: int = 512
    fc_dim: int = 1024
    mask_channels: int = 256
    box_loss: BoxLoss = "l1"
    matcher: Literal["iou", "top-k"] = "iou"
    match_top_k: int = 3
    rpn_box_loss: BoxLoss = "smooth-l1"
    sampling_ratio: int = 2
    predictor_init: PredictorInit = "uniform"
    score_thresh: float = 0.05
    nms_thresh: float = 0.5
    detections_per_image: int = 100


class DetrSpec(BaseModel):
    """Everything a detection transformer is built from, except its class names.

    Attributes:
        kind: `rt-detr` (RT-DETRv2: queries chosen by the encoder, denoising, varifocal loss),
            `deformable-detr` (learnt queries, box refinement, focal loss) or `dino` (boxes of queries chosen by the
            encoder, learnt contents, denoising, focal loss).
        backbone: name, as in `DetectorSpec`.
        out_strides: maps of the backbone that the encoder sees, pixels per cell, ascending; `deformable-detr` and
            `dino` add a coarser one.
        freeze_through_stride: backbone layers up to this stride stay as pretrained; 0 trains all.
        d_model, num_heads, dim_feedforward: channels, heads and hidden units of every layer.
        num_encoder_layers, num_decoder_layers: depth.
        num_queries: boxes proposed per image.
        num_denoising: noisy targets per image that the decoder learns to restore (not `deformable-detr`); 0: none.
        look_forward_twice: whether a layer of `dino` learns from the loss of the next one, too.
        test_short_side, max_size: short and long side at test, pixels.
        score_thresh, nms_thresh, detections_per_image: what leaves the detector, per image; an `nms_thresh` of 1
            leaves duplicates to the set loss, as published.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: DetrKind = "rt-detr"
    backbone: str = "lite0-embedded"
    out_strides: tuple[int, ...] = (8, 16, 32)
    freeze_through_stride: int = 4
    d_model: int = 256
    num_heads: int = 8
    dim_feedforward: int = 1024
    num_encoder_layers: int = 1
    num_decoder_layers: int = 6
    num_queries: int = 300
    num_denoising: int = 100
    look_forward_twice: bool = True
    test_short_side: int = 800
    max_size: int = 1333
    score_thresh: float = 0.05
    nms_thresh: float = 1.0
    detections_per_image: int = 100


class Mask2FormerSpec(BaseModel):
    """Everything a Mask2Former is built from, except its class names.

    Attributes:
        kind: its name.
        backbone: name, as in `DetectorSpec`.
        out_strides: maps of the backbone, pixels per cell, each twice the one before; masks have the finest.
        freeze_through_stride: backbone layers up to this stride stay as pretrained; 0 trains all.
        d_model, num_heads: channels and heads of every layer.
        dim_feedforward, encoder_dim_feedforward: hidden units of a layer of the decoder, of the pixel decoder.
        num_encoder_layers, num_decoder_layers: depth; the learnt queries are supervised as one layer more.
        num_queries: masks proposed per image.
        num_points: points at which a mask's loss is taken.
        test_short_side, max_size: short and long side at test, pixels.
        score_thresh, detections_per_image: what leaves the segmenter, per image.
        nms_thresh: 1; the set loss leaves no duplicates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mask2former"] = "mask2former"
    backbone: str = "lite0-embedded"
    out_strides: tuple[int, ...] = (4, 8, 16, 32)
    freeze_through_stride: int = 0
    d_model: int = 256
    num_heads: int = 8
    dim_feedforward: int = 2048
    encoder_dim_feedforward: int = 1024
    num_encoder_layers: int = 6
    num_decoder_layers: int = 9
    num_queries: int = 100
    num_points: int = 12544
    test_short_side: int = 800
    max_size: int = 1333
    score_thresh: float = 0.05
    nms_thresh: float = 1.0
    detections_per_image: int = 100


AnySpec = DetectorSpec | DetrSpec | Mask2FormerSpec
