"""The weakly supervised detector: backbone, fused feature map, RoI pooling, two fully connected layers, heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_pool

from stages.core.backbones import vgg
from stages.core.backbones.batch_norm_folding import merge_batch_norms
from stages.core.backbones.lateral_fusion import LateralFusion
from stages.core.backbones.timm_backbones import Backbone, build_backbone
from stages.core.ops.padding import pad_to_multiple
from stages.core.ops.roi_align import roi_align
from stages.core.runtime.image_generators import ImageDropout
from stages.wsod.config import WsodConfig
from stages.wsod.miners.oicr import RefinementHeads
from stages.wsod.model.dropblock import ConcreteDropBlock
from stages.wsod.model.wsddn import TwoStreamHead


@dataclass(frozen=True)
class ProposalOutputs:
    """What the heads say about all proposals of a batch, image after image; float32 in mixed precision, too."""

    cls_logits_NC: Tensor
    """Class stream; with a background column, that is column 0."""
    det_logits_NC: Tensor
    """Detection stream, the same columns."""
    refine_logits: list[Tensor]
    """Per branch (N, C + 1), column 0 background; empty for wsddn."""
    deltas: list[Tensor]
    """Per branch (N, C + 1, 4), or empty."""
    dropped: Tensor | None = None
    """Share of feature cells that Concrete DropBlock hid."""


class WsodDetector(nn.Module):
    """Scores (and moves) given proposals; learns from image tags alone.

    Args:
        config: Architecture settings; training settings are not read.
        num_classes: Number of classes C.
        pretrained: False where weights will be loaded anyway.
    """

    def __init__(self, config: WsodConfig, num_classes: int, pretrained: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pooler_type, self.pooler_resolution = config.pooler_type, config.pooler_resolution
        self.backbone, fc_state = _build_backbone(config, pretrained)
        self.stride = self.backbone.strides[0]
        fuse = config.fused_channels > 0
        self.fuse = LateralFusion(self.backbone.channels, config.fused_channels, "finest") if fuse else None
        channels = config.fused_channels if fuse else self.backbone.channels[0]
        self.dropblock = (
            ConcreteDropBlock(
                channels,
                config.dropblock_max_fraction,
                weight=config.dropblock_weight,
                form=config.dropblock_form,
            )
            if config.dropblock
            else None
        )
        self.neck = nn.Sequential(
            nn.Linear(channels * self.pooler_resolution**2, config.fc_dim),
            nn.ReLU(),
            ImageDropout(config.dropout),
            nn.Linear(config.fc_dim, config.fc_dim),
            nn.ReLU(),
            ImageDropout(config.dropout),
        )
        _load_fc(self.neck, fc_state)
        self.two_stream = TwoStreamHead(config.fc_dim, num_classes, config.background_class, config.init_std)
        branches = 0 if config.method == "wsddn" else config.num_refinements
        self.refinement = RefinementHeads(
            config.fc_dim, num_classes, branches, config.uses_regression, config.init_std
        )
        statistics = torch.tensor((self.backbone.mean, self.backbone.std)).reshape(2, 3, 1, 1)
        self.register_buffer("statistics", statistics, persistent=False)
        self.statistics: Tensor

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Feature map (B, channels, H / stride, W / stride), H and W padded, of uint8 or float images in [0, 255]."""
        return self._fused(self._normalised(images_BCHW))

    def _normalised(self, images: Tensor) -> Tensor:
        """Images (..., 3, H, W) with the statistics of the backbone's weights; the padding has the mean colour."""
        mean, std = self.statistics
        return pad_to_multiple((images.float() / 255 - mean) / std)

    def _fused(self, images_BCHW: Tensor) -> Tensor:
        maps: list[Tensor] = self.backbone(images_BCHW)
        return maps[0] if self.fuse is None else F.relu(self.fuse(maps))

    def pooled(self, feats_BCHW: Tensor, boxes_xyxy: Sequence[Tensor]) -> Tensor:
        """RoI features (N, size, size, channels) for input-pixel boxes, one tensor per image."""
        if self.pooler_type == "roi_align":
            return roi_align(feats_BCHW, boxes_xyxy, self.pooler_resolution, self.stride)
        # The operator counts the cells of both corners in: it wants the last pixel of a box, not the one behind it.
        inclusive = [boxes_N4 - boxes_N4.new_tensor((0, 0, 1, 1)) for boxes_N4 in boxes_xyxy]
        # In float32, as `roi_align` does: half precision would round the boxes.
        pooled: Tensor = roi_pool(feats_BCHW.float(), inclusive, self.pooler_resolution, 1.0 / self.stride)
        return pooled.permute(0, 2, 3, 1).to(feats_BCHW.dtype)

    def heads(self, pooled_NSSC: Tensor, counts: Sequence[int]) -> ProposalOutputs:
        """Scores and deltas of pooled proposals, `counts[b]` of image b."""
        dropped = None
        if self.dropblock is not None:
            pooled_NSSC, dropped = self.dropblock(pooled_NSSC)
        feats_ND = pooled_NSSC.flatten(1)
        for layer in self.neck:
            feats_ND = layer(feats_ND, counts) if isinstance(layer, ImageDropout) else layer(feats_ND)
        cls_logits, det_logits = self.two_stream(feats_ND)
        refine_logits, deltas = self.refinement(feats_ND)
        # Softmaxes over hundreds of proposals, mining and scores need more than the 8 bits of bf16.
        return ProposalOutputs(
            cls_logits.float(),
            det_logits.float(),
            [logits.float() for logits in refine_logits],
            [values.float() for values in deltas],
            dropped,
        )

    def forward(self, images: Tensor | Sequence[Tensor], boxes_xyxy: Sequence[Tensor]) -> ProposalOutputs:
        """Score the boxes (n_b, 4), half-open input pixels, of each image.

        images: (B, 3, H, W), or a list of (3, H, W), in [0, 255], RGB. Each is padded by itself; those of one padded
        size go through the backbone together, so that what is said of an image depends on it alone.
        """
        parts: dict[int, Tensor] = {}
        normalised = [self._normalised(image) for image in images]
        for rows in same_size(normalised):
            feats_BCHW = self._fused(torch.stack([normalised[row] for row in rows]))
            boxes = [boxes_xyxy[row] for row in rows]
            pooled = torch.split(self.pooled(feats_BCHW, boxes), [len(own) for own in boxes])
            parts |= dict(zip(rows, pooled, strict=True))
        pooled_NSSC = torch.cat([parts[row] for row in range(len(images))])
        return self.heads(pooled_NSSC, [len(own) for own in boxes_xyxy])


def same_size(images: Tensor | Sequence[Tensor]) -> list[list[int]]:
    """Rows of the images that share a size, group by group in order of their first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(row)
    return list(groups.values())


def _build_backbone(config: WsodConfig, pretrained: bool) -> tuple[Backbone, dict[str, Tensor]]:
    source = config.backbone_source() if pretrained else False
    fc_state: dict[str, Tensor] = {}
    if config.backbone == vgg.NAME:
        backbone, fc_state = vgg.build_vgg16_d8(source, config.final_relu)
    else:
        backbone = build_backbone(config.backbone, config.out_strides, source, frozen_bn=config.freeze_bn)
    backbone.freeze_through(config.freeze_through_stride, "wsod.freeze_through_stride")
    if config.freeze_bn:  # VGG16 has none
        merge_batch_norms(backbone)
    else:
        backbone.probe()
    return backbone, fc_state


def _load_fc(neck: nn.Sequential, state: dict[str, Tensor]) -> None:
    """Start the neck from VGG's fc6 and fc7 when their shapes fit (7x7 bins of 512 channels, width 4096)."""
    for position in (0, 3):
        layer = neck[position]
        weight = state.get(f"{position}.weight")
        if weight is None or not isinstance(layer, nn.Linear) or layer.weight.shape != weight.shape:
            return
        with torch.no_grad():
            layer.weight.copy_(vgg.fc6_for_rows(weight) if position == 0 else weight)
            layer.bias.copy_(state[f"{position}.bias"])
