"""Quality and boxes of masks, read off low-resolution logits without drawing the masks at full size.

Segment Anything answers with logits on a square frame into which the image was scaled; its masks are those
logits, interpolated bilinearly to the image and cut at zero. Everything kept here - how stable the cut is, and
where the mask begins and ends - can be had from the small logits: between two neighbouring nodes the
interpolated value is linear, so the outermost zero crossing is known in closed form (:func:`mask_boxes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitFrame:
    """Where the image lies in the square of low-resolution logits.

    Attributes:
        image_height, image_width: Pixels of the image.
        valid_height, valid_width: Extent of the image in logit cells, from the top left corner; float.
    """

    image_height: int
    image_width: int
    valid_height: float
    valid_width: float

    def crop(self, logits_NHW: Tensor) -> Tensor:
        """The cells whose interpolation reaches into the image; the rest is padding."""
        rows, columns = _nodes(self.valid_height), _nodes(self.valid_width)
        return logits_NHW[..., :rows, :columns]


def _nodes(extent: float) -> int:
    # Cell i has its centre at i + 0.5; the last point inside needs the first centre at or beyond the edge.
    return max(1, int(extent + 0.5 - 1e-6) + 1)


def stability_scores(logits_NHW: Tensor, offset: float) -> Tensor:
    """IoU of the masks cut at ``+offset`` and ``-offset``, ``(n,)`` in [0, 1]; nan when both are empty.

    Args:
        logits_NHW: Logits cropped to the image.
        offset: Positive logit distance.
    """
    inner = (logits_NHW > offset).sum(dim=(-1, -2), dtype=torch.int32)
    outer = (logits_NHW > -offset).sum(dim=(-1, -2), dtype=torch.int32)
    return inner.to(torch.float32) / outer.to(torch.float32)


def mask_boxes(logits_NHW: Tensor, frame: LogitFrame) -> Tensor:
    """Boxes of the masks ``logits > 0``, as if the logits had been interpolated to the image first.

    Args:
        logits_NHW: ``(n, h, w)`` logits from :meth:`LogitFrame.crop`.
        frame: Geometry of the crop.

    Returns:
        ``(n, 4)`` float32 xyxy in half-open whole image pixels, clipped; all zeros for an empty mask.
    """
    logits = logits_NHW.to(torch.float32)
    x1, x2 = _extent(logits, frame.valid_width, frame.image_width)
    y1, y2 = _extent(logits.transpose(1, 2), frame.valid_height, frame.image_height)
    boxes = torch.stack([x1, y1, x2, y2], dim=1)
    empty = (x2 <= x1) | (y2 <= y1)
    return torch.where(empty[:, None], torch.zeros_like(boxes), boxes)


def _extent(logits_NHW: Tensor, valid: float, size: int) -> tuple[Tensor, Tensor]:
    """First and one-past-last pixel column of each mask, along the last axis."""
    positive = (logits_NHW > 0).any(dim=1)  # (n, w)
    width = positive.shape[1]
    first = positive.to(torch.uint8).argmax(dim=1)
    last = width - 1 - positive.flip(1).to(torch.uint8).argmax(dim=1)
    left = first + 0.5 - _overhang(logits_NHW, first, -1)
    right = last + 0.5 + _overhang(logits_NHW, last, 1)
    # Beyond the outermost centres the interpolation repeats the border value.
    left = torch.where(first == 0, torch.zeros_like(left), left)
    right = torch.where(last == width - 1, torch.full_like(right, valid), right)
    scale = size / valid
    # A pixel belongs to the mask when its centre does: first centre right of `left`, last left of `right`.
    low = torch.ceil(left * scale - 0.5).clamp(0, size) + 0.0  # not minus zero
    high = (torch.floor(right * scale - 0.5) + 1).clamp(0, size)
    none = ~positive.any(dim=1)
    return torch.where(none, torch.zeros_like(low), low), torch.where(none, torch.zeros_like(high), high)


def _overhang(logits_NHW: Tensor, column: Tensor, step: int) -> Tensor:
    """How far, in cells, the mask reaches from its outermost column towards the next one; ``(n,)`` in [0, 1).

    In a row where the column holds ``a > 0`` and its neighbour ``b <= 0`` the interpolated value is zero at
    ``a / (a - b)``. At a fixed x the value is linear between rows, so its maximum over y lies in a row of
    nodes: the largest of the rows' crossings is exact.
    """
    width = logits_NHW.shape[2]
    index = column[:, None, None].expand(-1, logits_NHW.shape[1], 1)
    inside = logits_NHW.gather(2, index).squeeze(2)
    outside = logits_NHW.gather(2, (index + step).clamp(0, width - 1)).squeeze(2)
    crossing = inside / (inside - outside).clamp(min=1e-12)
    crossing = torch.where((inside > 0) & (outside <= 0), crossing, torch.zeros_like(crossing))
    return crossing.amax(dim=1)


def usable(boxes_xyxy: Tensor, min_side: float, min_area: float) -> Tensor:
    """Boxes with sides of at least ``min_side`` px and ``min_area`` px^2; empty boxes never are. ``(n,)`` bool."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    shortest, area = sides.amin(dim=1), sides.prod(dim=1)
    return (shortest > 0) & (shortest >= min_side) & (area >= min_area)
