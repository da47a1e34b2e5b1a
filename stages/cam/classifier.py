"""The multi-class-token vision transformer that turns image tags into maps (docs/method.md, section 2.1).

One learned token per class attends to the patches together with them; a class is present when its token says so and
when a 3x3 convolution over the patch tokens says so somewhere. Two bodies share everything else: `hybrid`, a
convolutional backbone under a few attention blocks, and any timm vision transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from stages.cam.attention import RecordedBlocks, locality_bias
from stages.cam.config import CamConfig, PosEmbedInterpolation
from stages.cam.fusion import AttentionFusion, FineLogits, Fusion
from stages.core.backbones.lateral_fusion import LateralFusion
from stages.core.backbones.timm_backbones import Backbone, build_backbone
from stages.core.errors import ConfigError, EnvironmentFault, did_you_mean


@dataclass
class ClassifierOutput:
    """One forward pass over B images with C classes on an h x w token grid.

    Attributes:
        class_logits_BC: mean channel of each final class token.
        patch_logits_BC: pooled convolution map.
        coarse_BCHW: ReLU of the convolution map (the coarse CAM).
        features_BDHW: token embedding before any attention; local, hence fit for an affinity.
        attention_BLHNN: attention of every layer and head, or None unless recorded.
        fused_BNN: fused attention, or None unless recorded.
        fine_logits_BC: logits of the fine map, in training with a fusion that learns.
    """

    class_logits_BC: Tensor
    patch_logits_BC: Tensor
    coarse_BCHW: Tensor
    features_BDHW: Tensor
    attention_BLHNN: Tensor | None = None
    fused_BNN: Tensor | None = None
    fine_logits_BC: Tensor | None = None


def in_float32(output: ClassifierOutput) -> ClassifierOutput:
    """Return outputs of a pass in mixed precision in float32; maps are made and added up in it."""
    values = {entry.name: getattr(output, entry.name) for entry in fields(output)}
    return replace(output, **{name: value.float() for name, value in values.items() if value is not None})


class HybridBody(nn.Module):
    """Backbone maps of several strides projected to one width and summed at the coarsest of them."""

    def __init__(
        self, backbone: Backbone, dim: int, num_heads: int, locality: float, patches_attend_classes: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim, self.patch = dim, backbone.strides[-1]
        self.mean, self.std = backbone.mean, backbone.std
        self.num_heads, self.locality = num_heads, locality
        self.patches_attend_classes = patches_attend_classes
        self.lateral_fusion = LateralFusion(backbone.channels, dim, "coarsest", nn.BatchNorm2d)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Return the summed maps [B, D, h, w] on the coarsest grid."""
        fused: Tensor = self.lateral_fusion(self.backbone(images_BCHW))
        return fused.contiguous()  # whatever the backbone's memory format: tokens are read row by row

    def attention_bias(self, grid: tuple[int, int], num_classes: int) -> Tensor | None:
        """Return the locality bias, or None if the body is not asked to be local."""
        if self.locality == 0 and self.patches_attend_classes:
            return None
        return locality_bias(grid, num_classes, self.num_heads, self.locality, self.patches_attend_classes)

    def rope(self, grid: tuple[int, int]) -> Tensor | None:
        """Return None: locality stands in for positions."""
        return None


class ViTBody(nn.Module):
    """Patch embedding and positions (learned, rotary, or both) of a timm vision transformer, at any grid size."""

    pos_embed: nn.Parameter | None

    def __init__(self, vit: Any, interpolation: PosEmbedInterpolation = "antialias") -> None:
        super().__init__()
        self.interpolation = interpolation
        self.projection: nn.Module = vit.patch_embed.proj
        self.pos_embed = vit.pos_embed
        self.rotary: Any = getattr(vit, "rope", None)
        self.prefix = 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
        self.native_grid: tuple[int, ...] = tuple(vit.patch_embed.grid_size)
        self.dim, self.patch = int(vit.embed_dim), int(vit.patch_embed.patch_size[0])
        self.mean = tuple(float(value) for value in vit.pretrained_cfg["mean"])
        self.std = tuple(float(value) for value in vit.pretrained_cfg["std"])

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Return patch embeddings plus resampled positions [B, D, h, w]."""
        tokens_BDHW: Tensor = self.projection(images_BCHW)
        grid = tokens_BDHW.shape[-2:]
        if self.pos_embed is None:
            return tokens_BDHW
        positions = self.pos_embed[:, self.prefix :]
        if tuple(grid) != self.native_grid:
            positions = self._resampled(positions, grid)
        return tokens_BDHW + positions.transpose(1, 2).reshape(1, self.dim, *grid)

    def _resampled(self, positions_1PD: Tensor, grid: Sequence[int]) -> Tensor:
        """Position embeddings at another grid, [1, h w, D]; `offset` is DINO's (Caron et al., 2021)."""
        if self.interpolation == "antialias":
            resampled: Tensor = resample_abs_pos_embed(
                positions_1PD, list(grid), old_size=list(self.native_grid), num_prefix_tokens=0
            )
            return resampled
        positions_1DHW = positions_1PD.transpose(1, 2).reshape(1, -1, *self.native_grid)
        factors = [(size + 0.1) / own for size, own in zip(grid, self.native_grid, strict=True)]
        return F.interpolate(positions_1DHW, scale_factor=factors, mode="bicubic").flatten(2).transpose(1, 2)

    def attention_bias(self, grid: tuple[int, int], num_classes: int) -> Tensor | None:
        """Return None: a pretrained transformer keeps the attention it learned."""
        return None

    def rope(self, grid: tuple[int, int]) -> Tensor | None:
        """Return rotary positions of the patches, for the families that have them."""
        if self.rotary is None:
            return None
        angles: Tensor = self.rotary.get_embed(shape=grid)
        return angles


class MultiClassTokenClassifier(nn.Module):
    """Image-level classifier with one token per class; RGB images in [0, 1] go in.

    Args:
        body: image to patch tokens.
        blocks: transformer blocks over [C class tokens, P patch tokens].
        class_tokens_CD: initial class tokens.
        fusion: how attention is fused over layers and heads.
        registers_RD: further tokens of a pretrained transformer, which stand after the patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, body: HybridBody | ViTBody, blocks: Sequence[nn.Module], class_tokens_CD: Tensor, fusion: Fusion,
        registers_RD: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.body = body
        self.num_classes = class_tokens_CD.shape[0]
        self.class_tokens = nn.Parameter(class_tokens_CD.clone())
        self.encoder = RecordedBlocks(blocks)
        self.registers = None if registers_RD is None else nn.Parameter(registers_RD.clone())
        self.fusion = AttentionFusion(len(blocks), self.encoder.num_heads, fusion, body.dim)
        self.fine = FineLogits() if self.fusion.trainable else None
        self.head = nn.Conv2d(body.dim, self.num_classes, 3, padding=1)
        self.register_buffer("mean", torch.tensor(body.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(body.std).view(1, 3, 1, 1), persistent=False)

    @property
    def backbone(self) -> Backbone | None:
        """The pretrained convolutional part; None in a vision transformer."""
        return self.body.backbone if isinstance(self.body, HybridBody) else None

    @property
    def tokens_and_positions(self) -> list[nn.Parameter]:
        """Learned tokens and position embeddings that have no weight decay."""
        positions = self.body.pos_embed if isinstance(self.body, ViTBody) else None
        return [self.class_tokens] if positions is None else [self.class_tokens, positions]

    @property
    def patch(self) -> int:
        """Pixels per token; image sides must be multiples of it."""
        return self.body.patch

    def forward(self, images_BCHW: Tensor, record: bool = False) -> ClassifierOutput:
        """Classify RGB images in [0, 1], sides multiples of `patch`; `record` also returns attention."""
        assert all(side % self.patch == 0 for side in images_BCHW.shape[-2:]), (
            "sides must be multiples of the patch"
        )
        features_BDHW = self.body.embed((images_BCHW - self.mean) / self.std)
        grid = (features_BDHW.shape[-2], features_BDHW.shape[-1])
        patches_BPD = features_BDHW.flatten(2).transpose(1, 2)
        parts = [self.class_tokens.expand(len(patches_BPD), -1, -1), patches_BPD]
        if self.registers is not None:
            parts.append(self.registers.expand(len(patches_BPD), -1, -1))
        bias = self.body.attention_bias(grid, self.num_classes)
        bias = None if bias is None else bias.to(patches_BPD.device)
        teach = self.fine is not None and self.training
        tokens, recorded = self.encoder(torch.cat(parts, dim=1), bias, record or teach, self.body.rope(grid))
        seen = self.num_classes + grid[0] * grid[1]
        map_BCHW = self.head(tokens[:, self.num_classes : seen].transpose(1, 2).unflatten(-1, grid))
        output = ClassifierOutput(
            class_logits_BC=tokens[:, : self.num_classes].mean(dim=-1),
            patch_logits_BC=map_BCHW.mean(dim=(-2, -1)),
            coarse_BCHW=map_BCHW.relu(),
            features_BDHW=features_BDHW,
        )
        if recorded is None:
            return output
        attention_BLHNN, outputs_BLND = recorded
        fused_BNN = self.fusion(attention_BLHNN.detach(), outputs_BLND.detach())
        fine = self.fine(fused_BNN, output.coarse_BCHW) if self.fine is not None else None
        # Registers are no place on the image: maps leave them out.
        return replace(
            output, attention_BLHNN=attention_BLHNN[..., :seen, :seen], fused_BNN=fused_BNN[..., :seen, :seen],
            fine_logits_BC=fine,
        )  # fmt: skip


def build_hybrid(
    num_classes: int, config: CamConfig, pretrained: bool | Path, drop_path: float = 0.1
) -> MultiClassTokenClassifier:
    """Build the settings' convolutional backbone under fresh attention blocks.

    Raises:
        ConfigError: unknown backbone, or one without a map at the strides.
        EnvironmentFault: the pretrained weights cannot be fetched.
    """
    backbone = build_backbone(
        config.backbone, config.hybrid.out_strides, pretrained, frozen_bn=bool(pretrained)
    )
    body = HybridBody(
        backbone,
        config.hybrid.embed_dim,
        config.hybrid.num_heads,
        config.hybrid.locality,
        config.hybrid.patches_attend_classes,
    )
    rates = torch.linspace(0, drop_path, config.hybrid.depth).tolist()
    blocks = [
        Block(config.hybrid.embed_dim, config.hybrid.num_heads, qkv_bias=True, drop_path=rate)
        for rate in rates
    ]
    # The class logit is the mean channel of a raw token: tokens start small so that logits start near zero.
    tokens_CD = nn.init.trunc_normal_(torch.empty(num_classes, config.hybrid.embed_dim), std=0.02)
    return MultiClassTokenClassifier(body, blocks, tokens_CD, config.attention_fusion)


def build_vit(
    num_classes: int,
    name: str,
    pretrained: bool | Path,
    fusion: Fusion,
    interpolation: PosEmbedInterpolation = "antialias",
    drop_path: float = 0.1,
) -> MultiClassTokenClassifier:
    """Build a multi-class-token version of a timm vision transformer, e.g. `deit_small_patch16_224`.

    Its class token and that token's position are replicated once per class; only the loss tells the copies apart.

    Raises:
        ConfigError: the name is unknown or not a plain vision transformer.
        EnvironmentFault: the pretrained weights cannot be fetched.
    """
    if not timm.is_model(name):
        raise ConfigError(
            f"unknown model {name!r}", hint=did_you_mean(name, timm.list_models(["*vit*patch*", "deit*"]))
        )
    vit = _create(name, pretrained, drop_path)
    if not _is_plain(vit):
        raise ConfigError(
            f"{name!r} is not a plain vision transformer with a class token",
            where="cam.backbone",
            hint="use a DeiT, ViT, DINOv2 or EVA-02 of timm, or architecture=cnn for a convolutional network",
        )
    token_D = vit.cls_token[0, 0]
    if vit.pos_embed is not None and not vit.no_embed_class:
        token_D = token_D + vit.pos_embed[0, 0]
    registers = None if getattr(vit, "reg_token", None) is None else vit.reg_token[0].detach()
    for block in vit.blocks:
        if hasattr(block.attn, "num_prefix_tokens"):  # tokens that rotary positions pass over
            block.attn.num_prefix_tokens = num_classes
    tokens_CD = token_D.detach().expand(num_classes, -1)
    return MultiClassTokenClassifier(
        ViTBody(vit, interpolation), list(vit.blocks), tokens_CD, fusion, registers
    )


def _create(name: str, pretrained: bool | Path, drop_path: float) -> Any:
    options: dict[str, Any] = {"num_classes": 0, "drop_path_rate": drop_path}
    if isinstance(pretrained, Path):
        options["pretrained_cfg_overlay"] = {"file": str(pretrained)}
    if name.startswith("eva02"):
        options["dynamic_img_size"] = True  # else rotary positions are fixed to one size
    try:
        return timm.create_model(name, pretrained=bool(pretrained), **options)
    except Exception as error:
        if not pretrained:
            raise
        raise EnvironmentFault(
            f"pretrained weights of {name!r} cannot be had ({type(error).__name__}: {error})",
            hint="connect once so that timm caches them, give backbone_weights=FILE, or use architecture=hybrid",
        ) from error


def _is_plain(vit: Any) -> bool:
    """Whether a timm model is patch embedding, positions, a class token and blocks, and nothing else."""
    if not isinstance(vit, VisionTransformer | Eva) or vit.cls_token is None:
        return False
    if getattr(vit, "reg_token", None) is not None and not vit.no_embed_class:
        return False
    plain_start = isinstance(getattr(vit, "norm_pre", nn.Identity()), nn.Identity)
    mixed = getattr(vit, "rope_mixed", False) or getattr(vit, "reg_token", None) is not None
    return plain_start and not (isinstance(vit, Eva) and mixed)
