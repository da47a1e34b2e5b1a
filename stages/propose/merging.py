"""From the candidates of all sources to the proposals of an image: three optional NMS and a cap.

Published: NMS at 0.3 among grid boxes by predicted IoU, at 0.9 among cross-attention boxes in list order,
nothing across sources. Better, and the default: one NMS over all, in which a survivor takes over the sources
of what it suppressed. It goes by predicted IoU times stability: of near-equal boxes, the one of the sharper
mask lies closer to the object.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stages.core.artifacts.schemas import SOURCE_BITS
from stages.core.ops.nms import nms_in_order, nms_merging_sources
from stages.propose.candidates import Candidates
from stages.propose.config import ProposeConfig


def merge_candidates(candidates: Candidates, config: ProposeConfig) -> Candidates:
    """Thin the candidates of one image.

    Args:
        candidates: In published order: grid, coarse, fine, cross.
        config: NMS thresholds and the cap.

    Returns:
        By descending rank after a union NMS or a cap, else in published order (the grid by predicted IoU
        if its NMS ran).
    """
    parts = [_of_source(candidates, name) for name in SOURCE_BITS]
    if config.box_nms_thresh < 1:
        parts[0] = _by_rank(parts[0], config.box_nms_thresh, config, inclusive=config.box_nms_inclusive)
    if config.cross_nms_thresh < 1 and config.cross_nms_by == "order":
        parts[3] = parts[3][nms_in_order(parts[3].boxes_xyxy, config.cross_nms_thresh)]
    elif config.cross_nms_thresh < 1:
        parts[3] = _by_rank(parts[3], config.cross_nms_thresh, config)
    return merge_all(Candidates.cat(parts), config)


def merge_all(merged: Candidates, config: ProposeConfig) -> Candidates:
    """The NMS over all sources, and the cap."""
    if config.union_nms_thresh < 1:
        merged = _by_rank(merged, config.union_nms_thresh, config)
    if config.max_proposals and len(merged) > config.max_proposals:
        best = torch.argsort(rank(merged, config), descending=True, stable=True)
        merged = merged[best[: config.max_proposals]]
    return merged


def rank(candidates: Candidates, config: ProposeConfig) -> Tensor:
    """What decides which of two overlapping boxes stays, ``(n,)``; higher is better."""
    if config.rank_by == "predicted_iou":
        return candidates.predicted_iou
    return candidates.predicted_iou * candidates.stability


def _of_source(candidates: Candidates, name: str) -> Candidates:
    return candidates[candidates.source == SOURCE_BITS[name]]


def _by_rank(
    candidates: Candidates, iou: float, config: ProposeConfig, *, inclusive: bool = False
) -> Candidates:
    boxes = candidates.boxes_xyxy
    if inclusive:
        boxes = boxes - boxes.new_tensor([0, 0, 1, 1])
    keep, source = nms_merging_sources(boxes, rank(candidates, config), candidates.source, iou)
    return replace(candidates[keep], source=source)
