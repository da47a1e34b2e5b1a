"""Where an image lies in the square of low-resolution logits, and how they become logits of its pixels.

Segment Anything interpolates low-resolution logits to the square frame of its input, crops the padding, and
interpolates to the image. Both steps are linear and treat rows and columns separately, so full-size logits are
``rows @ logits @ columns.T`` with two matrices that follow from the sizes alone. With them any pixel, row or
column can be had without the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.core.ops.precision import full_precision

CACHE_FLOATS = 2**20
"""Floats worked on in one piece on a CPU (4 MiB)."""
DEVICE_FLOATS = 2**26
"""The same on a GPU (256 MiB)."""


@dataclass(frozen=True)
class LogitFrame:
    """Where the image lies in the square of low-resolution logits.

    Attributes:
        image_height, image_width: Pixels of the image.
        valid_height, valid_width: Extent of the image in logit cells, from the top left corner; float.
        size: Side in pixels of the frame that logits are interpolated to first; 0 goes straight to the image.
    """

    image_height: int
    image_width: int
    valid_height: float
    valid_width: float
    size: int = 0

    def crop(self, logits_NHW: Tensor) -> Tensor:
        """The image's part of ``(n, h, w)`` logits: nodes inside it, and a last one at its last pixel.

        Padding is left out to the dot: the network is free to answer anything there, and does.
        """
        h, w = logits_NHW.shape[1:]
        rows, columns = _nodes(h, 0.0), _nodes(w, 0.0)
        bottom = self.valid_height * (1 - 0.5 / self.image_height)
        return crop_at(logits_NHW, rows, columns, bottom, self.valid_width * (1 - 0.5 / self.image_width))

    def surface(self, logits_NHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bilinear surface that pixels are samples of, by its nodes.

        Interpolated to the frame, logits are known at the frame's pixels and linear between them. Between four
        cells that is one bilinear patch, cut off at the frame's pixels next to each cell: those alone matter.

        Returns:
            Values ``(n, r, c)``, and where rows ``(r,)`` and columns ``(c,)`` lie in cells.
        """
        h, w = logits_NHW.shape[1:]
        half = 0.5 * h / self.size if self.size else 0.0  # half a pixel of the frame
        rows, columns = _nodes(h, half), _nodes(w, half)
        bottom = self.valid_height - (half or 0.5 * self.valid_height / self.image_height)
        right = self.valid_width - (half or 0.5 * self.valid_width / self.image_width)
        values = crop_at(_split(logits_NHW, half), rows, columns, bottom, right)
        return values, _kept(rows, bottom, values), _kept(columns, right, values)

    def weights(self, logits_NHW: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices of rows ``(image_height, h)`` and columns ``(image_width, w)``."""
        h, w = logits_NHW.shape[1:]
        device = str(logits_NHW.device)
        rows = axis_weights(self.image_height, self.valid_height, h, self.size, device)
        return rows, axis_weights(self.image_width, self.valid_width, w, self.size, device)

    def full_size(self, logits_NHW: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Full-size logits ``(m, image_height, image_width)``, a few masks at a time, and which masks."""
        rows, columns = self.weights(logits_NHW)
        for piece in pieces(logits_NHW, self.image_height * self.image_width):
            with full_precision(logits_NHW):  # in half precision a pixel near zero changes its sign
                full = F.linear(rows @ logits_NHW[piece].float(), columns)
            yield piece, full


def _nodes(cells: int, half: float) -> list[float]:
    """Where the nodes of ``cells`` cells lie; two per cell, ``half`` from its middle, unless that is 0."""
    return [i + 0.5 + side for i in range(cells) for side in ((-half, half) if half else (0.0,))]


def _kept(nodes: list[float], end: float, like: Tensor) -> Tensor:
    return torch.tensor([*(place for place in nodes if place < end - 1e-6), end], device=like.device)


def _split(logits_NHW: Tensor, half: float) -> Tensor:
    """Values at ``half`` a step to both sides of every node, ``(n, 2 h, 2 w)``; the border repeats."""
    if not half:
        return logits_NHW
    if half == 0.25:  # the usual doubling, for which there is a fast routine
        return F.interpolate(logits_NHW[:, None], scale_factor=2.0, mode="bilinear")[:, 0]
    for dim in (1, 2):
        first, last = logits_NHW.narrow(dim, 0, 1), logits_NHW.narrow(dim, -1, 1)
        length = logits_NHW.shape[dim] - 1
        before = torch.cat([first, logits_NHW.narrow(dim, 0, length)], dim)
        after = torch.cat([logits_NHW.narrow(dim, 1, length), last], dim)
        pair = torch.lerp(logits_NHW, before, half), torch.lerp(logits_NHW, after, half)
        logits_NHW = torch.stack(pair, dim + 1).flatten(dim, dim + 1)
    return logits_NHW


def crop_at(
    values_NRC: Tensor, rows: list[float], columns: list[float], bottom: float, right: float
) -> Tensor:
    """Nodes before ``bottom`` and ``right``, and last ones interpolated there."""
    r, below, low = _end(rows, bottom)
    c, beside, share = _end(columns, right)
    inside = values_NRC.new_empty(len(values_NRC), r + 1, c + 1)
    inside[:, :r, :c] = values_NRC[:, :r, :c]
    inside[:, :r, c] = torch.lerp(values_NRC[:, :r, beside[0]], values_NRC[:, :r, beside[1]], share)
    last = torch.lerp(values_NRC[:, below[0]], values_NRC[:, below[1]], low)
    inside[:, r, :c] = last[:, :c]
    inside[:, r, c] = torch.lerp(last[:, beside[0]], last[:, beside[1]], share)
    return inside


def _end(nodes: list[float], end: float) -> tuple[int, tuple[int, int], float]:
    """Nodes before ``end``, the two around it, and its share of the second."""
    inner = sum(place < end - 1e-6 for place in nodes)
    before, after = max(inner - 1, 0), min(inner, len(nodes) - 1)
    gap = nodes[after] - nodes[before]
    return inner, (before, after), min(max((end - nodes[before]) / gap, 0.0), 1.0) if gap else 0.0


@lru_cache(maxsize=16)
def axis_weights(size: int, valid: float, cells: int, frame: int, device: str = "cpu") -> Tensor:
    """Share of every logit cell in every pixel along one axis, ``(size, cells)`` float32.

    Args:
        size: Pixels of the image.
        valid: Extent of the image in cells.
        cells: Logit cells, padding included.
        frame: Pixels of the frame that is interpolated to first; 0 goes straight to the image.
        device: Where the matrix is wanted.
    """
    weights = torch.eye(cells, dtype=torch.float64)
    if frame:
        inside = max(1, round(valid * frame / cells))
        weights = _interpolated(_interpolated(weights, frame, cells)[:inside], size, inside)
    else:
        weights = _interpolated(weights, size, valid)
    return weights.to(device, torch.float32)


def _interpolated(nodes_NC: Tensor, size: int, extent: float) -> Tensor:
    """Rows at ``size`` pixels that span the first ``extent`` nodes; the border repeats."""
    place = (torch.arange(size, dtype=torch.float64) + 0.5) * (extent / size) - 0.5
    place = place.clamp(0, len(nodes_NC) - 1)
    before = place.floor().long()
    after = (before + 1).clamp(max=len(nodes_NC) - 1)
    return torch.lerp(nodes_NC[before], nodes_NC[after], (place - before)[:, None])


def pieces(logits_NHW: Tensor, floats_each: int) -> Iterator[slice]:
    """Ranges of masks such that a piece takes a bounded number of floats."""
    budget = CACHE_FLOATS if logits_NHW.device.type == "cpu" else DEVICE_FLOATS
    step = max(1, budget // max(floats_each, 1))
    for start in range(0, len(logits_NHW), step):
        yield slice(start, min(start + step, len(logits_NHW)))
