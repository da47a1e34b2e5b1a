"""Detection transformers from the library `transformers` on any backbone, called like torchvision's detectors.

RT-DETRv2 (Lv et al., 2024), Deformable DETR with box refinement (Zhu et al., 2021) and DINO (`dino`). Encoder, decoder
and denoising are the library's, built from a configuration without any download; backbone, losses, resizing and the
hook of RoI drop are ours, so that `retrain` trains them as it trains Faster R-CNN.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms, box_convert, clip_boxes_to_image

from stages.core.backbones.batch_norm_folding import merge_batch_norms
from stages.core.backbones.timm_backbones import Backbone, build_backbone
from stages.core.detectors.detr_losses import LayerOutput, SetCosts, SetOutput, SetTargets, set_losses
from stages.core.detectors.dino import DinoNetwork
from stages.core.detectors.spec import DetrSpec, Mask2FormerSpec
from stages.core.detectors.two_stage.roi_heads import RoiWeights
from stages.core.errors import ConfigError, EnvironmentFault
from stages.core.ops.precision import run_in_full_precision

COSTS = {
    "rt-detr": SetCosts("varifocal", alpha=0.75),
    "deformable-detr": SetCosts("focal", alpha=0.25),
    "dino": SetCosts("focal", alpha=0.25),
}
CHOOSE_CELLS = ("rt-detr", "dino")
"""Kinds whose encoder chooses the cells that queries start from; they learn to restore noisy targets, too."""
PADDING = 32
"""Sides of a batch are multiples of this many pixels."""

PRIOR = 0.01
"""Class probability of a query before any training."""


class Detr(nn.Module):
    """A detection transformer; losses in training, detections in evaluation.

    Attributes:
        spec: what it was built from.
        classes: class names, 0-based; a label is the index + 1, as in torchvision.
        roi_weights: the hook of RoI drop, or None to weight every matched query by 1.
    """

    roi_weights: RoiWeights | None = None

    def __init__(self, spec: DetrSpec, network: Any, backbone: Backbone, classes: Sequence[str]) -> None:
        super().__init__()
        self.spec, self.classes = spec, tuple(classes)
        self.network: Any = network
        self.network.model.backbone = BackboneFeatures(backbone)
        self.transform = image_transform(spec, backbone)
        self._least_side = least_side(spec)
        _keep_boxes_in_float32(network)

    @property
    def pretrained_backbone(self) -> nn.Module:
        """The pretrained part, without encoder and decoder."""
        backbone: nn.Module = self.network.model.backbone.backbone
        return backbone

    def drop_with(self, weights: RoiWeights, compares: bool = False) -> None:
        """Weight matched queries by RoI drop from now on; `compares` as for the two-stage detectors.

        A batch is one here: the losses are divided by the number of its targets, as published.
        """
        self.roi_weights = weights

    def keep_from(self, score: float) -> None:
        """Give detections from this score on, instead of from the specification's."""
        self.spec = self.spec.model_copy(update={"score_thresh": score})

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name in training, else `boxes`, `labels` and `scores` of each image in its own pixels.

        Args:
            images: [3, H, W] in [0, 1], sizes may differ.
            targets: in training, `boxes` xyxy in pixels and `labels` from 1.
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch, targets = self.transform(images, targets)
        pixels = self._large_enough(batch.tensors)
        frames_B4 = self._frames(batch, pixels)
        mask_BHW = torch.zeros(len(images), *pixels.shape[-2:], device=pixels.device)
        for row, (height, width) in enumerate(batch.image_sizes):
            mask_BHW[row, :height, :width] = 1
        if self.training:
            assert targets is not None, "targets are needed in training"
            wanted = relative_targets(targets, frames_B4)
            output = self.answers(pixels, mask_BHW, wanted)
            losses = set_losses(output, wanted, COSTS[self.spec.kind], self.roi_weights)
            if self.spec.kind in CHOOSE_CELLS and self.spec.num_denoising:
                # A batch without a target has nothing to restore; every step has the same losses all the same.
                losses.setdefault("loss_denoising", output.layers[-1].logits_BQC.float().sum() * 0)
            return losses
        last = self.answers(pixels, mask_BHW, None).layers[-1]
        found = [
            self._detections(logits_QC.float(), boxes_Q4.float() * frame_4, size)
            for logits_QC, boxes_Q4, frame_4, size in zip(
                last.logits_BQC, last.boxes_BQ4, frames_B4, batch.image_sizes, strict=True
            )
        ]
        return self.transform.postprocess(found, batch.image_sizes, sizes)

    def answers(self, pixels: Tensor, mask_BHW: Tensor, targets: SetTargets | None) -> SetOutput:
        """What the network says about a batch of normalised, padded images; all layers in training."""
        if self.spec.kind == "rt-detr":
            return _rt_detr_answers(self.network, pixels, mask_BHW, targets)
        if self.spec.kind == "dino":
            output: SetOutput = self.network(pixels, mask_BHW, targets)
            return output
        return _deformable_answers(self.network, pixels, mask_BHW)

    def _large_enough(self, pixels: Tensor) -> Tensor:
        """Pad very thin images until the encoder has as many cells as queries that are chosen from them."""
        height, width = pixels.shape[-2:]
        down, right = max(0, self._least_side - height), max(0, self._least_side - width)
        return F.pad(pixels, (0, right, 0, down)) if down or right else pixels

    def _frames(self, batch: ImageList, pixels: Tensor) -> Tensor:
        """Pixels [B, 4] (w, h, w, h) that relative boxes refer to.

        Deformable DETR and DINO know from their mask where the image ends, RT-DETR sees the padded canvas.
        """
        canvas = [tuple(pixels.shape[-2:])] * len(batch.image_sizes)
        sizes = canvas if self.spec.kind == "rt-detr" else batch.image_sizes
        return torch.tensor([(w, h, w, h) for h, w in sizes], dtype=torch.float32, device=pixels.device)

    def _detections(self, logits_QC: Tensor, boxes_Q4: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """The best (query, class) pairs of one image whose box lies in it."""
        boxes_Q4 = clip_boxes_to_image(box_convert(boxes_Q4, "cxcywh", "xyxy"), size)
        scores_QC = logits_QC.sigmoid()
        scores_N, best_N = scores_QC.flatten().topk(min(self.spec.detections_per_image, scores_QC.numel()))
        boxes_N4, labels_N = boxes_Q4[best_N // scores_QC.shape[1]], best_N % scores_QC.shape[1] + 1
        sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        keep_N = torch.nonzero((scores_N > self.spec.score_thresh) & (sides_N2 > 0).all(dim=1)).flatten()
        if self.spec.nms_thresh < 1:
            kept = batched_nms(boxes_N4[keep_N], scores_N[keep_N], labels_N[keep_N], self.spec.nms_thresh)
            keep_N = keep_N[kept]
        return {"boxes": boxes_N4[keep_N], "labels": labels_N[keep_N], "scores": scores_N[keep_N]}


def _keep_boxes_in_float32(network: Any) -> None:
    """Compute reference points and boxes in float32 under any autocast.

    A box is the sigmoid of a number: in bf16 those of an image of 1,333 pixels lie on a grid of 5.
    """
    heads = [*network.bbox_embed, *(getattr(network.model.decoder, "bbox_embed", None) or ())]
    for name in ("reference_points", "enc_bbox_head"):
        heads += [getattr(network.model, name)] if hasattr(network.model, name) else []
    for head in heads:
        run_in_full_precision(head)
    if hasattr(network.model, "generate_anchors"):
        network.model.__class__ = _float_anchors(type(network.model))


def _float_anchors(kind: Any) -> Any:
    """The library's RT-DETR with anchors in float32, whatever the precision of its features."""

    class FloatAnchors(kind):  # type: ignore[misc]
        def generate_anchors(self, *values: Any, **named: Any) -> Any:
            return super().generate_anchors(*values, **{**named, "dtype": torch.float32})

    return FloatAnchors


class BackboneFeatures(nn.Module):
    """The pretrained backbone in the place of the library's: maps with the mask of what is image in them."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return [(map [B, C, h, w], mask [B, h, w] bool)], finest first."""
        return [
            (features, F.interpolate(pixel_mask[None].float(), size=features.shape[-2:])[0].bool())
            for features in self.backbone(pixel_values)
        ]


def build_detr(spec: DetrSpec, classes: Sequence[str], pretrained: bool | Path = True) -> Detr:
    """Build a detection transformer, its backbone with ImageNet weights (`pretrained`), a file's, or none (False).

    Raises:
        ConfigError: widths and heads do not fit, or there are more queries than cells to choose from.
        EnvironmentFault: the extra `hf` is not installed, or weights cannot be fetched.
        ConfigError, SchemaError: see `build_backbone`.
    """
    check_detr(spec)
    library = require_transformers()
    backbone = build_backbone(spec.backbone, spec.out_strides, pretrained=pretrained, frozen_bn=True)
    backbone.freeze_through(spec.freeze_through_stride)
    merge_batch_norms(backbone)
    build = {"rt-detr": _rt_detr, "deformable-detr": _deformable_detr, "dino": _dino}[spec.kind]
    return Detr(spec, build(library, spec, backbone.channels, len(classes)), backbone, classes)


def image_transform(spec: DetrSpec | Mask2FormerSpec, backbone: Backbone) -> GeneralizedRCNNTransform:
    """Resize, normalize and pad images to multiples of `PADDING` pixels; training images arrive resized."""
    return GeneralizedRCNNTransform(
        spec.test_short_side,
        spec.max_size,
        list(backbone.mean),
        list(backbone.std),
        PADDING,
        _skip_resize=True,
    )


def require_transformers() -> Any:
    """The library, which is not installed by default.

    Raises:
        EnvironmentFault: it, or scipy, is absent or too old.
    """
    try:
        importlib.import_module("scipy.optimize")
        library = importlib.import_module("transformers")
        _ = library.RTDetrV2ForObjectDetection, library.DeformableDetrForObjectDetection
    except (ImportError, AttributeError) as error:
        raise EnvironmentFault(
            f"detection transformers need the libraries transformers and scipy ({error})",
            where="architecture",
            hint='pip install "weaksam[hf]", or use architecture = faster-rcnn (wsis: mask-rcnn)',
        ) from error
    return library


def check_detr(spec: DetrSpec) -> None:
    """Refuse what cannot be built.

    Raises:
        ConfigError: names the setting.
    """
    step = math.lcm(spec.num_heads, 4 if spec.kind == "rt-detr" else 32)
    if spec.d_model % step:
        raise ConfigError(
            f"{spec.d_model} channels for {spec.num_heads} heads of {spec.kind}",
            where="d_model",
            hint=f"use a multiple of {step}",
        )
    if spec.out_strides[-1] > PADDING:
        raise ConfigError(
            f"stride {spec.out_strides[-1]} is coarser than the padding of {PADDING} px",
            where="out_strides",
            hint="use strides up to 32, e.g. 8,16,32",
        )
    if least_side(spec) > math.ceil(spec.test_short_side / PADDING) * PADDING:
        raise ConfigError(
            f"{spec.num_queries} queries are more than the cells of an image of {spec.test_short_side} px",
            where="num_queries",
            hint="fewer queries, a larger test_short_side, or finer out_strides",
        )


def least_side(spec: DetrSpec) -> int:
    """Smallest side of a square, a multiple of `PADDING` pixels, with a cell for every query.

    Queries of RT-DETR and DINO begin at cells that the encoder chooses; those of Deformable DETR are learnt.
    """
    side = PADDING
    while (
        spec.kind in CHOOSE_CELLS
        and sum((side // stride) ** 2 for stride in spec.out_strides) < spec.num_queries
    ):
        side += PADDING
    return side


def relative_targets(targets: Sequence[dict[str, Tensor]], frames_B4: Tensor) -> list[dict[str, Tensor]]:
    """Boxes in pixels and labels from 1, as the set losses want them: relative cx, cy, w, h; labels from 0."""
    return [
        {
            "class_labels": target["labels"] - 1,
            "boxes": box_convert(target["boxes"].float(), "xyxy", "cxcywh") / frame_4,
            **({"trusted": target["trusted"]} if "trusted" in target else {}),
        }
        for target, frame_4 in zip(targets, frames_B4, strict=True)
    ]


def _rt_detr(library: Any, spec: DetrSpec, channels: Sequence[int], classes: int) -> nn.Module:
    width, levels = spec.d_model, len(spec.out_strides)
    network: nn.Module = library.RTDetrV2ForObjectDetection(
        library.RTDetrV2Config(
            backbone_config=placeholder_backbone(library, channels),
            num_labels=classes,
            feat_strides=list(spec.out_strides),
            encoder_in_channels=list(channels),
            encoder_hidden_dim=width,
            encoder_ffn_dim=spec.dim_feedforward,
            encoder_layers=spec.num_encoder_layers,
            encoder_attention_heads=spec.num_heads,
            encode_proj_layers=[levels - 1],
            d_model=width,
            num_queries=spec.num_queries,
            decoder_in_channels=[width] * levels,
            decoder_n_levels=levels,
            num_feature_levels=levels,
            decoder_layers=spec.num_decoder_layers,
            decoder_ffn_dim=spec.dim_feedforward,
            decoder_attention_heads=spec.num_heads,
            num_denoising=spec.num_denoising,
            initializer_bias_prior_prob=PRIOR,
            # The library's 0.01 is for loading weights; this is the scale of PyTorch's own layers.
            initializer_range=1 / math.sqrt(3 * width),
        )
    )
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    return network


def _rt_detr_answers(network: Any, pixels: Tensor, mask_BHW: Tensor, targets: SetTargets | None) -> SetOutput:
    labels = None if targets is None else [dict(target) for target in targets]
    said = network.model(pixel_values=pixels, pixel_mask=mask_BHW, labels=labels)
    logits_BLQC, boxes_BLQ4 = said.intermediate_logits, said.intermediate_reference_points
    if targets is None:
        return SetOutput([LayerOutput(logits_BLQC[:, -1], boxes_BLQ4[:, -1])])
    proposals = LayerOutput(said.enc_topk_logits, said.enc_topk_bboxes)
    noise = said.denoising_meta_values
    if noise is None:
        return SetOutput(_layers(logits_BLQC, boxes_BLQ4), proposals)
    noisy_logits, logits_BLQC = logits_BLQC.split(noise["dn_num_split"], dim=2)
    noisy_boxes, boxes_BLQ4 = boxes_BLQ4.split(noise["dn_num_split"], dim=2)
    groups = int(noise["dn_num_group"])
    restored = [
        (queries, torch.arange(len(target["class_labels"]), device=queries.device).repeat(groups))
        for queries, target in zip(noise["dn_positive_idx"], targets, strict=True)
    ]
    return SetOutput(
        _layers(logits_BLQC, boxes_BLQ4), proposals, _layers(noisy_logits, noisy_boxes), restored, groups
    )


def _layers(logits_BLQC: Tensor, boxes_BLQ4: Tensor) -> list[LayerOutput]:
    return [
        LayerOutput(logits, boxes)
        for logits, boxes in zip(logits_BLQC.unbind(1), boxes_BLQ4.unbind(1), strict=True)
    ]


def _dino(library: Any, spec: DetrSpec, channels: Sequence[int], classes: int) -> nn.Module:
    config = _deformable_config(library, spec, channels, classes)
    config._attn_implementation = "sdpa"  # takes masks of booleans, whatever the precision
    return DinoNetwork(config, spec, channels, classes)


def _deformable_config(library: Any, spec: DetrSpec, channels: Sequence[int], classes: int) -> Any:
    return library.DeformableDetrConfig(
        backbone_config=placeholder_backbone(library, channels),
        num_labels=classes,
        d_model=spec.d_model,
        num_queries=spec.num_queries,
        encoder_layers=spec.num_encoder_layers,
        encoder_ffn_dim=spec.dim_feedforward,
        encoder_attention_heads=spec.num_heads,
        decoder_layers=spec.num_decoder_layers,
        decoder_ffn_dim=spec.dim_feedforward,
        decoder_attention_heads=spec.num_heads,
        num_feature_levels=len(spec.out_strides) + 1,
        with_box_refine=True,
        auxiliary_loss=True,
        class_cost=2,
        dropout=0.0,
        # Every layer has its own heads; the decoder refines with the box heads (tied by hand below).
        tie_word_embeddings=False,
    )


def _deformable_detr(library: Any, spec: DetrSpec, channels: Sequence[int], classes: int) -> nn.Module:
    network: Any = library.DeformableDetrForObjectDetection(
        _deformable_config(library, spec, channels, classes)
    )
    network.model.decoder.bbox_embed = network.bbox_embed
    for class_head, box_head in zip(network.class_embed, network.bbox_embed, strict=True):
        nn.init.constant_(class_head.bias, -math.log((1 - PRIOR) / PRIOR))
        nn.init.zeros_(box_head.layers[-1].weight)
        nn.init.zeros_(box_head.layers[-1].bias)
    # The first layer starts from points without a size: boxes of 12 % of the image.
    nn.init.constant_(network.bbox_embed[0].layers[-1].bias[2:], -2.0)
    return network  # type: ignore[no-any-return]


def _deformable_answers(network: Any, pixels: Tensor, mask_BHW: Tensor) -> SetOutput:
    said = network.model(pixel_values=pixels, pixel_mask=mask_BHW.long())
    states_BLQD = said.intermediate_hidden_states
    references = [said.init_reference_points, *said.intermediate_reference_points.unbind(1)[:-1]]
    layers = []
    for index, (states_BQD, reference) in enumerate(zip(states_BLQD.unbind(1), references, strict=True)):
        moves_BQ4 = network.bbox_embed[index](states_BQD)
        known = reference.shape[-1]  # 2 for points, 4 for boxes
        places = torch.special.logit(reference.to(moves_BQ4.dtype), eps=1e-5)
        moves_BQ4 = torch.cat([moves_BQ4[..., :known] + places, moves_BQ4[..., known:]], dim=-1)
        layers.append(LayerOutput(network.class_embed[index](states_BQD), moves_BQ4.sigmoid()))
    return SetOutput(layers)


def placeholder_backbone(library: Any, channels: Sequence[int]) -> Any:
    """A backbone of the library's own with the channels of ours, as cheap as can be: it is replaced."""
    count = len(channels)
    return library.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4] * (4 - count) + list(channels),
        depths=[1] * 4,
        layer_type="basic",
        out_features=[f"stage{i}" for i in range(5 - count, 5)],
    )
