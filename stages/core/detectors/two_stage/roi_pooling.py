"""RoIs pooled from the pyramid level that suits their size.

Level assignment of Feature Pyramid Networks (Lin et al., 2017, equation 1): a RoI of 224 pixels goes to stride 16,
every halving one level finer. Pooling itself is `stages.core.ops.roi_align`, which is fast on a CPU and has the
half-pixel correction that torchvision's default pooler lacks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.core.ops.boxes import box_area
from stages.core.ops.roi_align import roi_align

CANONICAL_SIDE, CANONICAL_STRIDE = 224.0, 16


class PyramidRoIPool(nn.Module):
    """Stands in for torchvision's MultiScaleRoIAlign.

    Args:
        strides: input pixels per cell of the levels, finest first; each twice the one before.
        size: bins per side.
        sampling: sampling points per bin and side.
    """

    def __init__(self, strides: Sequence[int], size: int, sampling: int = 2) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.size = size
        self.sampling = sampling

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pool the boxes (half-open input pixels) of every image: [R, C, size, size], boxes of image 0 first.

        `features` holds the levels in the order of `strides`, then perhaps coarser ones, which are not used.
        """
        maps = list(features.values())[: len(self.strides)]
        level_R = torch.cat([self.levels(boxes_R4) for boxes_R4 in boxes])
        rows, pooled = [], []
        for level, (feats_BCHW, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = [boxes_R4[self.levels(boxes_R4) == level] for boxes_R4 in boxes]
            if any(len(boxes_R4) for boxes_R4 in chosen):
                rows.append((level_R == level).nonzero().squeeze(1))
                # Coordinates need more than the 8 bits of a bfloat16 mantissa.
                pooled.append(roi_align(feats_BCHW.float(), chosen, self.size, float(stride), self.sampling))
        if not pooled:
            return maps[0].new_zeros((0, maps[0].shape[1], self.size, self.size))
        return torch.cat(pooled)[torch.cat(rows).argsort()].permute(0, 3, 1, 2)

    def levels(self, boxes_R4: Tensor) -> Tensor:
        """Index into `strides` for each box."""
        side_R = box_area(boxes_R4.float()).clamp_min(1e-6).sqrt()
        octave_R = torch.floor(torch.log2(side_R / CANONICAL_SIDE) + 1e-6)
        stride_R = CANONICAL_STRIDE * torch.exp2(octave_R)
        strides = torch.tensor(self.strides, device=boxes_R4.device, dtype=stride_R.dtype)
        return (strides[None, 1:] <= stride_R[:, None]).sum(dim=1)
