"""Crops of an image, each seen at the segmenter's full input size, so that small objects become larger.

Crop layers are those of segment-anything's automatic mask generator (``crop_n_layers``): layer i has 2^i x 2^i
overlapping crops. A box that touches an inner edge of its crop is cut off there and goes; the rest are laid back
onto the image, where a box of a smaller crop wins over one of a larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.amg import generate_crop_boxes, is_box_near_crop_edge
from torch import Tensor

from stages.core.ops.boxes import pairwise_iou
from stages.propose.candidates import Candidates
from stages.propose.config import ProposeConfig


@dataclass(frozen=True)
class Crop:
    """A part of an image, in half-open pixels; layer 0 is the whole image."""

    left: int
    top: int
    right: int
    bottom: int
    layer: int

    @property
    def area(self) -> int:
        """Square pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    def of(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The crop's own pixels."""
        return np.ascontiguousarray(image_HW3[self.top : self.bottom, self.left : self.right])


def image_crops(height: int, width: int, config: ProposeConfig) -> list[Crop]:
    """The image itself and its crops, layer by layer.

    A layer is left out where its crops would be thinner than two pixels.
    """
    boxes, layers = generate_crop_boxes((height, width), config.crop_n_layers, config.crop_overlap_ratio)
    crops = [
        Crop(left, top, right, bottom, layer)
        for (left, top, right, bottom), layer in zip(boxes, layers, strict=True)
    ]
    thin = {c.layer for c in crops[1:] if min(c.right - c.left, c.bottom - c.top) < 2}
    return [c for c in crops if c.layer not in thin]


def layer_points_per_side(layer: int, config: ProposeConfig) -> int:
    """Grid points per side of a crop: fewer in deeper layers by ``crop_n_points_downscale_factor``."""
    return int(config.points_per_side / config.crop_n_points_downscale_factor**layer)


def whole_in_crop(boxes_xyxy: Tensor, crop: Crop, height: int, width: int, tolerance: float) -> Tensor:
    """Boxes that no inner edge of their crop cuts off, ``(n,)`` bool.

    Args:
        boxes_xyxy: ``(n, 4)`` pixels of the crop.
        crop: Where the crop lies.
        height, width: Pixels of the image.
        tolerance: Pixels from an edge that still count as touching it; edges of the image do not count.
    """
    if crop.layer == 0:
        return torch.ones(len(boxes_xyxy), dtype=torch.bool)
    box = [crop.left, crop.top, crop.right, crop.bottom]
    near: Tensor = is_box_near_crop_edge(boxes_xyxy, box, [0, 0, width, height], atol=tolerance)
    return ~near


def uncropped(found: Candidates, crop: Crop) -> Candidates:
    """The same candidates in pixels of the image."""
    shift = found.boxes_xyxy.new_tensor([crop.left, crop.top, crop.left, crop.top])
    return replace(found, boxes_xyxy=found.boxes_xyxy + shift)


def merge_crops(parts: Sequence[tuple[Crop, Candidates]], iou: float) -> Candidates:
    """Candidates of all crops, without those that a smaller crop found too.

    Args:
        parts: Crops with their candidates in pixels of the image.
        iou: Box IoU above which a box goes that a smaller crop (of equal ones, an earlier one) has as well; 1 = off.

    Returns:
        In the order of the crops. A survivor takes over the sources of what it suppressed.
    """
    kept = {index: found for index, (_, found) in enumerate(parts)}
    if iou < 1:
        by_area = sorted(kept, key=lambda index: (parts[index][0].area, index))
        for place, index in enumerate(by_area):
            for winner in by_area[:place]:
                kept[winner], kept[index] = _without_repeats(kept[winner], kept[index], iou)
    return Candidates.cat([kept[index] for index in range(len(parts))])


def _without_repeats(winners: Candidates, others: Candidates, iou: float) -> tuple[Candidates, Candidates]:
    """Winners with the sources of the boxes they suppress, and the other boxes that are left."""
    if not len(winners) or not len(others):
        return winners, others
    overlap, owner = pairwise_iou(others.boxes_xyxy, winners.boxes_xyxy).max(dim=1)
    repeated = overlap > iou
    source = winners.source.clone()
    for row in repeated.nonzero().squeeze(1).tolist():
        source[owner[row]] |= others.source[row]
    return replace(winners, source=source), others[~repeated]
