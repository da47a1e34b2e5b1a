"""Boxes of full-size masks without drawing the masks: only three lines of pixels at each of their four sides.

Pixels are samples of a surface that is bilinear between known nodes (:meth:`LogitFrame.surface`), so where it
crosses zero is known in closed form, and no positive pixel lies beyond. The lines of pixels just inside are
drawn and settle the side. The few masks where these hold no positive pixel (specks that fall between pixels)
are drawn whole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.core.ops.precision import full_precision
from stages.propose.logits.interpolation import LogitFrame, pieces

LINES = 3
"""Lines of pixels drawn at each side."""


def mask_boxes(logits_NHW: Tensor, frame: LogitFrame) -> Tensor:
    """Boxes of the masks ``logits > 0`` at the image's resolution: those of the masks drawn, up to rounding.

    Args:
        logits_NHW: ``(n, h, w)`` logits of the whole square.
        frame: Where the image lies in them.

    Returns:
        ``(n, 4)`` float32 xyxy in half-open whole image pixels, clipped; all zeros for an empty mask.
    """
    boxes = logits_NHW.new_zeros(len(logits_NHW), 4, dtype=torch.float32)
    lines = 4 * LINES * max(frame.image_height, frame.image_width)
    for piece in pieces(logits_NHW, max(lines, 4 * logits_NHW.shape[1] * logits_NHW.shape[2])):
        with full_precision(logits_NHW):
            boxes[piece] = _boxes(logits_NHW[piece].float(), frame)
    return boxes


def _boxes(logits_NHW: Tensor, frame: LogitFrame) -> Tensor:
    rows, columns = frame.weights(logits_NHW)
    surface, y_places, x_places = frame.surface(logits_NHW)
    left, right = _crossings(surface, x_places)
    top, bottom = _crossings(surface.transpose(1, 2), y_places)
    across, along = frame.image_width / frame.valid_width, frame.image_height / frame.valid_height
    x1, x2, sure_x = _settle(logits_NHW, left * across, right * across, columns, rows)
    y1, y2, sure_y = _settle(logits_NHW.transpose(1, 2), top * along, bottom * along, rows, columns)
    boxes = torch.stack([x1, y1, x2, y2], dim=1).float()
    boxes = torch.where((right > left)[:, None], boxes, torch.zeros_like(boxes))
    unsure = ((right > left) & ~(sure_x & sure_y)).nonzero().squeeze(1)
    for piece, logits in frame.full_size(logits_NHW[unsure]):
        boxes[unsure[piece]] = drawn_boxes(logits)
    return boxes


def drawn_boxes(logits_NHW: Tensor) -> Tensor:
    """Boxes of the masks ``logits > 0`` as they are, ``(n, 4)`` float32 half-open; zeros for an empty mask."""
    # `amax` is many times faster than `any` over flags.
    by_column, by_row = logits_NHW.amax(dim=1) > 0, logits_NHW.amax(dim=2) > 0
    (left, right), (top, bottom) = _first_and_last(by_column), _first_and_last(by_row)
    boxes = torch.stack([left, top, right + 1, bottom + 1], dim=1).float()
    return boxes * by_row.any(dim=1)[:, None]


def _first_and_last(flags_NL: Tensor) -> tuple[Tensor, Tensor]:
    """Positions ``(n,)`` of the first and last flag that is set; 0 and the last position if none is."""
    numbers = flags_NL.to(torch.uint8)
    return numbers.argmax(dim=1), flags_NL.shape[1] - 1 - numbers.flip(1).argmax(dim=1)


def _crossings(surface_NRC: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the positive part along the last axis, in cells; right < left for an empty mask.

    Args:
        surface_NRC: Values at the nodes.
        place: ``(c,)`` where the nodes of the last axis are, in cells.
    """
    positive = surface_NRC.amax(dim=1) > 0  # (n, c)
    first, last = _first_and_last(positive)
    before, after = (first - 1).clamp(min=0), (last + 1).clamp(max=len(place) - 1)
    left = place[first] - _overhang(surface_NRC, first, before) * (place[first] - place[before])
    right = place[last] + _overhang(surface_NRC, last, after) * (place[after] - place[last])
    # Beyond the outermost nodes the interpolation repeats the border value.
    left = torch.where(first == 0, torch.zeros_like(left), left)
    right = torch.where(last == len(place) - 1, (2 * place[-1]).expand_as(right), right)
    return left, torch.where(positive.any(dim=1), right, left - 1)


def _overhang(surface_NRC: Tensor, column: Tensor, neighbour: Tensor) -> Tensor:
    """How far the mask reaches from its outermost column towards the next one, as a share; ``(n,)`` in [0, 1).

    In a row where the column holds ``a > 0`` and its neighbour ``b <= 0`` the interpolated value is zero at
    ``a / (a - b)``. At a fixed x the value is linear between rows, so its maximum over y lies in a row of
    nodes: the largest of the rows' crossings is exact.
    """
    numbers = torch.arange(len(surface_NRC), device=surface_NRC.device)
    inner, outer = surface_NRC[numbers, :, column], surface_NRC[numbers, :, neighbour]
    crossing = inner / (inner - outer).clamp(min=1e-12)
    crossing = torch.where((inner > 0) & (outer <= 0), crossing, torch.zeros_like(crossing))
    return crossing.amax(dim=1)


def _settle(
    logits_NHW: Tensor, left: Tensor, right: Tensor, columns: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """First and one-past-last column with a positive pixel, looked for just inside the bounds.

    Args:
        logits_NHW: Logits of the whole square.
        left, right: ``(n,)`` bounds in pixels.
        columns, rows: ``(image_width, w)`` and ``(image_height, h)`` weights.

    Returns:
        Both columns, and whether both were found; ``(n,)`` each.
    """
    size = len(columns)
    # Pixel i has its centre at i + 0.5. Both triples run inwards.
    inwards = torch.arange(LINES, device=left.device)
    first = torch.ceil(left - 0.5 - 1e-3).long().clamp(0, size - 1)[:, None] + inwards
    last = torch.floor(right - 0.5 + 1e-3).long().clamp(0, size - 1)[:, None] - inwards
    lines = torch.stack([first, last], dim=1).clamp(0, size - 1)  # (n, 2, LINES)
    crossed = torch.bmm(columns[lines.flatten(1)], logits_NHW.transpose(1, 2))  # (n, 2 LINES, h)
    positive = (F.linear(crossed, rows).amax(dim=2) > 0).view(lines.shape)
    outermost = positive.to(torch.uint8).argmax(dim=2, keepdim=True)
    found = lines.gather(2, outermost).squeeze(2)
    return found[:, 0], found[:, 1] + 1, positive.any(dim=2).all(dim=1)
