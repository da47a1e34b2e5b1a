"""Quality of masks, read off low-resolution logits wherever that cannot change a decision.

Stability is a ratio of two areas. Counted on the logits as they come it is off by a few hundredths; masks that
close to the threshold are drawn at full size and counted again, so that exactly those pass that would pass had
all been drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.propose.logits.interpolation import LogitFrame

STABILITY_MARGIN = 0.08
"""How far the stability of low-resolution logits may be off, for a mask of many cells."""
CELLS_OF_DOUBT = 128
"""Masks of fewer cells are always drawn before a threshold rejects or accepts them."""


def stability_scores(logits_NHW: Tensor, offset: float) -> Tensor:
    """IoU of the masks cut at ``+offset`` and ``-offset``, ``(n,)`` in [0, 1]; nan when both are empty.

    Args:
        logits_NHW: Logits cropped to the image.
        offset: Positive logit distance.
    """
    inner, outer = _areas(logits_NHW, offset)
    return inner.to(torch.float32) / outer.to(torch.float32)


def settled_stability(logits_NHW: Tensor, frame: LogitFrame, offset: float, least_N: Tensor) -> Tensor:
    """Stability ``(n,)``, exact where it decides: on whichever side of its threshold a full-size mask would be.

    Args:
        logits_NHW: ``(n, h, w)`` logits of the whole square.
        frame: Where the image lies in them.
        offset: Positive logit distance.
        least_N: Threshold of every mask; 0 asks for none.
    """
    inner, outer = _areas(frame.crop(logits_NHW), offset)
    stability = inner.to(torch.float32) / outer.to(torch.float32)
    near = (stability - least_N).abs() <= STABILITY_MARGIN
    doubtful = ((least_N > 0) & (near | (outer < CELLS_OF_DOUBT))).nonzero().squeeze(1)
    for piece, logits in frame.full_size(logits_NHW[doubtful]):
        stability[doubtful[piece]] = stability_scores(logits, offset)
    return stability


def _areas(logits_NHW: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    inner = (logits_NHW > offset).sum(dim=(-1, -2), dtype=torch.int32)
    return inner, (logits_NHW > -offset).sum(dim=(-1, -2), dtype=torch.int32)


def usable(boxes_xyxy: Tensor, min_side_px: float, min_area_px: float) -> Tensor:
    """Boxes with sides of at least ``min_side_px`` and an area of ``min_area_px``, ``(n,)`` bool; never empty ones."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    shortest, area = sides.amin(dim=1), sides.prod(dim=1)
    return (shortest > 0) & (shortest >= min_side_px) & (area >= min_area_px)
