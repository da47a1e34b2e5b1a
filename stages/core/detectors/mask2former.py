"""Mask2Former (Cheng et al., CVPR 2022) from the library `transformers` on any backbone, called like torchvision's.

Pixel decoder, masked-attention decoder, matching and losses are the library's, built from a configuration without any
download; backbone, resizing and the rule of inference are here. docs/method.md, section 8.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from stages.core.backbones.batch_norm_folding import merge_batch_norms
from stages.core.backbones.timm_backbones import Backbone, build_backbone
from stages.core.detectors.detr import PADDING, image_transform, placeholder_backbone, require_transformers
from stages.core.detectors.spec import Mask2FormerSpec
from stages.core.errors import ConfigError
from stages.core.runtime import processes

PARTS = {"loss_class": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}
"""Losses, each summed over the decoder's layers -> the library's names, which end in the number of the layer."""


class Mask2Former(nn.Module):
    """An instance segmenter: losses in training, detections with masks in evaluation.

    Attributes:
        spec: what it was built from.
        classes: class names, 0-based; a label is the index + 1, as in torchvision.
    """

    def __init__(
        self, spec: Mask2FormerSpec, network: Any, backbone: Backbone, classes: Sequence[str]
    ) -> None:
        super().__init__()
        self.spec, self.classes = spec, tuple(classes)
        self.network: Any = network
        self.network.model.pixel_level_module.encoder = FeatureMaps(backbone)
        self.network.criterion.get_num_masks = _mean_count
        self.transform = image_transform(spec, backbone)

    @property
    def pretrained_backbone(self) -> nn.Module:
        """The pretrained part, without pixel decoder and decoder."""
        backbone: nn.Module = self.network.model.pixel_level_module.encoder.backbone
        return backbone

    @property
    def embeddings(self) -> list[nn.Parameter]:
        """Learnt tables of queries and levels, which have no weight decay."""
        tables = [layer.weight for layer in self.modules() if isinstance(layer, nn.Embedding)]
        return [*tables, self.network.model.pixel_level_module.decoder.level_embed]

    def keep_from(self, score: float) -> None:
        """Give detections from this score on, instead of from the specification's."""
        self.spec = self.spec.model_copy(update={"score_thresh": score})

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name in training, else `boxes`, `labels`, `scores` and `masks` of each image in its own pixels.

        Args:
            images: [3, H, W] in [0, 1], sizes may differ.
            targets: in training, `masks` [T, H, W] in {0, 1} and `labels` from 1; empty masks are left out.
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch, targets = self.transform(images, targets)
        pixels: Tensor = batch.tensors
        output = self.network.model(pixel_values=pixels, output_hidden_states=True)
        states = output.transformer_decoder_intermediate_states
        logits = [self.network.class_predictor(own.transpose(0, 1)) for own in states]
        if self.training:
            assert targets is not None, "targets are needed in training"
            return self._losses(logits, output.masks_queries_logits, targets, pixels)
        return [
            self._detections(logits_QC.float(), masks_QHW.float(), pixels, inside, size)
            for logits_QC, masks_QHW, inside, size in zip(
                logits[-1], output.masks_queries_logits[-1], batch.image_sizes, sizes, strict=True
            )
        ]

    def _losses(
        self,
        logits: Sequence[Tensor],
        masks: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        pixels: Tensor,
    ) -> dict[str, Tensor]:
        """The library's losses of all layers, weighted, in float32."""
        kept = [(target["masks"] > 0).flatten(1).any(dim=1) for target in targets]
        labels = [target["labels"][keep] - 1 for target, keep in zip(targets, kept, strict=True)]
        height, width = pixels.shape[-2:]
        wanted = [
            F.pad(own, (0, width - own.shape[-1], 0, height - own.shape[-2])).float()
            for own in (target["masks"][keep] for target, keep in zip(targets, kept, strict=True))
        ]
        with torch.autocast(pixels.device.type, enabled=False):
            found = self.network.get_loss_dict(
                masks_queries_logits=masks[-1].float(),
                class_queries_logits=logits[-1].float(),
                mask_labels=wanted,
                class_labels=labels,
                auxiliary_predictions=[
                    {"masks_queries_logits": own.float(), "class_queries_logits": scores.float()}
                    for own, scores in zip(masks[:-1], logits[:-1], strict=True)
                ],
            )
        return {
            name: torch.stack([value for key, value in found.items() if key.startswith(theirs)]).sum()
            for name, theirs in PARTS.items()
        }

    def _detections(
        self,
        logits_QC: Tensor,
        masks_QHW: Tensor,
        pixels: Tensor,
        inside: tuple[int, int],
        size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """The best (query, class) pairs, scored by class probability times the mean probability within the mask.

        Masks are enlarged to the padded image, cut to the image and resized to its own pixels, as published; empty
        ones are left out.
        """
        scores_QC = logits_QC.softmax(dim=1)[:, :-1]
        count = min(self.spec.detections_per_image, scores_QC.numel())
        scores_N, best_N = scores_QC.flatten().topk(count)
        queries_N, labels_N = best_N // scores_QC.shape[1], best_N % scores_QC.shape[1]
        used_U, row_N = torch.unique(queries_N, return_inverse=True)
        canvas = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        large_UHW = _resized(masks_QHW[used_U], canvas)[:, : inside[0], : inside[1]]
        own_UHW = _resized(large_UHW, size)
        drawn_UHW = own_UHW > 0
        areas_U = drawn_UHW.flatten(1).sum(dim=1)
        sureness_U = (own_UHW.sigmoid() * drawn_UHW).flatten(1).sum(dim=1) / areas_U.clamp(min=1)
        scores_N = scores_N * sureness_U[row_N]
        keep_N = torch.nonzero((areas_U[row_N] > 0) & (scores_N > self.spec.score_thresh)).flatten()
        keep_N = keep_N[scores_N[keep_N].argsort(descending=True, stable=True)]
        masks_NHW = drawn_UHW[row_N[keep_N]]
        boxes_N4 = (
            masks_to_boxes(masks_NHW) + masks_NHW.new_tensor((0, 0, 1, 1), dtype=torch.float32)
            if len(keep_N)
            else scores_N.new_zeros(0, 4)
        )  # the operator gives the last pixel, boxes are half-open
        return {
            "boxes": boxes_N4,
            "labels": labels_N[keep_N] + 1,
            "scores": scores_N[keep_N],
            "masks": masks_NHW[:, None].float(),
        }


class FeatureMaps(nn.Module):
    """The pretrained backbone in the place of the library's."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """Return the maps as `feature_maps`, finest first."""
        return SimpleNamespace(feature_maps=self.backbone(pixel_values))


def build_mask2former(
    spec: Mask2FormerSpec, classes: Sequence[str], pretrained: bool | Path = True
) -> Mask2Former:
    """Build the segmenter, its backbone with ImageNet weights (`pretrained`), a file's, or none (False).

    Raises:
        ConfigError: see `check_mask2former` and `build_backbone`.
        EnvironmentFault: the extra `hf` is not installed, or weights cannot be fetched.
        SchemaError: see `build_backbone`.
    """
    check_mask2former(spec)
    library = require_transformers()
    backbone = build_backbone(spec.backbone, spec.out_strides, pretrained=pretrained, frozen_bn=True)
    backbone.freeze_through(spec.freeze_through_stride)
    merge_batch_norms(backbone)
    network = library.Mask2FormerForUniversalSegmentation(
        library.Mask2FormerConfig(
            backbone_config=placeholder_backbone(library, backbone.channels),
            num_labels=len(classes),
            feature_size=spec.d_model,
            mask_feature_size=spec.d_model,
            hidden_dim=spec.d_model,
            encoder_feedforward_dim=spec.encoder_dim_feedforward,
            encoder_layers=spec.num_encoder_layers,
            decoder_layers=spec.num_decoder_layers + 1,  # the library counts the learnt queries as a layer
            num_attention_heads=spec.num_heads,
            dim_feedforward=spec.dim_feedforward,
            common_stride=spec.out_strides[0],
            feature_strides=list(spec.out_strides),
            num_queries=spec.num_queries,
            train_num_points=spec.num_points,
        )
    )
    return Mask2Former(spec, network, backbone, classes)


def check_mask2former(spec: Mask2FormerSpec) -> None:
    """Refuse what cannot be built.

    Raises:
        ConfigError: names the setting.
    """
    step = math.lcm(spec.num_heads, 32)
    if spec.d_model % step:
        raise ConfigError(
            f"{spec.d_model} channels for {spec.num_heads} heads and groups of 32",
            where="mask2former.d_model",
            hint=f"use a multiple of {step}",
        )
    strides = spec.out_strides
    doubling = all(coarse == 2 * fine for fine, coarse in itertools.pairwise(strides))
    if len(strides) < 3 or not doubling or strides[-1] > PADDING:
        raise ConfigError(
            f"the pixel decoder cannot use the strides {list(strides)}",
            where="out_strides",
            hint="use at least three, each twice the one before, up to 32: 4,8,16,32 or 8,16,32",
        )


def _mean_count(class_labels: Sequence[Tensor], device: torch.device) -> Tensor:
    """Number of targets, a mean over processes, at least 1: what losses are divided by."""
    own = torch.tensor([float(sum(len(labels) for labels in class_labels))])
    return (processes.total(own)[0] / processes.world()).clamp(min=1).to(device)


def _resized(masks_NHW: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(masks_NHW[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
