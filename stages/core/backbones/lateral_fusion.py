"""Maps of several strides in one: 1x1 convolutions to one width, one resolution, one sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class LateralFusion(nn.Module):
    """Project maps to one width, bring them to the resolution of one of them, and add them up.

    Args:
        channels: Channels of each map, finest first.
        width: Channels of the sum.
        at: Resolution of the sum: the `finest` map's (others are enlarged bilinearly) or the `coarsest` map's (others
            are averaged).
        norm: Makes a normalization layer after each projection, which then has no bias.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        at: Literal["finest", "coarsest"],
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.at = at
        self.laterals = nn.ModuleList(
            nn.Conv2d(count, width, 1)
            if norm is None
            else nn.Sequential(nn.Conv2d(count, width, 1, bias=False), norm(width))
            for count in channels
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps (B, c_i, H_i, W_i), finest first, into (B, width, H, W)."""
        size = maps[0 if self.at == "finest" else -1].shape[-2:]
        parts = [
            self._resized(lateral(feats), (size[0], size[1]))
            for lateral, feats in zip(self.laterals, maps, strict=True)
        ]
        fused = parts[0]
        for part in parts[1:]:
            fused = fused + part
        return fused

    def _resized(self, feats: Tensor, size: tuple[int, int]) -> Tensor:
        if self.at == "coarsest":
            return F.adaptive_avg_pool2d(feats, size)
        if tuple(feats.shape[-2:]) == size:
            return feats
        return F.interpolate(feats, size=size, mode="bilinear", align_corners=False)
