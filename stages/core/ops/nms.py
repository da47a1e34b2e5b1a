"""Greedy non-maximum suppression in the three forms the method needs; the sweep itself is torchvision's.

Class-wise by score (detections), by list order without scores (cross-attention proposals), and by score
with merged provenance (a kept proposal remembers every source that found it). A box is suppressed when its
IoU with an earlier kept box is strictly above the threshold. Equal scores are taken in list order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from stages.core.ops.boxes import pairwise_iou

_ROWS_PER_BLOCK = 2048


def _exact(boxes_xyxy: Tensor) -> Tensor:
    """Float64 copy where the device has it: class offsets and IoU ties then stay exact."""
    return boxes_xyxy if boxes_xyxy.device.type == "mps" else boxes_xyxy.to(torch.float64)


def _sweep(boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Torchvision's greedy sweep: kept indices by descending score, ties in list order."""
    keep: Tensor = nms(boxes_xyxy, scores.to(boxes_xyxy), iou_threshold)
    return keep


def class_wise_nms(boxes_xyxy: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Indices kept by NMS run separately in every class, by descending score over all classes.

    Boxes ``(n, 4)``, scores ``(n,)``, integer classes ``(n,)``; ``iou_threshold`` in [0, 1].
    """
    if boxes_xyxy.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes_xyxy.device)
    boxes = _exact(boxes_xyxy)
    # Classes laid side by side cannot overlap, so one sweep serves them all.
    span = boxes.max() - boxes.min() + 1
    shifted = boxes + (classes.to(boxes) * span)[:, None]
    return _sweep(shifted, scores, iou_threshold)


def nms_in_order(boxes_xyxy: Tensor, iou_threshold: float) -> Tensor:
    """Ascending indices of ``(n, 4)`` boxes kept when each box outranks all that follow it in the list."""
    boxes = _exact(boxes_xyxy)
    rank = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return _sweep(boxes, rank, iou_threshold)


def nms_merging_sources(
    boxes_xyxy: Tensor, scores: Tensor, sources: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """NMS by score in which a kept box takes over the provenance of the boxes it suppressed.

    Args:
        boxes_xyxy: ``(n, 4)``.
        scores: ``(n,)``, any range.
        sources: ``(n,)`` non-negative integers, bit masks (1 grid, 2 coarse, 4 fine, 8 cross).
        iou_threshold: in [0, 1].

    Returns:
        Kept indices ``(k,)`` by descending score, and for each the bitwise OR ``(k,)`` of its own sources
        with those of the boxes it was the first to suppress, in the dtype of ``sources``.
    """
    boxes = _exact(boxes_xyxy)
    keep = _sweep(boxes, scores, iou_threshold)
    merged = sources[keep].clone()
    suppressed = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    suppressed[keep] = False
    losers = suppressed.nonzero().squeeze(1)
    for start in range(0, len(losers), _ROWS_PER_BLOCK):
        rows = losers[start : start + _ROWS_PER_BLOCK]
        owners = _first_above(pairwise_iou(boxes[rows], boxes[keep]), iou_threshold)
        _or_into(merged, owners, sources[rows])
    return keep, merged


def _first_above(iou: Tensor, threshold: float) -> Tensor:
    """Column of the first IoU above the threshold in each row (the best one if rounding hid them all)."""
    above = iou > threshold
    first = above.to(torch.uint8).argmax(dim=1)
    return torch.where(above.any(dim=1), first, iou.argmax(dim=1))


def _or_into(merged: Tensor, owners: Tensor, sources: Tensor) -> None:
    """``merged[owner] |= source`` for repeated owners, one bit at a time (torch has no scatter-OR)."""
    for bit in range(int(sources.max()).bit_length()):
        flag = 1 << bit
        merged[owners[(sources & flag) != 0]] |= flag
