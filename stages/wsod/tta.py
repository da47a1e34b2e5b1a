"""Test-time augmentation: the same proposals scored in several views and averaged box by box (digest section 4.8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.wsod.detection import ScoredProposals


@dataclass(frozen=True)
class View:
    """One look at an image: resized to a short side, perhaps mirrored."""

    size: int
    """Short side, pixels."""
    flip: bool = False


def views(test_size: int, sizes: Sequence[int], enabled: bool) -> tuple[View, ...]:
    """The plain view, or with augmentation every distinct size with and without flip."""
    if not enabled:
        return (View(test_size),)
    return tuple(View(size, flip) for size in sorted({test_size, *sizes}) for flip in (False, True))


def mirror_boxes(boxes_xyxy: Tensor, width: float) -> Tensor:
    """Boxes (..., 4) of the horizontally mirrored image; applying it twice gives them back."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def average(scored: Sequence[ScoredProposals]) -> ScoredProposals:
    """Mean scores and mean boxes of the same proposals over views, all in original pixels."""
    return ScoredProposals(
        torch.stack([view.scores_NC for view in scored]).mean(dim=0),
        torch.stack([view.boxes_NC4 for view in scored]).mean(dim=0),
    )
