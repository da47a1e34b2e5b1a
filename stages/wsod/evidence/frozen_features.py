"""Features of proposals from a frozen backbone: the box in a grid of bins, and its surroundings as one mean.

Channels are reduced to their principal components before RoIAlign, features once more after it; both are found on a
sample of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.core.backbones.timm_backbones import Backbone
from stages.core.ops.map_evidence import scaled
from stages.core.ops.padding import pad_to_multiple
from stages.core.ops.roi_align import roi_align

STRIDES = (16, 32)
"""Strides of the maps used, pixels."""
CHANNELS = (24, 64)
"""Principal components kept of each map's channels."""
DIM = 220
"""Principal components kept of the features."""
BINS = 3
"""Bins per side of a box."""
SURROUNDINGS = 1.6
"""Side of the box around a box, as a multiple of its own."""
SAMPLED = 64
"""Images on which components are found."""
SUMMED = 3.0
"""Weight of means beside the single bins."""


@dataclass(frozen=True)
class Components:
    """Principal components of a sample: a linear map to fewer, nearly white dimensions.

    Attributes:
        mean: (D,).
        axes: (D, d).
    """

    mean: Tensor
    axes: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Project (..., D) to (..., d)."""
        return (values - self.mean) @ self.axes


def principal_components(sample_ND: Tensor, count: int, whiten: bool) -> Components:
    """Find the first `count` components of a sample; `whiten` divides each by its deviation, small ones by less."""
    mean_D = sample_ND.mean(dim=0)
    centered_ND = (sample_ND - mean_D).double()
    values_D, axes_DD = torch.linalg.eigh(centered_ND.T @ centered_ND / len(centered_ND))
    values_K, axes_DK = values_D[-count:].clamp(min=0), axes_DD[:, -count:]
    if whiten:
        axes_DK = axes_DK / (values_K + 0.1 * values_K.mean()).clamp(min=1e-12).sqrt()
    return Components(mean_D, axes_DK.to(sample_ND.dtype))


Loader = Callable[[str], tuple[Tensor, Tensor]]
"""Image id -> its image (3, H, W) in [0, 255], RGB, and its boxes (n, 4) in the same pixels."""


class FrozenFeatures:
    """Features (n, DIM) of the proposals of any image.

    Args:
        backbone: Backbone with maps at `STRIDES`, in evaluation mode.
        ids: Images to find the components on; at most `SAMPLED` evenly spaced ones are used.
        load: Reads an image.
        device: Where the backbone computes.
    """

    def __init__(self, backbone: Backbone, ids: Sequence[str], load: Loader, device: str) -> None:
        self.backbone, self.load, self.device = backbone.to(device), load, device
        self.statistics = torch.tensor((backbone.mean, backbone.std), device=device).reshape(2, 1, 3, 1, 1)
        sample = ids[:: max(1, len(ids) // SAMPLED)][:SAMPLED]
        self.channels: list[Components] = []
        maps = [self._maps(image) for image, _ in map(load, sample)]
        for level, count in enumerate(CHANNELS):
            cells_ND = torch.cat([own[level].flatten(1).T for own in maps])
            self.channels.append(principal_components(cells_ND, min(count, cells_ND.shape[1]), whiten=True))
        pooled_ND = torch.cat([self._pooled(image, boxes)[::3] for image, boxes in map(load, sample)])
        self.components = principal_components(pooled_ND, min(DIM, pooled_ND.shape[1]), whiten=False)

    def __call__(self, image_id: str) -> Tensor:
        """Features (n, DIM) of an image's boxes, float32 on the CPU."""
        image, boxes = self.load(image_id)
        return self.components(self._pooled(image, boxes)).cpu()

    @torch.inference_mode()
    def _maps(self, image_CHW: Tensor) -> list[Tensor]:
        """Maps (C, h, w) of an image."""
        mean, std = self.statistics
        normalised_1CHW = (image_CHW[None].to(self.device).float() / 255 - mean) / std
        maps: list[Tensor] = self.backbone(pad_to_multiple(normalised_1CHW))
        return [own[0].float() for own in maps]

    def _pooled(self, image_CHW: Tensor, boxes_N4: Tensor) -> Tensor:
        boxes_N4 = boxes_N4.to(self.device)
        around_N4 = scaled(boxes_N4, SURROUNDINGS)
        parts = []
        for stride, reduce, own_CHW in zip(STRIDES, self.channels, self._maps(image_CHW), strict=True):
            reduced_1CHW = reduce(own_CHW.permute(1, 2, 0)).permute(2, 0, 1)[None].contiguous()
            inside_NBC = roi_align(reduced_1CHW, [boxes_N4], BINS, stride).flatten(1, 2)
            around_NBC = roi_align(reduced_1CHW, [around_N4], BINS, stride).flatten(1, 2)
            means = (SUMMED * inside_NBC.mean(dim=1), SUMMED * around_NBC.mean(dim=1))
            parts += [inside_NBC.flatten(1), *means]
        return torch.cat(parts, dim=1)
