"""Pure box geometry on half-open ``xyxy`` boxes: area, overlap, conversion, regression deltas.

Everywhere in weaksam a box covers the pixels ``x1 <= x < x2``, ``y1 <= y < y2`` (0-based, float), so its
width is ``x2 - x1`` with no "+1". A box whose ``x2 <= x1`` or ``y2 <= y1`` is empty: area 0, overlap 0.
The deltas are those of R-CNN (Girshick et al., 2014, appendix C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000.0 / 16.0)
"""Cap on a decoded log side ratio: keeps an untrained regressor's ``exp`` finite."""


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Areas of ``(n, 4)`` boxes, shape ``(n,)``, in square pixels; an empty or inverted box has area 0."""
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def pairwise_intersection(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection areas of ``(n, 4)`` with ``(m, 4)`` boxes, shape ``(n, m)``, in square pixels."""
    # Coordinate by coordinate: on rows of plain (n, m) numbers a CPU is five times faster than on pairs.
    left_n, top_n, right_n, bottom_n = a_xyxy.T.contiguous().unsqueeze(-1).unbind(0)
    left_m, top_m, right_m, bottom_m = b_xyxy.T.contiguous().unbind(0)
    width = (torch.minimum(right_n, right_m) - torch.maximum(left_n, left_m)).clamp(min=0)
    height = (torch.minimum(bottom_n, bottom_m) - torch.maximum(top_n, top_m)).clamp(min=0)
    return width * height


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of ``(n, 4)`` with ``(m, 4)`` boxes, shape ``(n, m)``, in [0, 1].

    Two empty boxes have IoU 0 (not nan), so an empty box matches nothing, itself included.
    """
    intersection = pairwise_intersection(a_xyxy, b_xyxy)
    union = box_area(a_xyxy)[:, None] + box_area(b_xyxy)[None, :] - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def pairwise_containment(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Fraction of each ``a`` lying inside each ``b``, ``|a & b| / |a|``, shape ``(n, m)``, in [0, 1].

    An empty ``a`` is contained in nothing (0). Not symmetric: rows are the contained, columns the containers.
    """
    intersection = pairwise_intersection(a_xyxy, b_xyxy)
    area = box_area(a_xyxy)[:, None].expand_as(intersection)
    return torch.where(area > 0, intersection / area, torch.zeros_like(intersection))


def clip_boxes(boxes_xyxy: Tensor, height: float, width: float) -> Tensor:
    """Boxes ``(..., 4)`` cut to the image ``[0, width] x [0, height]``, as a new tensor.

    A box wholly outside becomes empty; it is the caller's choice to drop it.
    """
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack(
        (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1
    )


def encode_deltas(
    rois_xyxy: Tensor,
    targets_xyxy: Tensor,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Tensor:
    """Regression targets ``(n, 4)``: weights * (dx / w, dy / h, log(w' / w), log(h' / h)), RoI to target.

    Both ``(n, 4)``, row aligned, with positive sides (an empty box has no finite delta). The usual Fast R-CNN
    stds (.1, .1, .2, .2) are ``weights=(10, 10, 5, 5)``.
    """
    roi_size = rois_xyxy[..., 2:] - rois_xyxy[..., :2]
    target_size = targets_xyxy[..., 2:] - targets_xyxy[..., :2]
    roi_centre = rois_xyxy[..., :2] + 0.5 * roi_size
    target_centre = targets_xyxy[..., :2] + 0.5 * target_size
    shift = (target_centre - roi_centre) / roi_size
    deltas = torch.cat((shift, torch.log(target_size / roi_size)), dim=-1)
    # Number by number: a tensor of them would be copied to a GPU, which waits for all it has to do.
    return torch.stack(
        [delta * weight for delta, weight in zip(deltas.unbind(-1), weights, strict=True)], dim=-1
    )


def decode_deltas(
    rois_xyxy: Tensor,
    deltas: Tensor,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Tensor:
    """Boxes ``(n, 4 k)`` moved from RoIs ``(n, 4)`` by deltas ``(n, 4 k)``: the inverse of ``encode_deltas``.

    ``k`` is 1 for class-agnostic regression, else the number of classes (class-major, four values each).
    Log ratios are capped at ``MAX_LOG_RATIO``. The boxes are not clipped to the image.
    """
    grouped = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4) / deltas.new_tensor(weights)
    size = (rois_xyxy[:, 2:] - rois_xyxy[:, :2])[:, None]
    centre = rois_xyxy[:, None, :2] + 0.5 * size
    centre = centre + grouped[..., :2] * size
    half = 0.5 * size * torch.exp(grouped[..., 2:].clamp(max=MAX_LOG_RATIO))
    return torch.cat((centre - half, centre + half), dim=-1).reshape(deltas.shape)
