"""What an activation map says about boxes: how much of it they hold, how dense it is inside, how it falls off around.

A map knows where an object is, not how large it is; a box proposal is the opposite. A part of an object is dense but
leaves mass outside; a box that is too large holds all the mass but is diluted. Their harmonic mean, the F1 of the two,
prefers the whole object, much as the F1 of recall and precision does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RING_SCALE = 1.3
"""Side of the box around a box, as a multiple of its own, whose rest is the ring."""


@dataclass(frozen=True)
class MapEvidence:
    """What K maps say about N boxes, each tensor (K, N) float32 in [0, 1].

    Attributes:
        mass: Fraction of the map's sum that lies inside the box; 0 for a flat map.
        density: Mean of the map inside the box.
        ring: Mean of the map in the ring around the box, `RING_SCALE` times its size and cut to the image;
            0 where the image leaves no ring.
    """

    mass: Tensor
    density: Tensor
    ring: Tensor

    @property
    def f1(self) -> Tensor:
        """Harmonic mean of mass and density (K, N), in [0, 1]; 0 where both are."""
        return 2 * self.mass * self.density / (self.mass + self.density).clamp(min=1e-12)


def map_evidence(maps_KHW: Tensor, boxes_N4: Tensor, image_hw: tuple[int, int]) -> MapEvidence:
    """Measure maps in boxes, all boxes and maps at once.

    Args:
        maps_KHW: Non-negative maps on a grid that covers the image exactly. Each is divided by its maximum first, so
            that density is relative to the map's own peak. A map that is 0 everywhere gives zeros.
        boxes_N4: Half-open xyxy pixels; parts outside the image count for nothing.
        image_hw: Height and width of the image, pixels.

    A cell counts by the fraction of it that a box covers, so evidence changes smoothly with the box.
    """
    grid_h, grid_w = maps_KHW.shape[-2:]
    per_cell = boxes_N4.new_tensor((grid_w / image_hw[1], grid_h / image_hw[0])).repeat(2)
    boxes_N4 = boxes_N4.float() * per_cell
    maps_KHW = maps_KHW.float()
    peak_K = maps_KHW.amax(dim=(1, 2)).clamp(min=torch.finfo(torch.float32).tiny)
    maps_KHW = maps_KHW / peak_K[:, None, None]
    inside_KN, area_N = _sums(maps_KHW, boxes_N4)
    around_KN, around_area_N = _sums(maps_KHW, scaled(boxes_N4, RING_SCALE))
    ring_area_N = around_area_N - area_N
    total_K1 = maps_KHW.sum(dim=(1, 2))[:, None]
    return MapEvidence(
        mass=_ratio(inside_KN, total_K1),
        density=_ratio(inside_KN, area_N),
        ring=_ratio(around_KN - inside_KN, ring_area_N),
    )


def scaled(boxes_N4: Tensor, factor: float) -> Tensor:
    """Boxes with the same centers and `factor` times the sides, (N, 4)."""
    centers_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
    halves_N2 = (boxes_N4[:, 2:] - boxes_N4[:, :2]) * (factor / 2)
    return torch.cat((centers_N2 - halves_N2, centers_N2 + halves_N2), dim=1)


def _sums(maps_KHW: Tensor, boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the maps inside boxes given in cells, (K, N), and the boxes' areas within the grid in cells, (N,)."""
    columns_NW = _covered(boxes_N4[:, 0], boxes_N4[:, 2], maps_KHW.shape[2])
    rows_NH = _covered(boxes_N4[:, 1], boxes_N4[:, 3], maps_KHW.shape[1])
    sums_KN = torch.einsum("nh,khw,nw->kn", rows_NH, maps_KHW, columns_NW)
    return sums_KN, rows_NH.sum(dim=1) * columns_NW.sum(dim=1)


def _covered(low_N: Tensor, high_N: Tensor, cells: int) -> Tensor:
    """Fraction of each of a row of unit cells that lies between `low` and `high`: (N, cells), in [0, 1]."""
    left = torch.arange(cells, device=low_N.device, dtype=low_N.dtype)
    return (torch.minimum(high_N[:, None], left + 1) - torch.maximum(low_N[:, None], left)).clamp(min=0)


def _ratio(sums: Tensor, whole: Tensor) -> Tensor:
    """Quotient in [0, 1]; 0 where less than a thousandth of a cell is left to divide by."""
    return torch.where(whole > 1e-3, sums / whole.clamp(min=1e-3), 0.0).clamp(0.0, 1.0)
