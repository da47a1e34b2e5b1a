"""Quality and boxes of masks, read off low-resolution logits without drawing the masks at full size.

Segment Anything answers with logits on a square frame into which the image was scaled; its masks are those
logits, interpolated bilinearly to the frame's pixels, then to the image, and cut at zero. Stability is counted
on the logits as they come. For boxes they are doubled (which is all of the first step for sam-nano, half of it
for the ViTs; it also smooths specks of a single cell away) and the second step is replaced by its closed form:
between two nodes the interpolated value is linear, so the outermost zero crossing is known (:func:`mask_boxes`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

CACHE_FLOATS = 2**20
"""Doubled logits looked at in one piece on a CPU (4 MiB)."""


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
        """The image's part of ``(..., h, w)`` logits: nodes inside it, and a last one at its last pixel.

        Padding is left out to the dot: the network is free to answer anything there, and does.
        """
        rows = _cut(logits_NHW, self.valid_height, self.image_height, -2)
        return _cut(rows, self.valid_width, self.image_width, -1)


def _last_pixel(valid: float, size: int) -> float:
    """Where the centre of the last pixel lies, in cells."""
    return valid - 0.5 * valid / size


def _inner_nodes(valid: float, size: int) -> int:
    # Cell i has its centre, its node, at i + 0.5.
    return max(0, ceil(_last_pixel(valid, size) - 0.5 - 1e-9))


def _positions(valid: float, size: int, like: Tensor) -> Tensor:
    """Where the nodes of a crop lie along one axis, in cells."""
    inner = torch.arange(_inner_nodes(valid, size), device=like.device) + 0.5
    return torch.cat([inner, inner.new_tensor([_last_pixel(valid, size)])])


def _cut(logits: Tensor, valid: float, size: int, dim: int) -> Tensor:
    """Keep the inner nodes along ``dim`` and interpolate one more at the last pixel."""
    inner, cells = _inner_nodes(valid, size), logits.shape[dim]
    before, after = max(inner - 1, 0), min(inner, cells - 1)
    share = min(max(_last_pixel(valid, size) - (before + 0.5), 0.0), 1.0)
    last = torch.lerp(logits.narrow(dim, before, 1), logits.narrow(dim, after, 1), share)
    return torch.cat([logits.narrow(dim, 0, inner), last], dim=dim)


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
        logits_NHW: ``(n, h, w)`` logits of the whole square.
        frame: Where the image lies in them.

    Returns:
        ``(n, 4)`` float32 xyxy in half-open whole image pixels, clipped; all zeros for an empty mask.
    """
    doubled = replace(frame, valid_height=2 * frame.valid_height, valid_width=2 * frame.valid_width)
    cells = 4 * logits_NHW.shape[1] * logits_NHW.shape[2]
    step = max(1, CACHE_FLOATS // cells) if logits_NHW.device.type == "cpu" else max(1, len(logits_NHW))
    boxes = [logits_NHW.new_zeros(0, 4, dtype=torch.float32)]
    for piece in torch.split(logits_NHW, step):
        fine = F.interpolate(piece.to(torch.float32)[:, None], scale_factor=2.0, mode="bilinear")[:, 0]
        boxes.append(_boxes(doubled.crop(fine), doubled))
    return torch.cat(boxes)


def _boxes(logits_NHW: Tensor, frame: LogitFrame) -> Tensor:
    x1, x2 = _extent(logits_NHW, frame.valid_width, frame.image_width)
    y1, y2 = _extent(logits_NHW.transpose(1, 2), frame.valid_height, frame.image_height)
    boxes = torch.stack([x1, y1, x2, y2], dim=1)
    empty = (x2 <= x1) | (y2 <= y1)
    return torch.where(empty[:, None], torch.zeros_like(boxes), boxes)


def _extent(logits_NHW: Tensor, valid: float, size: int) -> tuple[Tensor, Tensor]:
    """First and one-past-last pixel column of each mask, along the last axis."""
    positive = (logits_NHW > 0).any(dim=1)  # (n, w)
    place = _positions(valid, size, logits_NHW)
    width = len(place)
    first = positive.to(torch.uint8).argmax(dim=1)
    last = width - 1 - positive.flip(1).to(torch.uint8).argmax(dim=1)
    before, after = (first - 1).clamp(min=0), (last + 1).clamp(max=width - 1)
    left = place[first] - _overhang(logits_NHW, first, before) * (place[first] - place[before])
    right = place[last] + _overhang(logits_NHW, last, after) * (place[after] - place[last])
    # Beyond the outermost nodes the interpolation repeats the border value.
    left = torch.where(first == 0, torch.zeros_like(left), left)
    right = torch.where(last == width - 1, torch.full_like(right, valid), right)
    scale = size / valid
    # A pixel belongs to the mask when its centre does: first centre right of `left`, last left of `right`.
    low = torch.ceil(left * scale - 0.5).clamp(0, size) + 0.0  # not minus zero
    high = (torch.floor(right * scale - 0.5) + 1).clamp(0, size)
    none = ~positive.any(dim=1)
    return torch.where(none, torch.zeros_like(low), low), torch.where(none, torch.zeros_like(high), high)


def _overhang(logits_NHW: Tensor, column: Tensor, neighbour: Tensor) -> Tensor:
    """How far the mask reaches from its outermost column towards the next one, as a share; ``(n,)`` in [0, 1).

    In a row where the column holds ``a > 0`` and its neighbour ``b <= 0`` the interpolated value is zero at
    ``a / (a - b)``. At a fixed x the value is linear between rows, so its maximum over y lies in a row of
    nodes: the largest of the rows' crossings is exact.
    """
    rows = logits_NHW.shape[1]
    inside = logits_NHW.gather(2, column[:, None, None].expand(-1, rows, 1)).squeeze(2)
    outside = logits_NHW.gather(2, neighbour[:, None, None].expand(-1, rows, 1)).squeeze(2)
    crossing = inside / (inside - outside).clamp(min=1e-12)
    crossing = torch.where((inside > 0) & (outside <= 0), crossing, torch.zeros_like(crossing))
    return crossing.amax(dim=1)


def usable(boxes_xyxy: Tensor, min_side: float, min_area: float) -> Tensor:
    """Boxes with sides of at least ``min_side`` px and ``min_area`` px^2; empty boxes never are. ``(n,)`` bool."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    shortest, area = sides.amin(dim=1), sides.prod(dim=1)
    return (shortest > 0) & (shortest >= min_side) & (area >= min_area)
