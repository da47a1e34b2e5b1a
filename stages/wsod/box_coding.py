"""Box deltas of the R-CNN family on half-open boxes (Girshick et al.): centre offset over size, log size ratio."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Published scale of (dx, dy, dw, dh)."""
MAX_LOG_RATIO = math.log(1000.0 / 16.0)
MIN_SIDE = 1e-3


def encode(boxes_xyxy: Tensor, targets_xyxy: Tensor) -> Tensor:
    """Deltas (N, 4) that carry `boxes_xyxy` onto `targets_xyxy`, both (N, 4) pixels."""
    centre, size = _centre_size(boxes_xyxy)
    target_centre, target_size = _centre_size(targets_xyxy)
    offset = (target_centre - centre) / size
    ratio = torch.log(target_size / size)
    return torch.cat((offset, ratio), dim=-1) * boxes_xyxy.new_tensor(WEIGHTS)


def decode(boxes_xyxy: Tensor, deltas: Tensor) -> Tensor:
    """Boxes moved by `deltas` (..., 4); `boxes_xyxy` broadcasts against them. Growth is limited to 62.5 times."""
    centre, size = _centre_size(boxes_xyxy)
    deltas = deltas / boxes_xyxy.new_tensor(WEIGHTS)
    new_centre = centre + deltas[..., :2] * size
    new_size = size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_RATIO))
    return torch.cat((new_centre - new_size / 2, new_centre + new_size / 2), dim=-1)


def clip(boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
    """Boxes limited to the image."""
    limit = boxes_xyxy.new_tensor((width, height, width, height))
    return torch.minimum(boxes_xyxy.clamp(min=0.0), limit)


def _centre_size(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return (low + high) / 2, (high - low).clamp(min=MIN_SIDE)
