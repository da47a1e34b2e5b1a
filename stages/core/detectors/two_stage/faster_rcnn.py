"""Builders of Faster R-CNN and Mask R-CNN, and the file format they are kept in.

The parts are torchvision's (anchors, region proposals, heads, resizing); the backbone is any of
`stages.core.backbones.timm_backbones` under a feature pyramid, so that one specification serves R50-FPN at 800 px
on GPUs and the embedded Lite0 at 256 px on a CPU. A checkpoint holds its specification and class names: it
can be rebuilt from the file alone.

Heads of version 2 are those of torchvision's `fasterrcnn_resnet50_fpn_v2` (Li et al., "Benchmarking Detection Transfer
Learning with Vision Transformers", 2021): normalised pyramid, two convolutions before the region proposals, four
convolutions and one layer before the class. They are normalised in groups (Wu and He, 2018) in the place of batches,
so that what is learnt from an image does not depend on the others of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from stages.core.backbones.batch_norm_folding import fold_for_inference, merge_batch_norms
from stages.core.backbones.feature_pyramid import PyramidBackbone
from stages.core.backbones.timm_backbones import build_backbone
from stages.core.detectors.spec import AnySpec, DetectorSpec
from stages.core.detectors.two_stage.region_proposals import (
    FloatAnchors,
    ImageMeanRPN,
    ImageSampler,
    padded_groups,
)
from stages.core.detectors.two_stage.roi_heads import RoiWeights, TopKMatcher, WeightedRoIHeads
from stages.core.detectors.two_stage.roi_pooling import PyramidRoIPool
from stages.core.errors import ConfigError
from stages.core.ops.precision import give_full_precision
from stages.core.runtime.image_generators import chosen_images
from stages.core.weights.checkpoints import save_weights

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Detector(GeneralizedRCNN):  # type: ignore[misc]
    """torchvision's two-stage detector, with the hook of `WeightedRoIHeads` in reach.

    Attributes:
        spec: what it was built from.
        classes: class names, 0-based; torchvision's label is the index + 1.
        whole_batch: train on a batch at once, padded to its largest image, for RoI weights that compare the RoIs of
            different images. Otherwise images of one padded size go together, and what is said of an image depends
            on it alone.
    """

    whole_batch: bool = False

    spec: DetectorSpec
    classes: tuple[str, ...]
    roi_heads: WeightedRoIHeads

    @property
    def pretrained_backbone(self) -> nn.Module:
        """The pretrained part, without the pyramid."""
        bottom_up: nn.Module = self.backbone.bottom_up
        return bottom_up

    def drop_with(self, weights: RoiWeights, compares: bool = False) -> None:
        """Weight sampled RoIs by RoI drop from now on.

        Args:
            weights: the hook.
            compares: whether it compares the RoIs of different images.
        """
        self.roi_heads.roi_weights, self.whole_batch = weights, compares

    def keep_from(self, score: float) -> None:
        """Give detections from this score on, instead of from the specification's."""
        self.roi_heads.score_thresh = score

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses in training, each a mean over images; detections in evaluation; arguments as in torchvision."""
        if not self.training or targets is None or self.whole_batch:
            return super().forward(images, targets)
        losses: dict[str, Tensor] = {}
        for rows in padded_groups(images):
            with chosen_images(rows):
                own = super().forward([images[row] for row in rows], [targets[row] for row in rows])
            for name, value in own.items():
                part = value * (len(rows) / len(images))
                losses[name] = losses[name] + part if name in losses else part
        return losses


def build_detector(spec: DetectorSpec, classes: Sequence[str], pretrained: bool | Path = True) -> Detector:
    """Build a detector, its backbone with ImageNet weights (`pretrained`), a file's, or none (False).

    Raises:
        ConfigError: levels and anchors do not fit, or `freeze_through_stride` is no stride of the backbone.
        ConfigError, EnvironmentFault, SchemaError: see `build_backbone`.
    """
    extra_level = _check_levels(spec)
    bottom_up = build_backbone(spec.backbone, spec.out_strides, pretrained=pretrained, frozen_bn=True)
    bottom_up.freeze_through(spec.freeze_through_stride)
    merge_batch_norms(bottom_up)
    norm = group_norm if spec.heads == "v2" else None
    backbone = PyramidBackbone(bottom_up, spec.fpn_channels, extra_level, norm)
    transform = GeneralizedRCNNTransform(
        spec.test_short_side, spec.max_size, list(bottom_up.mean), list(bottom_up.std), _skip_resize=True
    )  # training images arrive resized, see detection_data
    model = Detector(backbone, _build_rpn(spec), _build_heads(spec, len(classes) + 1), transform)
    model.spec, model.classes = spec, tuple(classes)
    # Scores, box deltas and mask logits in float32: torchvision decodes boxes and draws masks in their precision.
    for module in (model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor):
        if module is not None:
            give_full_precision(module)
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def _check_levels(spec: DetectorSpec) -> bool:
    """Return whether the anchors ask for a pooled extra level."""
    levels, anchors = len(spec.out_strides), len(spec.anchor_sizes)
    if anchors not in (levels, levels + 1):
        raise ConfigError(
            f"{anchors} anchor sizes for {levels} pyramid levels",
            where="anchor_sizes",
            hint=f"give {levels} sizes, or {levels + 1} for one pooled extra level",
        )
    if spec.freeze_through_stride and spec.freeze_through_stride not in spec.out_strides:
        raise ConfigError(
            f"the backbone has no map at stride {spec.freeze_through_stride}",
            where="freeze_through_stride",
            hint=f"use 0 or one of {list(spec.out_strides)}",
        )
    return anchors > levels


def _build_rpn(spec: DetectorSpec) -> ImageMeanRPN:
    anchors = FloatAnchors(
        tuple((size,) for size in spec.anchor_sizes), (spec.aspect_ratios,) * len(spec.anchor_sizes)
    )
    convolutions = 2 if spec.heads == "v2" else 1
    head = RPNHead(spec.fpn_channels, len(spec.aspect_ratios), convolutions)
    half = max(1, spec.rpn_pre_nms_top_n // 2)
    before, after = {"training": spec.rpn_pre_nms_top_n, "testing": half}, {"training": half, "testing": half}
    rpn = ImageMeanRPN(anchors, head, 0.7, 0.3, 256, 0.5, before, after, 0.7)
    rpn.fg_bg_sampler = ImageSampler(256, 0.5)
    rpn.box_loss = spec.rpn_box_loss
    return rpn


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with the usual 32 groups, or as many as divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _build_heads(spec: DetectorSpec, outputs: int) -> WeightedRoIHeads:
    second, channels = spec.heads == "v2", spec.fpn_channels
    masks: dict[str, nn.Module] = {}
    if spec.kind == "mask-rcnn":
        width = spec.mask_channels
        masks = {
            "mask_roi_pool": PyramidRoIPool(spec.out_strides, 14, spec.sampling_ratio),
            "mask_head": MaskRCNNHeads(channels, (width,) * 4, 1, group_norm if second else None),
            "mask_predictor": MaskRCNNPredictor(width, width, outputs),
        }
    heads = WeightedRoIHeads(
        PyramidRoIPool(spec.out_strides, 7, spec.sampling_ratio),
        FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [spec.fc_dim], group_norm)
        if second
        else TwoMLPHead(channels * 49, spec.fc_dim),
        _predictor(spec, outputs),
        0.5,
        0.5,
        spec.box_batch_size_per_image,
        0.25,
        BOX_WEIGHTS,
        spec.score_thresh,
        spec.nms_thresh,
        spec.detections_per_image,
        **masks,
    )
    heads.fg_bg_sampler = ImageSampler(spec.box_batch_size_per_image, 0.25)
    heads.box_loss = spec.box_loss
    if spec.matcher == "top-k":
        heads.proposal_matcher = TopKMatcher(spec.match_top_k)
    return heads


def _predictor(spec: DetectorSpec, outputs: int) -> nn.Module:
    predictor: Any = FastRCNNPredictor(spec.fc_dim, outputs)
    if spec.predictor_init == "normal":
        for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
    return predictor  # type: ignore[no-any-return]


def save_detector(path: Path, model: nn.Module, spec: AnySpec, classes: Sequence[str]) -> None:
    """Fold the detector for inference, and write weights, specification and class names as one safetensors file."""
    fold_for_inference(model)
    metadata: dict[str, Any] = {
        "model": spec.kind,
        "classes": list(classes),
        "spec": spec.model_dump(mode="json"),
    }
    save_weights(path, model, metadata)
